//! Phi-3.5-MoE: layer norms, biases, and experts selected by SparseMixer.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::experts::expert;
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{BlockSpec, ExpertsSpec, Mixer, NormKind, Projection, Routing};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    keys.ignore(&["original_max_position_embeddings"]); // read by LongRoPE, without meaning otherwise
    let bias = keys.flag("attention_bias")?;
    let mut attention = dims.attention([bias; 2], dims.rope(keys)?);
    let activation = keys.activation("hidden_act")?;
    let experts = keys.experts("num_local_experts", dims.layers)?;
    keys.supports_only("num_experts_per_tok", 2)?;
    if experts < 2 {
        return Err(keys.invalid("num_local_experts", experts, "at least 2"));
    }
    let hidden_ffn = [dims.hidden, dims.ffn];
    let expert_spec = |index| {
        let (prefix, names) = ("block_sparse_moe.experts", ["w1", "w3", "w2"]);
        expert(prefix, index, names, hidden_ffn, activation)
    };
    let jitter = keys.optional_number_above("router_jitter_noise", 0.0)?;
    let sparse = ExpertsSpec {
        router: Projection::new("block_sparse_moe.gate", experts, dims.hidden, false),
        top_k: 2,
        routing: Routing::SparseMixer {
            jitter: jitter.unwrap_or(0.01),
        },
        experts: (0..experts).map(expert_spec).collect(),
        shared: None,
    };
    let windows = dims.windows(keys, |_| true)?;
    let layer_norm = |name| norm(name, NormKind::Layer, dims.hidden, dims.eps);
    let mut model = dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer];
        let experts = Mixer::Experts(sparse.clone());
        vec![
            BlockSpec::new(
                layer_norm("input_layernorm"),
                Mixer::Attention(attention.clone()),
            ),
            BlockSpec::new(layer_norm("post_attention_layernorm"), experts),
        ]
    })?;
    model.head.norm = layer_norm("model.norm");
    model.head.bias = keys.flag("lm_head_bias")?.then(|| "lm_head.bias".into());
    Ok(model)
}
