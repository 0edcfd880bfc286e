//! Llama 1 to 3 and models of the same architecture: TinyLlama, SmolLM, Yi 1.5, Hermes and others.

use super::decoder::{DecoderDims, TieDefault};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::Mixer;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let bias = keys.flag("attention_bias")?;
    let attention = dims.attention([bias; 2], dims.rope(keys)?);
    let mlp = dims.gated_mlp(keys.activation("hidden_act")?, keys.flag("mlp_bias")?);
    dims.model(keys, TieDefault::Untied, |_| {
        dims.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}
