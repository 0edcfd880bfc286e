//! Products of decoded levels with the activations of several tokens (`vpdpwssd`).
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{is_available, load, part, totals};
use crate::integer::LANES;
use crate::packed::PANEL;

/// `sums[r][t] = <levels[r], x[t]>`.
pub(crate) fn sums(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    assert!(is_available() && sums.len() == levels.len() * x.len());
    // SAFETY: the processor has the instructions.
    unsafe { sums_of_rows(levels, x, sums) }
}

/// As [`sums`], of activations that are interleaved: `[tokens / LANES, PANEL / 2, LANES, 2]`.
pub(crate) fn interleaved_sums(
    levels: &[[i16; PANEL]],
    x: &[i16],
    tokens: usize,
    sums: &mut [i32],
) {
    assert!(is_available() && sums.len() == levels.len() * tokens);
    assert!(x.len() == tokens.next_multiple_of(LANES) * PANEL);
    // SAFETY: the processor has the instructions.
    unsafe { interleaved_rows(levels, x, tokens, sums) }
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

/// See [`interleaved_sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_rows(levels: &[[i16; PANEL]], x: &[i16], tokens: usize, sums: &mut [i32]) {
    let x = x.as_chunks().0;
    let (eights, rest) = levels.as_chunks::<8>();
    let (sums, rest_sums) = sums.split_at_mut(8 * eights.len() * tokens);
    for (levels, sums) in eights.iter().zip(sums.chunks_exact_mut(8 * tokens)) {
        interleaved_tokens(levels, x, tokens, sums);
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        interleaved_tokens(&[*levels], x, tokens, sums);
    }
}

/// The sums of `R` rows for all tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_tokens<const R: usize>(
    levels: &[[i16; PANEL]; R],
    x: &[Vector],
    tokens: usize,
    sums: &mut [i32],
) {
    let (pairs, last) = x.as_chunks::<2>();
    for (index, pair) in pairs.iter().enumerate() {
        interleaved_block(levels, pair, tokens, 2 * index * LANES, sums);
    }
    for x in last {
        let first = 2 * pairs.len() * LANES;
        interleaved_block(levels, std::array::from_ref(x), tokens, first, sums);
    }
}

/// The sums of `R` rows for `V` vectors of tokens, of which token `first` is the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_block<const R: usize, const V: usize>(
    levels: &[[i16; PANEL]; R],
    x: &[Vector; V],
    tokens: usize,
    first: usize,
    sums: &mut [i32],
) {
    let mut found = [[_mm512_setzero_si512(); V]; R];
    for pair in 0..PANEL / 2 {
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
    for (found, sums) in found.iter().zip(sums.chunks_exact_mut(tokens)) {
        for (found, sums) in found.iter().zip(sums[first..].chunks_mut(LANES)) {
            match sums.first_chunk_mut::<LANES>() {
                // SAFETY: the array has the length of a vector.
                Some(sums) => unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *found) },
                None => {
                    let mut values = [0; LANES];
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), *found) };
                    sums.copy_from_slice(&values[..sums.len()]);
                }
            }
        }
    }
}
