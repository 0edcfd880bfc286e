//! Where the forward pass takes its weights from.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::ModelError;

/// A source of tensors by name.
pub trait Weights<B: Backend> {
    /// Why a tensor cannot be had.
    type Error: From<ModelError>;

    /// The tensor `name`, within the layer for a layer's tensor, of the given shape.
    ///
    /// # Errors
    /// Whatever keeps the tensor from being had with this shape.
    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, Self::Error>;
}

/// Weights that a function gives as values, row by row.
pub struct Values<'a, B: Backend, E> {
    read: &'a dyn Fn(&str) -> Result<Vec<f32>, E>,
    device: &'a B::Device,
}

impl<'a, B: Backend, E> Values<'a, B, E> {
    /// The values that `read` gives, as tensors on `device`.
    pub fn new(read: &'a dyn Fn(&str) -> Result<Vec<f32>, E>, device: &'a B::Device) -> Self {
        Values { read, device }
    }
}

impl<B: Backend, E: From<ModelError>> Weights<B> for Values<'_, B, E> {
    type Error = E;

    fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<B, D>, E> {
        let values = (self.read)(name)?;
        let expected = shape.iter().product();
        if values.len() != expected {
            let found = values.len();
            return Err(ModelError::WeightLength {
                name: name.to_owned(),
                found,
                expected,
            }
            .into());
        }
        let data = TensorData::new(values, shape);
        Ok(Tensor::from_data(data, self.device))
    }
}
