//! Mistral: Llama with a sliding window where `sliding_window` is given.

use super::Keys;
use super::decoder::{Tied, Widths};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::Mixer;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mut attention = widths.attention([false; 2], widths.rope(keys)?);
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = widths.windows(keys, |_| true)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer];
        widths.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}
