//! Chat templates of published tokenizers, and the texts that transformers makes with them (`tests/templates.json`; its first
//! fields name the tokenizers, Apache-2.0 and MIT).
#![allow(clippy::disallowed_methods)]

use serde_json::Value;
use uc_infer::{Message, Template};

#[test]
fn conversations_have_the_text_that_transformers_makes() {
    let cases: Value = serde_json::from_str(include_str!("templates.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = &case["tokenizer"];
        let template = Template::parse(case["config"].to_string().as_bytes(), None).unwrap();
        for conversation in case["conversations"].as_array().unwrap() {
            let messages = conversation["messages"].clone();
            let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
            let text = template.render(&messages).unwrap();
            assert_eq!(Value::from(text), conversation["text"], "{name}");
        }
    }
}
