//! Reads a `config.json` key by key and remembers which keys were read.
//!
//! A key that the family does not read is refused at the end, unless it is known not to influence the
//! forward pass or has a value that means "unused" (`null`, `false`, `0`, empty). Otherwise the forward
//! pass could silently differ from the one in training, and every later check would still pass.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::floats::float;
use crate::config::{ConfigError, MAX_LAYERS, MAX_WIDTH};
use crate::spec::Activation;

/// Keys that do not influence the forward pass of any family: provenance of the file, initialization and
/// training, text generation.
const IRRELEVANT_KEYS: [&str; 64] = [
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config", // written by the conversion of SmolLM2
    "keys_to_ignore_at_inference",
    "label2id",
    "license",
    "max_length",
    "model_max_length",
    "model_type",
    "n_ctx",
    "pad_vocab_size_multiple",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_mambapy",
    // initialization and training
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "neftune_noise_alpha",
    "pretraining_tp",
    "pruned_heads",
    "rescale_layer",
    "rescale_prenorm_residual",
    "tie_encoder_decoder",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
    // generation
    "bad_words_ids",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "length_penalty",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];
/// Prefixes of such keys.
const IRRELEVANT_PREFIXES: [&str; 5] = ["_", "output_", "router_z_loss", "summary_", "unsloth_"];
/// Suffixes of such keys.
const IRRELEVANT_SUFFIXES: [&str; 7] = [
    "_token_id",
    "_dropout",
    "_dropout_prob",
    "_pdrop",
    "_jitter_noise",
    "_loss_coef",
    "initializer_range",
];

