//! The model folder's tokenizer, and the special token that it prepends to a text.

use std::path::Path;

use super::error::TextError;
use super::files::Document;
use super::windows::{Window, windows};

/// A loaded `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of the model folder `dir`. Truncation and padding are disabled even if the file
    /// enables them. Whether a special token is prepended to a text is determined by encoding a text with and
    /// without special tokens.
    ///
    /// # Errors
    /// [`TextError::Io`], [`TextError::Tokenizer`], [`TextError::SpecialPrefix`].
    pub fn load(dir: &Path) -> Result<Tokenizer, TextError> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TextError::Io {
            path: path.clone(),
            source,
        })?;
        let broken = |error: tokenizers::Error| TextError::Tokenizer {
            path: path.clone(),
            reason: error.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(broken)?;
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);
        let prefix = special_prefix(&inner).map_err(broken)?;
        match prefix.as_slice() {
            [] => Ok(Tokenizer { inner, bos: None }),
            [bos] => Ok(Tokenizer {
                inner,
                bos: Some(*bos),
            }),
            several => Err(TextError::SpecialPrefix {
                path,
                found: several.len(),
            }),
        }
    }

    /// The special token that this tokenizer prepends to a text, if any.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token ids of `text`, without special tokens.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| TextError::Encode {
                reason: error.to_string(),
            })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token ids of all documents, concatenated without separators.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_texts(&self, documents: &[Document]) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for document in documents {
            ids.extend(self.encode(&document.text)?);
        }
        Ok(ids)
    }

    /// The text of `ids`, without special tokens.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| TextError::Encode {
                reason: error.to_string(),
            })
    }

    /// [`windows`] that begin with this tokenizer's leading special token, if it has one.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn windows(
        &self,
        tokens: &[u32],
        length: usize,
        count: usize,
        seed: u64,
    ) -> Result<Vec<Window>, TextError> {
        windows(tokens, self.bos, length, count, seed)
    }
}

/// The ids that are prepended to a text when special tokens are enabled.
fn special_prefix(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, tokenizers::Error> {
    let without = tokenizer.encode("a", false)?;
    let with = tokenizer.encode("a", true)?;
    let (without, with) = (without.get_ids(), with.get_ids());
    let added = with.len().saturating_sub(without.len());
    let start = (0..=added)
        .find(|&start| with[start..].starts_with(without))
        .unwrap_or(0);
    Ok(with[..start].to_vec())
}
