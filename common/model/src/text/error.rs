//! Errors in a tokenizer, a text or a choice of windows, one variant for each kind.

use std::path::PathBuf;

/// Why a tokenizer or a text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// `tokenizer.json` exists but is not a valid tokenizer.
    #[error("{}: not a valid tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's error.
        reason: String,
    },
    /// The tokenizer prepends more than one special token to a text.
    #[error("{}: prepends {found} special tokens to a text, expected at most 1", path.display())]
    SpecialPrefix {
        /// The file.
        path: PathBuf,
        /// Number of special tokens.
        found: usize,
    },
    /// The tokenizer failed to encode or decode a text.
    #[error("the tokenizer failed: {reason}")]
    Encode {
        /// The tokenizer library's error.
        reason: String,
    },
    /// The extension of a text file is not supported.
    #[error("{}: unsupported file extension, expected .txt, .utf8, .raw or .jsonl", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A text file is not UTF-8.
    #[error("{}: byte {offset} is not valid UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte.
        offset: usize,
    },
    /// A line of a `.jsonl` file is not an object with a string `text`.
    #[error("{}:{line}: expected an object with a string \"text\": {reason}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Position and reason.
        reason: String,
    },
    /// The text is shorter than one window.
    #[error("the text has {found} tokens, expected at least {expected} (one window)")]
    TooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens of one window.
        expected: usize,
    },
    /// The windows are too short to contain a token to predict.
    #[error("windows of {found} tokens, expected at least 2 tokens")]
    WindowLength {
        /// Requested length.
        found: usize,
    },
    /// A token id is outside the vocabulary of the model.
    #[error("token {position}: id {found}, expected an id below the vocabulary size {expected}")]
    TokenOutOfRange {
        /// Index of the token.
        position: usize,
        /// Its id.
        found: u32,
        /// Vocabulary size of the model.
        expected: usize,
    },
}
