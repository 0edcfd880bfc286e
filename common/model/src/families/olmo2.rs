//! OLMo 2: norms after the blocks instead of before them; QK norms over all heads together.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{AttentionSpec, BlockSpec, Mixer, NormKind, NormSpec, QkNorm};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let bias = keys.flag("attention_bias")?;
    let qk_norm = |name, heads| norm(name, NormKind::Rms, heads * dims.head_dim, dims.eps);
    let attention = AttentionSpec {
        qk_norm: Some(QkNorm {
            q: qk_norm("self_attn.q_norm", dims.heads),
            k: qk_norm("self_attn.k_norm", dims.kv_heads),
        }),
        ..dims.attention([bias; 2], dims.rope(keys)?)
    };
    let mlp = dims.gated_mlp(keys.activation("hidden_act")?, false);
    let block = |mixer, post_norm: NormSpec| BlockSpec {
        pre_norm: None,
        mixer,
        post_norm: Some(post_norm),
        scale: 1.0,
    };
    dims.model(keys, TieDefault::Untied, |_| {
        vec![
            block(
                Mixer::Attention(attention.clone()),
                dims.rms("post_attention_layernorm"),
            ),
            block(
                Mixer::Mlp(mlp.clone()),
                dims.rms("post_feedforward_layernorm"),
            ),
        ]
    })
}
