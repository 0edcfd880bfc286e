//! Qwen3: queries and keys of every head are normalised.

use super::Keys;
use super::decoder::{Tied, Widths, norm};
use super::qwen2::windows;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{AttentionSpec, Mixer, NormKind, QkNorm};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mut attention = attention(keys, &widths)?;
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = windows(keys, &widths)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer];
        widths.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}

/// Attention with a norm for the queries and one for the keys of every head.
pub(super) fn attention(keys: &Keys<'_>, widths: &Widths) -> Result<AttentionSpec, ConfigError> {
    let bias = keys.flag("attention_bias")?;
    let of_head = |name| norm(name, NormKind::Rms, widths.head_dim, widths.eps);
    Ok(AttentionSpec {
        qk_norm: Some(QkNorm {
            q: of_head("self_attn.q_norm"),
            k: of_head("self_attn.k_norm"),
        }),
        ..widths.attention([bias; 2], widths.rope(keys)?)
    })
}
