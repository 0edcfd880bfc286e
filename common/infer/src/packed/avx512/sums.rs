//! Products of decoded levels with the activations of several tokens (`vpdpwssd`).
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{is_available, load, part, totals};
use crate::integer::LANES;
use crate::packed::{Out, PANEL};

/// `sums[r][t] = <levels[r], x[t]>`.
pub(crate) fn sums(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    assert!(is_available() && sums.len() == levels.len() * x.len());
    // SAFETY: the processor has the instructions.
    unsafe { sums_of_rows(levels, x, sums) }
}

/// The sum of the products of a row for one token, whatever its levels.
pub(crate) fn wide_sum(levels: &[i16; PANEL], x: &[i16; PANEL]) -> i64 {
    assert!(is_available());
    // SAFETY: the processor has the instructions.
    unsafe { wide_sum_of_row(levels, x) }
}

/// See [`wide_sum`]. The sums of the high and of the low bytes of the levels fit into 32 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn wide_sum_of_row(levels: &[i16; PANEL], x: &[i16; PANEL]) -> i64 {
    let [mut high, mut low] = [_mm512_setzero_si512(); 2];
    for index in 0..PANEL / 32 {
        let levels = load(part::<_, 32>(levels, index));
        let x = load(part::<_, 32>(x, index));
        high = _mm512_dpwssd_epi32(high, _mm512_srai_epi16::<8>(levels), x);
        low = _mm512_dpwssd_epi32(low, _mm512_and_si512(levels, _mm512_set1_epi16(255)), x);
    }
    let [high, low] = [high, low].map(|sums| i64::from(_mm512_reduce_add_epi32(sums)));
    256 * high + low
}

impl Out<'_> {
    /// Takes the sums of a row for at most [`LANES`] tokens, of which token `first` is the first.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::packed) fn take(
        &mut self,
        sums: __m512i,
        row: usize,
        first: usize,
        tokens: usize,
    ) {
        let count = (tokens - first).min(LANES);
        let (mask, at) = ((0xffff_u32 >> (LANES - count)) as u16, row * tokens + first);
        match self {
            Out::Sums(out) => {
                let out = &mut out[at..at + count];
                // SAFETY: the lanes of the mask are those of the slice.
                unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr(), mask, sums) };
            }
            Out::Joined(scales, out) => {
                let (scales, out) = (&scales[first..first + count], &mut out[at..at + count]);
                // SAFETY: as above.
                unsafe {
                    let scales = _mm512_maskz_loadu_ps(mask, scales.as_ptr());
                    let old = _mm512_maskz_loadu_ps(mask, out.as_ptr());
                    let new = _mm512_fmadd_ps(scales, _mm512_cvtepi32_ps(sums), old);
                    _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, new);
                }
            }
        }
    }
}

/// Sums of bytes, the highest first: each is worth 256 of the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::packed) fn joined_bytes(parts: &[&[i32; LANES]]) -> __m512i {
    let mut whole = _mm512_setzero_si512();
    for part in parts {
        whole = _mm512_add_epi32(_mm512_slli_epi32::<8>(whole), load(part));
    }
    whole
}

/// As [`sums`], of activations that are interleaved: `[tokens / LANES, PANEL / 2, LANES, 2]`. All but the
/// first `columns` of the panel are padding, 0.
pub(crate) fn interleaved_sums(
    levels: &[[i16; PANEL]],
    x: &[i16],
    [tokens, columns]: [usize; 2],
    mut out: Out<'_>,
) {
    assert!(is_available() && out.len() == levels.len() * tokens);
    assert!(x.len() == tokens.next_multiple_of(LANES) * PANEL);
    let shape = [tokens, columns.div_ceil(2)];
    // SAFETY: the processor has the instructions.
    unsafe { interleaved_rows(levels, x.as_chunks().0, shape, &mut out) }
}

/// See [`sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sums_of_rows(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    let tokens = x.len();
    let (quads, rest) = levels.as_chunks::<4>();
    let (quad_sums, rest_sums) = sums.split_at_mut(4 * quads.len() * tokens);
    for (levels, sums) in quads.iter().zip(quad_sums.chunks_exact_mut(4 * tokens)) {
        let (pairs, last) = x.as_chunks::<2>();
        for (index, x) in pairs.iter().enumerate() {
            four_rows(levels, x, tokens, 2 * index, sums);
        }
        for x in last {
            four_rows(levels, std::array::from_ref(x), tokens, tokens - 1, sums);
        }
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        for (x, sum) in x.iter().zip(sums) {
            let mut found = _mm512_setzero_si512();
            for index in 0..PANEL / 32 {
                let (levels, x) = (
                    load(part::<_, 32>(levels, index)),
                    load(part::<_, 32>(x, index)),
                );
                found = _mm512_dpwssd_epi32(found, levels, x);
            }
            *sum = _mm512_reduce_add_epi32(found);
        }
    }
}

