//! Products with the activations of few tokens: fields are decoded once for all of them and multiplied in registers.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{BYTE, HALF, Row, UNIT, is_available, load, quarters, store};
use crate::packed::{Cursor, GROUP, NARROW, Operands, PANEL, STRIP, WIDTHS, ZERO_ROW, is_special};

/// Rows whose sums are kept in lanes.
const CHUNK: usize = 8;

/// The activations of one token and panel.
#[derive(Debug, Clone)]
#[repr(align(32))]
pub(crate) struct Pairs {
    /// For each unit those of the even and of the odd columns.
    units: [[[i16; HALF]; 2]; PANEL / UNIT],
    /// For each width up to [`NARROW`], 8, what making the levels positive adds; at the width modulo [`CHUNK`].
    excess: [i32; CHUNK],
}

impl Pairs {
    /// Orders the integers of a panel.
    pub(crate) fn new(values: &[i16; PANEL]) -> Self {
        let mut units = [[[0; HALF]; 2]; PANEL / UNIT];
        for (column, &value) in values.iter().enumerate() {
            units[column / UNIT][column % 2][column % UNIT / 2] = value;
        }
        let sum: i32 = values.iter().map(|&value| i32::from(value)).sum();
        let mut excess = [0; CHUNK];
        for width in *WIDTHS.start()..=NARROW {
            excess[width as usize % CHUNK] = sum << width;
        }
        Pairs { units, excess }
    }

    /// What making the levels of rows positive adds to their sums.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn excess(&self, widths: &[u8; CHUNK]) -> __m256i {
        // SAFETY: the array has the length of half a vector.
        let widths = unsafe { _mm_loadl_epi64(widths.as_ptr().cast()) };
        // The permutation uses the lowest three bits.
        _mm256_permutevar8x32_epi32(load(&self.excess), _mm256_cvtepu8_epi32(widths))
    }

    /// What making numbers of a width positive adds to the sum of their products.
    pub(super) fn excess_of(&self, width: u8) -> i32 {
        self.excess[usize::from(width) % CHUNK]
    }

    /// Adds the products of the levels of the even and of the odd columns of a unit.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn add(&self, unit: usize, levels: [__m256i; 2], sums: __m256i) -> __m256i {
        let [even, odd] = &self.units[unit];
        let even = _mm256_madd_epi16(levels[0], load(even));
        let odd = _mm256_madd_epi16(levels[1], load(odd));
        _mm256_add_epi32(_mm256_add_epi32(sums, even), odd)
    }
}

/// Adds to `out: [tokens, rows]` the products of the rows of a piece. The sum of a row that does not fit into 32 bits counts as 0 here;
/// `special` gets the number of the row and its levels.
pub(crate) fn add_products<const T: usize>(
    of: &Operands<'_, Pairs, T>,
    out: &mut [[f32; STRIP]; T],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) {
    assert!(is_available() && of.piece.widths.len() <= STRIP);
    // SAFETY: the processor has the instructions.
    unsafe {
        match of.piece.groups {
            1 => products_of::<{ GROUP / UNIT }, T>(of, out, special),
            2 => products_of::<{ 2 * GROUP / UNIT }, T>(of, out, special),
            3 => products_of::<{ 3 * GROUP / UNIT }, T>(of, out, special),
            _ => products_of::<{ PANEL / UNIT }, T>(of, out, special),
        }
    }
}

/// See [`add_products`]; `U` units.
#[target_feature(enable = "avx2,fma")]
fn products_of<const U: usize, const T: usize>(
    of: &Operands<'_, Pairs, T>,
    out: &mut [[f32; STRIP]; T],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) {
    let &Operands {
        piece,
        x,
        sums,
        scales,
    } = of;
    let mut cursor = piece.cursor();
    for (chunk, widths) in piece.widths.chunks(CHUNK).enumerate() {
        let mut padded = [ZERO_ROW; CHUNK];
        padded[..widths.len()].copy_from_slice(widths);
        // -1 for rows that are not special.
        let mut mask = [0i32; CHUNK];
        let mut lanes = [[_mm256_setzero_si256(); CHUNK]; T];
        for (row, &width) in widths.iter().enumerate() {
            let found = if width.wrapping_sub(1) < BYTE {
                row_products::<false, U, T>(&mut cursor, x)
            } else if is_special(width) {
                special_row(&mut cursor, special);
                continue;
            } else {
                row_products::<true, U, T>(&mut cursor, x)
            };
            mask[row] = -1;
            for token in 0..T {
                lanes[token][row] = found[token];
            }
        }
        let mask = load(&mask);
        for token in 0..T {
            let found = _mm256_sub_epi32(chunk_totals(lanes[token]), x[token].excess(&padded));
            let more = &sums[token].as_chunks::<CHUNK>().0[chunk];
            let found = _mm256_and_si256(_mm256_add_epi32(found, load(more)), mask);
            let out = &mut out[token].as_chunks_mut::<CHUNK>().0[chunk];
            let before = _mm256_castsi256_ps(load(&*out));
            let scale = _mm256_set1_ps(scales[token]);
            let after = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(found), before);
            store(_mm256_castps_si256(after), out);
        }
    }
}

/// Passes on the levels of a row whose sums may not fit into 32 bits.
#[cold]
#[inline(never)]
fn special_row(cursor: &mut Cursor<'_>, special: &mut dyn FnMut(usize, &[i16; PANEL])) {
    let (row, mut levels) = (cursor.row, [0; PANEL]);
    if cursor.next_row(&mut levels) {
        special(row, &levels);
    }
}

/// The lanes of the sums of the next row, of `U` units. Its fields have 8 bits if `IS_BYTE`, else fewer.
#[inline]
#[target_feature(enable = "avx2")]
fn row_products<const IS_BYTE: bool, const U: usize, const T: usize>(
    cursor: &mut Cursor<'_>,
    x: &[Pairs; T],
) -> [__m256i; T] {
    let mut sums = [_mm256_setzero_si256(); T];
    let row = Row::next(cursor);
    let histories = cursor.history.as_chunks_mut().0.first_chunk_mut();
    let histories: &mut [_; U] = histories.expect("a history for each unit");
    for unit in 0..U {
        let levels = row.levels::<IS_BYTE>(unit, &mut histories[unit]);
        for token in 0..T {
            sums[token] = x[token].add(unit, levels, sums[token]);
        }
    }
    sums
}

/// The sums of the lanes of the vectors of a chunk.
#[inline]
#[target_feature(enable = "avx2")]
fn chunk_totals(lanes: [__m256i; CHUNK]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = lanes;
    let (first, second) = (quarters([a, b, c, d]), quarters([e, f, g, h]));
    _mm256_add_epi32(
        _mm256_permute2x128_si256::<0x20>(first, second),
        _mm256_permute2x128_si256::<0x31>(first, second),
    )
}
