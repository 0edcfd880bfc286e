//! Mixtral: Mistral with mixtures of experts instead of MLPs.

use super::decoder::{DecoderDims, TieDefault};
use super::experts::{expert, fused_expert};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{ExpertsSpec, Mixer, Projection, Routing};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let mut attention = dims.attention([false; 2], dims.rope(keys)?);
    let activation = keys.activation("hidden_act")?;
    let experts = keys.experts("num_local_experts", dims.layers)?;
    let hidden_ffn = [dims.hidden, dims.ffn];
    let fused = keys.has_tensor_containing("mlp.experts.gate_up_proj");
    let (router, expert_spec): (_, Box<dyn Fn(usize) -> _>) = match fused {
        true => {
            let tensors = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];
            let expert_spec =
                move |index| fused_expert(tensors, [index, experts], hidden_ffn, activation);
            ("mlp.gate", Box::new(expert_spec))
        }
        false => {
            let (prefix, names) = ("block_sparse_moe.experts", ["w1", "w3", "w2"]);
            let expert_spec = move |index| expert(prefix, index, names, hidden_ffn, activation);
            ("block_sparse_moe.gate", Box::new(expert_spec))
        }
    };
    let sparse = ExpertsSpec {
        router: Projection::new(router, experts, dims.hidden, false),
        top_k: keys.size_at_most("num_experts_per_tok", experts)?,
        routing: Routing::Softmax { renormalize: true },
        experts: (0..experts).map(expert_spec).collect(),
        shared: None,
    };
    let windows = dims.windows(keys, |_| true)?;
    dims.model(keys, TieDefault::Untied, |layer| {
        attention.window = windows[layer];
        let experts = Mixer::Experts(sparse.clone());
        dims.blocks(Mixer::Attention(attention.clone()), experts)
    })
}
