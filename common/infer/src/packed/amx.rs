//! Products of decoded levels with the activations of many tokens by the tiles of AMX (Intel, Sapphire Rapids and later), 16 times as many
//! at the same time as with AVX-512.
//!
//! Levels and activations are divided into signed bytes. Where few levels have a high byte, as in packs of 5 bits, their products with it are
//! added one by one, elsewhere they are products of tiles too.
//!
//! Safety: the unsafe operations are assembly and stores that access arrays of the lengths that it needs.
#![allow(unsafe_code)]

use std::arch::asm;

use uc_simd::{FULL_TILES, Kernel, TILE_ROW_BYTES, TILE_ROWS, dispatch};

use super::PANEL;
use super::avx512::{self, Out};
use crate::integer::{Interleave, LANES};

/// Rows of levels that are multiplied together.
pub(crate) const ROWS: usize = 2 * TILE_ROWS;
/// Vectors of tokens whose sums are in memory at the same time, in the first-level cache.
const VECTORS: usize = 4;
/// High bytes whose products, one by one, take as long as those of all.
const MANY: usize = 64;
/// Columns of a tile of levels.
const BLOCK: usize = TILE_ROW_BYTES;

/// Whether the kernel can be used.
pub(crate) fn is_available() -> bool {
    uc_simd::has_amx() && avx512::is_available()
}

/// The activations of [`LANES`] tokens and a panel as two signed bytes each, `256 · high + low`: four columns of each token side by side, as
/// the rows of tiles.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(crate) struct TokenTiles {
    high: [[[i8; 4]; LANES]; PANEL / 4],
    low: [[[i8; 4]; LANES]; PANEL / 4],
}

impl TokenTiles {
    pub(crate) const ZERO: Self = Self {
        high: [[[0; 4]; LANES]; PANEL / 4],
        low: [[[0; 4]; LANES]; PANEL / 4],
    };

    /// The activation of a token and column.
    pub(crate) fn value(&self, token: usize, column: usize) -> i16 {
        let byte = |bytes: &[[[i8; 4]; LANES]]| i16::from(bytes[column / 4][token][column % 4]);
        256 * byte(&self.high) + byte(&self.low)
    }
}

/// Sets the activations of a vector of tokens, whose magnitudes are at most 32512.
pub(crate) struct SetTokens<'a>(
    pub(crate) &'a mut TokenTiles,
    pub(crate) &'a [[i16; PANEL]; LANES],
);

impl Kernel for SetTokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let SetTokens(tiles, values) = self;
        let low = values.map(|row| row.map(|value| value as i8));
        let high = values.map(|row| row.map(|value| high_byte(value) as i8));
        for (bytes, out) in [(&low, &mut tiles.low), (&high, &mut tiles.high)] {
            let rows = bytes.each_ref().map(|row| row.as_chunks().0);
            Interleave { rows, out }.run();
        }
    }
}

/// What is left of a value, in units of 256, without its lowest byte as a signed number.
#[inline(always)]
fn high_byte(value: i16) -> i16 {
    ((i32::from(value) - i32::from(value as i8)) >> 8) as i16
}

/// The memory of products.
pub(crate) struct Memory {
    low: Bytes,
    high: Vec<HighByte>,
    /// The same as bytes, if there are many.
    many_high: Bytes,
    sums: [VectorSums; VECTORS],
    high_sums: [VectorSums; VECTORS],
}

/// The high byte of a level.
#[derive(Debug, Clone, Copy)]
struct HighByte {
    row: usize,
    column: usize,
    value: i16,
}

/// Bytes of levels.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bytes([[i8; PANEL]; ROWS]);

/// Sums for [`LANES`] tokens, `[two tiles of rows, high and low bytes of activations, rows, tokens]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct VectorSums([[[[i32; LANES]; TILE_ROWS]; 2]; 2]);

impl Default for Memory {
    fn default() -> Self {
        let bytes = Bytes([[0; PANEL]; ROWS]);
        let sums = [VectorSums([[[[0; LANES]; TILE_ROWS]; 2]; 2]); VECTORS];
        Memory {
            low: bytes,
            high: Vec::new(),
            many_high: bytes,
            sums,
            high_sums: sums,
        }
    }
}

/// Writes the low bytes of a row of levels. Returns whether one of them has a high byte.
struct LowBytes<'a>(&'a [i16; PANEL], &'a mut [i8; PANEL]);

impl Kernel for LowBytes<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut difference = 0;
        for (&level, low) in self.0.iter().zip(self.1) {
            *low = level as i8;
            difference |= level ^ i16::from(*low);
        }
        difference != 0
    }
}

impl Memory {
    /// Divides levels into bytes.
    fn divide(&mut self, levels: &[[i16; PANEL]]) {
        self.high.clear();
        for (row, (levels, low)) in levels.iter().zip(&mut self.low.0).enumerate() {
            if dispatch(LowBytes(levels, low)) {
                let high = levels.iter().map(|&level| high_byte(level)).enumerate();
                let high = high.filter(|&(_, value)| value != 0);
                self.high
                    .extend(high.map(|(column, value)| HighByte { row, column, value }));
            }
        }
    }
}

