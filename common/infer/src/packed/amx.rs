//! Products of levels with the activations of many tokens by the tiles of AMX (Intel, Sapphire Rapids and later), 16 times as many at the same
//! time as with AVX-512.
//!
//! Levels and activations are signed bytes, activations two of them. Fields of up to seven bits are decoded to bytes. The high bytes of
//! other levels are multiplied one by one, or, where they are many, as tiles too. Outliers are multiplied one by one.
//!
//! Safety: the unsafe operations are assembly and stores that access arrays of the lengths that it needs.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use uc_simd::{FULL_TILES, Kernel, TILE_ROW_BYTES, TILE_ROWS, dispatch};

use super::avx512;
use super::{Out, Outlier, PANEL, Piece, STRIP};
use crate::integer::{Interleave, LANES, Missing};
use crate::twelve_bits;

/// Rows of levels that are multiplied together.
pub(crate) const ROWS: usize = STRIP;
/// Rows that are multiplied while the sums stay in tiles.
pub(crate) const PAIR_ROWS: usize = 2 * TILE_ROWS;
/// Vectors of tokens whose sums are in memory at the same time, in the first-level cache.
const VECTORS: usize = 2;
/// Panels of which the levels are in memory at the same time. The tiles sleep after half a microsecond without products, and waking them takes
/// as long as a panel's products with a vector of tokens, so panels are decoded one after the other and then multiplied.
pub(crate) const PANELS: usize = 2;
/// High bytes whose products, one by one, take as long as those of all.
const MANY: usize = 128;
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
        // Loops, since closures of `array::map` would not be compiled with the instruction set.
        let (mut low, mut high) = ([[0; PANEL]; LANES], [[0; PANEL]; LANES]);
        for (row, (low, high)) in values.iter().zip(low.iter_mut().zip(&mut high)) {
            for (&value, (low, high)) in row.iter().zip(low.iter_mut().zip(high)) {
                (*low, *high) = (value as i8, high_byte(value) as i8);
            }
        }
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
    /// `[PANELS]`
    panels: Vec<PanelLevels>,
    sums: Sums,
}

/// The levels of a panel of at most [`ROWS`] rows.
#[derive(Clone)]
struct PanelLevels {
    low: Bytes,
    high: Bytes,
    /// Whether `high` has the high bytes of these levels.
    has_high: bool,
    /// What the levels have besides.
    missing: Vec<Missing>,
    /// Rows whose sums may need more than 32 bits, here of zeros, and their levels.
    wide: Vec<(usize, [i16; PANEL])>,
}

/// Bytes of levels.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bytes([[i8; PANEL]; ROWS]);

/// Sums of products, by [`PAIR_ROWS`] rows, and of these by vectors of tokens.
type PartSums = [VectorSums; ROWS / PAIR_ROWS * VECTORS];

/// Sums of the products of the low and of the high bytes of levels.
struct Sums {
    low: PartSums,
    high: PartSums,
}

/// Sums for [`LANES`] tokens, `[two tiles of rows, high and low bytes of activations, rows, tokens]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct VectorSums([[[[i32; LANES]; TILE_ROWS]; 2]; 2]);

impl Default for Memory {
    fn default() -> Self {
        let bytes = Bytes([[0; PANEL]; ROWS]);
        let panel = PanelLevels {
            low: bytes,
            high: bytes,
            has_high: false,
            missing: Vec::new(),
            wide: Vec::new(),
        };
        let sums = [VectorSums([[[[0; LANES]; TILE_ROWS]; 2]; 2]); ROWS / PAIR_ROWS * VECTORS];
        Memory {
            panels: vec![panel; PANELS],
            sums: Sums {
                low: sums,
                high: sums,
            },
        }
    }
}

/// The activations of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    /// Vectors of [`LANES`] tokens.
    pub(crate) vectors: &'a [TokenTiles],
    /// Number of tokens.
    pub(crate) count: usize,
    /// All other columns of the panel are padding, 0.
    pub(crate) columns: usize,
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

impl PanelLevels {
    /// Takes levels, which are at most 32639.
    fn divide(&mut self, levels: &[[i16; PANEL]]) {
        self.missing.clear();
        for (row, (levels, low)) in levels.iter().zip(&mut self.low.0).enumerate() {
            if dispatch(LowBytes(levels, low)) {
                let high = levels.iter().map(|&level| high_byte(level)).enumerate();
                let high = high.filter(|&(_, value)| value != 0);
                self.missing.extend(high.map(|(column, value)| Missing {
                    row,
                    column,
                    difference: 256 * i32::from(value),
                }));
            }
        }
        self.move_many(levels.len());
    }

