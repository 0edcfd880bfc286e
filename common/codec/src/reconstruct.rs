//! From indices back to weights, by exactly specified arithmetic.
//!
//! For row i and column j: `acc = f32(q_ij) ·f32 s_j` with the column step of [`crate::steps`]; with
//! an overlay of rank R, `acc = fma(u_ir, v_rj, acc)` for r = 0, 1, …, R−1, each fused
//! multiply-add rounded once to f32 (nearest even); the weight is `acc` rounded to bfloat16, nearest
//! even. Nothing else: any implementation, on any processor, gives the same bits.

use crate::bf16;
use crate::code::TensorCode;
use crate::failure::CodecError;
use crate::simd::{Kernel, dispatch};
use crate::steps::column_steps;
use rayon::prelude::*;

/// Rows of one parallel piece.
const PIECE: usize = 16;
/// Columns that are finished together, so that their accumulators stay in the nearest cache.
const STRIP: usize = 512;

/// The weights of a tensor as bfloat16 bits, [rows, cols] row-major, in parallel over rows.
///
/// # Errors
/// Those of [`TensorCode::validate`].
pub fn reconstruct(code: &TensorCode) -> Result<Vec<u16>, CodecError> {
    code.validate()?;
    let mut out = vec![0u16; code.weights()];
    if out.is_empty() {
        return Ok(out);
    }
    let steps = column_steps(code.step, &code.column_log);
    let (u, v) = overlay_values(code);
    let rank = code.overlay.as_ref().map_or(0, |overlay| overlay.rank);
    out.par_chunks_mut(PIECE * code.cols)
        .zip(code.q.par_chunks(PIECE * code.cols))
        .enumerate()
        .for_each(|(piece, (out, q))| {
            let first = piece * PIECE * rank;
            let u = &u[first..first + out.len() / code.cols * rank];
            dispatch(Piece {
                out,
                q,
                steps: &steps,
                u,
                v: &v,
                rank,
            });
        });
    Ok(out)
}

/// The weights of row `row`, [cols] bfloat16 bits: the specification, word for word.
///
/// # Errors
/// Those of [`TensorCode::validate`]; [`CodecError::Range`] for a row that the tensor does not have.
pub fn reconstruct_row(code: &TensorCode, row: usize) -> Result<Vec<u16>, CodecError> {
    code.validate()?;
    if row >= code.rows {
        let expected = "a row of the tensor";
        return Err(CodecError::Range {
            what: "row",
            found: row as f64,
            expected,
        });
    }
    let weight = |j: usize| {
        let step = crate::steps::column_step(code.step, code.column_log[j]);
        let mut acc = f32::from(code.q[row * code.cols + j]) * step;
        if let Some(overlay) = &code.overlay {
            for r in 0..overlay.rank {
                let u = bf16::to_f32(overlay.u[row * overlay.rank + r]);
                acc = u.mul_add(bf16::to_f32(overlay.v[r * code.cols + j]), acc);
            }
        }
        bf16::round_nearest_even(acc)
    };
    Ok((0..code.cols).map(weight).collect())
}

/// The overlay's factors as f32, empty where there is none.
fn overlay_values(code: &TensorCode) -> (Vec<f32>, Vec<f32>) {
    let values = |bits: &[u16]| bits.iter().map(|&x| bf16::to_f32(x)).collect();
    match &code.overlay {
        Some(overlay) => (values(&overlay.u), values(&overlay.v)),
        None => (Vec::new(), Vec::new()),
    }
}

/// Some rows: `out`, `q` [rows, cols], `u` [rows, rank], `v` [rank, cols].
struct Piece<'a> {
    out: &'a mut [u16],
    q: &'a [i16],
    steps: &'a [f32],
    u: &'a [f32],
    v: &'a [f32],
    rank: usize,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = self.steps.len();
        let rows = self.out.chunks_mut(cols).zip(self.q.chunks(cols));
        for (row, (out, q)) in rows.enumerate() {
            for first in (0..cols).step_by(STRIP) {
                let last = cols.min(first + STRIP);
                let mut acc = [0.0f32; STRIP];
                let steps = &self.steps[first..last];
                for ((acc, &q), &step) in acc.iter_mut().zip(&q[first..last]).zip(steps) {
                    *acc = f32::from(q) * step;
                }
                for r in 0..self.rank {
                    let u = self.u[row * self.rank + r];
                    let v = &self.v[r * cols + first..r * cols + last];
                    for (acc, &v) in acc.iter_mut().zip(v) {
                        *acc = u.mul_add(v, *acc);
                    }
                }
                for (out, &acc) in out[first..last].iter_mut().zip(&acc) {
                    *out = bf16::round_nearest_even(acc);
                }
            }
        }
    }
}
