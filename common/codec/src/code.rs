//! The quantized form of one linear: indices, logarithms of steps, and the overlay.
//!
//! Owns the checks of its lengths and ranges. How it becomes weights is specified in [`crate::reconstruct`].

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::bf16;
use crate::error::{CodecError, check_len, check_matrix};
use crate::steps::{self, Steps};
use crate::trellis::{BLOCK_ROWS, LevelReader};
use crate::weights::Weights;

mod index_bytes;

/// A quantized matrix with indices `Q`, which are `()` where they are kept apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Code<Q> {
    /// Outputs of the layer.
    pub rows: usize,
    /// Inputs of the layer.
    pub cols: usize,
    /// Step of a weight whose column and row logarithms are 0; finite and positive.
    pub step: f32,
    /// `[cols]` base-2 logarithm of the ratio of the column's step to `step`, in eighths of an octave.
    pub column_log2_eighths: Vec<u8>,
    /// `[rows]` width of the row's distribution, which selects the tables of the entropy coder, see
    /// [`crate::contexts::row_log2_eighths`]. 0 for a row of zeros.
    pub row_log2_eighths: Vec<u8>,
    /// `[rows]` base-2 logarithm of the factor by which the row's steps exceed those of the columns, in eighths of an octave.
    pub row_step_log2_eighths: Vec<u8>,
    /// The indices.
    pub q: Q,
    /// Low-rank correction, if there is one.
    pub overlay: Option<LowRank>,
}

/// A quantized matrix; the indices are [rows, cols], row-major. Its weights are defined by [`crate::reconstruct`].
pub type TensorCode = Code<Vec<i16>>;

/// Indices as they are serialized: most of them in one byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexBytes(#[serde(with = "index_bytes")] pub Vec<i16>);

/// A matrix `U·V` of small rank, added to the dequantized weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LowRank {
    /// Inner dimension, at least 1.
    pub rank: usize,
    /// bfloat16 [rows, rank].
    pub u: Vec<u16>,
    /// bfloat16 [rank, cols].
    pub v: Vec<u16>,
}

impl<Q> Code<Q> {
    /// Checks every length but that of the indices against the shape, and the step against its range.
    ///
    /// # Errors
    /// [`CodecError::Shape`], [`CodecError::Range`]; [`CodecError::NotFinite`] for the overlay.
    pub fn check_parameters(&self) -> Result<(), CodecError> {
        steps::check_step(self.step)?;
        check_len(
            "column_log2_eighths",
            self.column_log2_eighths.len(),
            self.cols,
        )?;
        check_len("row_log2_eighths", self.row_log2_eighths.len(), self.rows)?;
        check_len(
            "row_step_log2_eighths",
            self.row_step_log2_eighths.len(),
            self.rows,
        )?;
        match &self.overlay {
            Some(overlay) => overlay.validate(self.rows, self.cols),
            None => Ok(()),
        }
    }

    /// All of it but the indices.
    pub fn parameters(&self) -> Code<()> {
        Code {
            rows: self.rows,
            cols: self.cols,
            step: self.step,
            column_log2_eighths: self.column_log2_eighths.clone(),
            row_log2_eighths: self.row_log2_eighths.clone(),
            row_step_log2_eighths: self.row_step_log2_eighths.clone(),
            q: (),
            overlay: self.overlay.clone(),
        }
    }

    /// The same matrix with other indices.
    pub fn with_indices<R>(self, q: R) -> Code<R> {
        Code {
            rows: self.rows,
            cols: self.cols,
            step: self.step,
            column_log2_eighths: self.column_log2_eighths,
            row_log2_eighths: self.row_log2_eighths,
            row_step_log2_eighths: self.row_step_log2_eighths,
            q,
            overlay: self.overlay,
        }
    }

    /// Steps of all weights.
    pub fn steps(&self) -> Steps {
        Steps::new(
            self.step,
            &self.column_log2_eighths,
            &self.row_step_log2_eighths,
        )
    }
}

impl TensorCode {
    /// Checks every length against the shape and the step against its range.
    ///
    /// # Errors
    /// Those of [`Code::check_parameters`].
    pub fn validate(&self) -> Result<(), CodecError> {
        self.check_parameters()?;
        check_matrix("indices", self.q.len(), self.rows, self.cols)
    }

