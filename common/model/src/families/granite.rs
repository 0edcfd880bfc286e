//! Granite, dense and with experts: Llama with factors at the embedding, the attention scores, the residual stream
//! and the logits.

use super::decoder::{DecoderDims, TieDefault};
use super::experts::fused_expert;
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{BlockSpec, ExpertsSpec, Mixer, Projection, Routing};

pub(super) fn dense(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let mlp = dims.gated_mlp(keys.activation("hidden_act")?, keys.flag("mlp_bias")?);
    describe(keys, &dims, Mixer::Mlp(mlp))
}

pub(super) fn mixture(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let activation = keys.activation("hidden_act")?;
    let experts = keys.experts("num_local_experts", dims.layers)?;
    let hidden_ffn = [dims.hidden, dims.ffn];
    let expert_spec = |index| {
        let tensors = [
            "block_sparse_moe.input_linear.weight",
            "block_sparse_moe.output_linear.weight",
        ];
        fused_expert(tensors, [index, experts], hidden_ffn, activation)
    };
    let router = "block_sparse_moe.router.layer";
    let sparse = ExpertsSpec {
        router: Projection::new(router, experts, dims.hidden, false),
        top_k: keys.size_at_most("num_experts_per_tok", experts)?,
        // A softmax over the selected experts equals the softmax over all, divided by the sum of the selected
        // probabilities.
        routing: Routing::Softmax { renormalize: true },
        experts: (0..experts).map(expert_spec).collect(),
        shared: None,
    };
    describe(keys, &dims, Mixer::Experts(sparse))
}

fn describe(keys: &Keys<'_>, dims: &DecoderDims, mlp: Mixer) -> Result<ModelConfig, ConfigError> {
    let bias = keys.flag("attention_bias")?;
    let mut attention = dims.attention([bias; 2], dims.rope(keys)?);
    let factor = |key| Ok(keys.optional_number_above(key, 0.0)?.unwrap_or(1.0));
    attention.scale = factor("attention_multiplier")?;
    let scale = factor("residual_multiplier")?;
    let block = |norm, mixer| BlockSpec {
        scale,
        ..BlockSpec::new(dims.rms(norm), mixer)
    };
    let mut model = dims.model(keys, TieDefault::Untied, |_| {
        vec![
            block("input_layernorm", Mixer::Attention(attention.clone())),
            block("post_attention_layernorm", mlp.clone()),
        ]
    })?;
    model.embedding.scale = factor("embedding_multiplier")?;
    model.head.scale = factor("logits_scaling")?.recip();
    Ok(model)
}
