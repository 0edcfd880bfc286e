//! Quantization with error feedback.
//!
//! Column by column, `q_j = round((w_j + Σ_{k<j} (w_k − ŵ_k)·a_kj) / s_j)` with the factor `a` of
//! [`crate::factor`]; this is LDLQ (Chee et al. 2023), equal to GPTQ (Frantar et al. 2022) in exact
//! arithmetic. `ŵ` is the weight as it will be reconstructed, `bf16(f32(q)·s)`, so that the rounding
//! to bfloat16 is fed back as well.
//!
//! Rows are independent. They are cut into pieces of fixed size, the columns of a piece into blocks:
//! what all earlier blocks left enters a block as one matrix product, then the block is worked off
//! column by column with the rows side by side in vector lanes. Each piece is one thread's work, so
//! the bits do not depend on the number of threads.

use crate::bf16;
use crate::factor::Factor;
use crate::failure::{CodecError, check_finite, check_len, check_matrix};
use crate::product::{View, multiply};
use crate::simd::{Kernel, dispatch};
use rayon::prelude::*;

/// Rows of a piece.
const PIECE: usize = 128;
/// Columns of a block.
const BLOCK: usize = 128;
/// Columns of a block whose errors enter the columns behind them together.
const PANEL: usize = 8;
/// Rows that are worked off side by side.
const LANES: usize = 32;

/// Largest magnitude of an index; larger values saturate (and their error is fed back as any other).
pub const LARGEST_INDEX: i16 = i16::MAX;

/// Quantizes `w` [m, n] row-major with the column steps `steps` [n] (finite, positive) under the
/// factor of the layer's Hessian. Returns the indices [m, n] in −32767..=32767, rounded half to even.
///
/// # Errors
/// [`CodecError::Shape`], [`CodecError::NotFinite`] (weights, steps), [`CodecError::Range`] for a
/// step that is not positive.
pub fn quantize(
    w: &[f32],
    m: usize,
    n: usize,
    factor: &Factor,
    steps: &[f32],
) -> Result<Vec<i16>, CodecError> {
    check_matrix("weights", w.len(), m, n)?;
    check_len("factor", factor.n, n)?;
    check_matrix("factor", factor.a.len(), n, n)?;
    check_len("steps", steps.len(), n)?;
    check_finite("weights", w)?;
    check_finite("steps", steps)?;
    if let Some(&found) = steps.iter().find(|&&s| s <= 0.0) {
        let expected = "positive steps";
        return Err(CodecError::Range {
            what: "column step",
            found: f64::from(found),
            expected,
        });
    }
    let mut q = vec![0i16; m * n];
    if q.is_empty() {
        return Ok(q);
    }
    w.par_chunks(PIECE * n)
        .zip(q.par_chunks_mut(PIECE * n))
        .for_each(|(w, q)| quantize_piece(w, q, &factor.a, steps));
    Ok(q)
}

/// Quantizes a piece of rows: `w`, `q` [rows, n].
fn quantize_piece(w: &[f32], q: &mut [i16], a: &[f32], steps: &[f32]) {
    let n = steps.len();
    let rows = w.len() / n;
    let mut left = vec![0.0f32; rows * n]; // w − ŵ of the columns done, [rows, n]
    let mut target = vec![0.0f32; rows * BLOCK]; // what a block is to be rounded from, [rows, width]
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let target = &mut target[..rows * width];
        for (row, target) in target.chunks_mut(width).enumerate() {
            target.copy_from_slice(&w[row * n + first..row * n + first + width]);
        }
        if first > 0 {
            let before = View::new(&left, rows, first, n);
            multiply(
                target,
                width,
                before,
                View::new(&a[first..], first, width, n),
                true,
            );
        }
        let corner: Vec<f32> = (first..first + width)
            .flat_map(|k| &a[k * n + first..k * n + first + width])
            .copied()
            .collect();
        for lane in (0..rows).step_by(LANES) {
            dispatch(Block {
                w,
                q,
                left: &mut left,
                target,
                corner: &corner,
                steps,
                first,
                lane,
            });
        }
    }
}

/// Up to [`LANES`] rows of one block: rows `lane..`, columns `first..`.
struct Block<'a> {
    w: &'a [f32],
    q: &'a mut [i16],
    left: &'a mut [f32],
    target: &'a [f32],
    /// [width, width] the factor's part that lies inside the block.
    corner: &'a [f32],
    steps: &'a [f32],
    first: usize,
    lane: usize,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Block {
            w,
            q,
            left,
            target,
            corner,
            steps,
            first,
            lane,
        } = self;
        let n = steps.len();
        let width = BLOCK.min(n - first);
        let rows = (w.len() / n - lane).min(LANES);
        // [width, LANES]: columns one after another, rows side by side.
        let mut aim = [[0.0f32; LANES]; BLOCK]; // what is to be rounded
        let mut own = [[0.0f32; LANES]; BLOCK]; // the weights, then w − ŵ
        let mut index = [[0i16; LANES]; BLOCK];
        for row in 0..rows {
            let at = (lane + row) * n + first;
            for (j, &w) in w[at..at + width].iter().enumerate() {
                own[j][row] = w;
                aim[j][row] = target[(lane + row) * width + j];
            }
        }
        for panel in (0..width).step_by(PANEL) {
            let end = width.min(panel + PANEL);
            for j in panel..end {
                let step = steps[first + j];
                for row in 0..LANES {
                    let rounded = round_index(aim[j][row], step);
                    index[j][row] = rounded as i16;
                    own[j][row] -= bf16::to_f32(bf16::round_nearest_even(rounded * step));
                }
                pass_on(
                    &own[j..=j],
                    &mut aim[j + 1..end],
                    &corner[j * width + j + 1..],
                    width,
                );
            }
            if end < width {
                let after = &corner[panel * width + end..];
                pass_on(&own[panel..end], &mut aim[end..width], after, width);
            }
        }
        for row in 0..rows {
            let at = (lane + row) * n + first;
            for j in 0..width {
                q[at + j] = index[j][row];
                left[at + j] = own[j][row];
            }
        }
    }
}

