//! The two ends of the model: token ids to hidden states, hidden states to logits.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::math::capped;
use super::norm::Norm;
use super::weights::Weights;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::matmul::matmul;
use crate::spec::EmbeddingSpec;
use crate::text::check_ids;

/// The embedding matrix, and that of positions.
#[derive(Debug, Clone)]
pub struct Embedding<B: Backend> {
    /// `[vocab, hidden]`
    weight: Tensor<B, 2>,
    /// `[context, hidden]`
    positions: Option<Tensor<B, 2>>,
    scale: f64,
}

/// The final norm and the output matrix.
#[derive(Debug, Clone)]
pub struct Head<B: Backend> {
    norm: Norm<B>,
    /// `[vocab, hidden]`; of a tied head the embedding matrix.
    weight: Tensor<B, 2>,
    /// `[vocab]`
    bias: Option<Tensor<B, 1>>,
    scale: f64,
    softcap: Option<f64>,
}

impl EmbeddingSpec {
    /// Token `id` as it enters the residual stream at `position`, `[hidden]`. `row` gives a row of a tensor
    /// by its full name.
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
            let added = row(positions, position)?;
            token.iter_mut().zip(added).for_each(|(x, p)| *x += p);
        }
        Ok(token)
    }
}

impl<B: Backend> Embedding<B> {
    /// Builds the embedding; `weights` is asked for its tensors by their full names.
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

    /// Hidden states `[windows, length, hidden]` of windows of equal length.
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
            check_ids(window, vocab)?;
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

impl<B: Backend> Head<B> {
    /// Builds the head; `weights` is asked for its tensors by their full names, of a tied head for the
    /// embedding.
    ///
    /// # Errors
    /// What `weights` returns.
    pub fn new<W: Weights<B>>(config: &ModelConfig, weights: &W) -> Result<Self, W::Error> {
        let weight = weights.tensor(&config.head.weight, [config.vocab, config.hidden])?;
        Head::with_matrix(config, weight, weights)
    }

    /// Builds the head of a tied model from its embedding, without a second copy of the matrix.
    ///
    /// # Errors
    /// What `weights` returns for the other tensors.
    pub fn tied<W: Weights<B>>(
        config: &ModelConfig,
        embedding: &Embedding<B>,
        weights: &W,
    ) -> Result<Self, W::Error> {
        Head::with_matrix(config, embedding.weight.clone(), weights)
    }

    fn with_matrix<W: Weights<B>>(
        config: &ModelConfig,
        weight: Tensor<B, 2>,
        weights: &W,
    ) -> Result<Self, W::Error> {
        let spec = &config.head;
        let bias = spec.bias.as_ref();
        let bias = bias.map(|name| weights.tensor(name, [config.vocab]));
        Ok(Head {
            norm: Norm::new(&spec.norm, weights)?,
            weight,
            bias: bias.transpose()?,
            scale: spec.scale,
            softcap: spec.softcap,
        })
    }

    /// Logits `[tokens, vocab]` of the last layer's output `hidden: [tokens, hidden]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.norm.forward(hidden);
        let logits = matmul(normed, self.weight.clone().transpose());
        let logits = match &self.bias {
            Some(bias) => logits + bias.clone().unsqueeze(),
            None => logits,
        };
        let logits = match self.scale {
            1.0 => logits,
            scale => logits * scale,
        };
        capped(logits, self.softcap)
    }
}
