//! Mistral: Llama with a sliding window where `sliding_window` is given.

use super::Keys;
use super::decoder::{Tied, Widths};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{BlockSpec, Mixer};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mut attention = widths.attention([false; 2], widths.rope(keys)?);
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = widths.windows(keys, |_| true)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer];
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
