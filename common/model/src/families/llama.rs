//! Llama 1 to 3, TinyLlama, SmolLM, Yi 1.5, Hermes and the like.

use super::Keys;
use super::decoder::{Tied, Widths};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{BlockSpec, Mixer};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let bias = keys.flag("attention_bias")?;
    let attention = widths.attention([bias; 2], widths.rope(keys)?);
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, keys.flag("mlp_bias")?);
    widths.model(keys, Tied::Rarely, |_| {
        vec![
            BlockSpec::new(
                widths.rms("input_layernorm"),
                Mixer::Attention(attention.clone()),
            ),
            BlockSpec::new(
                widths.rms("post_attention_layernorm"),
                Mixer::Mlp(mlp.clone()),
            ),
        ]
    })
}
