//! The error of this crate.

use std::path::PathBuf;

use uc_model::config::ConfigError;
use uc_model::text::TextError;
use uc_pack::PackError;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The pack cannot be read, or differs from its manifest.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The pack's `config.json` describes a model that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A file of the pack cannot be read.
    #[error("{}: cannot read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The pack has another number of layers than its `config.json` describes.
    #[error("{origin}: found {found} layers, expected the {expected} that config.json describes")]
    Layers {
        /// The pack.
        origin: String,
        /// Layers of the pack.
        found: usize,
        /// Layers of the model.
        expected: usize,
    },
    /// The model needs a tensor that the pack does not have.
    #[error("{origin}: found no tensor {tensor}, expected every tensor that config.json describes")]
    NoTensor {
        /// The file.
        origin: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// A description in the pack cannot be used.
    #[error("{}: not as expected: {source}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// The pack does not have a file that is needed.
    #[error(
        "{origin}: names no file {file}, expected it in the pack of a model that generates text"
    )]
    NoFile {
        /// The manifest.
        origin: String,
        /// Name of the file.
        file: String,
    },
    /// A tensor has another shape than `config.json` describes, or is no tensor of weights.
    #[error("{tensor}: found {found}, expected {expected}")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// Its shape or type.
        found: String,
        /// What the model needs.
        expected: String,
    },
    /// What was read differs from the manifest.
    #[error(
        "{what}: found SHA-256 {found}, expected {expected} as in the manifest; the pack is damaged, fetch it again"
    )]
    Digest {
        /// The tensor or file.
        what: String,
        /// The digest of what was read.
        found: String,
        /// The manifest's digest.
        expected: String,
    },
    /// More tokens than the context holds.
    #[error(
        "the sequence would have {found} tokens, expected at most {expected}, its context; shorten the text or raise the context"
    )]
    Context {
        /// Tokens with the new ones.
        found: usize,
        /// Tokens of the context.
        expected: usize,
    },
    /// A context that the model does not have.
    #[error("context: found {found} tokens, expected 1 to {expected}, what the model was made for")]
    ContextRange {
        /// The requested context.
        found: usize,
        /// The model's own.
        expected: usize,
    },
    /// A token that is not in the model's vocabulary.
    #[error("token {found}: expected an id below {expected}, the size of the vocabulary")]
    Token {
        /// The id.
        found: u32,
        /// Size of the vocabulary.
        expected: usize,
    },
    /// There is nothing to compute.
    #[error("the prompt has no tokens, expected at least one")]
    Empty,
    /// A sequence is passed to a model that it was not made for.
    #[error("the sequence belongs to another model")]
    OtherModel,
    /// The logits are not numbers.
    #[error(
        "the forward pass overflows: found {found} among the logits after token {position}, expected numbers; the weights are \
         damaged or too large"
    )]
    Overflow {
        /// Index of the token in its sequence.
        position: usize,
        /// The value.
        found: f32,
    },
    /// The pack has no chat template.
    #[error(
        "the pack has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), expected one for a \
         conversation; the model may not be made for conversations: give it a text to continue"
    )]
    NoTemplate,
    /// The chat template cannot be read or used.
    #[error("the pack's chat template fails: {reason}")]
    Template {
        /// The template library's error, or the template's own.
        reason: String,
    },
    /// The rule that a text has to follow cannot be followed.
    #[error("the text cannot follow its constraint: {reason}")]
    Constraint {
        /// The constraint's own reason.
        reason: String,
    },
    /// A sampling option is out of range.
    #[error("{option}: found {found}, expected {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The value.
        found: String,
        /// The range.
        expected: String,
    },
}

impl InferError {
    /// An option that is out of range.
    pub(crate) fn option(
        option: &'static str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        InferError::Option {
            option,
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
