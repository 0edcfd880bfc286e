//! Errors in a tokenizer, a text or a choice of windows, one variant for each kind.

use std::path::PathBuf;

/// A compressed text may have this many times the bytes of its file, plus 64 MiB. Natural text stays below 20.
pub(super) const MAX_EXPANSION: u64 = 256;

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
    /// The tokens do not stand for bytes in a known way.
    #[error(
        "tokenizer.json: found the decoder {found}, expected one of ByteLevel, ByteFallback, Metaspace"
    )]
    Decoder {
        /// Its type.
        found: String,
    },
    /// A stretch of text has no place where it can be cut without changing its tokens.
    #[error(
        "byte {offset} of a document: found no place in the next {limit} bytes where the tokenizer certainly starts a new \
         token (a run of one character?), expected one; shorten the run"
    )]
    Unsplittable {
        /// Offset of the stretch in the document.
        offset: u64,
        /// Bytes that were searched.
        limit: usize,
    },
    /// The extension of a text file is not supported.
    #[error("{}: unsupported kind of file, expected .txt, .utf8, .raw or .jsonl (also followed by .gz or .zst), or .parquet", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A text file is UTF-16 or UTF-32.
    #[error("{}: found {found}, expected UTF-8; convert it, for example with: iconv -f {from} -t UTF-8", path.display())]
    WideEncoding {
        /// The file.
        path: PathBuf,
        /// The encoding and how it was recognized.
        found: &'static str,
        /// Name of the encoding for `iconv`.
        from: &'static str,
    },
    /// A text file is not UTF-8.
    #[error("{}: byte {offset} is not valid UTF-8, expected UTF-8 text; convert the file, for example with iconv", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte, after decompression.
        offset: u64,
    },
    /// A compressed file expands to more than it may.
    #[error("{}: expands to more than {limit} bytes ({RATIO} times its size plus 64 MiB), the limit for compressed text", path.display(), RATIO = MAX_EXPANSION)]
    Expansion {
        /// The file.
        path: PathBuf,
        /// Bytes that it may have.
        limit: u64,
    },
    /// A line of a `.jsonl` file is not an object with a string in the field of the text.
    #[error("{}:{line}: expected an object with a string in the field `{field}` (see --field): {reason}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// The field of the text.
        field: String,
        /// Position and reason.
        reason: String,
    },
    /// A `.parquet` file cannot be read, or has no column of strings with the name of the field.
    #[error("{}: {reason}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The text is shorter than one window.
    #[error(
        "the text has {found} tokens, expected at least {expected} (one window); give more text or shorter windows \
         (calibration.length, evaluation.length)"
    )]
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
