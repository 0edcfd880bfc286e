//! Llama 1 to 3, TinyLlama, SmolLM, Yi 1.5, Hermes and the like.

use super::Keys;
use super::decoder::{Tied, Widths};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::Mixer;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let bias = keys.flag("attention_bias")?;
    let attention = widths.attention([bias; 2], widths.rope(keys)?);
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, keys.flag("mlp_bias")?);
    widths.model(keys, Tied::Rarely, |_| {
        widths.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}
