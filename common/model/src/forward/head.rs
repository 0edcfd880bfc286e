//! The output end of the model: hidden states to logits.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::embedding::Embedding;
use super::math::capped;
use super::matrix::Matrix;
use super::norm::Norm;
use super::weights::Weights;
use crate::config::ModelConfig;
use crate::work::Kind;

/// The final norm and the output matrix.
#[derive(Debug, Clone)]
pub struct Head<B: Backend> {
    norm: Norm<B>,
    /// `[vocab, hidden]`; for a tied head, the embedding matrix.
    weight: Matrix<B>,
    /// `[vocab]`
    bias: Option<Tensor<B, 1>>,
    scale: f64,
    softcap: Option<f64>,
}

impl<B: Backend> Head<B> {
    /// Builds the head. Tensors are requested from `weights` by their full names; for a tied head, the
    /// embedding is requested.
    ///
    /// # Errors
    /// What `weights` returns.
    pub fn new<W: Weights<B>>(config: &ModelConfig, weights: &W) -> Result<Self, W::Error> {
        let weight = weights.matrix(&config.head.weight, [config.vocab, config.hidden])?;
        Head::with_weight(config, weight, weights)
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
        Head::with_weight(config, embedding.weight().clone().into(), weights)
    }

    fn with_weight<W: Weights<B>>(
        config: &ModelConfig,
        weight: Matrix<B>,
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

    /// The logits `[tokens, vocab]` for `hidden: [tokens, hidden]`, the output of the last layer.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.norm.forward(hidden);
        let logits = self.weight.product(Kind::Head, normed);
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
