//! DeepSeek-V3, DeepSeek-R1 and models of their shape: latent attention, and experts in groups beside a shared one
//! (DeepSeek-AI 2024, arXiv 2412.19437).
//!
//! The weights that DeepSeek published are in FP8 with a scale per tile (`quantization_config`,
//! `weight_scale_inv`). They are refused by the name of that key; a conversion to bf16, such as the authors' own
//! script makes, without that key is what is read here. The layers that predict further tokens may be in the files
//! and are skipped.

use super::Keys;
use super::decoder::{Tied, Widths, all_dim_share, norm, yarn_length};
use crate::config::{ConfigError, MAX_LAYERS, ModelConfig};
use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::{
    ExpertsSpec, LatentAttentionSpec, LatentSpec, Mixer, NormKind, Projection, Routing,
};

/// Added inside the norms of the narrow vectors, whatever the file says of the others.
const LATENT_EPS: f64 = 1e-6;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    // Some files have the width of the turned part, others nothing, as the width of a head.
    keys.ignore(&["head_dim"]);
    let widths = Widths::with_head_dim(keys, keys.size("qk_rope_head_dim")?)?;
    keys.only("num_key_value_heads", widths.heads)?;
    let attention = attention(keys, &widths)?;
    let activation = keys.activation("hidden_act")?;
    let dense = widths.gated_mlp(activation, false);
    let sparse = experts(keys, &widths)?;
    let first_sparse = keys.whole_if_any("first_k_dense_replace")?.unwrap_or(3);
    keys.ignore(&["aux_loss_alpha", "ep_size", "seq_aux"]);
    let mut model = widths.model(keys, Tied::Rarely, |layer| {
        let mixer = match layer < first_sparse {
            true => Mixer::Mlp(dense.clone()),
            false => Mixer::Experts(sparse.clone()),
        };
        widths.blocks(Mixer::LatentAttention(attention.clone()), mixer)
    })?;
    let further = keys.whole_if_any("num_nextn_predict_layers")?.unwrap_or(0);
    if further as u64 > MAX_LAYERS {
        let expected = format!("at most {MAX_LAYERS}");
        return Err(keys.refuse("num_nextn_predict_layers", further, expected));
    }
    let further = widths.layers..widths.layers + further;
    model.beside = further
        .map(|layer| format!("model.layers.{layer}."))
        .collect();
    Ok(model)
}

fn attention(keys: &Keys<'_>, widths: &Widths) -> Result<LatentAttentionSpec, ConfigError> {
    let &Widths { hidden, heads, .. } = widths;
    let bias = keys.flag("attention_bias")?;
    let (plain, turned) = (keys.size("qk_nope_head_dim")?, widths.head_dim);
    keys.only("qk_head_dim", plain + turned)?;
    let (value, rank) = (keys.size("v_head_dim")?, keys.size("kv_lora_rank")?);
    let rope = widths.rope(keys)?;
    if rope.width != turned {
        let expected = "the whole of qk_rope_head_dim";
        return Err(keys.refuse("partial_rotary_factor", rope.width, expected));
    }
    let latent = |[down, gain]: [&str; 2], rows, rank| LatentSpec {
        down: Projection::new(down, rows, hidden, bias),
        norm: norm(gain, NormKind::Rms, rank, LATENT_EPS),
    };
    let of_queries = ["self_attn.q_a_proj", "self_attn.q_a_layernorm"];
    let of_others = ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm"];
    let query = |name: &str, cols| Projection::new(name, heads * (plain + turned), cols, false);
    let (query_latent, query) = match keys.size_if_any("q_lora_rank")? {
        Some(rank) => (
            Some(latent(of_queries, rank, rank)),
            query("self_attn.q_b_proj", rank),
        ),
        None => (None, query("self_attn.q_proj", hidden)),
    };
    Ok(LatentAttentionSpec {
        heads,
        plain,
        value,
        neighbours: keys.flag_if_any("rope_interleave")?.unwrap_or(true),
        query_latent,
        query,
        latent: latent(of_others, rank + turned, rank),
        key_value: Projection::new("self_attn.kv_b_proj", heads * (plain + value), rank, false),
        output: Projection::new("self_attn.o_proj", hidden, heads * value, bias),
        scale: scale(keys, &rope, plain + turned)?,
        rope,
    })
}

/// Of the scores. Where YaRN lengthens all elements of queries and keys, the scores get the square.
fn scale(keys: &Keys<'_>, rope: &RopeSpec, width: usize) -> Result<f64, ConfigError> {
    let usual = (width as f64).sqrt().recip();
    let old = keys.object_if_any("rope_scaling")?;
    let settings = old.or(keys.object_if_any("rope_parameters")?);
    let share = settings
        .map(|settings| all_dim_share(&settings))
        .transpose()?;
    Ok(match (&rope.scaling, share.flatten()) {
        (&RopeScaling::Yarn { factor, .. }, Some(share)) => {
            usual * yarn_length(factor, share).powi(2)
        }
        _ => usual,
    })
}

fn experts(keys: &Keys<'_>, widths: &Widths) -> Result<ExpertsSpec, ConfigError> {
    keys.only("scoring_func", "sigmoid")?;
    keys.only("topk_method", "noaux_tc")?;
    keys.only("moe_layer_freq", 1)?;
    let activation = keys.activation("hidden_act")?;
    let count = keys.size("n_routed_experts")?;
    let ffn = keys.size("moe_intermediate_size")?;
    let groups = keys.size("n_group")?;
    // A group is judged by its best two experts.
    if !count.is_multiple_of(groups) || count / groups < 2 {
        let expected = format!("a divisor of n_routed_experts, {count}, with two or more for each");
        return Err(keys.refuse("n_group", groups, expected));
    }
    let kept = keys.at_most("topk_group", groups)?;
    let shared = keys
        .whole_if_any("n_shared_experts")?
        .filter(|&count| count > 0);
    Ok(ExpertsSpec {
        router: Projection::new("mlp.gate", count, widths.hidden, false),
        chosen: keys.at_most("num_experts_per_tok", kept * (count / groups))?,
        routing: Routing::Sigmoid {
            correction: "mlp.gate.e_score_correction_bias".into(),
            groups,
            kept,
            renormalised: keys.flag_if_any("norm_topk_prob")?.unwrap_or(true),
            scale: keys.number("routed_scaling_factor", 0.0)?,
        },
        experts: widths.experts(keys, [count, ffn], activation),
        shared: shared.map(|shared| widths.shared_experts(shared * ffn, activation)),
    })
}
