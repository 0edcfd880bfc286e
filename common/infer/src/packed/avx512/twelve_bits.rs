//! Products of rows of [`crate::twelve_bits`] with the activations of one token.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{Halves, is_available, load, part, prefetch_ahead, totals};
use crate::packed::{GROUP, PANEL};
use crate::twelve_bits::GROUP_BYTES;

/// Logarithm of what makes the high parts positive.
const BIAS: usize = 7;

/// `out[r]`, before the scale of the row, for the rows `[_, stride]` and the activations of one token.
pub(crate) fn twelve_bit_products(
    rows: &[u8],
    stride: usize,
    x: &[Halves],
    scales: &[f32],
    out: &mut [f32],
) {
    assert!(is_available() && rows.len() == out.len() * stride);
    assert!(x.len() == stride.div_ceil(PANEL_BYTES) && scales.len() == x.len());
    // SAFETY: the processor has the instructions.
    unsafe { products_of_rows(rows, stride, x, scales, out) }
}

/// Bytes of a panel.
const PANEL_BYTES: usize = PANEL / GROUP * GROUP_BYTES;

/// See [`twelve_bit_products`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
fn products_of_rows(rows: &[u8], stride: usize, x: &[Halves], scales: &[f32], out: &mut [f32]) {
    // For every panel the lanes of four rows, of the high and of the low parts.
    let mut lanes = vec![[[_mm512_setzero_si512(); 4]; 2]; x.len()];
    for (rows, out) in rows.chunks(4 * stride).zip(out.chunks_mut(4)) {
        // One row after the other: several at a time are read more slowly than memory gives them.
        for (index, row) in rows.chunks_exact(stride).enumerate() {
            for (panel, (x, lanes)) in row.chunks(PANEL_BYTES).zip(x.iter().zip(&mut lanes)) {
                let found = panel_lanes(panel, x);
                (lanes[0][index], lanes[1][index]) = (found[0], found[1]);
            }
        }
        let mut sums = _mm_setzero_ps();
        for (([high, low], x), &scale) in lanes.iter().zip(x).zip(scales) {
            let high = _mm_sub_epi32(totals(*high), _mm_set1_epi32(x.excess[BIAS]));
            sums = _mm_fmadd_ps(_mm_set1_ps(16.0 * scale), _mm_cvtepi32_ps(high), sums);
            sums = _mm_fmadd_ps(_mm_set1_ps(scale), _mm_cvtepi32_ps(totals(*low)), sums);
        }
        let mut values = [0.0; 4];
        // SAFETY: the array has the length of the vector.
        unsafe { _mm_storeu_ps(values.as_mut_ptr(), sums) };
        out.copy_from_slice(&values[..out.len()]);
    }
}

/// The lanes of the sums of a row's panel, of the high and of the low parts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn panel_lanes(bytes: &[u8], x: &Halves) -> [__m512i; 2] {
    // The high and the low parts, each with the two halves of the activations.
    let mut sums = [[_mm512_setzero_si512(); 2]; 2];
    for (group, bytes) in bytes.as_chunks::<GROUP_BYTES>().0.iter().enumerate() {
        prefetch_ahead(bytes, 0);
        prefetch_ahead(bytes, GROUP);
        let (high, low) = bytes.split_at(GROUP);
        let high = load(part::<_, GROUP>(high, 0));
        // SAFETY: half a group of bytes is half a vector.
        let low = unsafe { _mm256_loadu_si256(low.as_ptr().cast()) };
        let upper = _mm256_srli_epi16::<4>(low);
        let low = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), upper);
        let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
        let x = [
            load(part::<_, GROUP>(&x.high, group)),
            load(part::<_, GROUP>(&x.low, group)),
        ];
        for (sums, parts) in sums.iter_mut().zip([high, low]) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_dpbusd_epi32(*sum, parts, x);
            }
        }
    }
    sums.map(|[high, low]| _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low))
}
