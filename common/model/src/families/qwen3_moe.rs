//! Qwen3-MoE: Qwen3 with mixtures of experts instead of MLPs in most layers.

use super::decoder::{DecoderDims, TieDefault};
use super::keys::Keys;
use super::qwen3::attention;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{ExpertsSpec, Mixer, Projection, Routing};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let mut attention = attention(keys, &dims)?;
    let activation = keys.activation("hidden_act")?;
    let dense = dims.gated_mlp(activation, false);
    let experts = keys.experts("num_experts", dims.layers)?;
    let count_ffn = [experts, keys.size("moe_intermediate_size")?];
    let sparse = ExpertsSpec {
        router: Projection::new("mlp.gate", experts, dims.hidden, false),
        top_k: keys.size_at_most("num_experts_per_tok", experts)?,
        routing: Routing::Softmax {
            renormalize: keys.flag("norm_topk_prob")?,
        },
        experts: dims.experts(keys, count_ffn, activation),
        shared: None,
    };
    let step = keys.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let only_dense = keys
        .optional_indices("mlp_only_layers")?
        .unwrap_or_default();
    let slides = keys.flag("use_sliding_window")?;
    keys.ignore(&["max_window_layers"]);
    let windows = dims.windows(keys, |_| slides)?;
    dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer].filter(|_| slides);
        let is_sparse = !only_dense.contains(&layer) && (layer + 1).is_multiple_of(step);
        let mixer = match is_sparse {
            true => Mixer::Experts(sparse.clone()),
            false => Mixer::Mlp(dense.clone()),
        };
        dims.blocks(Mixer::Attention(attention.clone()), mixer)
    })
}
