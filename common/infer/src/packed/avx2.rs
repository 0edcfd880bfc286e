//! Kernels for processors with AVX2 and without the instructions of [`super::avx512`].
//!
//! A unit of 32 columns is decoded as 16 even and 16 odd ones. The two bytes that a field touches are brought to a 16-bit lane
//! (`vpshufb`), a product with a power of two moves the field to where a shift leaves its double, and the bits of the trellis, which are
//! linear in the state, come from two tables of 16 entries. Products are sums of pairs (`vpmaddwd`).
//!
//! Safety: every function here is compiled for the instruction set that [`is_available`] finds; those that callers use check it. Loads
//! and stores access arrays of the length of a vector, or fields, after which there are [`SLACK`](super::SLACK) bytes.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{Cursor, NARROW, PANEL, WIDTHS, is_special};
use crate::integer::LANES;

/// Columns of a unit.
const UNIT: usize = 32;
/// Columns of a unit that are even.
const HALF: usize = UNIT / 2;

/// Whether this processor has the instructions of this module.
pub(crate) fn is_available() -> bool {
    uc_simd::has_avx2()
}

/// How the fields of a width are cut out of their bytes.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Cut {
    /// For each byte of the 16-bit lanes of the even and of the odd columns, the byte of the fields of the 16 columns that comes there.
    gather: [[u8; UNIT]; 2],
    /// For each lane, the power of two that brings its field to bit 8.
    scale: [[u16; HALF]; 2],
    /// The bits of the doubled field.
    mask: [u16; HALF],
}

/// For each width up to [`NARROW`].
static CUTS: [Cut; NARROW as usize + 1] = {
    let mut cuts = [Cut {
        gather: [[0; UNIT]; 2],
        scale: [[0; HALF]; 2],
        mask: [0; HALF],
    }; NARROW as usize + 1];
    let mut width = *WIDTHS.start() as usize;
    while width < cuts.len() {
        let mut column = 0;
        while column < UNIT {
            let (lane, parity) = (column / 2, column % 2);
            // Each 128-bit part has the fields of its 16 columns.
            let bit = column % HALF * width;
            cuts[width].gather[parity][2 * lane] = (bit / 8) as u8;
            // The byte after the sixteenth is not used.
            cuts[width].gather[parity][2 * lane + 1] = ((bit / 8 + 1) % 16) as u8;
            cuts[width].scale[parity][lane] = 1 << (8 - bit % 8);
            cuts[width].mask[lane] = ((1 << width) - 1) << 1;
            column += 1;
        }
        width += 1;
    }
    cuts
};

/// The bits that four bits of a state, from bit `first` on, add to a level; see [`FEEDFORWARD`](uc_codec::trellis::FEEDFORWARD).
const fn terms(first: u32) -> [u8; 32] {
    let mut table = [0; 32];
    let mut index = 0;
    while index < 32 {
        let state = ((index % 16) << first) as u8;
        let lowest = state >> 1 ^ state >> 5;
        let second = state >> 2 ^ state >> 4 ^ state >> 5 ^ state >> 6;
        table[index] = (second & 1) << 1 | lowest & 1;
        index += 1;
    }
    table
}

static LOW_TERMS: [u8; 32] = terms(0);
static HIGH_TERMS: [u8; 32] = terms(4);

#[inline]
#[target_feature(enable = "avx2")]
fn load<T, const N: usize>(values: &[T; N]) -> __m256i {
    const { assert!(size_of::<[T; N]>() == 32) }
    // SAFETY: the array has the length of a vector.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<T, const N: usize>(vector: __m256i, values: &mut [T; N]) {
    const { assert!(size_of::<[T; N]>() == 32) }
    // SAFETY: the array has the length of a vector.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), vector) }
}

/// Decodes the next rows, see [`crate::integer::decode`].
pub(crate) fn decode(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    assert!(is_available());
    for (row, levels) in levels.iter_mut().enumerate() {
        if is_special(cursor.widths[cursor.row]) {
            let mut special = 0;
            crate::integer::decode_plain(cursor, std::slice::from_mut(levels), &mut special);
            *wide |= special << row;
        } else {
            // SAFETY: the processor has the instructions.
            unsafe { decode_row(cursor, levels) }
        }
    }
}

