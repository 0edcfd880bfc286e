//! The relative error of a linear's output after quantization.

use crate::error::{CodecError, check_finite, check_matrix};
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
    check_matrix("approximation", approximation.len(), m, n)?;
    let block = block_width("Hessian", h.len(), n)?;
    check_finite("weights", weights)?;
    check_finite("approximation", approximation)?;
    check_finite("Hessian", h)?;
    let error: Vec<f32> = approximation
        .iter()
        .zip(weights)
        .map(|(a, w)| a - w)
        .collect();
    let (error, signal) = (energy(&error, n, h, block), energy(weights, n, h, block));
    Ok(if error == 0.0 { 0.0 } else { error / signal })
}

/// `tr(X·H·Xᵀ)` of `x` [m, n], summed in a fixed order in f64.
fn energy(x: &[f32], n: usize, h: &[f32], block: usize) -> f64 {
    if x.is_empty() {
        return 0.0;
    }
    let piece = |x: &[f32]| {
        let rows = x.len() / n;
        let mut product = vec![0.0f32; x.len()];
        for first in (0..n).step_by(block) {
            let width = block.min(n - first);
            let columns = MatrixView::new(&x[first..], rows, width, n);
            let h = MatrixView::new(&h[first * block..], width, width, block);
            multiply(&mut product[first..], n, columns, h);
        }
        product
            .iter()
            .zip(x)
            .map(|(p, x)| f64::from(*p) * f64::from(*x))
            .sum::<f64>()
    };
    let pieces: Vec<f64> = x.par_chunks(PIECE_ROWS * n).map(piece).collect();
    pieces.iter().sum()
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
