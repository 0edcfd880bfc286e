//! The source of the weights of a forward pass.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::cpu::Arithmetic;
use super::matrix::Matrix;
use crate::error::ModelError;
use crate::source::WeightValues;

/// A source of tensors, by name.
pub trait Weights<B: Backend> {
    /// Why a tensor cannot be provided.
    type Error: From<ModelError>;

    /// The tensor `name`, of the given shape. For tensors of a layer, `name` is the name within the layer.
    ///
    /// # Errors
    /// Any reason why the tensor is not available in this shape.
    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, Self::Error>;

    /// As [`Weights::tensor`], for the weight matrix of a linear or of the head.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix<B>, Self::Error> {
        Ok(self.tensor(name, shape)?.into())
    }
}

/// Weights read by a function that returns the values of a tensor, row by row.
pub struct WeightsFromFn<'a, B: Backend, E> {
    read: &'a dyn Fn(&str) -> Result<WeightValues, E>,
    arithmetic: Arithmetic,
    device: &'a B::Device,
}

impl<'a, B: Backend, E: From<ModelError>> WeightsFromFn<'a, B, E> {
    /// The values that `read` returns, as tensors on `device`. Products with them are in f32.
    pub fn new(read: &'a dyn Fn(&str) -> Result<WeightValues, E>, device: &'a B::Device) -> Self {
        WeightsFromFn {
            read,
            arithmetic: Arithmetic::F32,
            device,
        }
    }

    /// The same weights. Products with matrices in bfloat16 have this arithmetic on the CPU.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        WeightsFromFn { arithmetic, ..self }
    }

    fn read(&self, name: &str, expected: usize) -> Result<WeightValues, E> {
        let values = (self.read)(name)?;
        let found = values.count();
        if found != expected {
            let name = name.to_owned();
            return Err(ModelError::WeightLength {
                name,
                found,
                expected,
            }
            .into());
        }
        Ok(values)
    }
}

impl<B: Backend, E: From<ModelError>> Weights<B> for WeightsFromFn<'_, B, E> {
    type Error = E;

    fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<B, D>, E> {
        let values = self.read(name, shape.iter().product())?.into_f32();
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix<B>, E> {
        match self.read(name, shape[0] * shape[1])? {
            WeightValues::Half(half, bits) if Matrix::<B>::can_be_stored() => {
                Ok(Matrix::stored(half, bits, shape, self.arithmetic))
            }
            values => {
                let data = TensorData::new(values.into_f32(), shape);
                Ok(Tensor::from_data(data, self.device).into())
            }
        }
    }
}