/// The levels of a row that is not special.
#[target_feature(enable = "avx2")]
fn decode_row(cursor: &mut Cursor<'_>, levels: &mut [i16; PANEL]) {
    let width = usize::from(cursor.widths[cursor.row]);
    let cut = &CUTS[width];
    let gather = [load(&cut.gather[0]), load(&cut.gather[1])];
    let scale = [load(&cut.scale[0]), load(&cut.scale[1])];
    let (mask, bias) = (load(&cut.mask), _mm256_set1_epi16(1 << width));
    let (low_terms, high_terms) = (load(&LOW_TERMS), load(&HIGH_TERMS));
    let (nibble, byte) = (_mm256_set1_epi8(15), _mm256_set1_epi16(255));
    let newest = _mm256_set1_epi16(2);
    let units = cursor.groups * super::GROUP / UNIT;
    let histories = cursor.history.as_chunks_mut::<UNIT>().0;
    let parts = histories.iter_mut().zip(levels.as_chunks_mut::<UNIT>().0);
    for (unit, (history, levels)) in parts.take(units).enumerate() {
        let first = cursor.offset + unit * width * UNIT / 8;
        debug_assert!(first + width * HALF / 8 + 16 <= cursor.fields.len());
        // SAFETY: fields are followed by more bytes than such a vector has.
        let bytes = unsafe {
            let fields = cursor.fields.as_ptr().add(first);
            let upper = fields.add(width * HALF / 8);
            _mm256_set_m128i(
                _mm_loadu_si128(upper.cast()),
                _mm_loadu_si128(fields.cast()),
            )
        };
        // Twice the fields, and a bit below.
        let [even, odd] = [0, 1].map(|parity| {
            let words = _mm256_shuffle_epi8(bytes, gather[parity]);
            _mm256_srli_epi16::<7>(_mm256_mullo_epi16(words, scale[parity]))
        });
        let states = load(&*history);
        let low = _mm256_shuffle_epi8(low_terms, _mm256_and_si256(states, nibble));
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(states), nibble);
        let terms = _mm256_xor_si256(low, _mm256_shuffle_epi8(high_terms, high));
        let level = |doubled, term| {
            let level = _mm256_xor_si256(_mm256_and_si256(doubled, mask), term);
            _mm256_sub_epi16(level, bias)
        };
        let even_levels = level(even, _mm256_and_si256(terms, byte));
        let odd_levels = level(odd, _mm256_srli_epi16::<8>(terms));
        let bits = _mm256_or_si256(
            _mm256_and_si256(even, newest),
            _mm256_slli_epi16::<8>(_mm256_and_si256(odd, newest)),
        );
        store(
            _mm256_or_si256(_mm256_add_epi8(states, states), bits),
            history,
        );
        let lower = _mm256_unpacklo_epi16(even_levels, odd_levels);
        let upper = _mm256_unpackhi_epi16(even_levels, odd_levels);
        let [first, second] = levels.as_chunks_mut::<HALF>().0 else {
            unreachable!("a unit has two halves");
        };
        store(_mm256_permute2x128_si256::<0x20>(lower, upper), first);
        store(_mm256_permute2x128_si256::<0x31>(lower, upper), second);
    }
    cursor.offset += cursor.groups * super::group_bytes(width as u8);
    cursor.row += 1;
}

/// `sums[r][t] = <levels[r], x[t]>`.
pub(crate) fn sums(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    assert!(is_available() && sums.len() == levels.len() * x.len());
    // SAFETY: the processor has the instructions.
    unsafe { sums_of_rows(levels, x, sums) }
}

/// As [`sums`], of activations that are interleaved: `[tokens / LANES, PANEL / 2, LANES, 2]`. All but the
/// first `columns` of the panel are padding, 0.
pub(crate) fn interleaved_sums(
    levels: &[[i16; PANEL]],
    x: &[i16],
    [tokens, columns]: [usize; 2],
    sums: &mut [i32],
) {
    assert!(is_available() && sums.len() == levels.len() * tokens);
    assert!(x.len() == tokens.next_multiple_of(LANES) * PANEL);
    let shape = [tokens, columns.div_ceil(2)];
    let (quads, rest) = levels.as_chunks::<4>();
    let (sums, rest_sums) = sums.split_at_mut(4 * quads.len() * tokens);
    for (levels, sums) in quads.iter().zip(sums.chunks_exact_mut(4 * tokens)) {
        // SAFETY: the processor has the instructions.
        unsafe { interleaved_rows(levels, x.as_chunks().0, shape, sums) }
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        // SAFETY: as above.
        unsafe { interleaved_rows(&[*levels], x.as_chunks().0, shape, sums) }
    }
}

