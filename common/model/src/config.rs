//! The validated description of a model, and the errors of a `config.json` that cannot be accepted.
//!
//! This file holds types only. `load` reads a `config.json`, and each family's own file
//! (see `families`) interprets its keys. All ranges are checked there, once, so that no later code has
//! to check a dimension again.

use std::path::PathBuf;

use crate::spec::{EmbeddingSpec, HeadSpec, LayerSpec};

/// The description of a model. All dimensions are positive and consistent with each other.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of the `config.json`.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// Maximum context length in tokens.
    pub context: usize,
    /// From token ids to the residual stream.
    pub embedding: EmbeddingSpec,
    /// The layers in order.
    pub layers: Vec<LayerSpec>,
    /// From the residual stream to logits.
    pub head: HeadSpec,
    /// Name prefixes of tensors that a checkpoint may hold in addition to those of the model and that
    /// are ignored: the layers for multi-token prediction.
    pub ignored_prefixes: Vec<String>,
}

/// Why a `config.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The folder has no `config.json`.
    #[error("{}: found {found}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// What is there instead, what was expected and what to do.
        found: String,
    },
    /// The file is not a JSON object.
    #[error("{}: expected a JSON object", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// The architecture is not supported.
    #[error("{}: model_type: found {found:?}, expected one of {expected}", path.display())]
    UnsupportedFamily {
        /// The file.
        path: PathBuf,
        /// `model_type` as found.
        found: String,
        /// The supported values, separated by commas.
        expected: String,
    },
    /// A key has a value that is out of range, or that requires a forward pass that is not implemented.
    #[error("{}: {key}: found {found}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Name of the key; keys of nested objects are joined by dots.
        key: String,
        /// The value found.
        found: String,
        /// What would be accepted.
        expected: String,
    },
}
