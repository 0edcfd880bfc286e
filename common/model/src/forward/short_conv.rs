//! The short causal convolution in front of a selective scan, with its weights.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::weights::Weights;
use crate::mamba::causal_conv;
use crate::spec::ConvSpec;

/// The weights of a short convolution.
#[derive(Debug, Clone)]
pub(super) struct ShortConv<B: Backend> {
    /// `[channels, kernel]`
    weight: Tensor<B, 2>,
    /// `[channels]`
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> ShortConv<B> {
    pub(super) fn new<W: Weights<B>>(spec: &ConvSpec, weights: &W) -> Result<Self, W::Error> {
        let &ConvSpec {
            channels, kernel, ..
        } = spec;
        let name = |part: &str| format!("{}.{part}", spec.name);
        let weight: Tensor<B, 3> = weights.tensor(&name("weight"), [channels, 1, kernel])?;
        let bias = match spec.bias {
            true => Some(weights.tensor(&name("bias"), [channels])?),
            false => None,
        };
        Ok(ShortConv {
            weight: weight.reshape([channels, kernel]),
            bias,
        })
    }

    /// `x: [windows · length, channels]` to the same shape.
    pub(super) fn forward(&self, x: Tensor<B, 2>, [windows, length]: [usize; 2]) -> Tensor<B, 2> {
        let [tokens, channels] = x.dims();
        let x = x.reshape([windows, length, channels]);
        causal_conv(x, self.weight.clone(), self.bias.clone()).reshape([tokens, channels])
    }
}
