//! The normalizer of a `tokenizer.json`, with a bound on how much it may lengthen a text.
//!
//! `tokenizers` ignores the errors of normalizers, and a few hundred bytes of a `tokenizer.json` can turn every character of a
//! text into megabytes. [`CheckedNormalizer`] runs the same steps, refuses growth beyond [`MAX_GROWTH`], and keeps the first
//! failure for the caller to ask for. Never changes what a step does.

use std::sync::OnceLock;

use serde::{Deserialize, Deserializer};
use tokenizers::pattern::Pattern as Finds;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Offsets, Result};

use super::pattern::Pattern;

/// A normalized text has at most this many times the bytes of the text, plus [`EXTRA`]. The compatibility forms of Unicode
/// reach 11 (U+FDFA).
const MAX_GROWTH: usize = 16;
/// Bytes by which even a short text may grow.
const EXTRA: usize = 64;

/// A normalizer that does not expand a text without bound.
#[derive(Debug)]
pub struct CheckedNormalizer {
    steps: Vec<Step>,
    failure: OnceLock<String>,
}

#[derive(Debug)]
enum Step {
    Replace { pattern: Pattern, content: String },
    Prepend(String),
    Other(NormalizerWrapper),
}

/// The fields of `Replace`, which `tokenizers` keeps private.
#[derive(Deserialize)]
struct ReplaceFields {
    pattern: tokenizers::normalizers::replace::ReplacePattern,
    content: String,
}

impl CheckedNormalizer {
    /// Why a text could not be normalized; text that was encoded since then is not to be used.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
}

/// Appends the steps of a normalizer in their order.
fn add_steps(wrapper: NormalizerWrapper, steps: &mut Vec<Step>) -> Result<()> {
    match wrapper {
        NormalizerWrapper::Sequence(parts) => {
            for part in parts {
                add_steps(part, steps)?;
            }
        }
        NormalizerWrapper::Replace(replace) => {
            let fields: ReplaceFields = serde_json::from_value(serde_json::to_value(&replace)?)?;
            use tokenizers::normalizers::replace::ReplacePattern;
            steps.push(Step::Replace {
                pattern: match &fields.pattern {
                    ReplacePattern::String(text) => Pattern::literal(text)?,
                    ReplacePattern::Regex(pattern) => Pattern::new(pattern)?,
                },
                content: fields.content,
            });
        }
        NormalizerWrapper::Prepend(prepend) => steps.push(Step::Prepend(prepend.prepend)),
        NormalizerWrapper::Precompiled(map) => {
            check_character_map(&serde_json::to_value(&map)?)?;
            steps.push(Step::Other(NormalizerWrapper::Precompiled(map)));
        }
        other => steps.push(Step::Other(other)),
    }
    Ok(())
}

/// Checks that a map of SentencePiece turns no character into more than [`EXTRA`] bytes. The map is a trie, preceded by its
/// size in bytes as little-endian u32, and the replacements, each followed by a zero byte.
fn check_character_map(fields: &serde_json::Value) -> Result<()> {
    use base64::Engine;
    let text = fields["precompiled_charsmap"].as_str().unwrap_or_default();
    let map = base64::engine::general_purpose::STANDARD.decode(text)?;
    let size = map
        .first_chunk()
        .map_or(0, |&bytes| u32::from_le_bytes(bytes));
    let replacements = map.get(4 + size as usize..).unwrap_or_default();
    let longest = replacements.split(|&byte| byte == 0).map(<[u8]>::len).max();
    match longest.unwrap_or(0) {
        found if found > EXTRA => Err(format!(
            "its map turns a character into {found} bytes, expected at most {EXTRA}"
        )
        .into()),
        _ => Ok(()),
    }
}

impl<'de> Deserialize<'de> for CheckedNormalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut steps = Vec::new();
        add_steps(NormalizerWrapper::deserialize(deserializer)?, &mut steps)
            .map_err(serde::de::Error::custom)?;
        Ok(Self {
            steps,
            failure: OnceLock::new(),
        })
    }
}

