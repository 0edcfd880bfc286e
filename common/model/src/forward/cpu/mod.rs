//! Kernels for the plain CPU backend: norms, the MLP gate, attention, and their gradients.
//!
//! As tensor operations these parts of a pass take longer than its matrix products: every operation maps and fills a tensor of its
//! own, on one thread. The tensor formulation of each (in `norm`, `math` and `attention`) is the reference; it runs on every other
//! backend, and where weights are trained. Work is split into pieces of fixed size, each computed by one thread, so the bits of a
//! result do not depend on the number of threads.

mod attention;
mod attention_gradient;
mod gate;
mod graph;
mod linear;
mod norm;
mod stored_weight;

use std::ops::Deref;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use uc_simd::round_to_bf16;

use crate::device::{Cpu, cast};

pub(super) use attention::{attention, tracked_attention};
pub(super) use gate::{silu_gate, tracked_silu_gate};
pub(super) use linear::{ConstantMatrix, tracked_product};
pub(super) use norm::{NormRows, tracked_norm};
pub use stored_weight::Arithmetic;
pub(super) use stored_weight::StoredWeight;

/// Elements per piece of an elementwise loop.
pub(super) const ELEMENTS: usize = 1 << 14;

/// The values of a tensor of the CPU backend, row by row; copied only if the tensor is a view whose elements are not contiguous.
#[derive(Debug, Clone)]
pub(crate) struct Values(FlexTensor);

impl Values {
    /// The values of `tensor`; `B` must be the CPU backend.
    pub(crate) fn new<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Self {
        let tensor: Tensor<Cpu, D> = cast(tensor.clone());
        let primitive = tensor.into_primitive().tensor();
        Values(match primitive.is_contiguous() {
            true => primitive,
            false => primitive.to_contiguous(),
        })
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let offsets = self.0.layout().contiguous_offsets();
        let (start, end) = offsets.expect("made contiguous");
        &self.0.storage()[start..end]
    }
}

/// A tensor `shape` with these values.
pub(crate) fn matrix(values: Vec<f32>, shape: [usize; 2]) -> Tensor<Cpu, 2> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

/// The values rounded to bfloat16.
pub(crate) fn rounded_to_bf16(values: &[f32]) -> Vec<f32> {
    let mut rounded = vec![0.0; values.len()];
    let pieces = rounded
        .par_chunks_mut(ELEMENTS)
        .zip(values.par_chunks(ELEMENTS));
    pieces.for_each(|(rounded, values)| round_to_bf16(values, rounded));
    rounded
}

/// Whether gradients with respect to a weight may be asked for.
pub(super) fn is_trained<const D: usize>(weight: &Tensor<Autodiff<Cpu>, D>) -> bool {
    let node = weight.clone().into_primitive().tensor().node;
    !node.requirement.is_none()
}

/// Rows of `width` values in a piece of about [`ELEMENTS`] elements.
pub(crate) fn piece_rows(width: usize) -> usize {
    (ELEMENTS / width.max(1)).max(1)
}
