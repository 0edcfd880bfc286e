//! A linear, and who watches it.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::weights::Weights;
use crate::matmul::matmul;
use crate::spec::Projection;

/// Sees what passes through a layer, and may replace the outputs of its linears.
pub trait Tap<B: Backend> {
    /// The input `[tokens, width]` of one or several linears, by its name in the layer's plan, all windows as
    /// rows one after another. `tokens` says which tokens these are where not all of them pass here.
    fn input(&mut self, _name: &str, _x: &Tensor<B, 2>, _tokens: Option<&[usize]>) {}

    /// The output `[tokens, out]` of the linear whose weight has this name within the layer.
    fn output(&mut self, _weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        y
    }
}

/// A tap that does nothing.
pub struct NoTap;

impl<B: Backend> Tap<B> for NoTap {}

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear<B: Backend> {
    /// Name of the weight within the layer.
    name: String,
    /// `[rows, cols]` = `[out, in]`
    weight: Tensor<B, 2>,
    /// `[out]`
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Linear<B> {
    pub(super) fn new<W: Weights<B>>(spec: &Projection, weights: &W) -> Result<Self, W::Error> {
        let name = format!("{}.weight", spec.name);
        let weight = weights.tensor(&name, [spec.rows, spec.cols])?;
        let bias = match spec.bias {
            true => Some(weights.tensor(&format!("{}.bias", spec.name), [spec.rows])?),
            false => None,
        };
        Ok(Linear { name, weight, bias })
    }

    /// Applies the matrix to `x: [tokens, in]`, before `tap`.
    pub(super) fn forward(&self, x: Tensor<B, 2>, tap: &mut dyn Tap<B>) -> Tensor<B, 2> {
        tap.output(&self.name, self.apply(x))
    }

    /// Applies the matrix to `x: [tokens, in]`.
    pub(super) fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = matmul(x, self.weight.clone().transpose());
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