    /// Decodes a piece.
    fn decode(&mut self, piece: Piece<'_>) {
        self.missing.clear();
        self.wide.clear();
        avx512::decode_bytes(piece, &mut self.low.0, &mut self.missing, &mut self.wide);
        self.move_many(piece.widths.len());
        let is_narrow = |row| self.wide.iter().all(|(wide, _)| *wide != row);
        let outliers = piece.outliers().iter().map(Outlier::missing);
        let outliers = outliers.filter(|missing| is_narrow(missing.row));
        self.missing.extend(outliers);
    }

    /// Moves what is missing so far, which are high bytes of the first `rows` rows, to `high` if there are many.
    fn move_many(&mut self, rows: usize) {
        self.has_high = self.missing.len() >= MANY;
        if self.has_high {
            self.high.0[..rows].as_flattened_mut().fill(0);
            for missing in self.missing.drain(..) {
                self.high.0[missing.row][missing.column] = (missing.difference / 256) as i8;
            }
        }
    }
}

impl Memory {
    /// Passes `<levels[r], x[t]>` for at most [`ROWS`] rows to `out`. The levels are at most 32639. They take slot 0.
    pub(crate) fn levels(&mut self, levels: &[[i16; PANEL]], x: Tokens<'_>, out: Out<'_>) {
        self.panels[0].divide(levels);
        self.add_decoded(0, levels.len(), x, out);
    }

    /// Decodes a piece into slot `slot`, one of [`PANELS`].
    pub(crate) fn decode(&mut self, slot: usize, piece: Piece<'_>) {
        piece.prefetch_outliers();
        self.panels[slot].decode(piece);
    }

    /// Passes the sums of the `rows` rows of a slot to `out`. Those of [`Memory::wide_rows`] are 0.
    pub(crate) fn add_decoded(&mut self, slot: usize, rows: usize, x: Tokens<'_>, out: Out<'_>) {
        let levels = &self.panels[slot];
        let high = levels.has_high.then_some(&levels.high);
        self.sums
            .pass((&levels.low, high), &levels.missing, rows, x, out);
    }

    /// The rows of a slot whose sums may need more than 32 bits, and their levels without outliers.
    pub(crate) fn wide_rows(&self, slot: usize) -> &[(usize, [i16; PANEL])] {
        &self.panels[slot].wide
    }

    /// Divides at most [`ROWS`] rows of [`twelve_bits`] into their parts, in slot `slot`.
    pub(crate) fn divide_twelve_bits(&mut self, slot: usize, rows: twelve_bits::Panel<'_>) {
        let PanelLevels { low, high, .. } = &mut self.panels[slot];
        avx512::byte_parts(rows, &mut high.0, &mut low.0);
    }

    /// Adds to `out: [rows, tokens]` the products of the high and then those of the low parts in slot `slot`, with the scales `[tokens]` of
    /// each.
    pub(crate) fn add_twelve_bits(
        &mut self,
        slot: usize,
        x: Tokens<'_>,
        scales: [&[f32]; 2],
        out: &mut [f32],
    ) {
        let PanelLevels { low, high, .. } = &self.panels[slot];
        let rows = out.len() / x.count;
        for (part, scales) in [high, low].into_iter().zip(scales) {
            let out = Out::Joined(scales, &mut *out);
            self.sums.pass((part, None), &[], rows, x, out);
        }
    }
}

impl Sums {
    /// Passes the sums of `rows` rows to `out`: the products of low bytes, of high bytes, which count 256 times, and what is missing.
    fn pass(
        &mut self,
        (low, high): (&Bytes, Option<&Bytes>),
        missing: &[Missing],
        rows: usize,
        x: Tokens<'_>,
        mut out: Out<'_>,
    ) {
        assert!(is_available() && rows <= ROWS && out.len() == rows * x.count);
        assert_eq!(x.vectors.len(), x.count.div_ceil(LANES), "vectors");
        let pairs = rows.div_ceil(PAIR_ROWS);
        let blocks = x.columns.min(PANEL).div_ceil(BLOCK);
        for (index, vectors) in x.vectors.chunks(VECTORS).enumerate() {
            // SAFETY: the processor has AMX.
            unsafe {
                multiply(low, vectors, [pairs, blocks], &mut self.low);
                if let Some(high) = high {
                    multiply(high, vectors, [pairs, blocks], &mut self.high);
                }
            }
            for (vector, x_of_vector) in vectors.iter().enumerate() {
                let first = (VECTORS * index + vector) * LANES;
                for &missing in missing {
                    let sums = &mut self.low[missing.row / PAIR_ROWS * vectors.len() + vector];
                    // SAFETY: the processor has AVX-512.
                    unsafe { add_missing(missing, x_of_vector, sums) };
                }
                for pair in 0..pairs {
                    let place = pair * vectors.len() + vector;
                    let high = high.map(|_| &self.high[place]);
                    let first_row = pair * PAIR_ROWS;
                    let rows = first_row..rows.min(first_row + PAIR_ROWS);
                    // SAFETY: as above.
                    unsafe { join(&self.low[place], high, rows, [first, x.count], &mut out) };
                }
            }
        }
    }
}

