//! Products of rows of [`crate::twelve_bits`] with the activations of few tokens.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{Pairs, UNIT, halves, is_available, load, totals};
use crate::packed::{GROUP, PANEL, SIDE};
use crate::twelve_bits::{GROUP_BYTES, PANEL_BYTES};

/// Logarithm of what makes the high parts positive.
const BIAS: u8 = 7;

/// The lanes of the sums of four rows for a token and a panel, of the high and of the low parts.
type Lanes = [[__m256i; 4]; 2];

/// `out: [rows, tokens]`, before the scales of rows, for the rows `[_, stride]` and the activations `[panels, tokens]` of few tokens.
pub(crate) fn twelve_bit_products(
    rows: &[u8],
    stride: usize,
    x: &[Pairs],
    scales: &[f32],
    out: &mut [f32],
) {
    let panels = stride.div_ceil(PANEL_BYTES);
    assert!(is_available() && x.len().is_multiple_of(panels) && scales.len() == x.len());
    assert!(out.len() == rows.len() / stride * (x.len() / panels));
    // SAFETY: the processor has the instructions.
    unsafe { products_of_rows(rows, stride, x, scales, out) }
}

/// See [`twelve_bit_products`].
#[target_feature(enable = "avx2,fma")]
fn products_of_rows(rows: &[u8], stride: usize, x: &[Pairs], scales: &[f32], out: &mut [f32]) {
    let panels = stride.div_ceil(PANEL_BYTES);
    let tokens = x.len() / panels;
    // [panels, tokens]
    let mut lanes = vec![[[_mm256_setzero_si256(); 4]; 2]; x.len()];
    for (rows, out) in rows.chunks(4 * stride).zip(out.chunks_mut(4 * tokens)) {
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
                let (scale, [high, low]) = (scales[at], lanes[at]);
                let excess = _mm_set1_epi32(x[at].excess_of(BIAS));
                let high = _mm_sub_epi32(totals(high), excess);
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
#[target_feature(enable = "avx2")]
fn set_lanes<const T: usize>(bytes: &[u8], x: &[Pairs], index: usize, lanes: &mut [Lanes]) {
    let x: &[Pairs; T] = x.try_into().expect("as many tokens");
    let lanes: &mut [Lanes; T] = lanes.try_into().expect("as many tokens");
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    let groups = bytes.as_chunks::<GROUP_BYTES>().0.iter();
    for (group, bytes) in groups.take(PANEL / GROUP).enumerate() {
        let (vectors, _) = bytes.as_chunks::<UNIT>();
        // The low parts of the even and of the odd columns of the first unit lie below those of the second.
        let low = halves(load(&vectors[GROUP / UNIT]));
        for unit in 0..GROUP / UNIT {
            let high = halves(load(&vectors[unit]));
            let mut low = low;
            for low in &mut low {
                *low = match unit {
                    0 => _mm256_and_si256(*low, _mm256_set1_epi16(15)),
                    _ => _mm256_srli_epi16::<4>(*low),
                };
            }
            for token in 0..T {
                let (x, sums) = (&x[token], &mut sums[token]);
                let unit = GROUP / UNIT * group + unit;
                *sums = [x.add(unit, high, sums[0]), x.add(unit, low, sums[1])];
            }
        }
    }
    for token in 0..T {
        for part in 0..2 {
            lanes[token][part][index] = sums[token][part];
        }
    }
}
