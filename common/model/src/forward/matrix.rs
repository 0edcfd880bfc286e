//! The weight matrix of a linear or of the head.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::cpu::{Arithmetic, ConstantMatrix, StoredWeight, is_trained, tracked_product};
use crate::device::{Cpu, cast, is};
use crate::matmul::product;
use crate::source::HalfType;
use crate::work::Kind;

/// A weight matrix `[rows, cols]`.
#[derive(Debug, Clone)]
pub struct Matrix<B: Backend>(Form<B>);

#[derive(Debug, Clone)]
enum Form<B: Backend> {
    Tensor(Tensor<B, 2>),
    /// On the CPU, with or without a graph. No gradient with respect to it is asked for.
    Stored(StoredWeight),
}

impl<B: Backend> Matrix<B> {
    /// Whether this backend multiplies with matrices of [`Matrix::stored`].
    pub(super) fn can_be_stored() -> bool {
        is::<B, Cpu>() || is::<B, Autodiff<Cpu>>()
    }

    /// The matrix with these 16-bit values, row by row. Only on the CPU ([`Matrix::can_be_stored`]).
    pub(super) fn stored(
        half: HalfType,
        values: Vec<u16>,
        shape: [usize; 2],
        arithmetic: Arithmetic,
    ) -> Self {
        Matrix(Form::Stored(StoredWeight::new(
            half, values, shape, arithmetic,
        )))
    }

    /// `x Wᵀ` for `x: [tokens, cols]`, counted as work of this kind.
    pub(super) fn product(&self, kind: Kind, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.0 {
            Form::Stored(weight) if is::<B, Autodiff<Cpu>>() => {
                cast(tracked_product(kind, cast(x), weight.clone()))
            }
            Form::Stored(weight) => cast(weight.product(kind, cast(x))),
            Form::Tensor(weight) => {
                if is::<B, Autodiff<Cpu>>() {
                    let weight: Tensor<Autodiff<Cpu>, 2> = cast(weight.clone());
                    if !is_trained(&weight) {
                        return cast(tracked_product(kind, cast(x), weight.inner()));
                    }
                }
                product(kind, x, weight.clone().transpose())
            }
        }
    }
}

impl<B: Backend> From<Tensor<B, 2>> for Matrix<B> {
    fn from(weight: Tensor<B, 2>) -> Self {
        Matrix(Form::Tensor(weight))
    }
}
