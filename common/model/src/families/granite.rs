//! Granite, dense and with experts: Llama with factors at the embedding, the scores, the residual stream and the
//! logits.

use super::Keys;
use super::decoder::{Tied, Widths, fused_expert};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{BlockSpec, ExpertsSpec, Mixer, Projection, Routing};

pub(super) fn dense(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mlp = widths.gated_mlp(keys.activation("hidden_act")?, keys.flag("mlp_bias")?);
    describe(keys, &widths, Mixer::Mlp(mlp))
}

pub(super) fn mixture(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let activation = keys.activation("hidden_act")?;
    let experts = keys.size("num_local_experts")?;
    let sides = [widths.hidden, widths.ffn];
    let of_expert = |index| {
        let tensors = [
            "block_sparse_moe.input_linear.weight",
            "block_sparse_moe.output_linear.weight",
        ];
        fused_expert(tensors, [index, experts], sides, activation)
    };
    let router = "block_sparse_moe.router.layer";
    let sparse = ExpertsSpec {
        router: Projection::new(router, experts, widths.hidden, false),
        chosen: keys.at_most("num_experts_per_tok", experts)?,
        // The softmax over the chosen is that over all, divided by the sum of the chosen.
        routing: Routing::Softmax { renormalised: true },
        experts: (0..experts).map(of_expert).collect(),
        shared: None,
    };
    describe(keys, &widths, Mixer::Experts(sparse))
}

fn describe(keys: &Keys<'_>, widths: &Widths, second: Mixer) -> Result<ModelConfig, ConfigError> {
    let bias = keys.flag("attention_bias")?;
    let mut attention = widths.attention([bias; 2], widths.rope(keys)?);
    let factor = |key| Ok(keys.number_if_any(key, 0.0)?.unwrap_or(1.0));
    attention.scale = factor("attention_multiplier")?;
    let scale = factor("residual_multiplier")?;
    let block = |norm, mixer| BlockSpec {
        scale,
        ..BlockSpec::new(widths.rms(norm), mixer)
    };
    let mut model = widths.model(keys, Tied::Rarely, |_| {
        vec![
            block("input_layernorm", Mixer::Attention(attention.clone())),
            block("post_attention_layernorm", second.clone()),
        ]
    })?;
    model.embedding.scale = factor("embedding_multiplier")?;
    model.head.scale = factor("logits_scaling")?.recip();
    Ok(model)
}
