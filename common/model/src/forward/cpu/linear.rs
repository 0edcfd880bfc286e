//! The product with a weight matrix that is a constant of the graph: no gradient with respect to it is computed or planned for.

use std::fmt::Debug;

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::graph::{Recorded, record};
use crate::device::Cpu;
use crate::matmul::product;
use crate::work::Kind;

/// A weight matrix W `[rows, cols]`. Products are counted as work of a kind.
pub(in crate::forward) trait ConstantMatrix:
    Clone + Debug + Send + 'static
{
    /// `x Wᵀ` for `x: [tokens, cols]`.
    fn product(&self, kind: Kind, x: Tensor<Cpu, 2>) -> Tensor<Cpu, 2>;

    /// `g W` for `g: [tokens, rows]`.
    fn gradient(&self, kind: Kind, g: Tensor<Cpu, 2>) -> Tensor<Cpu, 2>;
}

impl ConstantMatrix for Tensor<Cpu, 2> {
    fn product(&self, kind: Kind, x: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        product(kind, x, self.clone().transpose())
    }

    fn gradient(&self, kind: Kind, g: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        product(kind, g, self.clone())
    }
}

/// `x Wᵀ`, recorded in the graph and counted as work of this kind.
pub(in crate::forward) fn tracked_product<M: ConstantMatrix>(
    kind: Kind,
    x: Tensor<Autodiff<Cpu>, 2>,
    weight: M,
) -> Tensor<Autodiff<Cpu>, 2> {
    record([x], |[x]| {
        let y = weight.product(kind, x);
        (y, ConstantWeight { kind, weight })
    })
}

/// The weight of a product.
#[derive(Debug, Clone)]
struct ConstantWeight<M> {
    kind: Kind,
    weight: M,
}

impl<M: ConstantMatrix> Recorded<1> for ConstantWeight<M> {
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; 1] {
        [self.weight.gradient(self.kind, grad_output)]
    }
}
