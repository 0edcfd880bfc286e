//! Mixtral: Mistral whose MLPs are mixtures of experts.

use super::Keys;
use super::decoder::{Tied, Widths, expert, fused_expert};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{ExpertsSpec, Mixer, Projection, Routing};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let mut attention = widths.attention([false; 2], widths.rope(keys)?);
    let activation = keys.activation("hidden_act")?;
    let experts = keys.size("num_local_experts")?;
    let sides = [widths.hidden, widths.ffn];
    let fused = keys.tensors_contain("mlp.experts.gate_up_proj");
    let (router, of_expert): (_, Box<dyn Fn(usize) -> _>) = match fused {
        true => {
            let tensors = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];
            let of_expert = move |index| fused_expert(tensors, [index, experts], sides, activation);
            ("mlp.gate", Box::new(of_expert))
        }
        false => {
            let (prefix, names) = ("block_sparse_moe.experts", ["w1", "w3", "w2"]);
            let of_expert = move |index| expert(prefix, index, names, sides, activation);
            ("block_sparse_moe.gate", Box::new(of_expert))
        }
    };
    let sparse = ExpertsSpec {
        router: Projection::new(router, experts, widths.hidden, false),
        chosen: keys.at_most("num_experts_per_tok", experts)?,
        routing: Routing::Softmax { renormalised: true },
        experts: (0..experts).map(of_expert).collect(),
        shared: None,
    };
    let windows = widths.windows(keys, |_| true)?;
    widths.model(keys, Tied::Rarely, |layer| {
        attention.window = windows[layer];
        let experts = Mixer::Experts(sparse.clone());
        widths.blocks(Mixer::Attention(attention.clone()), experts)
    })
}
