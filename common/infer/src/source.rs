//! Where the tensors of a model come from.

use crate::error::InferError;
use crate::matrix::{Dense, Matrix};

/// A source of the tensors of one layer, or of those outside the layers.
pub trait Source {
    /// The weight matrix `name` `[rows, cols]`; within a layer, the name within the layer.
    ///
    /// # Errors
    /// If there is none of this shape, or it cannot be read.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, InferError>;

    /// The values of a tensor that is stored exactly.
    ///
    /// # Errors
    /// If there is none of this shape, or it cannot be read.
    fn exact(&self, name: &str, shape: &[usize]) -> Result<Dense, InferError>;

    /// The values of a tensor that is stored exactly, as f32.
    ///
    /// # Errors
    /// Those of [`Source::exact`].
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InferError> {
        Ok(self.exact(name, shape)?.to_f32())
    }
}
