//! `uc serve` on the pack of the tiny model: answers over HTTP, the key, the end by a signal, and what is refused.
#![allow(clippy::disallowed_methods)]

use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use uc_tests::server::{Packed, Server};
use uc_tests::{fail_with, json as json_of, succeed, uc};

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }} {% endfor %}";

#[test]
fn the_pack_is_served_as_it_generates_and_a_signal_ends_it_in_order() {
    let packed = Packed::new(TEMPLATE);
    let pack = packed.pack();
    let words = ["-p", "Once upon a time", "-n", "20", "--json"];
    let mut generate = uc();
    generate
        .arg("generate")
        .arg(&pack)
        .args(words)
        .stdin(Stdio::null());
    let generated = json_of(&succeed(&mut generate));
    let server = Server::start(&pack, &["-v", "--threads", "2"]);
    assert_eq!(
        server.ask("/health", None, None),
        (200, json!({"status": "ok"}))
    );
    let body =
        json!({"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, "logprobs": 0});
    let (status, answer) = server.ask("/v1/completions", Some(&body), None);
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], generated["text"]);
    assert_eq!(answer["system_fingerprint"], generated["pack"]);
    let logprobs = choice["logprobs"]["token_logprobs"]
        .as_array()
        .expect("a list");
    let expected = generated["tokens"].as_array().expect("a list");
    let expected: Vec<&Value> = expected.iter().map(|token| &token["logprob"]).collect();
    assert_eq!(logprobs.iter().collect::<Vec<_>>(), expected);
    // The template of the pack.
    let talk = json!({"messages": [{"role": "user", "content": "Once upon a"}], "max_tokens": 5, "temperature": 0});
    let (status, talk) = server.ask("/v1/chat/completions", Some(&talk), None);
    assert_eq!(status, 200, "{talk}");
    let text = json!({"prompt": "Once upon a ", "max_tokens": 5, "temperature": 0});
    let text = server.ask("/v1/completions", Some(&text), None).1;
    assert_eq!(
        talk["choices"][0]["message"]["content"],
        text["choices"][0]["text"]
    );
    assert_eq!(
        server
            .ask("/v1/completions", Some(&json!({"prompt": 1})), None)
            .0,
        400
    );
    let (code, said) = server.end(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("every answer was complete"), "{said}");
    assert!(
        said.contains("/v1/completions") && !said.contains("Once upon"),
        "no prompt is logged: {said}"
    );
}

#[test]
fn a_key_from_a_file_is_asked_for_and_what_cannot_be_served_is_refused() {
    const KEY: &str = "0123456789abcdef0123";
    let packed = Packed::new(TEMPLATE);
    let pack = packed.pack();
    let file = pack.with_file_name("key");
    std::fs::write(&file, format!("{KEY}\n")).expect("written");
    let file = file.to_str().expect("UTF-8");
    let server = Server::start(
        &pack,
        &[
            "--api-key-file",
            file,
            "--model-name",
            "mine",
            "--log-prompts",
            "-v",
        ],
    );
    assert_eq!(server.ask("/v1/models", None, None).0, 401);
    assert_eq!(
        server
            .ask("/v1/models", None, Some("0123456789abcdef0124"))
            .0,
        401
    );
    let (status, models) = server.ask("/v1/models", None, Some(KEY));
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("mine")));
    let body = json!({"model": "mine", "prompt": "A secret word", "max_tokens": 1});
    assert_eq!(server.ask("/v1/completions", Some(&body), Some(KEY)).0, 200);
    let refused = |words: &[&str], code: i32, expected: &str| {
        let mut command: Command = uc();
        command
            .arg("serve")
            .arg(&pack)
            .args(words)
            .stdin(Stdio::null());
        let text = fail_with(&mut command, code);
        assert!(text.contains(expected), "{words:?}: {text}");
    };
    let port = server.address.rsplit(':').next().expect("a port");
    refused(&["--port", port], 1, "cannot listen on");
    refused(&["--port", "0", "--context", "1000"], 2, "context");
    refused(
        &["--port", "0", "--api-key-file", "/absent"],
        1,
        "cannot read /absent",
    );
    let (code, said) = server.end(Signal::INT);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("A secret word") && !said.contains(KEY),
        "{said}"
    );
}
