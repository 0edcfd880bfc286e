//! Which fields of two manifests differ: tool, codec, source, calibration, other files.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::manifest::Manifest;

/// A field of the manifest that two packs record differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldDiff {
    /// Path of the field, for example `codec.settings.quantize.bpw` or `source.files[config.json].sha256`.
    pub field: String,
    /// The value in the first pack; none if it does not record the field.
    pub a: Option<String>,
    /// The value in the second pack.
    pub b: Option<String>,
}

/// Every field that says what a pack was made from and how, and that is not the same in both.
pub(super) fn differences(a: &Manifest, b: &Manifest) -> Vec<FieldDiff> {
    let mut all = Vec::new();
    for ((section, a), (_, b)) in sections(a).into_iter().zip(sections(b)) {
        let (mut a, mut b) = (flattened(section, &a), flattened(section, &b));
        let mut fields: Vec<String> = a.keys().chain(b.keys()).cloned().collect();
        fields.sort();
        fields.dedup();
        all.extend(fields.into_iter().map(|field| FieldDiff {
            a: a.remove(&field),
            b: b.remove(&field),
            field,
        }));
    }
    all.retain(|field| field.a != field.b);
    all
}

/// The parts of a manifest besides its tensors and totals.
fn sections(manifest: &Manifest) -> [(&'static str, Value); 5] {
    fn value(part: &impl Serialize) -> Value {
        serde_json::to_value(part).expect("strings, integers and lists only")
    }
    [
        ("tool", value(&manifest.tool)),
        ("codec", value(&manifest.codec)),
        ("source", value(&manifest.source)),
        ("calibration", value(&manifest.calibration)),
        ("files", value(&manifest.files)),
    ]
}

/// The strings and numbers of a value by their paths.
fn flattened(path: &str, value: &Value) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    flatten(path.to_owned(), value, &mut leaves);
    leaves
}

fn flatten(path: String, value: &Value, leaves: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(format!("{path}.{key}"), value, leaves);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let name = item.get("name").and_then(Value::as_str);
                let is_first = |name: &&str| items[..i].iter().all(|other| other["name"] != **name);
                let key = name
                    .filter(is_first)
                    .map_or_else(|| i.to_string(), str::to_owned);
                flatten(format!("{path}[{key}]"), item, leaves);
            }
        }
        Value::String(text) => {
            leaves.insert(path, text.clone());
        }
        other => {
            leaves.insert(path, other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_matched_by_name_and_other_items_by_position() {
        let value = serde_json::json!({
            "name": "m", "files": [{"name": "x", "size": 1}, {"name": "x", "size": 2}], "list": [7],
        });
        let leaves: Vec<_> = flattened("source", &value).into_iter().collect();
        let expected = [
            ("source.files[1].name", "x"),
            ("source.files[1].size", "2"),
            ("source.files[x].name", "x"),
            ("source.files[x].size", "1"),
            ("source.list[0]", "7"),
            ("source.name", "m"),
        ];
        let expected = expected.map(|(path, value)| (path.to_owned(), value.to_owned()));
        assert_eq!(leaves, expected);
    }
}
