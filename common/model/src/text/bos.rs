//! Whether `tokenizer_config.json` asks for another token at the beginning of a text than `tokenizer.json` gives.
//!
//! `tokenizer.json` is always followed: it is the complete description of the tokenizer. Some classes of transformers
//! follow the other file, and then the model sees other windows; a perplexity is compared with those only if one knows.

use std::path::Path;

use serde::Deserialize;

use super::error::TextError;
use super::tokenizer::Tokenizer;

/// Largest `tokenizer_config.json` that is read, in bytes.
const MAX_CONFIG: u64 = uc_input::SMALL_JSON;

/// The keys of a `tokenizer_config.json` about the first token.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    bos_token: serde_json::Value,
}

/// A warning if the two files of the model folder `dir` disagree.
///
/// # Errors
/// [`TextError::Io`] if `tokenizer_config.json` is there and cannot be read.
pub fn disagreement(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<String>, TextError> {
    let path = dir.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config: Config =
        uc_input::read_json(&path, MAX_CONFIG).map_err(|source| TextError::Io { path, source })?;
    Ok(compare(&config, tokenizer.bos().is_some()))
}

/// The warning, given what `tokenizer.json` does.
fn compare(config: &Config, prepends: bool) -> Option<String> {
    let asked = config.add_bos_token?;
    // Without a token there is nothing to add.
    if asked == prepends || (asked && config.bos_token.is_null()) {
        return None;
    }
    let (asks, gives) = match asked {
        true => ("begin with bos_token", "does not add it"),
        false => ("begin without bos_token", "adds one"),
    };
    Some(format!(
        "tokenizer_config.json says that texts {asks} (add_bos_token: {asked}), but tokenizer.json {gives}; tokenizer.json \
         is followed. Make the two files agree if the model was trained otherwise"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_disagreement_is_warned_of() {
        for (config, prepends, warns) in [
            (
                json!({"add_bos_token": true, "bos_token": "<s>"}),
                true,
                false,
            ),
            (
                json!({"add_bos_token": true, "bos_token": "<s>"}),
                false,
                true,
            ),
            (
                json!({"add_bos_token": true, "bos_token": {"content": "<s>"}}),
                false,
                true,
            ),
            (
                json!({"add_bos_token": true, "bos_token": null}),
                false,
                false,
            ),
            (json!({"add_bos_token": true}), false, false),
            (
                json!({"add_bos_token": false, "bos_token": "<s>"}),
                true,
                true,
            ),
            (
                json!({"add_bos_token": false, "bos_token": "<s>"}),
                false,
                false,
            ),
            (json!({"add_bos_token": null}), true, false),
            (json!({}), true, false),
        ] {
            let parsed: Config = serde_json::from_value(config.clone()).expect("a config");
            let warning = compare(&parsed, prepends);
            assert_eq!(warning.is_some(), warns, "{config} {prepends}: {warning:?}");
            if let Some(warning) = warning {
                assert!(warning.contains("tokenizer.json is followed"), "{warning}");
            }
        }
    }
}
