//! Qwen2 and Qwen2.5: query, key and value projections have biases; upper layers may have a sliding window.

use super::decoder::{DecoderDims, TieDefault};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::Mixer;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let mut attention = dims.attention([true, false], dims.rope(keys)?);
    let mlp = dims.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = windows(keys, &dims)?;
    dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer];
        dims.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}

/// The sliding windows of the layers: `sliding_window` applies only if `use_sliding_window` is set, and only to
/// layers from `max_window_layers` upwards.
pub(super) fn windows(
    keys: &Keys<'_>,
    dims: &DecoderDims,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let enabled = keys.flag("use_sliding_window")?;
    let first = keys.optional_count("max_window_layers")?.unwrap_or(28);
    let windows = dims.windows(keys, |layer| layer >= first)?;
    Ok(windows
        .into_iter()
        .map(|window| window.filter(|_| enabled))
        .collect())
}
