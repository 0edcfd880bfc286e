//! Non-finite numbers, which JSON does not have. Python writes them as the literals `Infinity`, `-Infinity` and `NaN`;
//! newer versions of Hugging Face transformers write an object instead, `{"__float__": "Infinity"}`.

use serde_json::Value;

/// The literals that Python writes. `-Infinity` comes before its suffix `Infinity`.
const LITERALS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
/// The only key of an object that represents a number.
const TAG: &str = "__float__";

/// Replaces every such literal outside of strings with the object that represents it.
pub(crate) fn tag_non_finite(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut rest, mut in_string) = (json, false);
    while let Some((&byte, after)) = rest.split_first() {
        let literal = LITERALS
            .iter()
            .find(|literal| rest.starts_with(literal.as_bytes()));
        if let (Some(literal), false) = (literal, in_string) {
            out.extend(format!("{{\"{TAG}\":\"{literal}\"}}").into_bytes());
            rest = &rest[literal.len()..];
            continue;
        }
        out.push(byte);
        rest = after;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                // An escaped character does not end the string.
                let escaped = rest.len().min(1);
                out.extend(&rest[..escaped]);
                rest = &rest[escaped..];
            }
            _ => {}
        }
    }
    out
}

/// A number, or an object that represents one.
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
    fn literals_outside_of_strings_become_numbers() {
        let json = br#"{"NaN \" Infinity": [1.5, Infinity, -Infinity,NaN, "a\\", Infinity]}"#;
        let value: Value = serde_json::from_slice(&tag_non_finite(json)).unwrap();
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
    fn json_without_such_literals_is_unchanged_even_if_invalid() {
        for json in [r#"{"a": [1, "Infinity"]}"#, r#"{"a\"#, "\"\\", "", "é\u{0}"] {
            assert_eq!(tag_non_finite(json.as_bytes()), json.as_bytes(), "{json}");
        }
    }
}
