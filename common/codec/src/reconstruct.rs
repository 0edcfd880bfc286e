//! From indices back to weights, by exactly specified arithmetic.
//!
//! For row i and column j, `acc = f32(level_ij) · s_ij`, one f32 multiplication, with the level of [`crate::trellis`]
//! and the step of [`crate::steps`]. With an overlay of rank R, `acc = fma(u_ir, v_rj, acc)` for r = 0, 1, …, R−1; each
//! fused multiply-add is rounded once to f32 (nearest even). The weight is `acc` rounded to bfloat16, nearest even.
//! There is no other operation, so any implementation on any processor gives the same bits.

use crate::bf16;
use crate::code::TensorCode;
use crate::error::{CodecError, check_len, check_matrix};
use crate::steps::{self, Steps};
use crate::trellis::{BLOCK_ROWS, level, levels, next_state};
use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

/// Columns that are reconstructed together, so that their accumulators stay in the L1 cache.
const CHUNK: usize = 512;

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
    let steps = code.steps();
    let (u, v) = overlay_values(code);
    let rank = code.overlay.as_ref().map_or(0, |overlay| overlay.rank);
    out.par_chunks_mut(BLOCK_ROWS * code.cols)
        .zip(code.q.par_chunks(BLOCK_ROWS * code.cols))
        .zip(code.row_log2_eighths.par_chunks(BLOCK_ROWS))
        .zip(steps.rows.par_chunks(BLOCK_ROWS))
        .enumerate()
        .for_each(|(block, (((out, q), row_log2_eighths), row_factors))| {
            let first = block * BLOCK_ROWS * rank;
            let u = &u[first..first + row_log2_eighths.len() * rank];
            dispatch(Block {
                states: &mut vec![0; code.cols],
                out,
                q,
                row_log2_eighths,
                row_factors,
                steps: &steps.columns,
                u,
                v: &v,
                rank,
            });
        });
    Ok(out)
}

