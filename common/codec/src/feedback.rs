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
        for lane in (0..rows).step_by(LANES) {
            dispatch(Block {
                w,
                q,
                left: &mut left,
                target,
                a,
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
    a: &'a [f32],
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
            a,
            steps,
            first,
            lane,
        } = self;
        let n = steps.len();
        let width = BLOCK.min(n - first);
        let rows = (w.len() / n - lane).min(LANES);
        // [width, LANES]: columns one after another, rows side by side.
        let mut aim = [[0.0f32; LANES]; BLOCK];
        for row in 0..rows {
            for j in 0..width {
                aim[j][row] = target[(lane + row) * width + j];
            }
        }
        for j in 0..width {
            let step = steps[first + j];
            let mut error = [0.0f32; LANES];
            let mut index = [0i16; LANES];
            for row in 0..rows {
                error[row] = w[(lane + row) * n + first + j];
            }
            for row in 0..LANES {
                let rounded = round_index(aim[j][row], step);
                index[row] = rounded as i16;
                error[row] -= bf16::to_f32(bf16::round_nearest_even(rounded * step));
            }
            for row in 0..rows {
                q[(lane + row) * n + first + j] = index[row];
                left[(lane + row) * n + first + j] = error[row];
            }
            let line = &a[(first + j) * n + first..(first + j) * n + first + width];
            for k in j + 1..width {
                for row in 0..LANES {
                    aim[k][row] = error[row].mul_add(line[k], aim[k][row]);
                }
            }
        }
    }
}

/// `value / step`, rounded half to even and saturated; still an f32.
#[inline(always)]
fn round_index(value: f32, step: f32) -> f32 {
    let largest = f32::from(LARGEST_INDEX);
    (value / step).round_ties_even().max(-largest).min(largest)
}
