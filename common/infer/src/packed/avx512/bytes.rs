//! Products of rows of bytes with the activations of one token.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{Halves, is_available, load, part, totals};
use crate::packed::{GROUP, PANEL};

/// Logarithm of what makes the bytes positive.
const BIAS: usize = 7;
/// Bytes that are fetched ahead.
const AHEAD: usize = 4096;

/// `out[r] = Σ scales[p] · <rows[r] − 128, x[p]>` over the panels p of the rows `[_, stride]`.
pub(crate) fn byte_products(
    rows: &[u8],
    stride: usize,
    x: &[Halves],
    scales: &[f32],
    out: &mut [f32],
) {
    assert!(is_available() && stride.is_multiple_of(GROUP));
    assert!(rows.len() == out.len() * stride);
    assert!(x.len() == stride.div_ceil(PANEL) && scales.len() == x.len());
    // SAFETY: the processor has the instructions.
    unsafe { rows_of_bytes(rows, stride, x, scales, out) }
}

/// See [`byte_products`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
fn rows_of_bytes(rows: &[u8], stride: usize, x: &[Halves], scales: &[f32], out: &mut [f32]) {
    // The lanes of four rows for every panel.
    let mut lanes = vec![[_mm512_setzero_si512(); 4]; x.len()];
    for (rows, out) in rows.chunks(4 * stride).zip(out.chunks_mut(4)) {
        // One row after the other: several at a time are read more slowly than memory gives them.
        for (index, row) in rows.chunks_exact(stride).enumerate() {
            for (panel, (x, lanes)) in row.chunks(PANEL).zip(x.iter().zip(&mut lanes)) {
                lanes[index] = panel_lanes(panel, x);
            }
        }
        let mut sums = _mm_setzero_ps();
        for ((lanes, x), &scale) in lanes.iter().zip(x).zip(scales) {
            let found = _mm_sub_epi32(totals(*lanes), _mm_set1_epi32(x.excess[BIAS]));
            sums = _mm_fmadd_ps(_mm_set1_ps(scale), _mm_cvtepi32_ps(found), sums);
        }
        let mut values = [0.0; 4];
        // SAFETY: the array has the length of the vector.
        unsafe { _mm_storeu_ps(values.as_mut_ptr(), sums) };
        out.copy_from_slice(&values[..out.len()]);
    }
}

/// The lanes of the sum of a row's panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn panel_lanes(bytes: &[u8], x: &Halves) -> __m512i {
    let (mut high, mut low) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for (group, bytes) in bytes.as_chunks::<GROUP>().0.iter().enumerate() {
        uc_simd::prefetch(bytes, AHEAD);
        let bytes = load(bytes);
        high = _mm512_dpbusd_epi32(high, bytes, load(part::<_, GROUP>(&x.high, group)));
        low = _mm512_dpbusd_epi32(low, bytes, load(part::<_, GROUP>(&x.low, group)));
    }
    _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
}
