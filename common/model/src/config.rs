//! The validated description of a model, and the way from `config.json` to it.
//!
//! This file picks the family by `model_type`; the family's own file (see [`crate::families`])
//! reads its keys. Every range is checked here, once, so that no later code has to doubt a width.

use std::path::{Path, PathBuf};

use crate::families;
use crate::rope::RopeScaling;

/// Largest width, head count, context or vocabulary that is taken seriously.
/// Bounds every product of two widths far below overflow and refuses absurd allocations early.
pub const MAX_WIDTH: u64 = 1 << 24;
/// Largest number of layers that is taken seriously (three digits name a layer on disk).
pub const MAX_LAYERS: u64 = 1000;
/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model architecture that this crate can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `model_type = "llama"`: Llama 1 to 3, SmolLM, TinyLlama, Yi 1.5 and the like.
    Llama,
}

/// Activation of the gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

/// A model, checked: all widths are positive and consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Architecture.
    pub family: Family,
    /// Width of the residual stream (`hidden_size`).
    pub hidden: usize,
    /// Number of layers (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads (`num_attention_heads`), a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`).
    pub kv_heads: usize,
    /// Width of one head, even.
    pub head_dim: usize,
    /// Inner width of the MLP (`intermediate_size`).
    pub ffn: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// Longest context in tokens (`max_position_embeddings`).
    pub context: usize,
    /// Added to the mean square inside the norms.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Activation of the MLP gate.
    pub activation: Activation,
    /// q, k, v and o have biases.
    pub attention_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// The head is the embedding matrix.
    pub tied_head: bool,
}

/// Why a `config.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any `config.json`.
    #[error("{}: {found} bytes, expected at most {expected}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The limit.
        expected: u64,
    },
    /// The file is not the JSON that it should be (syntax, a missing key or a value of another type).
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// The architecture is not one of those supported.
    #[error("{}: model_type: found {found:?}, expected one of {expected}", path.display())]
    UnsupportedFamily {
        /// The file.
        path: PathBuf,
        /// `model_type` as found.
        found: String,
        /// The supported ones.
        expected: &'static str,
    },
    /// A key has a value that would need another forward pass, or that lies out of range.
    #[error("{}: {key}: found {found}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Name of the key.
        key: String,
        /// Value as found.
        found: String,
        /// What would be accepted.
        expected: String,
    },
}

impl ModelConfig {
    /// Reads and validates `config.json` of the model folder `dir`.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, key, found and expected.
    pub fn load(dir: &Path) -> Result<ModelConfig, ConfigError> {
        let path = dir.join("config.json");
        let io = |source| ConfigError::Io {
            path: path.clone(),
            source,
        };
        let size = std::fs::metadata(&path).map_err(io)?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge {
                path,
                found: size,
                expected: MAX_CONFIG_BYTES,
            });
        }
        let bytes = std::fs::read(&path).map_err(io)?;
        ModelConfig::from_json(&bytes, &path)
    }

    /// Validates the bytes of a `config.json`; `path` is only used in errors.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<ModelConfig, ConfigError> {
        #[derive(serde::Deserialize)]
        struct Head {
            model_type: String,
        }
        let json = |source| ConfigError::Json {
            path: path.to_owned(),
            source,
        };
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        match head.model_type.as_str() {
            "llama" => families::llama::parse(bytes, path),
            _ => Err(ConfigError::UnsupportedFamily {
                path: path.to_owned(),
                found: head.model_type,
                expected: "\"llama\"",
            }),
        }
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Collects range checks against one file, so that each check is one line.
pub(crate) struct Checker<'a> {
    path: &'a Path,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(path: &'a Path) -> Self {
        Checker { path }
    }

    /// The error for `key`.
    pub(crate) fn refuse(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// `value` as a size in `1..=max`.
    pub(crate) fn size(&self, key: &str, value: u64, max: u64) -> Result<usize, ConfigError> {
        match value {
            1.. if value <= max => Ok(value as usize),
            _ => Err(self.refuse(key, value, format!("1 to {max}"))),
        }
    }

    /// `value` as a finite number above `above`.
    pub(crate) fn number(&self, key: &str, value: f64, above: f64) -> Result<f64, ConfigError> {
        if value.is_finite() && value > above {
            Ok(value)
        } else {
            Err(self.refuse(key, value, format!("a finite number above {above}")))
        }
    }
}
