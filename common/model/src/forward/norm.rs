//! Normalizations with their weights.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::cpu::{NormRows, Values, is_trained, tracked_norm};
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
            is_trained(&cast::<_, Tensor<Autodiff<Cpu>, 1>>(weight.clone()))
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

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    type Graph = Autodiff<Cpu>;

    fn numbers<const D: usize>(shape: [usize; D], step: usize) -> Tensor<Graph, D> {
        let number = |i: usize| (i * step % 1009) as f32 / 504.5 - 0.7;
        let values: Vec<f32> = (1..=shape.iter().product()).map(number).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn largest_error(found: Tensor<Cpu, 2>, expected: Tensor<Cpu, 2>) -> f32 {
        let largest = expected.clone().abs().max().into_scalar();
        (found - expected).abs().max().into_scalar() / largest
    }

    #[test]
    fn the_kernels_equal_the_tensor_formulation_and_its_gradient() {
        for bias in [None, Some(numbers([37], 4099))] {
            let norm = Norm {
                weight: numbers([37], 6421),
                bias,
                eps: 1e-5,
            };
            // Two norms side by side in every row.
            let x = numbers::<2>([300, 74], 7919).require_grad();
            let weight = numbers([300, 74], 5557);
            let run = |y: Tensor<Graph, 2>| {
                let gradients = (y.clone() * weight.clone()).sum().backward();
                (y.inner(), x.grad(&gradients).unwrap())
            };
            let (y, gradient) = run(norm.forward(x.clone()));
            let (expected_y, expected_gradient) = run(norm.reference(x.clone()));
            assert!(largest_error(y, expected_y) < 1e-6);
            assert!(largest_error(gradient, expected_gradient) < 2e-6);
        }
    }

    #[test]
    fn weights_that_are_trained_get_their_gradients() {
        let norm = Norm {
            weight: numbers::<1>([8], 6421).require_grad(),
            bias: None,
            eps: 1e-5,
        };
        let gradients = norm.forward(numbers([3, 8], 7919)).sum().backward();
        assert!(norm.weight.grad(&gradients).is_some());
    }

    #[test]
    fn squares_that_overflow_give_no_number() {
        let norm = Norm::<Cpu> {
            weight: Tensor::ones([4], &Default::default()),
            bias: None,
            eps: 1e-5,
        };
        let y = norm.forward(Tensor::full([1, 4], 1e30, &Default::default()));
        assert!(
            y.into_data()
                .to_vec::<f32>()
                .unwrap()
                .iter()
                .all(|x| x.is_nan())
        );
    }
}
