//! A linear layer, and the observer of its input and output.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::matrix::Matrix;
use super::weights::Weights;
use crate::spec::Projection;
use crate::work::Kind;

/// Observes the activations of a layer. It sees the inputs of the linears and may replace their outputs.
pub trait ActivationObserver<B: Backend> {
    /// Called with every input `[tokens, width]`, named as in the layer's plan, before the linears that read
    /// it. Rows are tokens, window after window. `tokens` gives the indices of the rows' tokens if only some
    /// tokens of the batch are in it (routed experts).
    fn observe_input(&mut self, _name: &str, _x: &Tensor<B, 2>, _tokens: Option<&[usize]>) {}

    /// Called with the output `[tokens, out]` of the linear whose weight has this name within the layer.
    /// Returns the output that the forward pass continues with.
    fn observe_output(&mut self, _weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        y
    }
}

/// An observer that does nothing.
pub struct NoObserver;

impl<B: Backend> ActivationObserver<B> for NoObserver {}

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear<B: Backend> {
    /// Name of the weight within the layer.
    name: String,
    /// `[rows, cols]` = `[out, in]`
    weight: Matrix<B>,
    /// `[out]`
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Linear<B> {
    pub(super) fn new<W: Weights<B>>(spec: &Projection, weights: &W) -> Result<Self, W::Error> {
        let name = format!("{}.weight", spec.name);
        let weight = weights.matrix(&name, [spec.rows, spec.cols])?;
        Self::with_weight(spec, name, weight, weights)
    }

    /// A linear that computes in f32 whatever the arithmetic of the others.
    pub(super) fn in_f32<W: Weights<B>>(spec: &Projection, weights: &W) -> Result<Self, W::Error> {
        let name = format!("{}.weight", spec.name);
        let weight = weights.tensor(&name, [spec.rows, spec.cols])?;
        Self::with_weight(spec, name, weight.into(), weights)
    }

    fn with_weight<W: Weights<B>>(
        spec: &Projection,
        name: String,
        weight: Matrix<B>,
        weights: &W,
    ) -> Result<Self, W::Error> {
        let bias = match spec.bias {
            true => Some(weights.tensor(&format!("{}.bias", spec.name), [spec.rows])?),
            false => None,
        };
        Ok(Linear { name, weight, bias })
    }

    /// Applies the layer to `x: [tokens, in]` and shows the output to `observer`.
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        observer: &mut dyn ActivationObserver<B>,
    ) -> Tensor<B, 2> {
        observer.observe_output(&self.name, self.apply(x))
    }

    /// Applies the layer to `x: [tokens, in]`, without an observer.
    pub(super) fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = self.weight.product(Kind::Linears, x);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
