//! Qwen2 and Qwen2.5: biases of queries, keys and values; the upper layers may slide.

use super::Keys;
use super::decoder::{Tied, Widths};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::Mixer;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mut attention = widths.attention([true, false], widths.rope(keys)?);
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = windows(keys, &widths)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer];
        widths.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}

/// Windows of the layers: `sliding_window` counts only where `use_sliding_window` says so, and only from layer
/// `max_window_layers` on.
pub(super) fn windows(keys: &Keys<'_>, widths: &Widths) -> Result<Vec<Option<usize>>, ConfigError> {
    let used = keys.flag("use_sliding_window")?;
    let first = keys.whole_if_any("max_window_layers")?.unwrap_or(28);
    let windows = widths.windows(keys, |layer| layer >= first)?;
    Ok(windows
        .into_iter()
        .map(|window| window.filter(|_| used))
        .collect())
}
