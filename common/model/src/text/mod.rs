//! From text files to windows of token ids.
//!
//! Owns the tokenizer (the model folder's own `tokenizer.json`), the reading of text files and the
//! seeded choice of windows. Every choice is a function of its arguments alone: the same text,
//! tokenizer, length, count and seed give the same windows on every machine, for ever.

mod files;
mod set;
mod tokenizer;
mod windows;

use std::path::PathBuf;

pub use files::{Text, read_texts};
pub use set::{RecordedWindow, WindowChoice, WindowSet};
pub use tokenizer::Tokenizer;
pub use windows::{Window, check_ids, split_mix, windows};

/// Why a tokenizer or a text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `tokenizer.json` is there but is no tokenizer.
    #[error("{}: not a tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library said.
        reason: String,
    },
    /// The tokenizer puts more than one special token before a text.
    #[error("{}: puts {found} special tokens before a text, expected at most 1", path.display())]
    SpecialPrefix {
        /// The file.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// The tokenizer failed on a text.
    #[error("cannot tokenize: {reason}")]
    Encode {
        /// What the tokenizer library said.
        reason: String,
    },
    /// The name of a text file does not tell how to read it.
    #[error("{}: unknown kind of text, expected .txt, .utf8, .raw or .jsonl", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A text file is not UTF-8.
    #[error("{}: byte {offset} is not valid UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// A line of a `.jsonl` file is not an object with a string `text`.
    #[error("{}:{line}: expected an object with a string \"text\": {reason}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Line from 1.
        line: usize,
        /// Position and reason.
        reason: String,
    },
    /// The text does not fill one window.
    #[error("the text has {found} tokens, expected at least {expected} (one window)")]
    TooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens of one window.
        expected: usize,
    },
    /// Windows too short to hold a token to predict.
    #[error("windows of {found} tokens, expected at least 2")]
    WindowLength {
        /// Length asked for.
        found: usize,
    },
    /// A token that the model does not know.
    #[error("token {position}: id {found}, expected below the vocabulary size {expected}")]
    TokenOutOfRange {
        /// Index of the token.
        position: usize,
        /// Its id.
        found: u32,
        /// Vocabulary size of the model.
        expected: usize,
    },
}
