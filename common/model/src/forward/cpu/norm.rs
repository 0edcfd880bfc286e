//! RMSNorm and LayerNorm of rows, and their gradients with respect to the rows.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::graph::{Recorded, record};
use super::{Values, matrix, piece_rows};
use crate::device::Cpu;
use crate::forward::vector;
use crate::work::{self, Amount, Kind};

/// A norm of parts of `width` values: `(x − mean) / sqrt(mean square + eps) · weight + bias`. Without a bias it is an RMSNorm, whose mean
/// is not subtracted.
#[derive(Debug, Clone)]
pub(in crate::forward) struct NormRows {
    /// `[width]`
    pub(in crate::forward) weight: Values,
    /// `[width]`
    pub(in crate::forward) bias: Option<Values>,
    pub(in crate::forward) eps: f32,
}

impl NormRows {
    fn kernel(&self) -> vector::NormOfRows<'_> {
        vector::NormOfRows {
            weight: &self.weight,
            bias: self.bias.as_deref(),
            eps: self.eps,
        }
    }

    /// The norm of every part of `x`.
    pub(in crate::forward) fn forward(&self, x: &Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        let values = Values::new(x);
        let piece = piece_rows(self.weight.len()) * self.weight.len();
        let mut out = vec![0.0; values.len()];
        let pieces = out.par_chunks_mut(piece).zip(values.par_chunks(piece));
        work::counted(Kind::Elementwise, Amount::values(2 * values.len()), || {
            pieces.for_each(|(out, x)| vector::norm(self.kernel(), x, out));
        });
        matrix(out, x.dims())
    }
}

/// The norm of every part of `x`, recorded in the graph. The norm's own weights are constants of the graph.
pub(in crate::forward) fn tracked_norm(
    norm: NormRows,
    x: Tensor<Autodiff<Cpu>, 2>,
) -> Tensor<Autodiff<Cpu>, 2> {
    record([x], |[x]| (norm.forward(&x), RecordedNorm { norm, x }))
}

/// A norm and its input.
#[derive(Debug, Clone)]
struct RecordedNorm {
    norm: NormRows,
    x: Tensor<Cpu, 2>,
}

impl Recorded<1> for RecordedNorm {
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; 1] {
        let (norm, x, grad) = (&self.norm, Values::new(&self.x), Values::new(&grad_output));
        let piece = piece_rows(norm.weight.len()) * norm.weight.len();
        let mut by_x = vec![0.0; x.len()];
        let inputs = x.par_chunks(piece).zip(grad.par_chunks(piece));
        let pieces = by_x.par_chunks_mut(piece).zip(inputs);
        work::counted(Kind::Elementwise, Amount::values(3 * x.len()), || {
            pieces.for_each(|(by_x, (x, grad))| {
                vector::norm_gradient(norm.kernel(), x, grad, by_x);
            });
        });
        [matrix(by_x, self.x.dims())]
    }
}