/// The keys of a `config.json`, or of an object in it.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    /// Names of the enclosing objects, each followed by a dot.
    prefix: String,
    map: &'a Map<String, Value>,
    has_tensor: &'a dyn Fn(&str) -> bool,
    /// Keys that were read or ignored so far.
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    /// The keys of `map`. `path` is only used in errors; `has_tensor(part)` says whether the checkpoint has
    /// a tensor whose name contains `part`.
    pub(crate) fn new(
        path: &'a Path,
        map: &'a Map<String, Value>,
        has_tensor: &'a dyn Fn(&str) -> bool,
    ) -> Self {
        Keys {
            path,
            prefix: String::new(),
            map,
            has_tensor,
            read: RefCell::default(),
        }
    }

    /// Whether the checkpoint has a tensor whose name contains `part`.
    pub(super) fn has_tensor_containing(&self, part: &str) -> bool {
        (self.has_tensor)(part)
    }

    /// The value of `key`. A `null` counts as absent.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The error for an unacceptable value of `key`.
    pub(super) fn invalid(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// The value of `key` as converted by `convert`, if present. `expected` describes, in the error, the
    /// values for which `convert` returns `Some`.
    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.invalid(key, value, expected)),
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| self.invalid(key, "nothing", "a value"))
    }

    /// A whole number in `1..=max`, if present.
    fn count(&self, key: &str, max: u64) -> Result<Option<usize>, ConfigError> {
        let expected = format!("a whole number between 1 and {max}");
        self.read(key, &expected, |value| {
            let count = value.as_u64().filter(|count| (1..=max).contains(count));
            count.map(|count| count as usize)
        })
    }

    /// A positive whole number: a dimension, or a number of heads, experts or tokens.
    pub(super) fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.required(key, self.optional_size(key)?)
    }

    /// As [`Keys::size`] for a key that may be absent.
    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.count(key, MAX_WIDTH)
    }

    /// As [`Keys::size`], at most `max`.
    pub(super) fn size_at_most(&self, key: &str, max: usize) -> Result<usize, ConfigError> {
        let size = self.size(key)?;
        match size <= max {
            true => Ok(size),
            false => Err(self.invalid(key, size, format!("at most {max}"))),
        }
    }

    /// A whole number, 0 included, if present.
    pub(super) fn optional_count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.read(key, "a whole number", |value| {
            value.as_u64().map(|count| count as usize)
        })
    }

    /// Number of layers.
    pub(super) fn layers(&self, key: &str) -> Result<usize, ConfigError> {
        self.required(key, self.count(key, MAX_LAYERS)?)
    }

    /// A finite number greater than `bound`.
    pub(super) fn number_above(&self, key: &str, bound: f64) -> Result<f64, ConfigError> {
        self.required(key, self.optional_number_above(key, bound)?)
    }

    /// As [`Keys::number_above`] for a key that may be absent.
    pub(super) fn optional_number_above(
        &self,
        key: &str,
        bound: f64,
    ) -> Result<Option<f64>, ConfigError> {
        self.read(key, &format!("a finite number above {bound}"), |value| {
            value.as_f64().filter(|x| x.is_finite() && *x > bound)
        })
    }

    /// A finite number of at least `min`, if present.
    pub(super) fn optional_number_at_least(
        &self,
        key: &str,
        min: f64,
    ) -> Result<Option<f64>, ConfigError> {
        let expected = format!("a finite number of at least {min}");
        self.read(key, &expected, |value| {
            value.as_f64().filter(|x| x.is_finite() && *x >= min)
        })
    }

    /// A lower and an upper limit, neither negative, if present. The upper limit may be infinite.
    pub(super) fn optional_range(&self, key: &str) -> Result<Option<[f64; 2]>, ConfigError> {
        let expected = "two numbers of at least 0, the smaller one first";
        self.read(key, expected, |value| {
            let limits: [Value; 2] = value.as_array()?.clone().try_into().ok()?;
            let [low, high] = [float(&limits[0])?, float(&limits[1])?];
            (0.0 <= low && low.is_finite() && low <= high).then_some([low, high])
        })
    }

    /// A list of finite numbers above 0, if present.
    pub(super) fn optional_positive_numbers(
        &self,
        key: &str,
    ) -> Result<Option<Vec<f64>>, ConfigError> {
        self.read(key, "a list of finite numbers above 0", |value| {
            let positive = |x: &Value| x.as_f64().filter(|x| x.is_finite() && *x > 0.0);
            value.as_array()?.iter().map(positive).collect()
        })
    }

    /// A list of layer indices, if present.
    pub(super) fn optional_indices(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        self.read(key, "a list of whole numbers", |value| {
            let index = |x: &Value| x.as_u64().map(|x| x as usize);
            value.as_array()?.iter().map(index).collect()
        })
    }

    /// A boolean; false if absent.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        Ok(self.optional_flag(key)?.unwrap_or(false))
    }

    /// A boolean, if present.
    pub(super) fn optional_flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// A string, if present.
    pub(crate) fn optional_string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(key, "a string", Value::as_str)
    }

    /// A list of strings, if present.
    pub(super) fn optional_strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        self.read(key, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// The keys of a nested object, if present.
    pub(super) fn optional_object(&self, key: &str) -> Result<Option<Keys<'a>>, ConfigError> {
        let map = self.read(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Keys {
            path: self.path,
            prefix: format!("{}{key}.", self.prefix),
            map,
            has_tensor: self.has_tensor,
            read: RefCell::default(),
        }))
    }

    /// An activation function by its name in transformers.
    pub(super) fn activation(&self, key: &str) -> Result<Activation, ConfigError> {
        match self.required(key, self.optional_string(key)?)? {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => {
                let expected = "silu, gelu, gelu_new, gelu_pytorch_tanh or relu";
                Err(self.invalid(key, format!("{other:?}"), expected))
            }
        }
    }

    /// Refuses `key` if it is present with a value other than `supported`.
    pub(super) fn supports_only(
        &self,
        key: &str,
        supported: impl Into<Value>,
    ) -> Result<(), ConfigError> {
        let supported = supported.into();
        let same = |value: &Value| match (value.as_f64(), supported.as_f64()) {
            (Some(one), Some(other)) => one == other,
            _ => *value == supported,
        };
        match self.value(key) {
            Some(value) if !same(value) => {
                Err(self.invalid(key, value, format!("{supported} or nothing")))
            }
            _ => Ok(()),
        }
    }

    /// Marks keys as read that this family has but whose values its forward pass does not depend on.
    pub(super) fn ignore(&self, keys: &[&str]) {
        let mut read = self.read.borrow_mut();
        read.extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Refuses the first key that was neither read nor ignored and that may influence the forward pass.
    pub(crate) fn refuse_unread(&self) -> Result<(), ConfigError> {
        let read = self.read.borrow();
        for (key, value) in self.map {
            let irrelevant = IRRELEVANT_KEYS.contains(&key.as_str())
                || IRRELEVANT_PREFIXES.iter().any(|part| key.starts_with(part))
                || IRRELEVANT_SUFFIXES.iter().any(|part| key.ends_with(part));
            if !read.contains(key) && !irrelevant && !is_inert(value) {
                let expected = "no such key: it is not supported for this family";
                return Err(self.invalid(key, value, expected));
            }
        }
        Ok(())
    }
}

/// Whether a value means that the feature is not used.
fn is_inert(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) => false,
    }
}
