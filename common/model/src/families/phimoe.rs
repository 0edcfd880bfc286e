//! Phi-3.5-MoE: layer norms, biases, and experts chosen by SparseMixer.

use super::Keys;
use super::decoder::{Tied, Widths, expert, norm};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{BlockSpec, ExpertsSpec, Mixer, NormKind, Projection, Routing};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    keys.ignore(&["original_max_position_embeddings"]); // read by LongRoPE, where it means something
    let bias = keys.flag("attention_bias")?;
    let mut attention = widths.attention([bias; 2], widths.rope(keys)?);
    let activation = keys.activation("hidden_act")?;
    let experts = keys.size("num_local_experts")?;
    keys.only("num_experts_per_tok", 2)?;
    if experts < 2 {
        return Err(keys.refuse("num_local_experts", experts, "at least 2"));
    }
    let sides = [widths.hidden, widths.ffn];
    let of_expert = |index| {
        let (prefix, names) = ("block_sparse_moe.experts", ["w1", "w3", "w2"]);
        expert(prefix, index, names, sides, activation)
    };
    let jitter = keys.number_if_any("router_jitter_noise", 0.0)?;
    let sparse = ExpertsSpec {
        router: Projection::new("block_sparse_moe.gate", experts, widths.hidden, false),
        chosen: 2,
        routing: Routing::SparseMixer {
            jitter: jitter.unwrap_or(0.01),
        },
        experts: (0..experts).map(of_expert).collect(),
        shared: None,
    };
    let windows = widths.windows(keys, |_| true)?;
    let layer_norm = |name| norm(name, NormKind::Layer, widths.hidden, widths.eps);
    let mut model = widths.model(keys, Tied::Rarely, |layer| {
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
