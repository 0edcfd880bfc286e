//! The two ends of the model: token ids to hidden states, hidden states to logits.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::layer::tensor;
use super::math::rms_norm;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::text::check_ids;

/// The embedding matrix.
#[derive(Debug, Clone)]
pub struct Embedding<B: Backend> {
    /// `[vocab, hidden]`
    pub weight: Tensor<B, 2>,
}

/// The final norm and the output matrix.
#[derive(Debug, Clone)]
pub struct Head<B: Backend> {
    /// Gain of the final norm, `[hidden]`.
    pub norm: Tensor<B, 1>,
    /// `[vocab, hidden]`; of a tied head the embedding matrix.
    pub weight: Tensor<B, 2>,
    /// Added to the mean square inside the norm.
    pub eps: f64,
}

impl<B: Backend> Embedding<B> {
    /// Builds the embedding; `weights` is asked for `model.embed_tokens.weight`.
    ///
    /// # Errors
    /// What `weights` returns, or [`ModelError::WeightLength`].
    pub fn new<E: From<ModelError>>(
        config: &ModelConfig,
        weights: &dyn Fn(&str) -> Result<Vec<f32>, E>,
        device: &B::Device,
    ) -> Result<Self, E> {
        let shape = [config.vocab, config.hidden];
        Ok(Embedding {
            weight: tensor("model.embed_tokens.weight", shape, weights, device)?,
        })
    }

    /// Hidden states `[windows, length, hidden]` of windows of equal length.
    ///
    /// # Errors
    /// [`ModelError::UnevenWindows`], or a token outside the vocabulary.
    pub fn lookup<W: AsRef<[u32]>>(&self, windows: &[W]) -> Result<Tensor<B, 3>, ModelError> {
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
        let rows = self.weight.clone().select(0, ids);
        Ok(rows.reshape([windows.len(), length, width]))
    }
}

impl<B: Backend> Head<B> {
    /// Builds the head; `weights` is asked for `model.norm.weight` and for `lm_head.weight`, of a
    /// tied head for `model.embed_tokens.weight`.
    ///
    /// # Errors
    /// What `weights` returns, or [`ModelError::WeightLength`].
    pub fn new<E: From<ModelError>>(
        config: &ModelConfig,
        weights: &dyn Fn(&str) -> Result<Vec<f32>, E>,
        device: &B::Device,
    ) -> Result<Self, E> {
        let name = config.head_tensor();
        Ok(Head {
            norm: tensor("model.norm.weight", [config.hidden], weights, device)?,
            weight: tensor(name, [config.vocab, config.hidden], weights, device)?,
            eps: config.rms_eps,
        })
    }

    /// Builds the head of a tied model from its embedding, without a second copy of the matrix.
    ///
    /// # Errors
    /// What `weights` returns for `model.norm.weight`, or [`ModelError::WeightLength`].
    pub fn tied<E: From<ModelError>>(
        config: &ModelConfig,
        embedding: &Embedding<B>,
        weights: &dyn Fn(&str) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let device = embedding.weight.device();
        Ok(Head {
            norm: tensor("model.norm.weight", [config.hidden], weights, &device)?,
            weight: embedding.weight.clone(),
            eps: config.rms_eps,
        })
    }

    /// Logits `[tokens, vocab]` of the last layer's output `hidden: [tokens, hidden]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = rms_norm(hidden, self.norm.clone(), self.eps);
        x.matmul(self.weight.clone().transpose())
    }
}
