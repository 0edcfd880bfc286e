//! Normalizations with their weights.

use uc_model::spec::{NormKind, NormSpec};
use uc_simd::LANES;

use crate::error::InferError;
use crate::source::Source;
use crate::tasks::for_parts;

/// A norm over parts of a row.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[width]`
    weight: Vec<f32>,
    /// `[width]`, for a LayerNorm.
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(spec: &NormSpec, source: &dyn Source) -> Result<Self, InferError> {
        let tensor = |part: &str| source.values(&format!("{}.{part}", spec.name), &[spec.width]);
        let mut weight = tensor("weight")?;
        if spec.kind == NormKind::RmsOnePlus {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let bias = match spec.kind {
            NormKind::Layer => Some(tensor("bias")?),
            _ => None,
        };
        Ok(Norm {
            weight,
            bias,
            eps: spec.eps as f32,
        })
    }

    /// Normalizes every part of `x` as long as the weight.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        let width = self.weight.len();
        for_parts(x, width, |_, x| {
            for part in x.chunks_exact_mut(width) {
                self.apply_part(part, &self.weight);
            }
        });
    }

    /// Normalizes the parts of every row of `x: [rows, width of the weight]`, as many as there are groups, each with its part
    /// of the weight.
    pub(crate) fn apply_groups(&self, x: &mut [f32], groups: usize) {
        let width = self.weight.len() / groups;
        for_parts(x, self.weight.len(), |_, x| {
            for row in x.chunks_exact_mut(self.weight.len()) {
                let parts = row.chunks_exact_mut(width);
                for (part, weight) in parts.zip(self.weight.chunks_exact(width)) {
                    self.apply_part(part, weight);
                }
            }
        });
    }

    fn apply_part(&self, x: &mut [f32], weight: &[f32]) {
        let count = x.len() as f32;
        if self.bias.is_some() {
            let mean = sum(x, |x| x) / count;
            x.iter_mut().for_each(|x| *x -= mean);
        }
        let mean_square = sum(x, |x| x * x) / count;
        // NaN if the squares overflow, where the formula would give 0 and hide it.
        let scale = 1.0 / (mean_square + self.eps).sqrt() + mean_square * 0.0;
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
        if let Some(bias) = &self.bias {
            x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    }
}

/// The sum of `f` of the values, in partial sums of a fixed order.
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += f(block[lane]);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f(x);
    }
    sums.iter().sum()
}
