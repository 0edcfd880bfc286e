//! The windows of a run as a document: token ids, their digests, and the seed and length that selected them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::draw;
use super::error::TextError;
use super::tokenizer::Tokenizer;
use super::windows::check_token_ids;
use crate::config::ModelConfig;

/// Number and length of the windows to select, and the seed of the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowChoice<'a> {
    /// Number of windows; 0 selects all.
    pub count: usize,
    /// Tokens per window; limited to the model's context.
    pub length: usize,
    /// Seed of the selection.
    pub seed: u64,
    /// Key or column of the text in `.jsonl` and `.parquet` files.
    pub field: &'a str,
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
    /// Number of windows that were asked for; 0 for all.
    #[serde(default)]
    pub requested_windows: usize,
    /// Tokens per window that were asked for; more than `length` if the model's context is shorter.
    #[serde(default)]
    pub requested_length: usize,
    /// Bytes of the text.
    #[serde(default)]
    pub text_bytes: u64,
    /// Number of excerpts of a long text that were tokenized; absent if the whole text was.
    #[serde(default)]
    pub excerpts: Option<u64>,
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
        choice: WindowChoice<'_>,
    ) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::load(dir)?;
        let length = choice.length.min(config.context);
        let needed = (choice.count * length) as u64;
        let text = draw::tokens(&tokenizer, texts, choice.field, needed)?;
        check_token_ids(&text.ids, config.vocab)?;
        let windows = tokenizer.windows(&text.ids, length, choice.count, choice.seed)?;
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
            requested_windows: choice.count,
            requested_length: choice.length,
            text_bytes: text.bytes,
            excerpts: text.excerpts,
            windows,
        })
    }

    /// What the text or the model could not give, one sentence each; empty if the windows are those that were asked for.
    pub fn shortfalls(&self) -> Vec<String> {
        let found = self.windows.len();
        let mut sentences = Vec::new();
        if found < self.requested_windows {
            sentences.push(format!(
                "{found} of {} windows: the text has no more",
                self.requested_windows
            ));
        }
        if self.length < self.requested_length {
            sentences.push(format!(
                "windows of {} tokens in place of {}: the model's context is no longer",
                self.length, self.requested_length
            ));
        }
        sentences
    }

    /// Number of tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.windows.len() * self.length
    }
}