/// The sums of four rows for `T` tokens, of which token `first` is the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn four_rows<const T: usize>(
    levels: &[[i16; PANEL]; 4],
    x: &[[i16; PANEL]; T],
    tokens: usize,
    first: usize,
    sums: &mut [i32],
) {
    let mut found = [[_mm512_setzero_si512(); 4]; T];
    for index in 0..PANEL / 32 {
        let levels: [__m512i; 4] =
            std::array::from_fn(|row| load(part::<_, 32>(&levels[row], index)));
        for (found, x) in found.iter_mut().zip(x) {
            let x = load(part::<_, 32>(x, index));
            for (found, levels) in found.iter_mut().zip(levels) {
                *found = _mm512_dpwssd_epi32(*found, levels, x);
            }
        }
    }
    for (token, found) in found.into_iter().enumerate() {
        let mut values = [0; 4];
        // SAFETY: the array has the length of a vector.
        unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), totals(found)) };
        for (row, value) in values.into_iter().enumerate() {
            sums[row * tokens + first + token] = value;
        }
    }
}

/// Values of a vector of tokens: `[PANEL / 2, LANES, 2]`.
type Vector = [i16; LANES * PANEL];

/// See [`interleaved_sums`]. The activations of two vectors stay in the first-level cache while the rows pass.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_rows(levels: &[[i16; PANEL]], x: &[Vector], shape: [usize; 2], out: &mut Out<'_>) {
    let (pairs, last) = x.as_chunks::<2>();
    for (index, pair) in pairs.iter().enumerate() {
        interleaved_tokens(levels, pair, shape, 2 * index * LANES, out);
    }
    for x in last {
        let first = 2 * pairs.len() * LANES;
        interleaved_tokens(levels, std::array::from_ref(x), shape, first, out);
    }
}

/// The sums of all rows for `V` vectors of tokens, of which token `first` is the first, with `[tokens, pairs of columns]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_tokens<const V: usize>(
    levels: &[[i16; PANEL]],
    x: &[Vector; V],
    shape: [usize; 2],
    first: usize,
    out: &mut Out<'_>,
) {
    // As many sums at the same time as there are registers for.
    match V {
        1 => interleaved_blocks::<16, V>(levels, x, shape, first, out),
        _ => interleaved_blocks::<8, V>(levels, x, shape, first, out),
    }
}

/// As [`interleaved_tokens`], `R` rows at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_blocks<const R: usize, const V: usize>(
    levels: &[[i16; PANEL]],
    x: &[Vector; V],
    shape: [usize; 2],
    first: usize,
    out: &mut Out<'_>,
) {
    let (blocks, rest) = levels.as_chunks::<R>();
    for (index, levels) in blocks.iter().enumerate() {
        interleaved_block(levels, x, [R * index, first], shape, out);
    }
    for (index, levels) in rest.iter().enumerate() {
        let row = R * blocks.len() + index;
        interleaved_block(std::array::from_ref(levels), x, [row, first], shape, out);
    }
}

/// The sums of `R` rows, of which row `row` is the first, for `V` vectors of tokens, of which token `first` is the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_block<const R: usize, const V: usize>(
    levels: &[[i16; PANEL]; R],
    x: &[Vector; V],
    [row, first]: [usize; 2],
    [tokens, pairs]: [usize; 2],
    out: &mut Out<'_>,
) {
    let mut found = [[_mm512_setzero_si512(); V]; R];
    for pair in 0..pairs.min(PANEL / 2) {
        let x: [__m512i; V] =
            std::array::from_fn(|vector| load(part::<_, { 2 * LANES }>(&x[vector], pair)));
        for (found, levels) in found.iter_mut().zip(levels) {
            let both = [levels[2 * pair] as u16, levels[2 * pair + 1] as u16].map(u32::from);
            let both = _mm512_set1_epi32((both[0] | both[1] << 16) as i32);
            for (found, x) in found.iter_mut().zip(x) {
                *found = _mm512_dpwssd_epi32(*found, both, x);
            }
        }
    }
    for (index, found) in found.into_iter().enumerate() {
        for (vector, found) in found.into_iter().enumerate() {
            out.take(found, row + index, first + vector * LANES, tokens);
        }
    }
}
