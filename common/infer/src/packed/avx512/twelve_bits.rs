//! Products of rows of [`crate::twelve_bits`] with the activations of few tokens, and the parts of rows as bytes.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use uc_simd::prefetch_l2;

use super::{Halves, is_available, joined_halves, load, part, prefetch_ahead, totals};
use crate::packed::{GROUP, PANEL, SIDE};
use crate::twelve_bits::{GROUP_BYTES, PANEL_BYTES, Panel};

/// Logarithm of what makes the high parts positive.
const BIAS: usize = 7;

/// `out: [rows, tokens]`, before the scales of rows, for the rows `[_, stride]` and the activations `[panels, tokens]` of few tokens.
pub(crate) fn twelve_bit_products(
    rows: &[u8],
    stride: usize,
    x: &[Halves],
    scales: &[f32],
    out: &mut [f32],
) {
    let panels = stride.div_ceil(PANEL_BYTES);
    assert!(is_available() && x.len().is_multiple_of(panels) && scales.len() == x.len());
    assert!(out.len() == rows.len() / stride * (x.len() / panels));
    // SAFETY: the processor has the instructions.
    unsafe { products_of_rows(rows, stride, x, scales, out) }
}

/// The lanes of the sums of four rows for a token and a panel, of the high and of the low parts.
type Lanes = [[__m512i; 4]; 2];

/// See [`twelve_bit_products`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
fn products_of_rows(rows: &[u8], stride: usize, x: &[Halves], scales: &[f32], out: &mut [f32]) {
    let panels = stride.div_ceil(PANEL_BYTES);
    let tokens = x.len() / panels;
    // [panels, tokens]
    let mut lanes = vec![[[_mm512_setzero_si512(); 4]; 2]; x.len()];
    for (rows, out) in rows.chunks(4 * stride).zip(out.chunks_mut(4 * tokens)) {
        // One row after the other: several at a time are read more slowly than memory gives them.
        for (index, row) in rows.chunks_exact(stride).enumerate() {
            let of_panels = x.chunks_exact(tokens).zip(lanes.chunks_exact_mut(tokens));
            for (bytes, (x, lanes)) in row.chunks(PANEL_BYTES).zip(of_panels) {
                for (x, lanes) in x.chunks(SIDE).zip(lanes.chunks_mut(SIDE)) {
                    match x.len() {
                        1 => set_lanes::<1>(bytes, x, index, lanes),
                        2 => set_lanes::<2>(bytes, x, index, lanes),
                        3 => set_lanes::<3>(bytes, x, index, lanes),
                        _ => set_lanes::<SIDE>(bytes, x, index, lanes),
                    }
                }
            }
        }
        for token in 0..tokens {
            let mut sums = _mm_setzero_ps();
            for panel in 0..panels {
                let at = panel * tokens + token;
                let (x, scale, [high, low]) = (&x[at], scales[at], lanes[at]);
                let high = _mm_sub_epi32(totals(high), _mm_set1_epi32(x.excess[BIAS]));
                sums = _mm_fmadd_ps(_mm_set1_ps(16.0 * scale), _mm_cvtepi32_ps(high), sums);
                sums = _mm_fmadd_ps(_mm_set1_ps(scale), _mm_cvtepi32_ps(totals(low)), sums);
            }
            let mut values = [0.0; 4];
            // SAFETY: the array has the length of the vector.
            unsafe { _mm_storeu_ps(values.as_mut_ptr(), sums) };
            for (out, value) in out.chunks_exact_mut(tokens).zip(values) {
                out[token] = value;
            }
        }
    }
}

/// Sets the lanes of the row at `index` for `T` tokens, from the bytes of a panel of the row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn set_lanes<const T: usize>(bytes: &[u8], x: &[Halves], index: usize, lanes: &mut [Lanes]) {
    let x: &[Halves; T] = x.try_into().expect("as many tokens");
    let lanes: &mut [Lanes; T] = lanes.try_into().expect("as many tokens");
    // The high and the low parts, each with the two halves of the activations.
    let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; T];
    for (group, bytes) in bytes.as_chunks::<GROUP_BYTES>().0.iter().enumerate() {
        prefetch_ahead(bytes, 0);
        prefetch_ahead(bytes, GROUP);
        let parts = parts(bytes);
        for token in 0..T {
            let x = x[token].of_group(group);
            for part in 0..2 {
                for half in 0..2 {
                    let sum = &mut sums[token][part][half];
                    *sum = _mm512_dpbusd_epi32(*sum, parts[part], x[half]);
                }
            }
        }
    }
    for token in 0..T {
        for part in 0..2 {
            lanes[token][part][index] = joined_halves(sums[token][part]);
        }
    }
}

/// The high parts of a group, made positive, and the low ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn parts(bytes: &[u8; GROUP_BYTES]) -> [__m512i; 2] {
    let (high, low) = bytes.split_at(GROUP);
    let high = load(part::<_, GROUP>(high, 0));
    // SAFETY: half a group of bytes is half a vector.
    let low = unsafe { _mm256_loadu_si256(low.as_ptr().cast()) };
    let upper = _mm256_srli_epi16::<4>(low);
    let low = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), upper);
    [high, _mm512_and_si512(low, _mm512_set1_epi8(15))]
}

/// Writes the high and the low parts of a panel of rows, `[rows, PANEL]`. Groups that the panel does not have are left as they are.
pub(crate) fn byte_parts(panel: Panel<'_>, high: &mut [[i8; PANEL]], low: &mut [[i8; PANEL]]) {
    assert!(is_available());
    // SAFETY: the processor has the instructions.
    unsafe { byte_parts_of_rows(panel, high, low) }
}

/// See [`byte_parts`].
#[target_feature(enable = "avx512f,avx512bw")]
fn byte_parts_of_rows(panel: Panel<'_>, high: &mut [[i8; PANEL]], low: &mut [[i8; PANEL]]) {
    let rows = panel.rows.chunks_exact(panel.stride);
    for ((row, high), low) in rows.zip(high).zip(low) {
        let groups = row[panel.index * PANEL_BYTES..].as_chunks::<GROUP_BYTES>();
        let outs = high.as_chunks_mut::<GROUP>().0.iter_mut();
        let outs = outs.zip(low.as_chunks_mut::<GROUP>().0);
        for (bytes, (high, low)) in groups.0.iter().zip(outs) {
            // The same place among the next rows.
            prefetch_l2(bytes, panel.rows.len());
            prefetch_l2(bytes, panel.rows.len() + GROUP);
            let [positive, low_parts] = parts(bytes);
            let high_parts = _mm512_xor_si512(positive, _mm512_set1_epi8(i8::MIN));
            // SAFETY: the arrays have the length of a vector.
            unsafe {
                _mm512_storeu_si512(high.as_mut_ptr().cast(), high_parts);
                _mm512_storeu_si512(low.as_mut_ptr().cast(), low_parts);
            }
        }
    }
}