impl Normalizer for CheckedNormalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        let limit = MAX_GROWTH * text.len_original() + EXTRA;
        for step in &self.steps {
            let done = self.failure().is_none().then(|| step.run(text, limit));
            if let Some(Err(error)) = done {
                let _ = self.failure.set(error.to_string());
            }
        }
        Ok(())
    }
}

impl Step {
    fn run(&self, text: &mut NormalizedString, limit: usize) -> Result<()> {
        match self {
            Self::Replace { pattern, content } => {
                let found = pattern.find_matches(text.get())?;
                let matches = || found.iter().filter(|(_, is_match)| *is_match);
                let replaced: usize = matches().map(|((start, end), _)| end - start).sum();
                let added = matches().count().saturating_mul(content.len());
                check_growth((text.len() - replaced).saturating_add(added), limit)?;
                text.replace(Found(found), content)
            }
            Self::Prepend(_) if text.is_empty() => Ok(()),
            Self::Prepend(content) => {
                check_growth(text.len().saturating_add(content.len()), limit)?;
                text.prepend(content);
                Ok(())
            }
            Self::Other(normalizer) => {
                normalizer.normalize(text)?;
                check_growth(text.len(), limit)
            }
        }
    }
}

fn check_growth(found: usize, limit: usize) -> Result<()> {
    if found <= limit {
        return Ok(());
    }
    Err(format!(
        "its normalizer turns a stretch of text into {found} bytes, expected at most {limit}"
    )
    .into())
}

/// Matches that were found before.
struct Found(Vec<(Offsets, bool)>);

impl Finds for Found {
    fn find_matches(&self, _: &str) -> Result<Vec<(Offsets, bool)>> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalize(json: &str, text: &str) -> std::result::Result<String, String> {
        let normalizer: CheckedNormalizer =
            serde_json::from_str(json).map_err(|e| e.to_string())?;
        let mut normalized = NormalizedString::from(text);
        normalizer
            .normalize(&mut normalized)
            .expect("no error is returned");
        match normalizer.failure() {
            Some(failure) => Err(failure.to_owned()),
            None => Ok(normalized.get().to_owned()),
        }
    }

    #[test]
    fn steps_do_what_those_of_tokenizers_do() {
        for json in [
            r#"{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}"#,
            r#"{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},{"type":"Lowercase"}]}"#,
            r#"{"type":"Sequence","normalizers":[]}"#,
        ] {
            for text in ["", "a", " A  b ﷺ", "  ﬁ\u{301}  x   Y "] {
                let wrapper: NormalizerWrapper = serde_json::from_str(json).expect("normalizer");
                let mut expected = NormalizedString::from(text);
                wrapper.normalize(&mut expected).expect("normalized");
                assert_eq!(
                    normalize(json, text).as_deref(),
                    Ok(expected.get()),
                    "{json}"
                );
            }
        }
    }

    #[test]
    fn growth_beyond_the_bound_is_refused_before_it_takes_memory() {
        let content = "x".repeat(1 << 16);
        let doubling = r#"{"type":"Replace","pattern":{"String":"a"},"content":"aa"}"#;
        let sequence = format!(
            r#"{{"type":"Sequence","normalizers":[{}]}}"#,
            vec![doubling; 60].join(",")
        );
        let text = "a".repeat(1 << 16);
        for json in [
            format!(r#"{{"type":"Replace","pattern":{{"String":"a"}},"content":"{content}"}}"#),
            format!(r#"{{"type":"Replace","pattern":{{"Regex":""}},"content":"{content}"}}"#),
            format!(
                r#"{{"type":"Prepend","prepend":"{}"}}"#,
                "x".repeat(2 << 20)
            ),
            sequence,
        ] {
            let error = normalize(&json, &text).expect_err("refused");
            assert!(error.contains("expected at most"), "{error}");
        }
    }
}
