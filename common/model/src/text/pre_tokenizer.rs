//! The pre-tokenizer of a `tokenizer.json`, with patterns that report their limits.
//!
//! Owns nothing but the replacement of the two pre-tokenizers of `tokenizers` that search with a pattern; all others run as
//! they are.

use serde::{Deserialize, Deserializer};
use tokenizers::pattern::Invert;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Result, SplitDelimiterBehavior,
};

use super::pattern::Pattern;

/// The pattern that `ByteLevel` splits by unless `use_regex` is false.
const BYTE_LEVEL: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A pre-tokenizer whose patterns report their limits.
#[derive(Debug)]
pub enum CheckedPreTokenizer {
    /// `Split`.
    Split {
        /// What is searched for.
        pattern: Pattern,
        /// What becomes of the matches.
        behavior: SplitDelimiterBehavior,
        /// Whether the stretches between the matches count as matches.
        invert: bool,
    },
    /// `ByteLevel` with its pattern.
    ByteLevel {
        /// The fixed pattern.
        pattern: Pattern,
        /// Whether a space is put before the text.
        add_prefix_space: bool,
    },
    /// Several, one after the other.
    Sequence(Vec<CheckedPreTokenizer>),
    /// One that searches without a pattern.
    Other(PreTokenizerWrapper),
}

impl CheckedPreTokenizer {
    fn from_wrapper(wrapper: PreTokenizerWrapper) -> Result<Self> {
        Ok(match wrapper {
            PreTokenizerWrapper::Sequence(parts) => {
                let parts = parts.into_iter().map(Self::from_wrapper);
                Self::Sequence(parts.collect::<Result<_>>()?)
            }
            PreTokenizerWrapper::Split(split) => Self::Split {
                pattern: match &split.pattern {
                    SplitPattern::String(text) => Pattern::literal(text)?,
                    SplitPattern::Regex(pattern) => Pattern::new(pattern)?,
                },
                behavior: split.behavior,
                invert: split.invert,
            },
            PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex => Self::ByteLevel {
                pattern: Pattern::new(BYTE_LEVEL)?,
                add_prefix_space: bytes.add_prefix_space,
            },
            other => Self::Other(other),
        })
    }
}

impl<'de> Deserialize<'de> for CheckedPreTokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::from_wrapper(PreTokenizerWrapper::deserialize(deserializer)?)
            .map_err(serde::de::Error::custom)
    }
}

impl PreTokenizer for CheckedPreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        match self {
            Self::Split {
                pattern,
                behavior,
                invert: false,
            } => text.split(|_, part| part.split(pattern, *behavior)),
            Self::Split {
                pattern, behavior, ..
            } => text.split(|_, part| part.split(Invert(pattern), *behavior)),
            Self::ByteLevel {
                pattern,
                add_prefix_space,
            } => {
                text.split(|_, mut part| {
                    if *add_prefix_space && !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    part.split(pattern, SplitDelimiterBehavior::Isolated)
                })?;
                ByteLevel::new(false, true, false).pre_tokenize(text)
            }
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}
