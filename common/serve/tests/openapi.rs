//! `docs/openapi.json` describes what is served: every kind of answer is checked against it.

mod support;

use serde_json::{Value, json};
use support::Running;
use uc_tests::http::{Reply, events};

/// Where a value differs from a schema of the document, in the part of JSON Schema that the document uses.
fn differences(
    document: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
    found: &mut Vec<String>,
) {
    for (keyword, rule) in schema.as_object().expect("a schema") {
        match keyword.as_str() {
            "$ref" => {
                let path = rule.as_str().unwrap().trim_start_matches('#');
                let target = document
                    .pointer(path)
                    .unwrap_or_else(|| panic!("no {path}"));
                differences(document, target, value, place, found);
            }
            "anyOf" => {
                let matches = rule.as_array().unwrap().iter().any(|option| {
                    let mut own = Vec::new();
                    differences(document, option, value, place, &mut own);
                    own.is_empty()
                });
                if !matches {
                    found.push(format!("{place}: none of anyOf: {value}"));
                }
            }
            "type" => {
                let types = match rule {
                    Value::Array(types) => types.clone(),
                    one => vec![one.clone()],
                };
                if !types
                    .iter()
                    .any(|name| has_type(value, name.as_str().unwrap()))
                {
                    found.push(format!("{place}: {rule}: {value}"));
                }
            }
            "enum" => {
                if !rule.as_array().unwrap().contains(value) {
                    found.push(format!("{place}: one of {rule}: {value}"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    differences(document, rule, item, &format!("{place}[{index}]"), found);
                }
            }
            "required" => {
                let names = rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|name| name.as_str().unwrap());
                for name in names.filter(|name| value.is_object() && value.get(name).is_none()) {
                    found.push(format!("{place}: {name} is missing"));
                }
            }
            "properties" | "additionalProperties" => {
                field_differences(document, schema, value, place, found);
            }
            "minimum" => {
                if value.as_f64() < rule.as_f64() && value.is_number() {
                    found.push(format!("{place}: at least {rule}: {value}"));
                }
            }
            "maximum" => {
                if value.as_f64() > rule.as_f64() {
                    found.push(format!("{place}: at most {rule}: {value}"));
                }
            }
            "description" | "minItems" | "maxItems" => {}
            other => panic!("{place}: the test does not know {other}"),
        }
    }
}

/// Where the fields of an object differ from a schema.
fn field_differences(
    document: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
    found: &mut Vec<String>,
) {
    for (name, field) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => found.push(format!("{place}: not described")),
            (Value::Null, other) if other.is_object() => {
                differences(document, other, field, &place, found);
            }
            (Value::Null, _) => {}
            (own, _) => differences(document, own, field, &place, found),
        }
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    }
}

fn check(document: &Value, schema: &Value, value: &Value) {
    let mut found = Vec::new();
    differences(document, schema, value, "answer", &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

/// The schema of an answer of a path.
fn schema<'a>(document: &'a Value, path: &str, status: u16, kind: &str) -> &'a Value {
    let methods = document["paths"][path]
        .as_object()
        .unwrap_or_else(|| panic!("{path} is not described"));
    let operation = methods.values().next().unwrap();
    let response = &operation["responses"][status.to_string()];
    let schema = &response["content"][kind]["schema"];
    assert!(
        schema.is_object(),
        "{path}: {status} {kind} is not described"
    );
    schema
}

/// Checks a reply against the document.
fn check_reply(document: &Value, path: &str, reply: &Reply) {
    let kind = reply.header("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap();
    let schema = schema(document, path, reply.status, kind);
    match kind {
        "application/json" => check(document, schema, &reply.json()),
        "text/event-stream" => {
            let mut events = events(&reply.text());
            assert_eq!(events.pop(), Some("[DONE]".into()));
            assert!(events.len() > 1);
            events
                .iter()
                .for_each(|event| check(document, schema, event));
        }
        _ => check(document, schema, &reply.text().into()),
    }
}

#[test]
fn every_answer_is_as_the_document_describes() {
    let server = Running::usual();
    let document = server.get("/openapi.json").json();
    for path in [
        "/",
        "/health",
        "/metrics",
        "/openapi.json",
        "/props",
        "/v1/models",
    ] {
        check_reply(&document, path, &server.get(path));
    }
    let model = |name: &str| server.get(&format!("/v1/models/{name}"));
    check_reply(&document, "/v1/models/{name}", &model(support::NAME));
    check_reply(&document, "/v1/models/{name}", &model("x"));
    let talk = json!([{"role": "user", "content": "Hi"}]);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    for (path, body) in [
        ("/tokenize", json!({"content": "a b"})),
        ("/tokenize", json!({"messages": talk, "with_pieces": true})),
        ("/tokenize", json!({})),
        ("/detokenize", json!({"tokens": [65, 66]})),
        ("/detokenize", json!({"tokens": "a"})),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 3, "n": 2}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "Once", "max_tokens": 3, "echo": true, "logprobs": 2}),
        ),
        ("/v1/completions", json!({"prompt": "a", "model": "x"})),
        ("/v1/completions", json!({"prompt": "a", "temperature": 9})),
        (
            "/v1/chat/completions",
            json!({"messages": talk, "max_tokens": 3, "logprobs": true, "top_logprobs": 2}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": talk, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false}),
        ),
        ("/v1/chat/completions", json!({"messages": []})),
    ] {
        let reply = server.post(path, &body);
        check_reply(&document, path, &reply);
        // What is answered is also a request as it is described.
        let operation = &document["paths"][path]["post"];
        let request = &operation["requestBody"]["content"]["application/json"]["schema"];
        if reply.status == 200 {
            check(&document, request, &body);
        }
        if reply.status == 200 && path.starts_with("/v1") {
            let mut body = body.clone();
            body["stream"] = true.into();
            check_reply(&document, path, &server.post(path, &body));
            body["stream_options"] = json!({"include_usage": true});
            check_reply(&document, path, &server.post(path, &body));
        }
    }
}

#[test]
fn the_check_finds_what_differs() {
    let document = json!({"components": {"schemas": {"A": {"type": "integer", "minimum": 2}}}});
    let schema = json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"$ref": "#/components/schemas/A"}, "b": {"type": "array", "items": {"enum": [1]}}},
    });
    for (value, count) in [
        (json!({"a": 2, "b": [1]}), 0),
        (json!({"a": 1}), 1),
        (json!({"a": "x"}), 1),
        (json!({"b": [2, 1, 3]}), 3),
        (json!({"a": 2, "c": 1}), 1),
        (json!([]), 1),
    ] {
        let mut found = Vec::new();
        differences(&document, &schema, &value, "", &mut found);
        // Fields are looked at once for each of two keywords.
        found.dedup();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count, "{value}: {found:?}");
    }
}
