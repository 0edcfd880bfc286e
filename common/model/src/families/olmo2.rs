//! OLMo 2: norms after the blocks instead of before, and over all queries and all keys.

use super::Keys;
use super::decoder::{Tied, Widths, norm};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{AttentionSpec, BlockSpec, Mixer, NormKind, NormSpec, QkNorm};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let bias = keys.flag("attention_bias")?;
    let of_all = |name, heads| norm(name, NormKind::Rms, heads * widths.head_dim, widths.eps);
    let attention = AttentionSpec {
        qk_norm: Some(QkNorm {
            q: of_all("self_attn.q_norm", widths.heads),
            k: of_all("self_attn.k_norm", widths.kv_heads),
        }),
        ..widths.attention([bias; 2], widths.rope(keys)?)
    };
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, false);
    let block = |mixer, after: NormSpec| BlockSpec {
        before: None,
        mixer,
        after: Some(after),
        scale: 1.0,
    };
    widths.model(keys, Tied::Rarely, |_| {
        vec![
            block(
                Mixer::Attention(attention.clone()),
                widths.rms("post_attention_layernorm"),
            ),
            block(
                Mixer::Mlp(mlp.clone()),
                widths.rms("post_feedforward_layernorm"),
            ),
        ]
    })
}
