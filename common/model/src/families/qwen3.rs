//! Qwen3: queries and keys are normalized per head.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::keys::Keys;
use super::qwen2::windows;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{AttentionSpec, Mixer, NormKind, QkNorm};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let mut attention = attention(keys, &dims)?;
    let mlp = dims.gated_mlp(keys.activation("hidden_act")?, false);
    let windows = windows(keys, &dims)?;
    dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer];
        dims.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}

/// Attention with per-head norms of queries and keys.
pub(super) fn attention(keys: &Keys<'_>, dims: &DecoderDims) -> Result<AttentionSpec, ConfigError> {
    let bias = keys.flag("attention_bias")?;
    let head_norm = |name| norm(name, NormKind::Rms, dims.head_dim, dims.eps);
    Ok(AttentionSpec {
        qk_norm: Some(QkNorm {
            q: head_norm("self_attn.q_norm"),
            k: head_norm("self_attn.k_norm"),
        }),
        ..dims.attention([bias; 2], dims.rope(keys)?)
    })
}
