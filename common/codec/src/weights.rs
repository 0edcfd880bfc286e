//! The weights of a linear, of which rows are read when they are needed.
//!
//! A linear of a large model takes gigabytes in f32, and all that is done with its weights is done row by row. Owns the
//! interface and its form for weights that are in memory.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{CodecError, check_finite, check_matrix};
use rayon::prelude::*;

/// Approximate number of weights that are read at a time.
const PIECE_WEIGHTS: usize = 1 << 22;

/// The weights of a linear, [rows, cols].
pub trait Weights: Sync {
    /// The error of reading.
    type Error: From<CodecError> + Send;

    /// Outputs and inputs.
    fn shape(&self) -> (usize, usize);

    /// Some of the rows, [rows, cols].
    ///
    /// # Errors
    /// If they cannot be read.
    fn rows(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>, Self::Error>;
}

/// Weights that are in memory.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> Matrix<'a> {
    /// The weights `values` [rows, cols].
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Result<Self, CodecError> {
        check_matrix("weights", values.len(), rows, cols)?;
        Ok(Matrix { values, rows, cols })
    }
}

impl Weights for Matrix<'_> {
    type Error = CodecError;

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>, CodecError> {
        let values = rows.start * self.cols..rows.end * self.cols;
        Ok(Cow::Borrowed(&self.values[values]))
    }
}

/// Rows that are read at a time from a matrix with this many columns.
pub(crate) fn piece_rows(cols: usize) -> usize {
    (PIECE_WEIGHTS / cols.max(1)).max(1)
}

/// Some of the rows of `weights`, all of them finite.
pub(crate) fn finite_rows<W: Weights>(
    weights: &W,
    rows: Range<usize>,
) -> Result<Cow<'_, [f32]>, W::Error> {
    let first = rows.start * weights.shape().1;
    let values = weights.rows(rows.clone())?;
    check_matrix("weights", values.len(), rows.len(), weights.shape().1)?;
    check_finite("weights", &values).map_err(|error| match error {
        CodecError::NotFinite { what, index, found } => CodecError::NotFinite {
            what,
            index: first + index,
            found,
        },
        error => error,
    })?;
    Ok(values)
}

/// The rows of `weights` that are not zero, in order; refuses weights that are not finite.
pub(crate) fn nonzero_rows<W: Weights>(weights: &W) -> Result<Vec<usize>, W::Error> {
    let (rows, cols) = weights.shape();
    let step = piece_rows(cols);
    let pieces: Vec<Vec<usize>> = (0..rows.div_ceil(step))
        .into_par_iter()
        .map(|piece| {
            let range = piece * step..rows.min((piece + 1) * step);
            let values = finite_rows(weights, range.clone())?;
            let rows = range.zip(values.chunks(cols.max(1)));
            let nonzero = rows.filter(|(_, row)| !is_zero(row));
            Ok(nonzero.map(|(index, _)| index).collect())
        })
        .collect::<Result<_, W::Error>>()?;
    Ok(pieces.concat())
}

/// Whether all weights of a row are zero. Such a row stays zero, and the trellis skips it.
pub fn is_zero(row: &[f32]) -> bool {
    row.iter().all(|&w| w == 0.0)
}
