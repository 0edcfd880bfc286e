//! Qwen3-MoE: Qwen3 whose MLPs are mixtures of experts, save in some layers.

use super::Keys;
use super::decoder::{Tied, Widths};
use super::qwen3::attention;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{ExpertsSpec, Mixer, Projection, Routing};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mut attention = attention(keys, &widths)?;
    let activation = keys.activation("hidden_act")?;
    let dense = widths.gated_mlp(activation, false);
    let experts = keys.size("num_experts")?;
    let sides = [experts, keys.size("moe_intermediate_size")?];
    let sparse = ExpertsSpec {
        router: Projection::new("mlp.gate", experts, widths.hidden, false),
        chosen: keys.at_most("num_experts_per_tok", experts)?,
        routing: Routing::Softmax {
            renormalised: keys.flag("norm_topk_prob")?,
        },
        experts: widths.experts(keys, sides, activation),
        shared: None,
    };
    let step = keys.size_if_any("decoder_sparse_step")?.unwrap_or(1);
    let only_dense = keys.indices_if_any("mlp_only_layers")?.unwrap_or_default();
    let slides = keys.flag("use_sliding_window")?;
    keys.ignore(&["max_window_layers"]);
    let windows = widths.windows(keys, |_| slides)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer].filter(|_| slides);
        let is_sparse = !only_dense.contains(&layer) && (layer + 1).is_multiple_of(step);
        let mixer = match is_sparse {
            true => Mixer::Experts(sparse.clone()),
            false => Mixer::Mlp(dense.clone()),
        };
        widths.blocks(Mixer::Attention(attention.clone()), mixer)
    })
}