    /// The residual of the indices without the overlay, `w − level · step` [rows, cols], for the weights `w` [rows, cols].
    ///
    /// # Errors
    /// Those of [`TensorCode::validate`] and of `w`; [`CodecError::Shape`] if `w` has another shape.
    pub fn residual<W: Weights>(&self, w: &W) -> Result<Vec<f32>, W::Error> {
        self.validate()?;
        let (rows, cols) = w.shape();
        check_len("rows of the weights", rows, self.rows)?;
        check_len("columns of the weights", cols, self.cols)?;
        let (steps, width) = (self.steps(), cols.max(1));
        let mut residual = vec![0.0; rows * cols];
        residual
            .par_chunks_mut(BLOCK_ROWS * width)
            .zip(self.q.par_chunks(BLOCK_ROWS * width))
            .zip(self.row_log2_eighths.par_chunks(BLOCK_ROWS))
            .zip(steps.rows.par_chunks(BLOCK_ROWS))
            .enumerate()
            .try_for_each(|(block, (((residual, q), logs), row_steps))| {
                let first = block * BLOCK_ROWS;
                let weights = w.rows(first..first + logs.len())?;
                check_matrix("weights", weights.len(), logs.len(), cols)?;
                residual.copy_from_slice(&weights);
                let mut reader = LevelReader::new(width);
                let mut levels = vec![0; width];
                let rows = residual.chunks_mut(width).zip(q.chunks(width));
                for ((row, q), (&log, row_step)) in rows.zip(logs.iter().zip(row_steps)) {
                    reader.row(q, log, &mut levels);
                    for ((x, &level), step) in row.iter_mut().zip(&levels).zip(&steps.columns) {
                        *x -= level as f32 * (step * row_step);
                    }
                }
                Ok::<_, W::Error>(())
            })?;
        Ok(residual)
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.q.len()
    }
}

impl LowRank {
    /// Checks the lengths of the factors of a correction for a `[rows, cols]` matrix, and that no
    /// factor holds a NaN or an infinity.
    ///
    /// # Errors
    /// [`CodecError::Shape`], [`CodecError::Range`] (rank 0) and [`CodecError::NotFinite`].
    pub fn validate(&self, rows: usize, cols: usize) -> Result<(), CodecError> {
        if self.rank == 0 {
            let expected = "at least 1 (no overlay is None)";
            return Err(CodecError::Range {
                what: "overlay rank",
                found: 0.0,
                expected,
            });
        }
        check_matrix("overlay u", self.u.len(), rows, self.rank)?;
        check_matrix("overlay v", self.v.len(), self.rank, cols)?;
        bf16::check_finite("overlay u", &self.u)?;
        bf16::check_finite("overlay v", &self.v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid_code() -> TensorCode {
        let overlay = LowRank {
            rank: 1,
            u: vec![0x3f80; 2],
            v: vec![0x3f80; 3],
        };
        TensorCode {
            rows: 2,
            cols: 3,
            step: 0.5,
            column_log2_eighths: vec![0; 3],
            row_log2_eighths: vec![0; 2],
            row_step_log2_eighths: vec![0; 2],
            q: vec![0; 6],
            overlay: Some(overlay),
        }
    }

    /// The message with which `validate` refuses the code after `damage`.
    fn refusal(damage: impl FnOnce(&mut TensorCode)) -> String {
        let mut code = valid_code();
        damage(&mut code);
        code.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_valid_code_is_accepted_and_every_wrong_length_is_named() {
        valid_code().validate().unwrap();
        assert_eq!(
            refusal(|c| c.column_log2_eighths.truncate(2)),
            "column_log2_eighths: found 2 values, expected 3"
        );
        assert_eq!(
            refusal(|c| c.row_log2_eighths.push(1)),
            "row_log2_eighths: found 3 values, expected 2"
        );
        assert_eq!(
            refusal(|c| c.row_step_log2_eighths.clear()),
            "row_step_log2_eighths: found 0 values, expected 2"
        );
        assert_eq!(
            refusal(|c| c.q.truncate(5)),
            "indices: found 5 values, expected 6"
        );
        assert!(refusal(|c| c.overlay.as_mut().unwrap().u.clear()).starts_with("overlay u"));
        assert!(refusal(|c| c.overlay.as_mut().unwrap().v.clear()).starts_with("overlay v"));
    }

    #[test]
    fn an_invalid_step_or_overlay_is_refused() {
        for step in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, 1e30] {
            assert!(refusal(|c| c.step = step).starts_with("step: found"));
        }
        assert!(refusal(|c| c.overlay.as_mut().unwrap().rank = 0).starts_with("overlay rank"));
        let message = refusal(|c| c.overlay.as_mut().unwrap().v[2] = 0x7f80);
        assert_eq!(message, "overlay v: value 2 is not finite (found inf)");
    }
}
