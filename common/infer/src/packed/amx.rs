//! Products of decoded levels with the activations of many tokens by the tiles of AMX (Intel, Sapphire Rapids and later), 16 times as many
//! at the same time as with AVX-512.
//!
//! Levels and activations are divided into signed bytes. A level of a narrow row is a byte, or 256 more or less: the products with the
//! high bytes are computed for rows that have such levels only.
//!
//! Safety: the unsafe operations are assembly and stores that access arrays of the lengths that it needs.
#![allow(unsafe_code)]

use std::arch::asm;

use uc_simd::{FULL_TILES, Kernel, TILE_ROW_BYTES, TILE_ROWS, dispatch};

use super::PANEL;
use super::avx512::{self, Out};
use crate::integer::LANES;

/// Rows of levels that are multiplied together.
pub(crate) const ROWS: usize = 2 * TILE_ROWS;
/// Vectors of tokens whose sums are in memory at the same time, in the first-level cache.
const VECTORS: usize = 4;
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

    /// Sets the activations of a token, whose magnitudes are at most 32512.
    pub(crate) fn set(&mut self, token: usize, values: &[i16; PANEL]) {
        let places = self.high.iter_mut().zip(&mut self.low);
        for ((high, low), values) in places.zip(values.as_chunks::<4>().0) {
            low[token] = values.map(|value| value as i8);
            high[token] = values.map(|value| high_byte(value) as i8);
        }
    }

    /// The activation of a token and column.
    pub(crate) fn value(&self, token: usize, column: usize) -> i16 {
        let byte = |bytes: &[[[i8; 4]; LANES]]| i16::from(bytes[column / 4][token][column % 4]);
        256 * byte(&self.high) + byte(&self.low)
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
    high: Bytes,
    sums: [VectorSums; VECTORS],
    high_sums: [VectorSums; VECTORS],
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
        let sums = [VectorSums([[[[0; LANES]; TILE_ROWS]; 2]; 2]); VECTORS];
        Memory {
            low: Bytes([[0; PANEL]; ROWS]),
            high: Bytes([[0; PANEL]; ROWS]),
            sums,
            high_sums: sums,
        }
    }
}

/// Divides levels into bytes. Returns whether one of them has a high byte.
struct Divide<'a> {
    levels: &'a [[i16; PANEL]],
    memory: &'a mut Memory,
}

impl Kernel for Divide<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut all = [0i16; PANEL];
        let bytes = self.memory.low.0.iter_mut().zip(&mut self.memory.high.0);
        for (levels, (low, high)) in self.levels.iter().zip(bytes) {
            for column in 0..PANEL {
                let byte = high_byte(levels[column]);
                low[column] = levels[column] as i8;
                high[column] = byte as i8;
                all[column] |= byte;
            }
        }
        all.iter().any(|&byte| byte != 0)
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
    let has_high = dispatch(Divide { levels, memory });
    let Memory {
        low,
        high,
        sums,
        high_sums,
    } = memory;
    let blocks = columns.min(PANEL).div_ceil(BLOCK);
    for (index, x) in x.chunks(VECTORS).enumerate() {
        // SAFETY: the processor has AMX.
        unsafe {
            multiply(low, x, blocks, sums);
            if has_high {
                multiply(high, x, blocks, high_sums);
            }
        }
        for (vector, sums) in sums.iter().take(x.len()).enumerate() {
            let first = (VECTORS * index + vector) * LANES;
            let high_sums = has_high.then_some(&high_sums[vector]);
            // SAFETY: the processor has AVX-512.
            unsafe { join(sums, high_sums, [levels.len(), first, tokens], &mut out) };
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
        let whole = |sums: &VectorSums| {
            let [high, low] = &sums.0[tile];
            avx512::joined_bytes(&high[index], &low[index])
        };
        let found = match high_sums {
            None => whole(sums),
            Some(high) => avx512::joined_vectors(whole(high), whole(sums)),
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
