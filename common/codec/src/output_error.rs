//! The relative error of a linear's output after quantization.

use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::block_width;
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

/// Rows of one parallel piece.
const PIECE_ROWS: usize = 128;

/// Relative output error `tr(E·H·Eᵀ) / tr(W·H·Wᵀ)` with `E = approximation − weights`, both [m, n],
/// under the undamped second moments `h` [n, block] of the inputs, whole or in diagonal blocks ([`crate::factor`]): the mean
/// square of the change of the outputs over the mean square of the outputs. 0 if the error is 0, infinite if only the
/// denominator is 0.
///
/// # Errors
/// [`CodecError::Shape`] and [`CodecError::NotFinite`].
pub fn relative_output_error(
    weights: &[f32],
    approximation: &[f32],
    m: usize,
    n: usize,
    h: &[f32],
) -> Result<f64, CodecError> {
    check_matrix("weights", weights.len(), m, n)?;
    let mut error = OutputError::new(n, h)?;
    error.add(weights, approximation)?;
    Ok(error.relative())
}

/// The relative output error of a matrix whose rows are added in pieces.
#[derive(Debug)]
pub struct OutputError<'a> {
    n: usize,
    /// [n, block]
    h: &'a [f32],
    block: usize,
    /// By piece of rows: energies of the errors and of the weights. They are summed at the end, one after another.
    energies: Vec<(f64, f64)>,
}

impl<'a> OutputError<'a> {
    /// Rows of a piece: the result is that of [`relative_output_error`] if all calls of [`OutputError::add`] but the last add a
    /// multiple of as many.
    pub const PIECE_ROWS: usize = PIECE_ROWS;

    /// The error of no rows under the second moments `h` [n, block].
    ///
    /// # Errors
    /// [`CodecError::Shape`] and [`CodecError::NotFinite`].
    pub fn new(n: usize, h: &'a [f32]) -> Result<Self, CodecError> {
        let block = block_width("Hessian", h.len(), n)?;
        check_finite("Hessian", h)?;
        Ok(OutputError {
            n,
            h,
            block,
            energies: Vec::new(),
        })
    }

    /// Adds rows, [rows, n] both.
    ///
    /// # Errors
    /// [`CodecError::Shape`] and [`CodecError::NotFinite`].
    pub fn add(&mut self, weights: &[f32], approximation: &[f32]) -> Result<(), CodecError> {
        check_len("approximation", approximation.len(), weights.len())?;
        check_finite("weights", weights)?;
        check_finite("approximation", approximation)?;
        let piece = (PIECE_ROWS * self.n).max(1);
        let energies = |(w, a): (&[f32], &[f32])| {
            let error: Vec<f32> = a.iter().zip(w).map(|(a, w)| a - w).collect();
            (self.energy(&error), self.energy(w))
        };
        let pieces = weights
            .par_chunks(piece)
            .zip(approximation.par_chunks(piece));
        let energies: Vec<_> = pieces.map(energies).collect();
        self.energies.extend(energies);
        Ok(())
    }

    /// The relative error of the rows that were added.
    pub fn relative(&self) -> f64 {
        let error: f64 = self.energies.iter().map(|(error, _)| error).sum();
        let signal: f64 = self.energies.iter().map(|(_, signal)| signal).sum();
        if error == 0.0 { 0.0 } else { error / signal }
    }

    /// `tr(X·H·Xᵀ)` of `x` [rows, n], summed in a fixed order in f64.
    fn energy(&self, x: &[f32]) -> f64 {
        let (n, block) = (self.n, self.block);
        let rows = x.len() / n;
        let mut product = vec![0.0f32; x.len()];
        for first in (0..n).step_by(block) {
            let width = block.min(n - first);
            let columns = MatrixView::new(&x[first..], rows, width, n);
            let h = MatrixView::new(&self.h[first * block..], width, width, block);
            multiply(&mut product[first..], n, columns, h);
        }
        let products = product.iter().zip(x);
        products.map(|(p, x)| f64::from(*p) * f64::from(*x)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_computed_case() {
        // H = [[2, 1], [1, 3]]; w = (1, 2): 2 + 2·2·1 + 4·3 = 18; e = (1, -1): 2 − 2 + 3 = 3.
        let h = [2.0, 1.0, 1.0, 3.0];
        let found = relative_output_error(&[1.0, 2.0], &[2.0, 1.0], 1, 2, &h).unwrap();
        assert!((found - 3.0 / 18.0).abs() < 1e-12);
    }

    #[test]
    fn no_error_is_zero_even_where_there_is_no_signal() {
        assert_eq!(
            relative_output_error(&[0.0], &[0.0], 1, 1, &[1.0]).unwrap(),
            0.0
        );
        assert_eq!(
            relative_output_error(&[0.0], &[1.0], 1, 1, &[1.0]).unwrap(),
            f64::INFINITY
        );
        assert_eq!(relative_output_error(&[], &[], 0, 0, &[]).unwrap(), 0.0);
    }

    #[test]
    fn wrong_lengths_and_nan_are_refused() {
        let short = relative_output_error(&[0.0], &[0.0], 1, 2, &[1.0]);
        assert!(matches!(
            short,
            Err(CodecError::Shape {
                what: "weights",
                ..
            })
        ));
        let none = relative_output_error(&[0.0], &[0.0], 1, 1, &[]);
        assert!(matches!(
            none,
            Err(CodecError::Shape {
                what: "Hessian",
                ..
            })
        ));
        let nan = relative_output_error(&[0.0], &[f32::NAN], 1, 1, &[1.0]);
        assert!(matches!(
            nan,
            Err(CodecError::NotFinite {
                what: "approximation",
                ..
            })
        ));
    }
}
