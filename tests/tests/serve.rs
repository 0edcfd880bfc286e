//! `uc serve` on the pack of the tiny model: answers over HTTP, the key, the end by a signal, and what is refused.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use uc_tests::{compress, copy_model, fail_with, json as json_of, succeed, uc};

/// A pack of the tiny model with a chat template, in a temporary folder.
struct Packed {
    _folder: tempfile::TempDir,
    pack: PathBuf,
}

fn packed() -> Packed {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    copy_model(&model);
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    let config = json!({"chat_template": template}).to_string();
    std::fs::write(model.join("tokenizer_config.json"), config).expect("written");
    let run = folder.path().join("run");
    succeed(&mut compress(&model, &run));
    Packed {
        pack: run.join("pack"),
        _folder: folder,
    }
}

/// A running `uc serve`.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: String,
}

impl Server {
    /// Starts it on a free port and waits until it listens.
    fn start(pack: &Path, words: &[&str]) -> Self {
        let mut command = uc();
        command
            .arg("serve")
            .arg(pack)
            .args(["--port", "0"])
            .args(words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).expect("text"), 0, "{said}");
            said += &line;
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(',').next().expect("an address").to_owned();
            }
        };
        Server {
            child,
            stderr,
            address,
        }
    }

    /// Status and JSON of a request.
    fn ask(&self, path: &str, body: Option<&Value>, key: Option<&str>) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).expect("connects");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        let body = body.map(Value::to_string);
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.unwrap_or_default();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        if let Some(key) = key {
            head += &format!("Authorization: Bearer {key}\r\n");
        }
        stream
            .write_all(format!("{head}\r\n{body}").as_bytes())
            .expect("sent");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a reply");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (
            status.expect("a status"),
            serde_json::from_str(body).expect("JSON"),
        )
    }

    /// Ends it by a signal; the exit status and what it has said since it listens.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).expect("a signal");
        let status = self.child.wait().expect("ends");
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("text");
        (status.code(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_pack_is_served_as_it_generates_and_a_signal_ends_it_in_order() {
    let packed = packed();
    let pack = &packed.pack;
    let words = ["-p", "Once upon a time", "-n", "20", "--json"];
    let mut generate = uc();
    generate
        .arg("generate")
        .arg(pack)
        .args(words)
        .stdin(Stdio::null());
    let generated = json_of(&succeed(&mut generate));
    let server = Server::start(pack, &["-v", "--threads", "2"]);
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
    let packed = packed();
    let pack = &packed.pack;
    let file = pack.with_file_name("key");
    std::fs::write(&file, format!("{KEY}\n")).expect("written");
    let file = file.to_str().expect("UTF-8");
    let server = Server::start(
        pack,
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
            .arg(pack)
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
