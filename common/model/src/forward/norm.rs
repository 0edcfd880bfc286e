//! Norms with their weights.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::weights::Weights;
use crate::spec::{NormKind, NormSpec};

/// A norm over the last dimension.
#[derive(Debug, Clone)]
pub(super) struct Norm<B: Backend> {
    /// `[width]`
    gain: Tensor<B, 1>,
    /// `[width]`, of a layer norm.
    bias: Option<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> Norm<B> {
    pub(super) fn new<W: Weights<B>>(spec: &NormSpec, weights: &W) -> Result<Self, W::Error> {
        let tensor = |part: &str| weights.tensor(&format!("{}.{part}", spec.name), [spec.width]);
        let (gain, bias) = match spec.kind {
            NormKind::Rms => (tensor("weight")?, None),
            NormKind::RmsOnePlus => (tensor("weight")? + 1.0, None),
            NormKind::Layer => (tensor("weight")?, Some(tensor("bias")?)),
        };
        Ok(Norm {
            gain,
            bias,
            eps: spec.eps,
        })
    }

    /// Applies the norm to every row of `x`, where there is one.
    pub(super) fn or_not(norm: &Option<Self>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// A norm each for `count` parts of a row, with their parts of the gain; of a kind without bias.
    pub(super) fn parts(&self, count: usize) -> Vec<Self> {
        assert!(self.bias.is_none(), "a bias is not taken apart");
        let width = self.gain.dims()[0] / count;
        let part = |index| Norm {
            gain: self.gain.clone().narrow(0, index * width, width),
            bias: None,
            eps: self.eps,
        };
        (0..count).map(part).collect()
    }

    /// Applies the norm to every row of `x: [rows, width]`, or to every part of a row that is as wide as the
    /// norm.
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let own = self.gain.dims()[0];
        if width != own {
            let parts = x.reshape([rows * width / own, own]);
            return self.forward(parts).reshape([rows, width]);
        }
        match &self.bias {
            None => self.scaled(x),
            Some(bias) => {
                let mean = x.clone().mean_dim(1);
                self.scaled(x - mean) + bias.clone().unsqueeze()
            }
        }
    }

    /// `x / sqrt(mean(x²) + eps) · gain`
    fn scaled(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let mean_square = (x.clone() * x.clone()).mean_dim(1);
        let scale = (mean_square + self.eps).sqrt().recip();
        x * scale * self.gain.clone().unsqueeze()
    }
}
