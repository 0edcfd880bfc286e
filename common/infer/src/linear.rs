//! A linear layer.

use uc_model::spec::Projection;

use crate::error::InferError;
use crate::matrix::Matrix;
use crate::product::products;
use crate::source::Source;

/// `y = x Wᵀ + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    /// `[out]`
    bias: Option<Vec<f32>>,
}

/// The outputs of linears that read the same input `x: [tokens, in]`, each `[tokens, out]`.
pub(crate) fn forward_all(linears: &[Linear], x: &[f32]) -> Vec<Vec<f32>> {
    let matrices: Vec<&Matrix> = linears.iter().map(|linear| &linear.matrix).collect();
    let mut all = products(&matrices, x);
    for (linear, y) in linears.iter().zip(&mut all) {
        linear.add_bias(y);
    }
    all
}

impl Linear {
    pub(crate) fn new(spec: &Projection, source: &dyn Source) -> Result<Self, InferError> {
        let matrix = source.matrix(&format!("{}.weight", spec.name), [spec.rows, spec.cols])?;
        let bias = match spec.bias {
            true => Some(source.values(&format!("{}.bias", spec.name), &[spec.rows])?),
            false => None,
        };
        Ok(Linear { matrix, bias })
    }

    /// `x: [tokens, in]` to `[tokens, out]`.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.matrix.product(x);
        self.add_bias(&mut y);
        y
    }

    fn add_bias(&self, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}
