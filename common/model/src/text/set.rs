//! The windows of a run as a document: token ids, their digests, and the seed and length that selected them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::TextError;
use super::files::read_texts;
use super::tokenizer::Tokenizer;
use super::windows::check_token_ids;
use crate::config::ModelConfig;

/// Number and length of the windows to select, and the seed of the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowChoice {
    /// Number of windows; 0 selects all.
    pub count: usize,
    /// Tokens per window; limited to the model's context.
    pub length: usize,
    /// Seed of the selection.
    pub seed: u64,
}

/// Windows of equal length, with their digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSet {
    /// Tokens per window.
    pub length: usize,
    /// Seed of the selection.
    pub seed: u64,
    /// SHA-256 over the concatenated digests of the windows, hexadecimal.
    pub sha256: String,
    /// The windows in the order of the text.
    pub windows: Vec<RecordedWindow>,
}

/// One window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedWindow {
    /// SHA-256 of the ids as little-endian u32, hexadecimal.
    pub sha256: String,
    /// Token ids, including a leading special token if the tokenizer has one.
    pub ids: Vec<u32>,
}

impl WindowSet {
    /// Selects windows from text files, using the tokenizer of the model folder `dir`.
    ///
    /// # Errors
    /// Those of the tokenizer, the text files and [`Tokenizer::windows`]; [`TextError::TokenOutOfRange`].
    pub fn draw<P: AsRef<Path>>(
        dir: &Path,
        config: &ModelConfig,
        texts: &[P],
        choice: WindowChoice,
    ) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::load(dir)?;
        let tokens = tokenizer.encode_texts(&read_texts(texts)?)?;
        check_token_ids(&tokens, config.vocab)?;
        let length = choice.length.min(config.context);
        let windows = tokenizer.windows(&tokens, length, choice.count, choice.seed)?;
        let mut hasher = Sha256::new();
        windows
            .iter()
            .for_each(|window| hasher.update(window.sha256));
        let windows = windows
            .into_iter()
            .map(|window| RecordedWindow {
                sha256: window.sha256_hex(),
                ids: window.ids,
            })
            .collect();
        Ok(Self {
            length,
            seed: choice.seed,
            sha256: hex::encode(hasher.finalize()),
            windows,
        })
    }

    /// Number of tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.windows.len() * self.length
    }
}