/// The weights of row `row`, `[cols]` bfloat16 bits: a literal transcription of the specification.
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
    let first = row - row % BLOCK_ROWS;
    let block = &code.q[first * code.cols..(row + 1) * code.cols];
    let levels = levels(block, code.cols, &code.row_log2_eighths[first..=row]);
    let levels = &levels[(row - first) * code.cols..];
    let steps = code.steps();
    let weight = |j: usize| {
        let mut acc = levels[j] as f32 * (steps.columns[j] * steps.rows[row]);
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

/// The overlay's factors as f32, empty without an overlay.
fn overlay_values(code: &TensorCode) -> (Vec<f32>, Vec<f32>) {
    let values = |bits: &[u16]| bits.iter().copied().map(bf16::to_f32).collect();
    match &code.overlay {
        Some(overlay) => (values(&overlay.u), values(&overlay.v)),
        None => (Vec::new(), Vec::new()),
    }
}

/// Reconstructs a tensor in pieces of whole rows, so that memory does not depend on its number of rows.
pub struct PieceReconstructor {
    /// `[cols]` steps of the columns.
    steps: Vec<f32>,
    rank: usize,
    /// [rank, cols]
    v: Vec<f32>,
    /// `[cols]` states of the trellis.
    states: Vec<u16>,
    /// Number of the next row.
    row: usize,
    /// Scratch: factors of a piece's rows, and U [rows, rank].
    row_factors: Vec<f32>,
    u: Vec<f32>,
}

impl PieceReconstructor {
    /// Prepares to reconstruct a tensor from its first row on. `v` [rank, cols] is the overlay's second factor in bfloat16, empty
    /// for rank 0.
    ///
    /// # Errors
    /// [`CodecError::Range`] for the step, [`CodecError::Shape`] and [`CodecError::NotFinite`] for `v`.
    pub fn new(
        step: f32,
        column_log2_eighths: &[u8],
        rank: usize,
        v: &[u16],
    ) -> Result<Self, CodecError> {
        steps::check_step(step)?;
        let cols = column_log2_eighths.len();
        check_matrix("overlay v", v.len(), rank, cols)?;
        bf16::check_finite("overlay v", v)?;
        Ok(PieceReconstructor {
            steps: Steps::new(step, column_log2_eighths, &[]).columns,
            rank,
            v: v.iter().copied().map(bf16::to_f32).collect(),
            states: vec![0; cols],
            row: 0,
            row_factors: Vec::new(),
            u: Vec::new(),
        })
    }

    /// Reconstructs the next rows, as many as there are logarithms, from their indices `q` [rows, cols] and the overlay's first
    /// factor `u` [rows, rank] into `out` [rows, cols].
    ///
    /// # Errors
    /// [`CodecError::Shape`], [`CodecError::NotFinite`] for `u`.
    pub fn rows(
        &mut self,
        q: &[i16],
        row_log2_eighths: &[u8],
        row_step_log2_eighths: &[u8],
        u: &[u16],
        out: &mut [u16],
    ) -> Result<(), CodecError> {
        let (rows, cols) = (row_log2_eighths.len(), self.steps.len());
        check_matrix("indices", q.len(), rows, cols)?;
        check_matrix("weights", out.len(), rows, cols)?;
        check_len("row_step_log2_eighths", row_step_log2_eighths.len(), rows)?;
        check_matrix("overlay u", u.len(), rows, self.rank)?;
        bf16::check_finite("overlay u", u)?;
        self.row_factors.clear();
        let factors = row_step_log2_eighths.iter().copied();
        self.row_factors.extend(factors.map(steps::factor));
        self.u.clear();
        self.u.extend(u.iter().copied().map(bf16::to_f32));
        let mut done = 0;
        while done < rows {
            if self.row.is_multiple_of(BLOCK_ROWS) {
                self.states.fill(0);
            }
            let count = (BLOCK_ROWS - self.row % BLOCK_ROWS).min(rows - done);
            let piece = done..done + count;
            let weights = done * cols..(done + count) * cols;
            dispatch(Block {
                states: &mut self.states,
                out: &mut out[weights.clone()],
                q: &q[weights],
                row_log2_eighths: &row_log2_eighths[piece.clone()],
                row_factors: &self.row_factors[piece.clone()],
                steps: &self.steps,
                u: &self.u[piece.start * self.rank..piece.end * self.rank],
                v: &self.v,
                rank: self.rank,
            });
            done += count;
            self.row += count;
        }
        Ok(())
    }
}

/// Rows of one block of the trellis: `states` `[cols]` before and after them, `out`, `q` [rows, cols], `row_log2_eighths`, `row_factors` `[rows]`, `steps` `[cols]`, `u` [rows, rank], `v`
/// [rank, cols].
struct Block<'a> {
    states: &'a mut [u16],
    out: &'a mut [u16],
    q: &'a [i16],
    row_log2_eighths: &'a [u8],
    row_factors: &'a [f32],
    steps: &'a [f32],
    u: &'a [f32],
    v: &'a [f32],
    rank: usize,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = self.steps.len();
        for first in (0..cols).step_by(CHUNK) {
            let last = cols.min(first + CHUNK);
            let steps = &self.steps[first..last];
            // A copy on the stack: the compiler then knows that nothing else refers to it.
            let mut states = [0u16; CHUNK];
            states[..last - first].copy_from_slice(&self.states[first..last]);
            let rows = self.row_log2_eighths.iter().zip(self.row_factors);
            for (row, (&row_log2_eighths, &row_factor)) in rows.enumerate() {
                let at = row * cols;
                let mut acc = [0.0f32; CHUNK];
                if row_log2_eighths > 0 {
                    let q = &self.q[at + first..at + last];
                    let columns = acc.iter_mut().zip(&mut states).zip(q).zip(steps);
                    for (((acc, state), &q), &step) in columns {
                        *acc = level(*state, q) as f32 * (step * row_factor);
                        *state = next_state(*state, q);
                    }
                }
                for r in 0..self.rank {
                    let u = self.u[row * self.rank + r];
                    let v = &self.v[r * cols + first..r * cols + last];
                    for (acc, &v) in acc.iter_mut().zip(v) {
                        *acc = u.mul_add(v, *acc);
                    }
                }
                for (out, &acc) in self.out[at + first..at + last].iter_mut().zip(&acc) {
                    *out = bf16::round_nearest_even(acc);
                }
            }
            self.states[first..last].copy_from_slice(&states[..last - first]);
        }
    }
}
