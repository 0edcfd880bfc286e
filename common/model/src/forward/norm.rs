//! Normalizations with their weights.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::cpu::{NormRows, Values, tracked_norm};
use super::weights::Weights;
use crate::device::{Cpu, cast, is};
use crate::spec::{NormKind, NormSpec};

/// A norm over the last dimension.
#[derive(Debug, Clone)]
pub(super) struct Norm<B: Backend> {
    /// `[width]`
    weight: Tensor<B, 1>,
    /// `[width]`, for a LayerNorm.
    bias: Option<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> Norm<B> {
    pub(super) fn new<W: Weights<B>>(spec: &NormSpec, weights: &W) -> Result<Self, W::Error> {
        let tensor = |part: &str| weights.tensor(&format!("{}.{part}", spec.name), [spec.width]);
        let (weight, bias) = match spec.kind {
            NormKind::Rms => (tensor("weight")?, None),
            NormKind::RmsOnePlus => (tensor("weight")? + 1.0, None),
            NormKind::Layer => (tensor("weight")?, Some(tensor("bias")?)),
        };
        Ok(Norm {
            weight,
            bias,
            eps: spec.eps,
        })
    }

    /// Applies the norm, if there is one, to every row of `x`.
    pub(super) fn apply_optional(norm: &Option<Self>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// Splits an RMS norm into `count` norms over equal parts of a row, each with its part of the weight.
    pub(super) fn split(&self, count: usize) -> Vec<Self> {
        assert!(self.bias.is_none(), "only RMS norms are split");
        let width = self.weight.dims()[0] / count;
        let part = |index| Norm {
            weight: self.weight.clone().narrow(0, index * width, width),
            bias: None,
            eps: self.eps,
        };
        (0..count).map(part).collect()
    }

    /// Applies the norm to every row of `x: [rows, width]`. If `width` is a multiple of the norm's width, the
    /// norm applies to each part of a row separately.
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        if is::<B, Cpu>() {
            let norm = self.rows(|weight| Values::new(weight));
            return cast(norm.forward(&cast(x)));
        }
        if is::<B, Autodiff<Cpu>>() && !self.is_trained() {
            let norm = self.rows(|weight| {
                let weight: Tensor<Autodiff<Cpu>, 1> = cast(weight.clone());
                Values::new(&weight.inner())
            });
            return cast(tracked_norm(norm, cast(x)));
        }
        self.reference(x)
    }

    /// The norm for the kernel of the CPU; `values` takes the values of a weight.
    fn rows(&self, values: impl Fn(&Tensor<B, 1>) -> Values) -> NormRows {
        NormRows {
            weight: values(&self.weight),
            bias: self.bias.as_ref().map(&values),
            eps: self.eps as f32,
        }
    }

    /// Whether gradients with respect to the weights may be asked for; `B` must be [`Autodiff<Cpu>`].
    fn is_trained(&self) -> bool {
        let tracked = |weight: &Tensor<B, 1>| {
            let weight: Tensor<Autodiff<Cpu>, 1> = cast(weight.clone());
            let node = weight.into_primitive().tensor().node;
            !node.requirement.is_none()
        };
        tracked(&self.weight) || self.bias.as_ref().is_some_and(tracked)
    }

    /// The norm as tensor operations.
    fn reference(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let norm_width = self.weight.dims()[0];
        if width != norm_width {
            let parts = x.reshape([rows * width / norm_width, norm_width]);
            return self.reference(parts).reshape([rows, width]);
        }
        match &self.bias {
            None => self.scaled(x),
            Some(bias) => {
                let mean = x.clone().mean_dim(1);
                self.scaled(x - mean) + bias.clone().unsqueeze()
            }
        }
    }

    /// `x / sqrt(mean(x²) + eps) · weight`; NaN if the squares overflow, where the formula would give 0 and hide it.
    fn scaled(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let mean_square = (x.clone() * x.clone()).mean_dim(1);
        // 0 · mean_square adds nothing to a finite mean.
        let nan_on_overflow = mean_square.clone() * 0.0;
        let scale = (mean_square + self.eps).sqrt().recip() + nan_on_overflow;
        x * scale * self.weight.clone().unsqueeze()
    }
}