/// See [`sums`].
#[target_feature(enable = "avx2")]
fn sums_of_rows(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    let tokens = x.len();
    let (quads, rest) = levels.as_chunks::<4>();
    let (quad_sums, rest_sums) = sums.split_at_mut(4 * quads.len() * tokens);
    for (levels, sums) in quads.iter().zip(quad_sums.chunks_exact_mut(4 * tokens)) {
        for (token, x) in x.iter().enumerate() {
            let found = total(rows_by_token(levels, x));
            for (row, found) in found.into_iter().enumerate() {
                sums[row * tokens + token] = found;
            }
        }
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        for (x, sum) in x.iter().zip(sums) {
            let [lanes] = rows_by_token(&[*levels], x);
            let zero = _mm256_setzero_si256();
            *sum = total([lanes, zero, zero, zero])[0];
        }
    }
}

/// The lanes of the sums of `R` rows for a token.
#[inline]
#[target_feature(enable = "avx2")]
fn rows_by_token<const R: usize>(levels: &[[i16; PANEL]; R], x: &[i16; PANEL]) -> [__m256i; R] {
    let mut found = [_mm256_setzero_si256(); R];
    for (index, x) in x.as_chunks::<HALF>().0.iter().enumerate() {
        let x = load(x);
        for (found, levels) in found.iter_mut().zip(levels) {
            let levels = load(&levels.as_chunks::<HALF>().0[index]);
            *found = _mm256_add_epi32(*found, _mm256_madd_epi16(levels, x));
        }
    }
    found
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn total(lanes: [__m256i; 4]) -> [i32; 4] {
    let first = _mm256_hadd_epi32(lanes[0], lanes[1]);
    let second = _mm256_hadd_epi32(lanes[2], lanes[3]);
    let all = _mm256_hadd_epi32(first, second);
    let all = _mm_add_epi32(
        _mm256_castsi256_si128(all),
        _mm256_extracti128_si256::<1>(all),
    );
    let mut values = [0; 4];
    // SAFETY: the array has the length of the vector.
    unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), all) };
    values
}

/// Values of a vector of tokens: `[PANEL / 2, LANES, 2]`.
type Vector = [i16; LANES * PANEL];

/// The sums of `R` rows for all tokens.
#[target_feature(enable = "avx2")]
fn interleaved_rows<const R: usize>(
    levels: &[[i16; PANEL]; R],
    x: &[Vector],
    [tokens, pairs]: [usize; 2],
    sums: &mut [i32],
) {
    for (vector, x) in x.iter().enumerate() {
        let mut found = [[_mm256_setzero_si256(); 2]; R];
        let of_pairs = x.as_chunks::<{ 2 * LANES }>().0.iter();
        for (pair, x) in of_pairs.take(pairs).enumerate() {
            let [first, second] = x.as_chunks::<HALF>().0 else {
                unreachable!("a pair of columns has two halves");
            };
            let x = [load(first), load(second)];
            for (found, levels) in found.iter_mut().zip(levels) {
                let both = [levels[2 * pair] as u16, levels[2 * pair + 1] as u16].map(u32::from);
                let both = _mm256_set1_epi32((both[0] | both[1] << 16) as i32);
                for (found, x) in found.iter_mut().zip(x) {
                    *found = _mm256_add_epi32(*found, _mm256_madd_epi16(both, x));
                }
            }
        }
        for (found, sums) in found.into_iter().zip(sums.chunks_exact_mut(tokens)) {
            let mut values = [[0; LANES / 2]; 2];
            for (found, values) in found.into_iter().zip(&mut values) {
                store(found, values);
            }
            let sums = &mut sums[vector * LANES..];
            let count = sums.len().min(LANES);
            sums[..count].copy_from_slice(&values.as_flattened()[..count]);
        }
    }
}
