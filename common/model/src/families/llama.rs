//! The Llama family: from its `config.json` to a [`ModelConfig`].
//!
//! Hugging Face configurations carry many keys that do not touch the forward pass (dropout, cache,
//! ids, versions): those are ignored. Keys that do are read; a value that is not implemented is
//! refused by name. Defaults of absent keys are those of transformers' `LlamaConfig`.
//! Both spellings of the rotary settings are read: `rope_theta` with `rope_scaling`, and
//! `rope_parameters` (transformers 5).

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{Activation, Checker, ConfigError, Family, MAX_LAYERS, MAX_WIDTH, ModelConfig};
use crate::rope::RopeScaling;

/// `rope_theta` where the file gives none.
const DEFAULT_THETA: f64 = 10_000.0;

/// `config.json` as it is written, before any check.
#[derive(Debug, Deserialize)]
struct LlamaWire {
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeWire>,
    rope_parameters: Option<RopeWire>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    // Keys of relatives of this family that ask for another computation.
    rope_interleaved: Option<bool>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<Value>,
    quantization_config: Option<Value>,
    layer_types: Option<Vec<String>>,
    attn_logit_softcapping: Option<Value>,
    final_logit_softcapping: Option<Value>,
    embedding_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    attention_multiplier: Option<Value>,
    logits_scaling: Option<f64>,
    num_local_experts: Option<Value>,
}

/// `rope_scaling` or `rope_parameters`.
#[derive(Debug, Deserialize)]
struct RopeWire {
    rope_type: Option<String>,
    /// Older name of `rope_type`.
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Reads and validates a Llama `config.json`; `path` is only used in errors.
///
/// # Errors
/// [`ConfigError`], naming file, key, found and expected.
pub fn parse(bytes: &[u8], path: &Path) -> Result<ModelConfig, ConfigError> {
    let wire: LlamaWire = serde_json::from_slice(bytes).map_err(|source| ConfigError::Json {
        path: path.to_owned(),
        source,
    })?;
    let check = Checker::new(path);
    refuse_other_computations(&wire, &check)?;
    let hidden = check.size("hidden_size", wire.hidden_size, MAX_WIDTH)?;
    let heads = check.size("num_attention_heads", wire.num_attention_heads, MAX_WIDTH)?;
    let kv = wire.num_key_value_heads.unwrap_or(wire.num_attention_heads);
    let kv_heads = check.size("num_key_value_heads", kv, MAX_WIDTH)?;
    if heads % kv_heads != 0 {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(check.refuse("num_key_value_heads", kv_heads, expected));
    }
    let head_dim = head_dim(&wire, hidden, heads, &check)?;
    check.size(
        "num_attention_heads * head_dim",
        heads as u64 * head_dim as u64,
        MAX_WIDTH,
    )?;
    let context = wire.max_position_embeddings.unwrap_or(2048);
    let (rope_theta, rope_scaling) = rope(&wire, &check)?;
    Ok(ModelConfig {
        family: Family::Llama,
        hidden,
        layers: check.size("num_hidden_layers", wire.num_hidden_layers, MAX_LAYERS)?,
        heads,
        kv_heads,
        head_dim,
        ffn: check.size("intermediate_size", wire.intermediate_size, MAX_WIDTH)?,
        vocab: check.size("vocab_size", wire.vocab_size, MAX_WIDTH)?,
        context: check.size("max_position_embeddings", context, 1 << 30)?,
        rms_eps: check.number("rms_norm_eps", wire.rms_norm_eps.unwrap_or(1e-6), 0.0)?,
        rope_theta,
        rope_scaling,
        activation: activation(&wire, &check)?,
        attention_bias: wire.attention_bias.unwrap_or(false),
        mlp_bias: wire.mlp_bias.unwrap_or(false),
        tied_head: wire.tie_word_embeddings.unwrap_or(false),
    })
}

fn activation(wire: &LlamaWire, check: &Checker<'_>) -> Result<Activation, ConfigError> {
    match wire.hidden_act.as_deref().unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(check.refuse("hidden_act", format!("{other:?}"), "\"silu\"")),
    }
}

