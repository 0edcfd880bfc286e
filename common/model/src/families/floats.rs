//! Numbers that JSON does not have: Python writes `Infinity`, `-Infinity` and `NaN` all the same, and newer files
//! of Hugging Face transformers have an object in their place, `{"__float__": "Infinity"}`.

use serde_json::Value;

/// The words as Python writes them, longer ones before what they end with.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
/// The only key of an object that stands for a number.
const TAG: &str = "__float__";

/// `json` with an object in the place of every such word outside of texts.
pub(crate) fn tagged(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut rest, mut in_text) = (json, false);
    while let Some((&byte, after)) = rest.split_first() {
        let word = WORDS.iter().find(|word| rest.starts_with(word.as_bytes()));
        if let (Some(word), false) = (word, in_text) {
            out.extend(format!("{{\"{TAG}\":\"{word}\"}}").into_bytes());
            rest = &rest[word.len()..];
            continue;
        }
        out.push(byte);
        rest = after;
        match byte {
            b'"' => in_text = !in_text,
            b'\\' if in_text => {
                // What follows a backslash ends no text.
                let taken = rest.len().min(1);
                out.extend(&rest[..taken]);
                rest = &rest[taken..];
            }
            _ => {}
        }
    }
    out
}

/// A number, or an object that stands for one.
pub(super) fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Object(map) if map.len() == 1 => match map.get(TAG)?.as_str()? {
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            "NaN" => Some(f64::NAN),
            _ => None,
        },
        other => other.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_of_texts_become_numbers() {
        let json = br#"{"NaN \" Infinity": [1.5, Infinity, -Infinity,NaN, "a\\", Infinity]}"#;
        let value: Value = serde_json::from_slice(&tagged(json)).unwrap();
        let found: Vec<_> = value["NaN \" Infinity"]
            .as_array()
            .unwrap()
            .iter()
            .collect();
        let found: Vec<_> = found.into_iter().map(float).collect();
        let infinite = Some(f64::INFINITY);
        assert_eq!(found[..3], [Some(1.5), infinite, Some(f64::NEG_INFINITY)]);
        assert!(found[3].unwrap().is_nan());
        assert_eq!(found[4..], [None, infinite]);
    }

    #[test]
    fn json_without_such_words_stays_as_it_is_even_if_broken() {
        for json in [r#"{"a": [1, "Infinity"]}"#, r#"{"a\"#, "\"\\", "", "é\u{0}"] {
            assert_eq!(tagged(json.as_bytes()), json.as_bytes(), "{json}");
        }
    }
}
