//! The input end of the model: token ids to hidden states.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::weights::Weights;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::spec::EmbeddingSpec;
use crate::text::check_token_ids;

/// The embedding matrix and, if the model has one, the matrix of learned positions.
#[derive(Debug, Clone)]
pub struct Embedding<B: Backend> {
    /// `[vocab, hidden]`
    weight: Tensor<B, 2>,
    /// `[context, hidden]`
    positions: Option<Tensor<B, 2>>,
    scale: f64,
}

impl EmbeddingSpec {
    /// The embedding of token `id` at `position`, as it enters the residual stream, `[hidden]`. `row` reads
    /// one row of the tensor with the given full name.
    ///
    /// # Errors
    /// What `row` returns.
    pub fn token<E>(
        &self,
        id: u32,
        position: usize,
        row: impl Fn(&str, usize) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let scale = self.scale as f32;
        let mut token = row(&self.weight, id as usize)?;
        token.iter_mut().for_each(|x| *x *= scale);
        if let Some(positions) = &self.positions {
            let position = row(positions, position)?;
            token.iter_mut().zip(position).for_each(|(x, p)| *x += p);
        }
        Ok(token)
    }
}

impl<B: Backend> Embedding<B> {
    /// Builds the embedding. Tensors are requested from `weights` by their full names.
    ///
    /// # Errors
    /// What `weights` returns.
    pub fn new<W: Weights<B>>(config: &ModelConfig, weights: &W) -> Result<Self, W::Error> {
        let spec = &config.embedding;
        let positions = spec.positions.as_ref();
        let positions = positions.map(|name| weights.tensor(name, [config.context, config.hidden]));
        Ok(Embedding {
            weight: weights.tensor(&spec.weight, [config.vocab, config.hidden])?,
            positions: positions.transpose()?,
            scale: spec.scale,
        })
    }

    /// The embedding matrix, `[vocab, hidden]`.
    pub(super) fn weight(&self) -> &Tensor<B, 2> {
        &self.weight
    }

    /// The hidden states `[windows, length, hidden]` of token windows of equal length.
    ///
    /// # Errors
    /// [`ModelError::UnevenWindows`], [`ModelError::TooManyPositions`], or a token outside the vocabulary.
    pub fn lookup<T: AsRef<[u32]>>(&self, windows: &[T]) -> Result<Tensor<B, 3>, ModelError> {
        let [vocab, width] = self.weight.dims();
        let length = windows.first().map_or(0, |w| w.as_ref().len());
        let mut ids = Vec::with_capacity(windows.len() * length);
        for (index, window) in windows.iter().enumerate() {
            let window = window.as_ref();
            if window.len() != length || length == 0 {
                let found = window.len();
                return Err(ModelError::UnevenWindows {
                    index,
                    found,
                    expected: length,
                });
            }
            check_token_ids(window, vocab)?;
            ids.extend(window.iter().map(|&id| id as i32));
        }
        if ids.is_empty() {
            return Err(ModelError::UnevenWindows {
                index: 0,
                found: 0,
                expected: 1,
            });
        }
        let device = self.weight.device();
        let count = ids.len();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), &device);
        let rows = self.weight.clone().select(0, ids) * self.scale;
        let rows = rows.reshape([windows.len(), length, width]);
        let Some(positions) = &self.positions else {
            return Ok(rows);
        };
        let expected = positions.dims()[0];
        if length > expected {
            let found = length;
            return Err(ModelError::TooManyPositions { found, expected });
        }
        let positions: Tensor<B, 2> = positions.clone().narrow(0, 0, length);
        Ok(rows + positions.unsqueeze())
    }
}
