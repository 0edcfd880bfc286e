//! The model folder's tokenizer, and what it puts before a text.

use std::path::Path;

use super::windows::{Window, windows};
use super::{Text, TextError};

/// A loaded `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of the model folder `dir`. Truncation and padding that the file may
    /// ask for are switched off. Whether a text begins with a special token is found by encoding
    /// one with and without special tokens.
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
            more => Err(TextError::SpecialPrefix {
                path,
                found: more.len(),
            }),
        }
    }

    /// The special token that this tokenizer puts before a text, if any.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Token ids of `text`, without special tokens before or after it.
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

    /// Token ids of all documents, one after another.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_texts(&self, texts: &[Text]) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for text in texts {
            ids.extend(self.encode(&text.text)?);
        }
        Ok(ids)
    }

    /// Text of `ids`, special tokens left out.
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

    /// [`windows`] that begin as this tokenizer's texts begin.
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

/// The ids that stand before a text when special tokens are asked for.
fn special_prefix(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, tokenizers::Error> {
    let plain = tokenizer.encode("a", false)?;
    let special = tokenizer.encode("a", true)?;
    let (plain, special) = (plain.get_ids(), special.get_ids());
    let extra = special.len().saturating_sub(plain.len());
    let start = (0..=extra)
        .find(|&start| special[start..].starts_with(plain))
        .unwrap_or(0);
    Ok(special[..start].to_vec())
}
