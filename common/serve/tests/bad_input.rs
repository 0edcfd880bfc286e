//! Bad input: each kind gets its status and an error of the API, and the server goes on.

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use serde_json::{Value, json};
use support::{NAME, Running, served, settings};
use uc_tests::http::Reply;

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Checks that the server still answers.
fn goes_on(server: &Running) {
    let answer = server.answer(TEXT, &json!({"prompt": "A", "max_tokens": 1}));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

/// Requests with a wrong field, and its name.
fn wrong_fields() -> Vec<(&'static str, Value, &'static str)> {
    let text = |body, param| (TEXT, body, param);
    let chat = |body, param| (CHAT, body, param);
    vec![
        text(json!({"prompt": 1}), "prompt"),
        text(json!({"prompt": []}), "prompt"),
        text(json!({"prompt": [[]]}), "prompt"),
        text(json!({"prompt": ""}), "prompt"),
        text(json!({"prompt": [99_999]}), "prompt"),
        text(json!({}), "prompt"),
        text(json!({"prompt": "a", "max_tokens": "x"}), "max_tokens"),
        text(json!({"prompt": "a", "max_tokens": -1}), "max_tokens"),
        text(json!({"prompt": "a", "temperature": 3}), "temperature"),
        text(json!({"prompt": "a", "temperature": "hot"}), "temperature"),
        text(json!({"prompt": "a", "top_p": -0.1}), "top_p"),
        text(json!({"prompt": "a", "n": 0}), "n"),
        text(json!({"prompt": "a", "n": 100}), "n"),
        text(json!({"prompt": "a", "best_of": 2}), "best_of"),
        text(json!({"prompt": "a", "suffix": "z"}), "suffix"),
        text(json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        text(json!({"prompt": "a", "logprobs": true}), "logprobs"),
        text(
            json!({"prompt": "a", "logit_bias": {"5000": 1}}),
            "logit_bias",
        ),
        text(json!({"prompt": "a", "stop": [""]}), "stop"),
        text(json!({"prompt": "a", "stop": 7}), "stop"),
        text(json!({"prompt": "a", "seed": 1.5}), "seed"),
        text(json!({"prompt": "a", "stream": "yes"}), "stream"),
        text(
            json!({"prompt": "a", "stream_options": {}}),
            "stream_options",
        ),
        text(
            json!({"prompt": "a", "response_format": {"type": "xml"}}),
            "response_format",
        ),
        chat(json!({"messages": []}), "messages"),
        chat(json!({"messages": "a"}), "messages"),
        chat(
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        chat(json!({"messages": [{"content": "a"}]}), "messages[0].role"),
        chat(
            json!({"messages": [{"role": "king", "content": "a"}]}),
            "messages[0].role",
        ),
        chat(
            json!({"messages": [{"role": "user", "content": "fail"}]}),
            "messages",
        ),
        ("/detokenize", json!({"tokens": [99_999]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens[0]"),
    ]
}

#[test]
fn what_is_no_json_or_has_wrong_types_is_refused() {
    let server = Running::usual();
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{\"prompt\": \"a\"} x",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"\xff",
        b"{\"prompt\": \"\\ud800\"}",
        b"prompt=a",
    ] {
        for path in [TEXT, CHAT, "/tokenize", "/detokenize"] {
            server.post_bytes(path, body).error(400, None);
        }
    }
    let deep = [b"{\"prompt\":".to_vec(), b"[".repeat(100_000)].concat();
    assert_eq!(server.post_bytes(TEXT, &deep).status, 400);
    for (path, body, param) in wrong_fields() {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 400, "{body}: {}", reply.text());
        let found = reply.json()["error"]["param"].clone();
        // A missing field is named in the message.
        let message = reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            found == param || message.contains(param.rsplit('.').next().unwrap()),
            "{body}: {message}"
        );
        assert!(!message.is_empty());
    }
    server.post("/tokenize", &json!({})).error(400, None);
    goes_on(&server);
}

#[test]
fn schemas_and_grammars_that_cannot_be_met_are_refused() {
    let server = Running::usual();
    let request = |format: Value| json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "response_format": format});
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let grammar =
        |syntax: &str, text: &str| json!({"type": "grammar", "syntax": syntax, "definition": text});
    for format in [
        schema(json!({"type": "integer", "minimum": 5, "maximum": 3})),
        schema(json!(false)),
        schema(json!("object")),
        schema(json!({"type": "thing"})),
        schema(json!({"$ref": "#/nowhere"})),
        schema(json!({"$ref": "http://127.0.0.1:1/x"})),
        grammar("lark", "start: nothing"),
        grammar("lark", "("),
        grammar("regex", "(["),
        grammar("prolog", "a"),
        json!({"type": "json_schema"}),
        json!("json"),
    ] {
        let reply = server.post(CHAT, &request(format.clone()));
        assert_eq!(reply.status, 400, "{format}: {}", reply.text());
        reply.error(400, Some("response_format"));
    }
    let huge: Vec<String> = (0..40_000).map(|n| format!("value {n}")).collect();
    let reply = server.post(CHAT, &request(schema(json!({ "enum": huge }))));
    reply.error(400, Some("response_format"));
    goes_on(&server);
}

#[test]
fn tools_that_the_model_does_not_have_are_refused() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let talk = json!([{"role": "user", "content": "a"}]);
    let with = |server: &Running, param: &str, extra: Value| {
        let mut body = json!({"messages": talk, "max_tokens": 2});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let reply = server.post(CHAT, &body);
        reply.error(400, Some(param));
    };
    let plain = Running::start(served(Some("{{ messages[0].content }}")), settings());
    with(&plain, "tools", json!({"tools": [tool]}));
    let server = Running::usual();
    with(&server, "tools[0]", json!({"tools": [{"type": "x"}]}));
    with(
        &server,
        "tool_choice",
        json!({"tools": [tool], "tool_choice": "sometimes"}),
    );
    with(&server, "tool_choice", json!({"tool_choice": "required"}));
    with(&server, "functions", json!({"functions": []}));
    with(
        &server,
        "modalities",
        json!({"modalities": ["text", "audio"]}),
    );
    with(&server, "top_logprobs", json!({"top_logprobs": 2}));
    // Without a template there are no conversations.
    let without = Running::start(served(None), settings());
    let reply = without.post(CHAT, &json!({"messages": talk}));
    assert!(reply.error(400, Some("messages")).contains("template"));
    goes_on(&without);
}

#[test]
fn unknown_models_paths_and_methods_have_their_status() {
    let server = Running::usual();
    for (path, body) in [
        (TEXT, json!({"model": "other", "prompt": "a"})),
        (
            CHAT,
            json!({"model": "other", "messages": [{"role": "user", "content": "a"}]}),
        ),
        ("/tokenize", json!({"model": "other", "content": "a"})),
    ] {
        let reply = server.post(path, &body);
        assert!(reply.error(404, Some("model")).contains(NAME));
        assert_eq!(reply.json()["error"]["code"], "model_not_found");
    }
    server.get("/v1/models/other").error(404, Some("model"));
    server.get("/v1/nothing").error(404, None);
    server
        .post("/v1/embeddings", &json!({"input": "a"}))
        .error(404, None);
    server.get(TEXT).error(405, None);
    server.post("/v1/models", &json!({})).error(405, None);
    let encoded = server.request("POST", TEXT, &[("Content-Encoding", "gzip")], b"\x1f\x8b");
    server.exchange(&encoded).error(415, None);
    goes_on(&server);
}

#[test]
fn prompts_beyond_the_context_are_refused_with_the_apis_code() {
    let server = Running::usual();
    let long = "once ".repeat(2000);
    let reply = server.post(TEXT, &json!({"prompt": long, "max_tokens": 1}));
    reply.error(400, Some("prompt"));
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    let reply = server.post(
        CHAT,
        &json!({"messages": [{"role": "user", "content": long}]}),
    );
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    goes_on(&server);
}

#[test]
fn huge_and_endless_bodies_and_broken_requests_end() {
    let mut settings = settings();
    settings.body_bytes = 10_000;
    settings.body_time = Duration::from_millis(300);
    settings.head_time = Duration::from_millis(300);
    let server = Running::start(served(None), settings);
    let huge = json!({"prompt": "a".repeat(20_000)});
    server.post(TEXT, &huge).error(413, None);
    // More than is announced, in chunks, without an end.
    let head = format!(
        "POST {TEXT} HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.address
    );
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    for _ in 0..4 {
        // The server may already have closed the connection.
        let _ = stream.write_all(chunk.as_bytes());
    }
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
    Reply::parse(&bytes).expect("a reply").error(413, None);
    // Nothing follows the head.
    let head = format!(
        "POST {TEXT} HTTP/1.1\r\nHost: {}\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{",
        server.address
    );
    server.exchange(head.as_bytes()).error(408, None);
    // The client says less than it announces.
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    drop(stream);
    // No HTTP, and no end of the head.
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: ",
    ] {
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        let mut reply = Vec::new();
        // Closed, with or without a reply.
        let _ = std::io::Read::read_to_end(&mut stream, &mut reply);
    }
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "a".repeat(200_000)
    );
    let mut stream = server.connect();
    let _ = stream.write_all(many.as_bytes());
    let mut reply = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut reply);
    goes_on(&server);
}
