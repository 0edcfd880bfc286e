//! Mistral: Llama with an optional sliding window.

use super::decoder::{DecoderDims, TieDefault};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::Mixer;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let mut attention = dims.attention([false; 2], dims.rope(keys)?);
    let mlp = dims.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = dims.windows(keys, |_| true)?;
    dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer];
        dims.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}
