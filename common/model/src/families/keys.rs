//! Reading of a `config.json` key by key, so that each key is one line and no key goes unread.
//!
//! Whatever a family does not read is refused at the end, unless it is known to leave the forward pass
//! alone or says nothing (`null`, `false`, `0`, an empty list): a model that is silently computed in
//! another way than it was trained would pass every later check.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::floats::float;
use crate::config::{ConfigError, MAX_LAYERS, MAX_WIDTH};
use crate::spec::Activation;

/// Keys without influence on the forward pass of any family: what the file is and who wrote it; how the model
/// was initialised and trained; how text is drawn from it.
const WITHOUT_INFLUENCE: [&str; 64] = [
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
    "is_llama_config", // of SmolLM2's conversion
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
    // initialisation and training
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
/// Beginnings of such keys.
const PREFIXES: [&str; 5] = ["_", "output_", "router_z_loss", "summary_", "unsloth_"];
/// Ends of such keys.
const SUFFIXES: [&str; 7] = [
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
    /// Names of the objects around these keys, each with a dot.
    within: String,
    map: &'a Map<String, Value>,
    has: &'a dyn Fn(&str) -> bool,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(
        path: &'a Path,
        map: &'a Map<String, Value>,
        has: &'a dyn Fn(&str) -> bool,
    ) -> Self {
        Keys {
            path,
            within: String::new(),
            map,
            has,
            read: RefCell::default(),
        }
    }

    /// Whether the checkpoint has a tensor whose name contains `part`.
    pub(super) fn tensors_contain(&self, part: &str) -> bool {
        (self.has)(part)
    }

    /// The value of `key`; `null` is as good as absent.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The error for `key`.
    pub(super) fn refuse(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.within),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// A value read by `of`, if present.
    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match of(value) {
            Some(found) => Ok(Some(found)),
            None => Err(self.refuse(key, value, expected)),
        }
    }

    fn needed<T>(&self, key: &str, found: Option<T>) -> Result<T, ConfigError> {
        found.ok_or_else(|| self.refuse(key, "nothing", "a value"))
    }

    /// A whole number in `1..=max`, if present.
    fn count(&self, key: &str, max: u64) -> Result<Option<usize>, ConfigError> {
        let expected = format!("a whole number of 1 to {max}");
        self.read(key, &expected, |value| {
            let count = value.as_u64().filter(|count| (1..=max).contains(count));
            count.map(|count| count as usize)
        })
    }

    /// A width, a number of heads, of experts or of tokens.
    pub(super) fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.needed(key, self.size_if_any(key)?)
    }

    /// As [`Keys::size`] for a key that may be absent.
    pub(super) fn size_if_any(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.count(key, MAX_WIDTH)
    }

    /// A size of at most `most`.
    pub(super) fn at_most(&self, key: &str, most: usize) -> Result<usize, ConfigError> {
        let found = self.size(key)?;
        match found <= most {
            true => Ok(found),
            false => Err(self.refuse(key, found, format!("at most {most}"))),
        }
    }

    /// A whole number, 0 included, if present.
    pub(super) fn whole_if_any(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.read(key, "a whole number", |value| {
            value.as_u64().map(|whole| whole as usize)
        })
    }

    /// Number of layers.
    pub(super) fn layers(&self, key: &str) -> Result<usize, ConfigError> {
        self.needed(key, self.count(key, MAX_LAYERS)?)
    }

    /// A finite number above `above`, if present.
    pub(super) fn number_if_any(&self, key: &str, above: f64) -> Result<Option<f64>, ConfigError> {
        self.read(key, &format!("a finite number above {above}"), |value| {
            value.as_f64().filter(|x| x.is_finite() && *x > above)
        })
    }

    /// A finite number of at least `least`, if present.
    pub(super) fn number_from(&self, key: &str, least: f64) -> Result<Option<f64>, ConfigError> {
        self.read(key, &format!("a finite number from {least} on"), |value| {
            value.as_f64().filter(|x| x.is_finite() && *x >= least)
        })
    }

    /// The ends of a range from 0 on that is not empty, the upper of which may be infinite, if present.
    pub(super) fn range_if_any(&self, key: &str) -> Result<Option<[f64; 2]>, ConfigError> {
        self.read(
            key,
            "two numbers of 0 or more, the smaller one first",
            |value| {
                let ends: [Value; 2] = value.as_array()?.clone().try_into().ok()?;
                let [low, high] = [float(&ends[0])?, float(&ends[1])?];
                (0.0 <= low && low.is_finite() && low <= high).then_some([low, high])
            },
        )
    }

    /// A finite number above `above`.
    pub(super) fn number(&self, key: &str, above: f64) -> Result<f64, ConfigError> {
        self.needed(key, self.number_if_any(key, above)?)
    }

    /// Finite numbers above 0, if present.
    pub(super) fn numbers_if_any(&self, key: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        self.read(key, "a list of finite numbers above 0", |value| {
            let positive = |x: &Value| x.as_f64().filter(|x| x.is_finite() && *x > 0.0);
            value.as_array()?.iter().map(positive).collect()
        })
    }

    /// Layer numbers, if present.
    pub(super) fn indices_if_any(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        self.read(key, "a list of whole numbers", |value| {
            let index = |x: &Value| x.as_u64().map(|x| x as usize);
            value.as_array()?.iter().map(index).collect()
        })
    }

    /// Yes or no, if present.
    pub(super) fn flag_if_any(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// Yes, or no if absent.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        Ok(self.flag_if_any(key)?.unwrap_or(false))
    }

    /// A text, if present.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(key, "a text", Value::as_str)
    }

    /// Texts, if present.
    pub(super) fn texts_if_any(&self, key: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        self.read(key, "a list of texts", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// The keys of an object, if present.
    pub(super) fn object_if_any(&self, key: &str) -> Result<Option<Keys<'a>>, ConfigError> {
        let map = self.read(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Keys {
            path: self.path,
            within: format!("{}{key}.", self.within),
            map,
            has: self.has,
            read: RefCell::default(),
        }))
    }

    /// An activation by its usual name.
    pub(super) fn activation(&self, key: &str) -> Result<Activation, ConfigError> {
        match self.needed(key, self.text(key)?)? {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => {
                let expected = "silu, gelu, gelu_new, gelu_pytorch_tanh or relu";
                Err(self.refuse(key, format!("{other:?}"), expected))
            }
        }
    }

    /// Refuses `key` if it is there with another value than `only`.
    pub(super) fn only(&self, key: &str, only: impl Into<Value>) -> Result<(), ConfigError> {
        let only = only.into();
        let same = |value: &Value| match (value.as_f64(), only.as_f64()) {
            (Some(one), Some(other)) => one == other,
            _ => *value == only,
        };
        match self.value(key) {
            Some(value) if !same(value) => {
                Err(self.refuse(key, value, format!("{only} or nothing")))
            }
            _ => Ok(()),
        }
    }

    /// Notes keys that this family's forward pass does not depend on.
    pub(super) fn ignore(&self, keys: &[&str]) {
        let mut read = self.read.borrow_mut();
        read.extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Refuses a key that nothing has read and that may mean something.
    pub(crate) fn refuse_others(&self) -> Result<(), ConfigError> {
        let read = self.read.borrow();
        for (key, value) in self.map {
            let harmless = WITHOUT_INFLUENCE.contains(&key.as_str())
                || PREFIXES.iter().any(|part| key.starts_with(part))
                || SUFFIXES.iter().any(|part| key.ends_with(part));
            if !read.contains(key) && !harmless && !says_nothing(value) {
                let expected = "a key that this family is known to have";
                return Err(self.refuse(key, value, expected));
            }
        }
        Ok(())
    }
}

/// Whether a value is that of a feature that is not used.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) => false,
    }
}
