//! Keys of a `config.json` that need not be read, and the other names that keys have.
//!
//! A key that no code reads is harmless for one of two reasons. By its kind: it says where the file came from, how the
//! model was trained, how text is generated or how fast it is computed, and no value of it changes the forward pass.
//! Or by its value: it is the default of the field, and the forward pass computes what the default asks for. The
//! defaults are those of transformers; `tests/configs/resave.py` writes them to `defaults.json`. A `false` or a `0` is
//! therefore harmless where it is the default, and asks for something where it is not.
//!
//! Never decides what a key means: that is the task of the families.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

/// Where the file comes from, and for which program it was written.
const PROVENANCE: [&str; 27] = [
    "architectures",
    "auto_map", // named in a warning when the model folder is inspected
    "custom_pipelines",
    "dtype",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "is_llama_config", // written by the conversion of SmolLM2
    "keys_to_ignore_at_inference",
    "label2id",
    "license",
    "model_max_length",
    "model_type",
    "n_ctx",
    "pad_vocab_size_multiple",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "use_bfloat16",
    "vocab_file",
];
/// Switches between implementations of the same function.
const SPEED: [&str; 9] = [
    "chunk_size_feed_forward",
    "flash_attn",
    "low_cpu_mem_usage",
    "pretraining_tp", // the matrix products are computed in this many parts
    "use_associative_scan",
    "use_cache",
    "use_mamba_kernels",
    "use_mem_eff_path",
    "use_triton",
];
/// Initialization and training.
const TRAINING: [&str; 11] = [
    "classifier_dropout",
    "gradient_checkpointing",
    "neftune_noise_alpha",
    "rescale_layer",
    "rescale_prenorm_residual",
    "scale_init",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
];
/// Generation of text.
const GENERATION: [&str; 25] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];
/// Prefixes of keys of all four kinds.
const PREFIXES: [&str; 9] = [
    "_",
    "output_",
    "router_z_loss",
    "summary_",
    "unsloth_",
    "use_flash_attn",
    "use_flash_attention",
    "use_fused_",
    "fused_",
];
/// Suffixes of keys of all four kinds.
const SUFFIXES: [&str; 10] = [
    "_token_id",
    "_implementation",
    "mambapy",
    "_dropout",
    "_dropout_prob",
    "_pdrop",
    "_jitter_noise",
    "_loss_coef",
    "_loss_coefficient",
    "initializer_range",
];

/// The content of `defaults.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// For every family with such names: another name of a key, and the key.
    aliases: BTreeMap<String, BTreeMap<String, String>>,
    /// Defaults of fields that all families have.
    common: BTreeMap<String, Vec<Value>>,
    /// Falsy defaults that are the same in every other language model that has the field.
    elsewhere: BTreeMap<String, Value>,
    /// Defaults of the fields of every family, in both lines of transformers.
    families: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    serde_json::from_str(include_str!("defaults.json")).expect("the table of defaults is valid")
});

/// The defaults of a field of the family, in both lines of transformers; none if the family does not have the field.
fn defaults(family: &str, key: &str) -> Option<&'static Vec<Value>> {
    let own = TABLE.families.get(family).and_then(|keys| keys.get(key));
    own.or_else(|| TABLE.common.get(key))
}

/// The default of a field of the family.
pub(super) fn default(family: &str, key: &str) -> Option<&'static Value> {
    defaults(family, key).and_then(|defaults| defaults.first())
}

/// Whether a key that no code read has no influence on the forward pass with this value.
pub(super) fn is_harmless(family: &str, key: &str, value: &Value) -> bool {
    let is_of_kind = PROVENANCE.contains(&key)
        || SPEED.contains(&key)
        || TRAINING.contains(&key)
        || GENERATION.contains(&key)
        || PREFIXES.iter().any(|part| key.starts_with(part))
        || SUFFIXES.iter().any(|part| key.ends_with(part));
    if is_of_kind || value.is_null() {
        return true;
    }
    match defaults(family, key) {
        Some(defaults) => defaults.iter().any(|default| same(default, value)),
        None => TABLE
            .elsewhere
            .get(key)
            .is_some_and(|default| same(default, value)),
    }
}

/// What is expected of a key that no code read and that is not harmless.
pub(super) fn expected(family: &str, key: &str) -> String {
    let own = defaults(family, key);
    let elsewhere = || TABLE.elsewhere.get(key).map(std::slice::from_ref);
    let Some(known) = own.map(Vec::as_slice).or_else(elsewhere) else {
        return "no such key: what it asks for is not known for this family. Remove it if the weights were trained without it"
            .into();
    };
    let values: Vec<String> = known
        .iter()
        .filter(|default| !default.is_null())
        .map(Value::to_string)
        .chain(["nothing".into()])
        .collect();
    format!(
        "{}: other values are not supported for this family",
        values.join(" or ")
    )
}

/// Whether two values are the same, whatever the spelling of a number.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// The other names of a key of the family.
pub(super) fn other_names(family: &str, key: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for (alias, name) in TABLE.aliases.get(family).into_iter().flatten() {
        if alias == key {
            names.push(name);
        } else if name == key {
            names.push(alias);
        }
    }
    names
}

/// Every pair of names of one key of the family.
pub(super) fn aliases(family: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let aliases = TABLE.aliases.get(family).into_iter().flatten();
    aliases.map(|(alias, name)| (alias.as_str(), name.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_lists_every_family() {
        let listed: Vec<&str> = TABLE.families.keys().map(String::as_str).collect();
        let families: Vec<&str> = super::super::FAMILIES
            .iter()
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(listed, families);
    }

    #[test]
    fn a_value_is_harmless_by_the_kind_of_its_key_or_as_the_default_of_its_field() {
        for (family, key, value, harmless) in [
            ("llama", "use_cache", json!(false), true),
            ("mamba", "use_associative_scan", json!(true), true),
            ("llama", "attention_dropout", json!(0.5), true),
            ("llama", "mlp_bias", json!(false), true),
            ("llama", "mlp_bias", json!(true), false),
            ("gpt_neox", "attention_bias", json!(true), true),
            ("gpt_neox", "attention_bias", json!(false), false),
            ("gpt2", "scale_attn_weights", json!(false), false),
            ("llama", "pruned_heads", json!({}), true),
            ("llama", "pruned_heads", json!({"0": [1]}), false),
            ("llama", "is_encoder_decoder", json!(false), true),
            ("llama", "is_encoder_decoder", json!(true), false),
            ("llama", "alibi", json!(false), true),
            ("llama", "alibi", json!(true), false),
            ("llama", "a_key_of_nobody", json!(false), false),
            ("llama", "a_key_of_nobody", json!(0), false),
            ("llama", "a_key_of_nobody", json!(null), true),
        ] {
            assert_eq!(
                is_harmless(family, key, &value),
                harmless,
                "{family}: {key} = {value}"
            );
        }
    }

    #[test]
    fn a_key_has_its_other_names_in_both_directions() {
        assert_eq!(
            other_names("qwen3_moe", "num_experts"),
            ["num_local_experts"]
        );
        assert_eq!(
            other_names("qwen3_moe", "num_local_experts"),
            ["num_experts"]
        );
        assert_eq!(other_names("gpt2", "n_layer"), ["num_hidden_layers"]);
        assert!(other_names("llama", "num_hidden_layers").is_empty());
    }
}
