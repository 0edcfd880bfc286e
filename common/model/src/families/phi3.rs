//! Phi-3, Phi-3.5-mini and Phi-4: queries, keys and values in one matrix, gate and up in another.

use super::Keys;
use super::decoder::{Tied, Widths};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{AttentionSpec, Mixer, MlpSpec, Projection, QkvSpec, Widening};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    keys.only("attention_bias", false)?;
    keys.ignore(&["original_max_position_embeddings"]); // read by LongRoPE, where it means something
    let all = (widths.heads + 2 * widths.kv_heads) * widths.head_dim;
    let qkv = Projection::new("self_attn.qkv_proj", all, widths.hidden, false);
    let mut attention = AttentionSpec {
        qkv: QkvSpec::Stacked(qkv),
        ..widths.attention([false; 2], widths.rope(keys)?)
    };
    let both = Projection::new("mlp.gate_up_proj", 2 * widths.ffn, widths.hidden, false);
    let mlp = MlpSpec {
        widening: Widening::GatedStacked(both),
        ..widths.gated_mlp(keys.activation("hidden_act")?, false)
    };
    let windows = widths.windows(keys, |_| true)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer];
        widths.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}
