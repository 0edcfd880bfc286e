//! The source of the weights of a forward pass.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::ModelError;

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
}

/// Weights read by a function that returns the values of a tensor, row by row.
pub struct WeightsFromFn<'a, B: Backend, E> {
    read: &'a dyn Fn(&str) -> Result<Vec<f32>, E>,
    device: &'a B::Device,
}

impl<'a, B: Backend, E> WeightsFromFn<'a, B, E> {
    /// The values that `read` returns, as tensors on `device`.
    pub fn new(read: &'a dyn Fn(&str) -> Result<Vec<f32>, E>, device: &'a B::Device) -> Self {
        WeightsFromFn { read, device }
    }
}

impl<B: Backend, E: From<ModelError>> Weights<B> for WeightsFromFn<'_, B, E> {
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
