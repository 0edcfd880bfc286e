//! Two operations on the rows of activations and gradients that statistics need: squared norms, and scaling by one factor per row.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::device::{Cpu, cast, is};
use crate::forward::{Values, matrix, piece_rows, squared_norm};

/// The sum of squares of every row of `x: [rows, width]`.
///
/// # Panics
/// If the backend does not compute in f32.
pub fn squared_norms<B: Backend>(x: &Tensor<B, 2>) -> Vec<f32> {
    if !is::<B, Cpu>() {
        let norms = (x.clone() * x.clone()).sum_dim(1).into_data();
        return norms
            .into_vec()
            .expect("backends of this crate compute in f32");
    }
    let width = x.dims()[1];
    let values = Values::new(x);
    let rows = values
        .par_chunks_exact(width.max(1))
        .with_min_len(piece_rows(width));
    rows.map(squared_norm).collect()
}

/// Every row of `x: [rows, width]` multiplied by its factor.
///
/// # Panics
/// If there is not one factor for each row.
pub fn scaled<B: Backend>(x: Tensor<B, 2>, factors: Vec<f32>) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    assert_eq!(factors.len(), rows, "one factor per row");
    if !is::<B, Cpu>() {
        let device = x.device();
        return x * Tensor::from_data(TensorData::new(factors, [rows, 1]), &device);
    }
    let values = Values::new(&x);
    let mut out = vec![0.0; rows * width];
    let pairs = values.par_chunks_exact(width.max(1)).zip(&factors);
    out.par_chunks_exact_mut(width.max(1))
        .with_min_len(piece_rows(width))
        .zip(pairs)
        .for_each(|(out, (x, factor))| {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
        });
    cast(matrix(out, [rows, width]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_measured_and_scaled_one_by_one() {
        let values = (0..5 * 40)
            .map(|i| (i % 7) as f32 - 3.0)
            .collect::<Vec<_>>();
        let x = matrix(values.clone(), [5, 40]);
        let expected = values
            .chunks(40)
            .map(|row| row.iter().map(|x| x * x).sum::<f32>());
        assert_eq!(squared_norms(&x), expected.collect::<Vec<_>>());
        let factors = vec![2.0, 0.0, -1.0, 0.5, 3.0];
        let found: Vec<f32> = scaled(x, factors.clone()).into_data().into_vec().unwrap();
        let expected = values.iter().enumerate().map(|(i, x)| x * factors[i / 40]);
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