/// `sums[r][t] = <levels[r], x[t]>` for at most [`ROWS`] rows and `tokens` tokens. All but the first `columns` of the panel are padding, 0.
/// The levels are at most 32639.
pub(crate) fn sums(
    levels: &[[i16; PANEL]],
    x: &[TokenTiles],
    [tokens, columns]: [usize; 2],
    memory: &mut Memory,
    mut out: Out<'_>,
) {
    assert!(is_available() && levels.len() <= ROWS && out.len() == levels.len() * tokens);
    assert_eq!(x.len(), tokens.div_ceil(LANES), "vectors of tokens");
    memory.divide(levels);
    let Memory {
        low,
        high,
        many_high,
        sums,
        high_sums,
    } = memory;
    let has_many = high.len() >= MANY;
    if has_many {
        many_high.0.as_flattened_mut().fill(0);
        let bytes = high.drain(..);
        bytes.for_each(|high| many_high.0[high.row][high.column] = high.value as i8);
    }
    let blocks = columns.min(PANEL).div_ceil(BLOCK);
    for (index, x) in x.chunks(VECTORS).enumerate() {
        // SAFETY: the processor has AMX.
        unsafe {
            multiply(low, x, blocks, sums);
            if has_many {
                multiply(many_high, x, blocks, high_sums);
            }
        }
        for (vector, (sums, x)) in sums.iter_mut().zip(x).enumerate() {
            let first = (VECTORS * index + vector) * LANES;
            let high_sums = has_many.then_some(&high_sums[vector]);
            // SAFETY: the processor has AVX-512.
            unsafe {
                high.iter().for_each(|&high| add_high(high, x, sums));
                join(sums, high_sums, [levels.len(), first, tokens], &mut out);
            }
        }
    }
}

/// Adds the products of a high byte to the sums of its row.
#[target_feature(enable = "avx512f,avx512bw")]
fn add_high(high: HighByte, x: &TokenTiles, sums: &mut VectorSums) {
    let (four, byte) = (high.column / 4, high.column % 4);
    let (tile, row) = (high.row / TILE_ROWS, high.row % TILE_ROWS);
    let [of_high, of_low] = &mut sums.0[tile];
    for (sums, x) in [(of_high, &x.high[four]), (of_low, &x.low[four])] {
        for (sum, bytes) in sums[row].iter_mut().zip(x) {
            let word = i32::from_le_bytes(bytes.map(|byte| byte as u8));
            let x = word << (24 - 8 * byte) >> 24;
            *sum = sum.wrapping_add((256 * i32::from(high.value)).wrapping_mul(x));
        }
    }
}

/// Passes the sums of `rows` rows, whose parts these are, to `out`.
#[target_feature(enable = "avx512f,avx512bw")]
fn join(
    sums: &VectorSums,
    high_sums: Option<&VectorSums>,
    [rows, first, tokens]: [usize; 3],
    out: &mut Out<'_>,
) {
    for row in 0..rows {
        let (tile, index) = (row / TILE_ROWS, row % TILE_ROWS);
        let [high, low] = &sums.0[tile];
        let found = match high_sums {
            None => avx512::joined_bytes(&[&high[index], &low[index]]),
            Some(of_high) => {
                // The high byte of a level counts 256 times.
                let [high_high, high_low] = &of_high.0[tile];
                let middle: [i32; LANES] = std::array::from_fn(|token| {
                    high[index][token].wrapping_add(high_low[index][token])
                });
                avx512::joined_bytes(&[&high_high[index], &middle, &low[index]])
            }
        };
        out.take(found, row, first, tokens);
    }
}

/// The products of bytes of levels with those of activations, in the first `blocks` blocks of columns.
///
/// # Safety
/// The processor has AMX.
unsafe fn multiply(levels: &Bytes, x: &[TokenTiles], blocks: usize, sums: &mut [VectorSums]) {
    const SECOND: usize = TILE_ROWS * PANEL;
    const LOW: usize = std::mem::offset_of!(TokenTiles, low);
    const TILE: usize = TILE_ROWS * TILE_ROW_BYTES;
    assert!(!x.is_empty() && x.len() <= sums.len());
    assert!(0 < blocks && blocks <= PANEL / BLOCK);
    // SAFETY: the tiles of levels are `ROWS` rows of 64 of `PANEL` bytes, those of activations 16 rows of the halves of `x.len()` elements, and
    // those of sums the four of each of as many; the assertions cover them. The tiles are configured and released here.
    unsafe {
        asm!(
            "ldtilecfg [{at}]",
            "2:",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "mov {level}, {levels}",
            "mov {at}, {x}",
            "mov {block}, {blocks}",
            "3:",
            "tileloadd tmm4, [{level} + {level_row}]",
            "tileloadd tmm6, [{at} + {row}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{at} + {row} + {low}]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{level} + {level_row} + {second}]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {level}, {row}",
            "add {at}, {tile}",
            "dec {block}",
            "jnz 3b",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + {tile}], tmm1",
            "tilestored [{sums} + {row} + 2*{tile}], tmm2",
            "tilestored [{sums} + {row} + 3*{tile}], tmm3",
            "add {sums}, {vector_sums}",
            "add {x}, {vector}",
            "dec {vectors}",
            "jnz 2b",
            "tilerelease",
            levels = in(reg) levels,
            x = inout(reg) x.as_ptr() => _,
            sums = inout(reg) sums.as_mut_ptr() => _,
            vectors = inout(reg) x.len() => _,
            blocks = in(reg) blocks,
            level_row = in(reg) PANEL,
            row = in(reg) TILE_ROW_BYTES,
            level = out(reg) _,
            at = inout(reg) &raw const FULL_TILES => _,
            block = out(reg) _,
            low = const LOW,
            second = const SECOND,
            tile = const TILE,
            vector = const size_of::<TokenTiles>(),
            vector_sums = const size_of::<VectorSums>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