/// `aim[k] += Σ_j errors[j] · a[j · stride + k]`, in the order of j, with fused multiply-adds.
#[inline(always)]
fn pass_on(errors: &[[f32; LANES]], aim: &mut [[f32; LANES]], a: &[f32], stride: usize) {
    for (k, aim) in aim.iter_mut().enumerate() {
        let mut sum = *aim;
        for (j, error) in errors.iter().enumerate() {
            let a = a[j * stride + k];
            for row in 0..LANES {
                sum[row] = error[row].mul_add(a, sum[row]);
            }
        }
        *aim = sum;
    }
}

/// `value / step`, rounded half to even and saturated; still an f32.
#[inline(always)]
fn round_index(value: f32, step: f32) -> f32 {
    let largest = f32::from(LARGEST_INDEX);
    (value / step).round_ties_even().max(-largest).min(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::factorize;

    /// Fixed pseudo-random numbers in −1..1, [count].
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(seed | 1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// A Hessian whose inputs are correlated with their neighbours.
    fn neighbours(n: usize) -> Vec<f32> {
        (0..n * n)
            .map(|i| 0.95f32.powi((i / n).abs_diff(i % n) as i32))
            .collect()
    }

    /// The definition, one weight after another.
    fn plainly(w: &[f32], n: usize, factor: &Factor, steps: &[f32]) -> Vec<i16> {
        let mut q = Vec::with_capacity(w.len());
        for w in w.chunks(n) {
            let mut left: Vec<f32> = Vec::with_capacity(n);
            for j in 0..n {
                let aim = (0..j).fold(w[j], |aim, k| left[k].mul_add(factor.a[k * n + j], aim));
                let rounded = round_index(aim, steps[j]);
                q.push(rounded as i16);
                left.push(w[j] - bf16::to_f32(bf16::round_nearest_even(rounded * steps[j])));
            }
        }
        q
    }

    #[test]
    fn within_one_block_the_indices_are_those_of_the_definition() {
        for (m, n) in [(1, 1), (31, 1), (1, 128), (33, 7), (130, 100), (257, 128)] {
            let factor = factorize(&neighbours(n), n, 0.01).unwrap();
            let w = noise(m * n, 9);
            let steps: Vec<f32> = (0..n).map(|j| 0.02 + 0.01 * (j % 5) as f32).collect();
            let found = quantize(&w, m, n, &factor, &steps).unwrap();
            assert!(found == plainly(&w, n, &factor, &steps), "[{m}, {n}]");
        }
    }

    #[test]
    fn across_blocks_they_differ_from_it_only_where_a_sum_in_other_order_tips_a_tie() {
        let (m, n) = (140, 300);
        let factor = factorize(&neighbours(n), n, 0.01).unwrap();
        let w = noise(m * n, 4);
        let steps = vec![0.05; n];
        let found = quantize(&w, m, n, &factor, &steps).unwrap();
        let plain = plainly(&w, n, &factor, &steps);
        let rows = found
            .chunks(n)
            .zip(plain.chunks(n))
            .filter(|(a, b)| a != b)
            .count();
        assert!(rows <= 3, "{rows} of {m} rows differ");
    }

    #[test]
    fn rows_of_zeros_stay_zero_and_values_out_of_range_saturate() {
        let n = 3;
        let factor = factorize(&neighbours(n), n, 0.01).unwrap();
        let w = [0.0, 0.0, 0.0, 1e6, -1e6, 1.0];
        let q = quantize(&w, 2, n, &factor, &[1e-3; 3]).unwrap();
        assert_eq!(q[..3], [0, 0, 0]);
        assert_eq!(q[3], LARGEST_INDEX);
        assert!(q.iter().all(|&q| q >= -LARGEST_INDEX));
    }

    #[test]
    fn halves_round_to_even() {
        let factor = factorize(&[1.0], 1, 0.01).unwrap();
        let w = [0.5, 1.5, 2.5, -0.5, -1.5];
        assert_eq!(
            quantize(&w, 5, 1, &factor, &[1.0]).unwrap(),
            [0, 2, 2, 0, -2]
        );
    }

    #[test]
    fn nan_weights_bad_steps_and_wrong_lengths_are_refused() {
        let factor = factorize(&neighbours(2), 2, 0.01).unwrap();
        let with = |w: &[f32], steps: &[f32]| quantize(w, 1, 2, &factor, steps).unwrap_err();
        let nan = with(&[0.0, f32::NAN], &[1.0; 2]);
        assert!(matches!(
            nan,
            CodecError::NotFinite {
                what: "weights",
                index: 1,
                ..
            }
        ));
        let infinite = with(&[0.0; 2], &[1.0, f32::INFINITY]);
        assert!(matches!(
            infinite,
            CodecError::NotFinite {
                what: "steps",
                index: 1,
                ..
            }
        ));
        assert!(matches!(
            with(&[0.0; 2], &[1.0, 0.0]),
            CodecError::Range { .. }
        ));
        assert!(matches!(
            with(&[0.0; 3], &[1.0; 2]),
            CodecError::Shape {
                what: "weights",
                ..
            }
        ));
        assert!(matches!(
            with(&[0.0; 2], &[1.0; 3]),
            CodecError::Shape { what: "steps", .. }
        ));
    }
}
