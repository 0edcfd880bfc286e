//! DeepSeek-V3, DeepSeek-R1 and models of the same architecture: latent attention, and group-limited routing with
//! shared experts (DeepSeek-AI 2024, arXiv 2412.19437).
//!
//! The weights that DeepSeek published are FP8 with one scale per tile (`quantization_config`,
//! `weight_scale_inv`). They are refused because of that key. A conversion to bf16 without the key, as the authors'
//! own script writes it, is supported. Layers for multi-token prediction may be in the checkpoint and are
//! ignored.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::keys::Keys;
use super::rope::{mscale_all_dim, yarn_mscale};
use crate::config::{ConfigError, ModelConfig};
use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::{
    ExpertsSpec, LatentAttentionSpec, LatentSpec, Mixer, NormKind, Projection, Routing,
};

/// Epsilon of the norms of the latent vectors; `rms_norm_eps` only applies to the other norms.
const LATENT_EPS: f64 = 1e-6;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    // `head_dim` is redundant: where a file has it, it is `qk_rope_head_dim`.
    keys.ignore(&["head_dim"]);
    let dims = DecoderDims::with_head_dim(keys, keys.size("qk_rope_head_dim")?)?;
    keys.supports_only("num_key_value_heads", dims.heads)?;
    let attention = attention(keys, &dims)?;
    let activation = keys.activation("hidden_act")?;
    let dense = dims.gated_mlp(activation, false);
    let sparse = experts(keys, &dims)?;
    let first_sparse = keys.optional_count("first_k_dense_replace")?.unwrap_or(3);
    keys.ignore(&["aux_loss_alpha", "ep_size", "seq_aux"]);
    let mut model = dims.model(keys, TieDefault::Untied, |layer| {
        let mixer = match layer < first_sparse {
            true => Mixer::Mlp(dense.clone()),
            false => Mixer::Experts(sparse.clone()),
        };
        dims.blocks(Mixer::LatentAttention(attention.clone()), mixer)
    })?;
    let mtp_layers = keys
        .optional_count("num_nextn_predict_layers")?
        .unwrap_or(0);
    let mtp_layers = dims.layers..dims.layers + mtp_layers;
    model.ignored_prefixes = mtp_layers
        .map(|layer| format!("model.layers.{layer}."))
        .collect();
    Ok(model)
}

fn attention(keys: &Keys<'_>, dims: &DecoderDims) -> Result<LatentAttentionSpec, ConfigError> {
    let &DecoderDims { hidden, heads, .. } = dims;
    let bias = keys.flag("attention_bias")?;
    let (nope_dim, rope_dim) = (keys.size("qk_nope_head_dim")?, dims.head_dim);
    keys.supports_only("qk_head_dim", nope_dim + rope_dim)?;
    keys.product(
        "num_attention_heads · (qk_nope_head_dim + qk_rope_head_dim)",
        [heads, nope_dim + rope_dim],
    )?;
    let (v_head_dim, kv_rank) = (keys.size("v_head_dim")?, keys.size("kv_lora_rank")?);
    keys.product(
        "num_attention_heads · (qk_nope_head_dim + v_head_dim)",
        [heads, nope_dim + v_head_dim],
    )?;
    let rope = dims.rope(keys)?;
    if rope.width != rope_dim {
        let expected = format!("{rope_dim} rotary elements, all of qk_rope_head_dim");
        return Err(keys.invalid("partial_rotary_factor", rope.width, expected));
    }
    let latent = |[down, norm_name]: [&str; 2], rows, rank| LatentSpec {
        down: Projection::new(down, rows, hidden, bias),
        norm: norm(norm_name, NormKind::Rms, rank, LATENT_EPS),
    };
    let q_a_names = ["self_attn.q_a_proj", "self_attn.q_a_layernorm"];
    let kv_a_names = ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm"];
    let q_proj =
        |name: &str, cols| Projection::new(name, heads * (nope_dim + rope_dim), cols, false);
    let (q_a, q_b) = match keys.optional_size("q_lora_rank")? {
        Some(rank) => (
            Some(latent(q_a_names, rank, rank)),
            q_proj("self_attn.q_b_proj", rank),
        ),
        None => (None, q_proj("self_attn.q_proj", hidden)),
    };
    Ok(LatentAttentionSpec {
        heads,
        nope_dim,
        v_head_dim,
        interleaved: keys.optional_flag("rope_interleave")?.unwrap_or(true),
        q_a,
        q_b,
        kv_a: latent(kv_a_names, kv_rank + rope_dim, kv_rank),
        kv_b: Projection::new(
            "self_attn.kv_b_proj",
            heads * (nope_dim + v_head_dim),
            kv_rank,
            false,
        ),
        output: Projection::new("self_attn.o_proj", hidden, heads * v_head_dim, bias),
        scale: scale(keys, &rope, nope_dim + rope_dim)?,
        rope,
    })
}

/// Factor of the attention scores. If YaRN scales all elements of queries and keys (`mscale_all_dim`), the scores
/// are scaled by the square.
fn scale(keys: &Keys<'_>, rope: &RopeSpec, width: usize) -> Result<f64, ConfigError> {
    let base = (width as f64).sqrt().recip();
    let scaling = keys.optional_object("rope_scaling")?;
    let settings = scaling.or(keys.optional_object("rope_parameters")?);
    let mscale = settings
        .map(|settings| mscale_all_dim(&settings))
        .transpose()?;
    Ok(match (&rope.scaling, mscale.flatten()) {
        (&RopeScaling::Yarn { factor, .. }, Some(mscale)) => {
            base * yarn_mscale(factor, mscale).powi(2)
        }
        _ => base,
    })
}

fn experts(keys: &Keys<'_>, dims: &DecoderDims) -> Result<ExpertsSpec, ConfigError> {
    keys.supports_only("scoring_func", "sigmoid")?;
    keys.supports_only("topk_method", "noaux_tc")?;
    keys.supports_only("moe_layer_freq", 1)?;
    let activation = keys.activation("hidden_act")?;
    let count = keys.experts("n_routed_experts", dims.layers)?;
    let ffn = keys.size("moe_intermediate_size")?;
    let groups = keys.size("n_group")?;
    // Groups are ranked by their two best experts.
    if !count.is_multiple_of(groups) || count / groups < 2 {
        let expected =
            format!("a divisor of n_routed_experts, {count}, with at least two experts per group");
        return Err(keys.invalid("n_group", groups, expected));
    }
    let topk_group = keys.size_at_most("topk_group", groups)?;
    let shared = match keys.optional_count("n_shared_experts")?.unwrap_or(0) {
        0 => None,
        count => Some(keys.product("n_shared_experts · moe_intermediate_size", [count, ffn])?),
    };
    Ok(ExpertsSpec {
        router: Projection::new("mlp.gate", count, dims.hidden, false),
        top_k: keys.size_at_most("num_experts_per_tok", topk_group * (count / groups))?,
        routing: Routing::Sigmoid {
            correction_bias: "mlp.gate.e_score_correction_bias".into(),
            groups,
            topk_group,
            renormalize: keys.optional_flag("norm_topk_prob")?.unwrap_or(true),
            scale: keys.number_above("routed_scaling_factor", 0.0)?,
        },
        experts: dims.experts(keys, [count, ffn], activation),
        shared: shared.map(|ffn| dims.shared_experts(ffn, activation)),
    })
}