/// Adds what is missing to a level to the sums of its row.
#[target_feature(enable = "avx512f,avx512bw")]
fn add_missing(missing: Missing, x: &TokenTiles, sums: &mut VectorSums) {
    let (four, byte) = (missing.column / 4, missing.column % 4);
    let row = missing.row % PAIR_ROWS;
    let [_, of_low] = &mut sums.0[row / TILE_ROWS];
    let sum = &mut of_low[row % TILE_ROWS];
    let above = _mm_cvtsi32_si128(24 - 8 * byte as i32);
    let [high, low] = [&x.high[four], &x.low[four]]
        .map(|four| _mm512_srai_epi32::<24>(_mm512_sll_epi32(avx512::load(four), above)));
    let x = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
    let product = _mm512_mullo_epi32(x, _mm512_set1_epi32(missing.difference));
    let new = _mm512_add_epi32(avx512::load(sum), product);
    // SAFETY: the array has the length of a vector.
    unsafe { _mm512_storeu_si512(sum.as_mut_ptr().cast(), new) };
}

/// Passes the sums of rows, whose parts these are, to `out`.
#[target_feature(enable = "avx512f,avx512bw")]
fn join(
    sums: &VectorSums,
    of_high: Option<&VectorSums>,
    rows: Range<usize>,
    [first, tokens]: [usize; 2],
    out: &mut Out<'_>,
) {
    for (index, row) in rows.enumerate() {
        let (tile, index) = (index / TILE_ROWS, index % TILE_ROWS);
        let [high, low] = &sums.0[tile];
        let found = match of_high {
            None => avx512::joined_bytes(&[&high[index], &low[index]]),
            Some(of_high) => {
                // The high byte of a level counts 256 times.
                let [high_high, high_low] = &of_high.0[tile];
                let middle = std::array::from_fn(|token| {
                    high[index][token].wrapping_add(high_low[index][token])
                });
                avx512::joined_bytes(&[&high_high[index], &middle, &low[index]])
            }
        };
        out.take(found, row, first, tokens);
    }
}

/// The products of bytes of levels with those of activations: of the first `pairs` times [`PAIR_ROWS`] rows, and of the first `blocks` blocks of
/// columns.
///
/// # Safety
/// The processor has AMX.
unsafe fn multiply(
    levels: &Bytes,
    x: &[TokenTiles],
    [pairs, blocks]: [usize; 2],
    sums: &mut PartSums,
) {
    const SECOND: usize = TILE_ROWS * PANEL;
    const LOW: usize = std::mem::offset_of!(TokenTiles, low);
    const TILE: usize = TILE_ROWS * TILE_ROW_BYTES;
    const { assert!(PANEL == 4 * TILE_ROW_BYTES) };
    assert!(!x.is_empty() && x.len() <= VECTORS);
    assert!(0 < pairs && pairs <= ROWS / PAIR_ROWS);
    assert!(0 < blocks && blocks <= PANEL / BLOCK);
    // SAFETY: the tiles of levels are rows of 64 of `PANEL` bytes, those of activations 16 rows of the halves of `x.len()` elements, and
    // those of sums the four of each of `pairs * x.len()`; the assertions cover them. The tiles are configured and released here.
    unsafe {
        asm!(
            "ldtilecfg [{at}]",
            "2:",
            "mov {x}, {first_x}",
            "mov {vector}, {vectors}",
            "3:",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "mov {level}, {levels}",
            "mov {at}, {x}",
            "mov {block}, {blocks}",
            "4:",
            "tileloadd tmm4, [{level} + 4*{row}]",
            "tileloadd tmm6, [{at} + {row}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{at} + {row} + {low}]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{level} + 4*{row} + {second}]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {level}, {row}",
            "add {at}, {tile}",
            "dec {block}",
            "jnz 4b",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + {tile}], tmm1",
            "tilestored [{sums} + {row} + 2*{tile}], tmm2",
            "tilestored [{sums} + {row} + 3*{tile}], tmm3",
            "add {sums}, {vector_sums}",
            "add {x}, {vector_bytes}",
            "dec {vector}",
            "jnz 3b",
            "add {levels}, 2*{second}",
            "dec {pairs}",
            "jnz 2b",
            "tilerelease",
            levels = inout(reg) levels => _,
            first_x = in(reg) x.as_ptr(),
            sums = inout(reg) sums.as_mut_ptr() => _,
            vectors = in(reg) x.len(),
            pairs = inout(reg) pairs => _,
            blocks = in(reg) blocks,
            row = in(reg) TILE_ROW_BYTES,
            x = out(reg) _,
            vector = out(reg) _,
            level = out(reg) _,
            at = inout(reg) &raw const FULL_TILES => _,
            block = out(reg) _,
            low = const LOW,
            second = const SECOND,
            tile = const TILE,
            vector_bytes = const size_of::<TokenTiles>(),
            vector_sums = const size_of::<VectorSums>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
