//! Reads a `config.json` key by key and remembers which keys were read.
//!
//! A key that the family does not read is refused at the end, unless [`harmless`](super::harmless) knows that it does not
//! influence the forward pass. Otherwise the forward pass could silently differ from the one in training, and every
//! later check would still pass.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};
use uc_input::printable;

use super::floats::float;
use super::harmless::{self, aliases, other_names, same};
use super::limits::{MAX_ALL_EXPERTS, MAX_LAYERS, MAX_WIDTH, limit};
use crate::config::ConfigError;
use crate::spec::Activation;

/// Keys that, where they are absent, have the default of the family's field.
const DEFAULTED: [&str; 12] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "first_k_dense_replace",
    "layer_norm_eps",
    "max_position_embeddings",
    "max_window_layers",
    "n_shared_experts",
    "norm_topk_prob",
    "q_lora_rank",
    "rms_norm_eps",
    "router_jitter_noise",
    "sliding_window",
];
/// Characters of a value that an error shows, at most.
const MAX_SHOWN: usize = 200;

/// The keys of a `config.json`, or of an object in it.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    /// `model_type` of the file.
    family: &'a str,
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
        let family = map.get("model_type").and_then(Value::as_str);
        Keys {
            path,
            family: family.unwrap_or_default(),
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

    /// The value of `key`, under this or another of its names. A `null` counts as absent.
    fn value(&self, key: &str) -> Option<&'a Value> {
        let mut read = self.read.borrow_mut();
        read.insert(key.to_owned());
        let others = match self.prefix.is_empty() {
            true => other_names(self.family, key),
            false => Vec::new(),
        };
        read.extend(others.iter().map(|name| (*name).to_owned()));
        let names: Vec<&str> = std::iter::once(key).chain(others).collect();
        let is_absent = names.iter().all(|name| !self.map.contains_key(*name));
        if is_absent && self.prefix.is_empty() && DEFAULTED.contains(&key) {
            return harmless::default(self.family, key).filter(|value| !value.is_null());
        }
        let mut values = names.iter().filter_map(|name| self.map.get(*name));
        values.find(|value| !value.is_null())
    }

    /// The default of a number that is a field of the family.
    pub(super) fn default_number(&self, key: &str) -> Option<f64> {
        harmless::default(self.family, key).and_then(Value::as_f64)
    }

    /// Whether the file has `key`, be it `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Refuses weights that are not stored as numbers of their own, which `quantization_config` describes.
    pub(crate) fn refuse_quantized(&self) -> Result<(), ConfigError> {
        let key = "quantization_config";
        let Some(value) = self.value(key) else {
            return Ok(());
        };
        let method = value.get("quant_method").and_then(Value::as_str);
        let found = method.map_or_else(|| value.to_string(), |method| format!("{method:?}"));
        let expected = "no quantized weights: convert the model to F32, F16 or BF16 without this key first, or take the \
                        original";
        Err(self.invalid(key, found, expected))
    }

    /// Refuses two names of one key with different values.
    pub(crate) fn refuse_contradictions(&self) -> Result<(), ConfigError> {
        for (alias, name) in aliases(self.family) {
            if let (Some(one), Some(other)) = (self.map.get(alias), self.map.get(name))
                && !(one.is_null() || other.is_null() || same(one, other))
            {
                return Err(self.invalid(alias, one, format!("{other}, as {name} says")));
            }
        }
        Ok(())
    }

    /// The error for an unacceptable value of `key`.
    pub(super) fn invalid(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> ConfigError {
        let mut found = printable(&found.to_string()).into_owned();
        if let Some((end, _)) = found.char_indices().nth(MAX_SHOWN) {
            found.truncate(end);
            found += "...";
        }
        ConfigError::Value {
            path: self.path.to_owned(),
            key: printable(&format!("{}{key}", self.prefix)).into_owned(),
            found,
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
        self.count(key, limit(key))
    }

    /// Number of experts of each of `layers` layers.
    pub(super) fn experts(&self, key: &str, layers: usize) -> Result<usize, ConfigError> {
        let count = self.size(key)?;
        match count as u64 * layers as u64 <= MAX_ALL_EXPERTS {
            true => Ok(count),
            false => {
                let expected = format!("at most {MAX_ALL_EXPERTS} experts in all {layers} layers");
                Err(self.invalid(key, count, expected))
            }
        }
    }

    /// The product of two sizes, at most the largest width. `name` says in the error what was multiplied.
    pub(super) fn product(&self, name: &str, factors: [usize; 2]) -> Result<usize, ConfigError> {
        let [one, other] = factors;
        let product = one.checked_mul(other);
        let product = product.filter(|product| *product as u64 <= MAX_WIDTH);
        let expected = || format!("a product of at most {MAX_WIDTH}");
        product.ok_or_else(|| self.invalid(name, format!("{one} · {other}"), expected()))
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
        let max = limit(key);
        self.read(key, &format!("a whole number of at most {max}"), |value| {
            let count = value.as_u64().filter(|count| *count <= max);
            count.map(|count| count as usize)
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

    /// A finite number greater than `bound` under either of two names, which must not contradict each other.
    pub(super) fn same_number_above(
        &self,
        names: [&str; 2],
        bound: f64,
    ) -> Result<Option<f64>, ConfigError> {
        let [one, other] = names;
        match [
            self.optional_number_above(one, bound)?,
            self.optional_number_above(other, bound)?,
        ] {
            [Some(first), Some(second)] if first != second => {
                Err(self.invalid(one, first, format!("{second}, as {other} says")))
            }
            [first, second] => Ok(first.or(second)),
        }
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
        let expected = format!("a list of at most {MAX_LAYERS} whole numbers");
        self.read(key, &expected, |value| {
            let index = |x: &Value| x.as_u64().map(|x| x as usize);
            let list = value.as_array()?;
            let list = (list.len() as u64 <= MAX_LAYERS).then_some(list)?;
            list.iter().map(index).collect()
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
            family: self.family,
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
    pub(crate) fn supports_only(
        &self,
        key: &str,
        supported: impl Into<Value>,
    ) -> Result<(), ConfigError> {
        let supported = supported.into();
        match self.value(key) {
            Some(value) if !same(value, &supported) => {
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
            // The objects in a file, such as `rope_scaling`, have no fields of a family.
            let harmless = match self.prefix.is_empty() {
                true => harmless::is_harmless(self.family, key, value),
                false => value.is_null() || key.starts_with('_'),
            };
            if !read.contains(key) && !harmless {
                let expected = match self.prefix.is_empty() {
                    true => harmless::expected(self.family, key),
                    false => "no such key: it is not supported".into(),
                };
                return Err(self.invalid(key, value, expected));
            }
        }
        Ok(())
    }
}