fn head_dim(
    wire: &LlamaWire,
    hidden: usize,
    heads: usize,
    check: &Checker<'_>,
) -> Result<usize, ConfigError> {
    let head_dim = match wire.head_dim {
        Some(given) => check.size("head_dim", given, MAX_WIDTH)?,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a multiple of num_attention_heads, {heads} (head_dim absent)");
            return Err(check.refuse("hidden_size", hidden, expected));
        }
    };
    if head_dim % 2 != 0 {
        return Err(check.refuse("head_dim", head_dim, "an even number"));
    }
    Ok(head_dim)
}

/// Base and scaling of the rotary frequencies from either spelling.
fn rope(wire: &LlamaWire, check: &Checker<'_>) -> Result<(f64, RopeScaling), ConfigError> {
    let (key, settings) = match (&wire.rope_scaling, &wire.rope_parameters) {
        (Some(scaling), None) => ("rope_scaling", Some(scaling)),
        (None, Some(parameters)) => ("rope_parameters", Some(parameters)),
        (None, None) => ("rope_scaling", None),
        (Some(_), Some(_)) => {
            let expected = "only one of rope_scaling and rope_parameters";
            return Err(check.refuse("rope_scaling", "both", expected));
        }
    };
    let inner_theta = settings.and_then(|s| s.rope_theta);
    let theta = inner_theta.or(wire.rope_theta).unwrap_or(DEFAULT_THETA);
    let theta = check.number("rope_theta", theta, 1.0)?;
    let Some(settings) = settings else {
        return Ok((theta, RopeScaling::Default));
    };
    if let Some(partial) = settings.partial_rotary_factor.filter(|&f| f != 1.0) {
        return Err(check.refuse(&format!("{key}.partial_rotary_factor"), partial, "1"));
    }
    let number = |field: &str, value: Option<f64>, above: f64| {
        let name = format!("{key}.{field}");
        match value {
            Some(value) => check.number(&name, value, above),
            None => Err(check.refuse(&name, "nothing", "a number")),
        }
    };
    let kind = settings
        .rope_type
        .as_deref()
        .or(settings.older_type.as_deref());
    let scaling = match kind.unwrap_or("default") {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear {
            factor: number("factor", settings.factor, 0.0)?,
        },
        "llama3" => {
            let low = number("low_freq_factor", settings.low_freq_factor, 0.0)?;
            RopeScaling::Llama3 {
                factor: number("factor", settings.factor, 0.0)?,
                low_freq_factor: low,
                high_freq_factor: number("high_freq_factor", settings.high_freq_factor, low)?,
                original_context: number(
                    "original_max_position_embeddings",
                    settings.original_max_position_embeddings,
                    0.0,
                )?,
            }
        }
        other => {
            let expected = "\"default\", \"linear\" or \"llama3\"";
            return Err(check.refuse(&format!("{key}.rope_type"), format!("{other:?}"), expected));
        }
    };
    Ok((theta, scaling))
}

/// Refuses what relatives of this family ask for and this forward pass does not do.
fn refuse_other_computations(wire: &LlamaWire, check: &Checker<'_>) -> Result<(), ConfigError> {
    if wire.rope_interleaved == Some(true) {
        return Err(check.refuse("rope_interleaved", true, "false"));
    }
    let absent = [
        ("sliding_window", &wire.sliding_window),
        ("quantization_config", &wire.quantization_config),
        ("attn_logit_softcapping", &wire.attn_logit_softcapping),
        ("final_logit_softcapping", &wire.final_logit_softcapping),
        ("attention_multiplier", &wire.attention_multiplier),
        ("num_local_experts", &wire.num_local_experts),
    ];
    for (key, value) in absent {
        if let Some(value) = value.as_ref() {
            return Err(check.refuse(key, value, "null or absent"));
        }
    }
    let unit = [
        ("partial_rotary_factor", wire.partial_rotary_factor),
        ("embedding_multiplier", wire.embedding_multiplier),
        ("residual_multiplier", wire.residual_multiplier),
        ("logits_scaling", wire.logits_scaling),
    ];
    for (key, value) in unit {
        if let Some(value) = value.filter(|&v| v != 1.0) {
            return Err(check.refuse(key, value, "1 or absent"));
        }
    }
    let other_layer = |kinds: &&Vec<String>| kinds.iter().any(|kind| kind != "full_attention");
    if let Some(kinds) = wire.layer_types.as_ref().filter(other_layer) {
        let expected = "\"full_attention\" for every layer";
        return Err(check.refuse("layer_types", format!("{kinds:?}"), expected));
    }
    Ok(())
}
