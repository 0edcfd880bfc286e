//! The model folder's tokenizer, and the special token that it prepends to a text.

use std::path::Path;

use tokenizers::{DecoderWrapper, ModelWrapper, PostProcessorWrapper, TokenizerImpl};

use super::document::DocumentEncoder;
use super::error::TextError;
use super::normalizer::CheckedNormalizer;
use super::pre_tokenizer::CheckedPreTokenizer;
use super::vocabulary::{Alphabet, TokenBytes};
use super::windows::{Window, windows};

type Inner = TokenizerImpl<
    ModelWrapper,
    CheckedNormalizer,
    CheckedPreTokenizer,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A loaded `tokenizer.json`.
pub struct Tokenizer {
    inner: Inner,
    bos: Option<u32>,
}

/// A token and its place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub id: u32,
    /// Byte where it begins.
    pub start: usize,
    /// Byte after its last.
    pub end: usize,
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
        let bytes =
            uc_input::read(&path, uc_input::LARGE_JSON).map_err(|source| TextError::Io {
                path: path.clone(),
                source,
            })?;
        let broken = |error: tokenizers::Error| TextError::Tokenizer {
            path: path.clone(),
            reason: error.to_string(),
        };
        let mut inner = Inner::from_bytes(&bytes).map_err(broken)?;
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);
        let prefix = special_prefix(&inner).map_err(broken)?;
        if let Some(failure) = inner.get_normalizer().and_then(CheckedNormalizer::failure) {
            return Err(broken(failure.into()));
        }
        // It adds no token without special tokens, but may change the places of the others.
        inner.with_post_processor(None::<PostProcessorWrapper>);
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

    /// The token ids of `text`, without special tokens. A long text is encoded in pieces, with the same result.
    ///
    /// # Errors
    /// [`TextError::Encode`], [`TextError::Unsplittable`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        let mut document = DocumentEncoder::new(self);
        document.push(text, &mut ids)?;
        document.finish(&mut ids)?;
        Ok(ids)
    }

    /// The tokens of `text`, which is encoded in one piece.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub(super) fn encode_whole(&self, text: &str) -> Result<Vec<Token>, TextError> {
        let failed = |reason: String| TextError::Encode { reason };
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|error| failed(error.to_string()))?;
        if let Some(normalizer) = self.inner.get_normalizer()
            && let Some(failure) = normalizer.failure()
        {
            return Err(failed(failure.to_owned()));
        }
        let places = encoding.get_offsets();
        let tokens = encoding.get_ids().iter().zip(places);
        Ok(tokens
            .map(|(&id, &(start, end))| Token { id, start, end })
            .collect())
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

    /// The text of `ids`, special tokens included.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, TextError> {
        self.inner
            .decode(ids, false)
            .map_err(|error| TextError::Encode {
                reason: error.to_string(),
            })
    }

    /// The id of the token that is written `text` in the vocabulary, special tokens included.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// What each token with an id below `size` stands for, by id; none for ids without a token.
    ///
    /// # Errors
    /// [`TextError::Decoder`] if the decoder is none of those of published models.
    pub fn vocabulary(&self, size: usize) -> Result<Vec<Option<TokenBytes>>, TextError> {
        let decoder = serde_json::to_value(self.inner.get_decoder());
        let decoder = decoder.map_err(|error| TextError::Encode {
            reason: error.to_string(),
        })?;
        let alphabet = Alphabet::of(&decoder).map_err(|found| TextError::Decoder { found })?;
        let mut tokens = vec![None; size];
        let mut set = |id: u32, bytes, special| {
            if let Some(token) = tokens.get_mut(id as usize) {
                *token = Some(TokenBytes { bytes, special });
            }
        };
        for (text, id) in self.inner.get_vocab(false) {
            set(id, alphabet.bytes(&text), false);
        }
        for (id, token) in self.inner.get_added_tokens_decoder() {
            set(id, token.content.into_bytes(), token.special);
        }
        Ok(tokens)
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
fn special_prefix(tokenizer: &Inner) -> Result<Vec<u32>, tokenizers::Error> {
    let without = tokenizer.encode("a", false)?;
    let with = tokenizer.encode("a", true)?;
    let (without, with) = (without.get_ids(), with.get_ids());
    let added = with.len().saturating_sub(without.len());
    let start = (0..=added)
        .find(|&start| with[start..].starts_with(without))
        .unwrap_or(0);
    Ok(with[..start].to_vec())
}
