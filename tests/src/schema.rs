//! Compares a document with a JSON schema. Knows the keywords that the schemas of this repository use, and refuses others: a
//! rule that is not checked would be no rule.

use serde_json::{Map, Value};

/// What of a document does not follow a schema, each with its place.
pub fn violations(schema: &Value, document: &Value) -> Vec<String> {
    let mut checker = Checker {
        root: schema,
        found: Vec::new(),
    };
    checker.check(schema, document, "$");
    checker.found
}

/// Keywords that say nothing about a document.
const NOTES: [&str; 4] = ["$schema", "$defs", "title", "description"];

struct Checker<'a> {
    root: &'a Value,
    found: Vec<String>,
}

impl Checker<'_> {
    fn check(&mut self, schema: &Value, value: &Value, at: &str) {
        let Some(rules) = schema.as_object() else {
            return self.found.push(format!("{at}: the schema is no object"));
        };
        for (keyword, rule) in rules {
            if !self.follows(keyword, rule, rules, value, at) {
                self.found
                    .push(format!("{at}: {value} is not {keyword} {rule}"));
            }
        }
    }

    fn follows(
        &mut self,
        keyword: &str,
        rule: &Value,
        rules: &Map<String, Value>,
        value: &Value,
        at: &str,
    ) -> bool {
        match keyword {
            _ if NOTES.contains(&keyword) => true,
            "$ref" => {
                let name = rule.as_str().and_then(|name| name.strip_prefix("#/$defs/"));
                let root = self.root;
                let Some(schema) = name.and_then(|name| root["$defs"].get(name)) else {
                    return false;
                };
                self.check(schema, value, at);
                true
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| has_type(value, name)),
                name => has_type(value, name),
            },
            "const" => value == rule,
            "enum" => rule.as_array().is_some_and(|values| values.contains(value)),
            "minimum" => value.is_null() || value.as_f64() >= rule.as_f64(),
            "pattern" if rule == "^[0-9a-f]{64}$" => value.as_str().is_some_and(is_digest),
            "minItems" => value.as_array().map(|items| items.len() as u64) >= rule.as_u64(),
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    self.check(rule, item, &format!("{at}[{index}]"));
                }
                true
            }
            "required" => {
                let mut names = rule.as_array().into_iter().flatten();
                names.all(|name| name.as_str().is_some_and(|name| value.get(name).is_some()))
            }
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = rule.get(name) {
                        self.check(schema, value, &format!("{at}.{name}"));
                    }
                }
                true
            }
            "additionalProperties" if rule == false => {
                let mut names = value.as_object().into_iter().flatten();
                names.all(|(name, _)| rules["properties"].get(name).is_some())
            }
            _ => false,
        }
    }
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_rule_finds_what_breaks_it() {
        let digest = "0".repeat(64);
        let schema = json!({
            "$defs": { "spread": { "type": "object", "required": ["median"] } },
            "type": "object",
            "additionalProperties": false,
            "required": ["schema", "rates"],
            "properties": {
                "schema": { "const": 1 },
                "rates": { "type": "array", "minItems": 1, "items": { "type": "number", "minimum": 0 } },
                "name": { "enum": ["a", "b"] },
                "pack": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
                "bytes": { "type": ["integer", "null"] },
                "spread": { "$ref": "#/$defs/spread" },
            },
        });
        let good = json!({
            "schema": 1, "rates": [0.5], "name": "b", "pack": digest, "bytes": null, "spread": { "median": 1 },
        });
        assert_eq!(violations(&schema, &good), Vec::<String>::new());
        for (name, wrong) in [
            ("schema", json!(2)),
            ("rates", json!([])),
            ("rates", json!([-1])),
            ("rates", json!(["1"])),
            ("rates", json!(1)),
            ("name", json!("c")),
            ("pack", json!("0")),
            ("bytes", json!(0.5)),
            ("spread", json!({})),
            ("other", json!(0)),
        ] {
            let mut document = good.clone();
            document[name] = wrong;
            assert!(!violations(&schema, &document).is_empty(), "{document}");
        }
        let mut document = good.clone();
        document.as_object_mut().expect("an object").remove("rates");
        assert_eq!(violations(&schema, &document).len(), 1);
        // A keyword that is not known is never followed.
        assert!(!violations(&json!({ "maximum": 1 }), &json!(0)).is_empty());
    }
}
