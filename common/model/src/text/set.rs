//! The windows of a run as a document: ids, their digests and how they were chosen.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Tokenizer, read_texts};
use crate::config::ModelConfig;
use crate::error::ModelError;

/// How many windows of which length are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowChoice {
    /// Number of windows; 0 takes all.
    pub count: usize,
    /// Tokens per window; cut to the model's context.
    pub length: usize,
    /// Chooses the windows.
    pub seed: u64,
}

/// Windows of equal length with their digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSet {
    /// Tokens per window.
    pub length: usize,
    /// Seed of the choice.
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
    /// Token ids, a leading special token included.
    pub ids: Vec<u32>,
}

impl WindowSet {
    /// Draws windows from text files with the tokenizer of the model folder `dir`.
    ///
    /// # Errors
    /// Those of tokenizer, texts and windows; an id outside the model's vocabulary.
    pub fn draw<P: AsRef<Path>>(
        dir: &Path,
        config: &ModelConfig,
        texts: &[P],
        choice: WindowChoice,
    ) -> Result<Self, ModelError> {
        let tokenizer = Tokenizer::load(dir)?;
        let tokens = tokenizer.encode_texts(&read_texts(texts)?)?;
        super::check_ids(&tokens, config.vocab)?;
        let length = choice.length.min(config.context);
        let windows = tokenizer.windows(&tokens, length, choice.count, choice.seed)?;
        let mut all = Sha256::new();
        windows.iter().for_each(|window| all.update(window.sha256));
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
            sha256: hex::encode(all.finalize()),
            windows,
        })
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.windows.len() * self.length
    }
}
