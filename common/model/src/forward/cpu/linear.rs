//! The product with a weight matrix that is a constant of the graph: no gradient with respect to it is computed or planned for.

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::graph::{Recorded, record};
use super::stored_weight::StoredWeight;
use crate::device::Cpu;
use crate::matmul::product;
use crate::work::Kind;

/// `x Wᵀ`, recorded in the graph and counted as work of this kind; `weight: [rows, cols]`.
pub(in crate::forward) fn tracked_product(
    kind: Kind,
    x: Tensor<Autodiff<Cpu>, 2>,
    weight: Tensor<Cpu, 2>,
) -> Tensor<Autodiff<Cpu>, 2> {
    record([x], |[x]| {
        let y = product(kind, x, weight.clone().transpose());
        (y, ConstantWeight { kind, weight })
    })
}

/// The weight of a product.
#[derive(Debug, Clone)]
struct ConstantWeight {
    kind: Kind,
    weight: Tensor<Cpu, 2>,
}

impl Recorded<1> for ConstantWeight {
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; 1] {
        [product(self.kind, grad_output, self.weight)]
    }
}

/// As [`tracked_product`], for a weight in 16 bits.
pub(in crate::forward) fn tracked_stored_product(
    kind: Kind,
    x: Tensor<Autodiff<Cpu>, 2>,
    weight: StoredWeight,
) -> Tensor<Autodiff<Cpu>, 2> {
    record([x], |[x]| {
        let y = weight.product(kind, x);
        (y, StoredOperand { kind, weight })
    })
}

/// The weight of a product, in 16 bits.
#[derive(Debug, Clone)]
struct StoredOperand {
    kind: Kind,
    weight: StoredWeight,
}

impl Recorded<1> for StoredOperand {
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; 1] {
        [self.weight.gradient(self.kind, grad_output)]
    }
}
