//! Phi-3, Phi-3.5-mini and Phi-4: fused query, key and value projection, fused gate and up projection.

use super::decoder::{DecoderDims, TieDefault};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{AttentionSpec, Mixer, MlpInput, MlpSpec, Projection, QkvSpec};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    keys.supports_only("attention_bias", false)?;
    keys.ignore(&["original_max_position_embeddings"]); // read by LongRoPE, without meaning otherwise
    let qkv_width = (dims.heads + 2 * dims.kv_heads) * dims.head_dim;
    let qkv = Projection::new("self_attn.qkv_proj", qkv_width, dims.hidden, false);
    let mut attention = AttentionSpec {
        qkv: QkvSpec::Fused(qkv),
        ..dims.attention([false; 2], dims.rope(keys)?)
    };
    let gate_up = Projection::new("mlp.gate_up_proj", 2 * dims.ffn, dims.hidden, false);
    let mlp = MlpSpec {
        input: MlpInput::FusedGated(gate_up),
        ..dims.gated_mlp(keys.activation("hidden_act")?, false)
    };
    let windows = dims.windows(keys, |_| true)?;
    dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer];
        dims.blocks(Mixer::Attention(attention.clone()), Mixer::Mlp(mlp.clone()))
    })
}
