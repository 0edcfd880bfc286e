//! `/v1/chat/completions` over HTTP: conversations, formats, tools, log-probabilities, streams.

mod support;

use serde_json::{Value, json};
use support::{BARE, NAME, Running, TAGGED, served, settings};

const PATH: &str = "/v1/chat/completions";

fn body(extra: Value) -> Value {
    let mut body = json!({
        "model": NAME, "messages": [{"role": "user", "content": "Tell a story"}], "max_tokens": 60,
        "temperature": 0,
    });
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn tools() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {
            "unit": {"$ref": "#/$defs/unit"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["unit", "days"],
        "additionalProperties": false,
        "$defs": {"unit": {"enum": ["celsius", "kelvin"]}},
    });
    json!([
        {"type": "function", "function": {"name": "weather", "description": "d", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// Checks the arguments of a call of `weather`.
fn check_weather(call: &Value) {
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(call["function"]["name"], "weather");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert!(["celsius", "kelvin"].contains(&arguments["unit"].as_str().unwrap()));
    assert!((1..10).contains(&arguments["days"].as_i64().unwrap()));
}

#[test]
fn an_answer_follows_the_templates_prompt() {
    let server = Running::usual();
    let answer = server.answer(PATH, &body(json!({"max_completion_tokens": 10})));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"]["completion_tokens"], 10);
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    let prompt = "user: Tell a story\nassistant: ";
    let text = json!({"prompt": prompt, "max_tokens": 10, "temperature": 0});
    let text = server.answer("/v1/completions", &text);
    assert_eq!(message["content"], text["choices"][0]["text"]);
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        text["usage"]["prompt_tokens"]
    );
    let counted = server.answer(
        "/tokenize",
        &json!({"messages": body(json!({}))["messages"]}),
    );
    assert_eq!(counted["count"], text["usage"]["prompt_tokens"]);
    // Variables of the template.
    let variables = json!({"chat_template_kwargs": {"mood": "calm"}, "max_tokens": 1});
    let longer = server.answer(PATH, &body(variables));
    assert!(longer["usage"]["prompt_tokens"].as_u64() > text["usage"]["prompt_tokens"].as_u64());
}

#[test]
fn an_answer_keeps_to_a_schema_or_a_grammar() {
    let server = Running::usual();
    let schema = json!({
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["colour", "count"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for temperature in [0.0, 1.5] {
        let request =
            body(json!({"response_format": format, "temperature": temperature, "seed": 4}));
        let answer = server.answer(PATH, &request);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        let value: Value =
            serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(["red", "blue"].contains(&value["colour"].as_str().unwrap()));
        assert!((0..100).contains(&value["count"].as_i64().unwrap()));
        // Alone or in a stream, the same.
        let events = server.events(PATH, &request);
        let deltas = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        let text: String = deltas.collect();
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
    }
    let content = |format: Value| {
        let answer = server.answer(PATH, &body(json!({"response_format": format})));
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let regex = json!({"type": "grammar", "syntax": "regex", "definition": "[0-9]{3}-[ab]{2}"});
    let text = content(regex);
    assert_eq!(text.len(), 6, "{text}");
    let lark =
        json!({"type": "grammar", "syntax": "lark", "definition": "start: \"yes\" | \"no\""});
    assert!(["yes", "no"].contains(&content(lark).as_str()));
    assert!(content(json!({"type": "json_object"})).starts_with('{'));
    let any = content(json!({"type": "text"}));
    assert!(!any.starts_with('{'), "{any}");
}

#[test]
fn required_tools_are_called_with_arguments_that_meet_their_schema() {
    for template in [TAGGED, BARE] {
        let server = Running::start(served(Some(template)), settings());
        let named = json!({"type": "function", "function": {"name": "weather"}});
        for (choice, reason) in [(named, "stop"), (json!("required"), "tool_calls")] {
            let request = body(json!({
                "tools": [tools()[0]], "tool_choice": choice, "parallel_tool_calls": false,
                "max_tokens": 150, "temperature": 1, "seed": 9,
            }));
            let answer = server.answer(PATH, &request);
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], reason, "{answer}");
            assert_eq!(choice["message"]["content"], Value::Null);
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1);
            check_weather(&calls[0]);
            let events = server.events(PATH, &request);
            let deltas = events
                .iter()
                .filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array());
            let streamed: Vec<&Value> = deltas.flatten().collect();
            assert_eq!(streamed.len(), 1);
            assert_eq!(streamed[0]["index"], 0);
            assert_eq!(streamed[0]["function"], calls[0]["function"]);
            let last = events.last().unwrap();
            assert_eq!(last["choices"][0]["finish_reason"], reason);
        }
        // One of several tools, of which one has no arguments.
        let request = body(json!({
            "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 150,
        }));
        let answer = server.answer(PATH, &request);
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        match call["name"].as_str().unwrap() {
            "now" => assert_eq!(call["arguments"], "{}"),
            _ => check_weather(&answer["choices"][0]["message"]["tool_calls"][0]),
        }
    }
}

#[test]
fn tools_are_told_to_the_model_and_results_come_back() {
    let server = Running::usual();
    let without = server.answer(PATH, &body(json!({"max_tokens": 1})));
    let with = server.answer(PATH, &body(json!({"max_tokens": 1, "tools": tools()})));
    let none = json!({"max_tokens": 1, "tools": tools(), "tool_choice": "none"});
    let none = server.answer(PATH, &body(none));
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt(&with) > prompt(&without));
    assert_eq!(prompt(&none), prompt(&without));
    let talk = json!([
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{\"zone\": \"UTC\"}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]);
    let answer = server.answer(
        PATH,
        &body(json!({"messages": talk, "tools": tools(), "max_tokens": 2})),
    );
    assert!(prompt(&answer) > 20, "{answer}");
}

#[test]
fn log_probabilities_have_bytes_and_the_most_probable_tokens() {
    let server = Running::usual();
    let request = body(json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 8}));
    let answer = server.answer(PATH, &request);
    let choice = &answer["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 8);
    let mut bytes = Vec::new();
    for entry in content {
        let own: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
        bytes.extend(own);
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], entry["token"], "greedy");
        assert_eq!(top[0]["logprob"], entry["logprob"]);
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        choice["message"]["content"].as_str().unwrap()
    );
    let events = server.events(PATH, &request);
    let parts = events.iter().flat_map(|event| {
        event["choices"][0]["logprobs"]["content"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    });
    assert_eq!(parts.collect::<Vec<_>>(), *content);
    let without = server.answer(PATH, &body(json!({"max_tokens": 2})));
    assert_eq!(without["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = Running::usual();
    let request = body(json!({
        "n": 2, "seed": 2, "temperature": 1, "max_tokens": 7, "stream_options": {"include_usage": true},
    }));
    let mut plain = request.clone();
    plain.as_object_mut().unwrap().remove("stream_options");
    let whole = server.answer(PATH, &plain);
    let mut events = server.events(PATH, &request);
    let usage = events.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 14);
    for index in 0..2 {
        let own = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == index);
        let own: Vec<&Value> = own.map(|event| &event["choices"][0]).collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        let text: String = own
            .iter()
            .filter_map(|choice| choice["delta"]["content"].as_str())
            .collect();
        assert_eq!(
            text,
            whole["choices"][index]["message"]["content"]
                .as_str()
                .unwrap()
        );
        assert_eq!(own.last().unwrap()["finish_reason"], "length");
    }
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk")
    );
}
