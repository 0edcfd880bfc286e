//! The validated description of a model, and the way from `config.json` to it.
//!
//! This file picks the family by `model_type`; the family's own file (see `families`)
//! reads its keys. Every range is checked there, once, so that no later code has to doubt a width.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use crate::families::{FAMILIES, Keys, tagged};
use crate::source;
use crate::spec::{EmbeddingSpec, HeadSpec, LayerSpec};

/// Largest width, head count, context or vocabulary that is taken seriously.
/// Bounds every product of two widths far below overflow and refuses absurd allocations early.
pub const MAX_WIDTH: u64 = 1 << 24;
/// Largest number of layers that is taken seriously (three digits name a layer on disk).
pub const MAX_LAYERS: u64 = 1000;
/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model, checked: all widths are positive and consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of the `config.json`.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// From token ids to the residual stream.
    pub embedding: EmbeddingSpec,
    /// The layers in order.
    pub layers: Vec<LayerSpec>,
    /// From the residual stream to logits.
    pub head: HeadSpec,
    /// How the names of tensors begin that a checkpoint may hold beside those of the model: of layers that
    /// predict tokens after the next one, which are not computed here.
    pub beside: Vec<String>,
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
    /// The file is not a JSON object.
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
        expected: String,
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
    /// Reads and validates `config.json` of the model folder `dir`. Where checkpoints of a family name or
    /// pack the same tensors differently, the folder's own names decide.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, key, found and expected.
    pub fn load(dir: &Path) -> Result<ModelConfig, ConfigError> {
        let names = OnceCell::new();
        let has = |part: &str| {
            let names = names.get_or_init(|| source::names(dir));
            names.iter().any(|name: &String| name.contains(part))
        };
        ModelConfig::read(&dir.join("config.json"), &has)
    }

    /// Reads and validates a `config.json` alone; `has` as in [`ModelConfig::from_json`].
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn read(path: &Path, has: &dyn Fn(&str) -> bool) -> Result<ModelConfig, ConfigError> {
        let io = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                found: size,
                expected: MAX_CONFIG_BYTES,
            });
        }
        let bytes = std::fs::read(path).map_err(io)?;
        ModelConfig::from_json(&bytes, path, has)
    }

    /// Validates the bytes of a `config.json`; `path` is only used in errors. `has` says whether the
    /// checkpoint has a tensor whose name contains a text.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn from_json(
        bytes: &[u8],
        path: &Path,
        has: &dyn Fn(&str) -> bool,
    ) -> Result<ModelConfig, ConfigError> {
        let map = serde_json::from_slice(&tagged(bytes)).map_err(|source| ConfigError::Json {
            path: path.to_owned(),
            source,
        })?;
        let keys = Keys::new(path, &map, has);
        let family = keys.text("model_type")?.unwrap_or_default();
        let described = FAMILIES.iter().find(|(name, _)| *name == family);
        let Some((_, describe)) = described else {
            let names: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
            return Err(ConfigError::UnsupportedFamily {
                path: path.to_owned(),
                found: family.to_owned(),
                expected: names.join(", "),
            });
        };
        let config = describe(&keys)?;
        keys.refuse_others()?;
        Ok(config)
    }
}
