//! `uc serve` in a storm: every completed answer is the one given alone, token for token, whoever else is asking and however they
//! behave, and the server's memory does not grow.
#![allow(clippy::disallowed_methods)]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uc_tests::http::{Reply, events};
use uc_tests::server::{Packed, Server};

/// A chat template with tools in the style of Hermes.
const TEMPLATE: &str = "{% if tools %}Tools:{% for t in tools %} {{ t.function.name }}{% endfor %}. <tool_call>\n{% endif %}\
                        {% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";

/// Numbers that only depend on their seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}

/// Requests of many kinds, with the paths that they go to.
fn requests() -> Vec<(&'static str, Value)> {
    const STORY: &str = "There once was a gardener who lived at the edge of a forest with an old dog. Every morning";
    let text = |extra: Value| ("/v1/completions", extra);
    let chat = |extra: Value| ("/v1/chat/completions", extra);
    let talk = |text: &str| json!([{"role": "user", "content": text}]);
    let schema =
        json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    vec![
        text(json!({"prompt": "Once", "max_tokens": 12, "temperature": 0, "logprobs": 2})),
        text(json!({"prompt": STORY, "max_tokens": 20, "seed": 1, "logprobs": 0})),
        text(json!({"prompt": STORY, "max_tokens": 6, "seed": 2, "n": 3})),
        text(json!({"prompt": [STORY, "The king", "A"], "max_tokens": 4, "temperature": 0})),
        text(json!({"prompt": STORY.repeat(2), "max_tokens": 0, "echo": true, "logprobs": 1})),
        text(
            json!({"prompt": "The", "max_tokens": 30, "seed": 3, "stop": ["."], "top_p": 0.9, "top_k": 20}),
        ),
        chat(json!({"messages": talk("Hello"), "max_tokens": 15, "seed": 4, "logprobs": true})),
        chat(
            json!({"messages": talk(STORY), "max_tokens": 10, "temperature": 0, "frequency_penalty": 1}),
        ),
        chat(
            json!({"messages": talk("JSON"), "max_tokens": 20, "seed": 5, "response_format": format}),
        ),
        chat(json!({
            "messages": talk("Call"), "max_tokens": 60, "seed": 6, "tools": [tool], "tool_choice": "required",
            "parallel_tool_calls": false,
        })),
    ]
}

/// What an answer says, without names and times.
fn essence(answer: &Value) -> Value {
    let mut choices = answer["choices"].clone();
    for choice in choices.as_array_mut().unwrap() {
        if let Some(calls) = choice["message"]["tool_calls"].as_array_mut() {
            calls.iter_mut().for_each(|call| call["id"] = Value::Null);
        }
    }
    json!([
        choices,
        answer["usage"]["completion_tokens"],
        answer["usage"]["prompt_tokens"]
    ])
}

/// The texts and reasons of a whole answer and of its stream.
fn outline(essence: &Value) -> Vec<(String, String)> {
    let choices = essence[0].as_array().unwrap().iter();
    let outline = |choice: &Value| {
        let message = &choice["message"];
        let text = choice["text"]
            .as_str()
            .or(message["content"].as_str())
            .unwrap_or_default();
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        let calls: String = calls.map(|call| call["function"].to_string()).collect();
        (
            format!("{text}{calls}"),
            choice["finish_reason"].as_str().unwrap().to_owned(),
        )
    };
    choices.map(outline).collect()
}

fn streamed_outline(text: &str) -> Vec<(String, String)> {
    let mut outline: Vec<(String, String)> = Vec::new();
    for event in events(text) {
        for choice in event["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap() as usize;
            outline.resize(outline.len().max(index + 1), Default::default());
            let delta = &choice["delta"];
            let text = choice["text"].as_str().or(delta["content"].as_str());
            outline[index].0 += text.unwrap_or_default();
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                outline[index].0 += &call["function"].to_string();
            }
            outline[index].1 += choice["finish_reason"].as_str().unwrap_or_default();
        }
    }
    outline
}

/// One request of a client that behaves well or badly; whether its answer was complete.
fn client(server: &Server, random: &mut Random, cases: &[(&str, Value)], alone: &[Value]) -> bool {
    let index = random.below(cases.len());
    let (path, body) = &cases[index];
    match random.below(10) {
        // The whole answer.
        0..=3 => {
            let reply = server.post(path, body);
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(essence(&reply.json()), alone[index], "{body}");
            true
        }
        // A stream, read slowly or fast.
        mode @ 4..=6 => {
            let mut body = body.clone();
            body["stream"] = true.into();
            let mut stream = server.connect();
            let request = server.request("POST", path, &[], body.to_string().as_bytes());
            stream.write_all(&request).unwrap();
            let (mut bytes, mut buffer) = (Vec::new(), [0; 300]);
            loop {
                let count = match stream.read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    count => count.unwrap(),
                };
                if count == 0 {
                    break;
                }
                bytes.extend_from_slice(&buffer[..count]);
                if mode == 4 {
                    std::thread::sleep(Duration::from_millis(random.next() % 4));
                }
            }
            let reply = Reply::parse(&bytes).expect("a whole reply");
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert!(reply.text().ends_with("data: [DONE]\n\n"));
            assert_eq!(
                streamed_outline(&reply.text()),
                outline(&alone[index]),
                "{body}"
            );
            true
        }
        // A client that goes away, in order or not, before, while or after the answer is made.
        mode @ 7..=8 => {
            let mut body = body.clone();
            body["stream"] = (random.below(2) == 0).into();
            let mut stream = server.connect();
            let request = server.request("POST", path, &[], body.to_string().as_bytes());
            let part = random.below(request.len() * 3).min(request.len());
            stream.write_all(&request[..part]).unwrap();
            std::thread::sleep(Duration::from_millis(random.next() % 40));
            if mode == 7 {
                let _ = stream.shutdown(Shutdown::Both);
            } else if part == request.len() {
                // Closing a socket with unread bytes sends a reset. Only a whole request has an answer that can be waited for.
                let _ = stream.read(&mut [0; 10]);
            }
            false
        }
        // A malformed request.
        _ => {
            let mut bytes = body.to_string().into_bytes();
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
            let reply = server.post_bytes(path, &bytes);
            assert!(
                [200, 400, 404, 429].contains(&reply.status),
                "{}",
                reply.text()
            );
            false
        }
    }
}

/// Lets clients loose for a time; the number of complete answers.
fn storm(server: &Server, clients: usize, time: Duration, seed: u64) -> usize {
    let cases = requests();
    let alone: Vec<Value> = cases
        .iter()
        .map(|(path, body)| essence(&server.answer(path, body)))
        .collect();
    let complete = AtomicUsize::new(0);
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        for number in 0..clients {
            let (cases, alone, complete) = (&cases, &alone, &complete);
            scope.spawn(move || {
                let mut random = Random(seed + number as u64);
                // Everybody asks at least twice.
                let mut asked = 0;
                while asked < 2 || Instant::now() < end {
                    let is_complete = client(server, &mut random, cases, alone);
                    complete.fetch_add(usize::from(is_complete), Ordering::Relaxed);
                    asked += 1;
                }
            });
        }
    });
    // Afterwards the same, and nothing is left over.
    for ((path, body), alone) in cases.iter().zip(&alone) {
        assert_eq!(essence(&server.answer(path, body)), *alone, "{body}");
    }
    let start = Instant::now();
    loop {
        let text = server.get("/metrics").text();
        if text.contains("uc_sequences_running 0\n") && text.contains("uc_sequences_waiting 0\n") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{text}");
        std::thread::sleep(Duration::from_millis(10));
    }
    complete.into_inner()
}

#[test]
fn answers_are_those_given_alone() {
    let packed = Packed::new(TEMPLATE);
    let server = Server::start(&packed.pack(), &["--parallel", "4", "--threads", "2"]);
    let complete = storm(&server, 8, Duration::from_millis(300), 1);
    assert!(complete >= 5, "{complete}");
}

/// The numbers of the server whose names have this part; they must be integers.
fn metrics_of(server: &Server, part: &str) -> serde_json::Map<String, Value> {
    let text = server.get("/metrics").text();
    let numbers = text.lines().filter_map(|line| line.split_once(' '));
    let numbers = numbers.filter(|(name, _)| name.contains(part));
    numbers
        .map(|(name, value)| (name.to_owned(), value.parse::<u64>().unwrap().into()))
        .collect()
}

/// Memory of the server's process.
fn resident_bytes(server: &Server) -> u64 {
    let numbers = metrics_of(server, "process_resident_memory_bytes");
    numbers.values().next().unwrap().as_u64().unwrap()
}

#[test]
#[ignore = "takes ten minutes (UC_STORM_SECONDS sets another time)"]
fn a_storm_of_64_clients_changes_no_answer_and_leaks_nothing() {
    let seconds = std::env::var("UC_STORM_SECONDS").ok();
    let seconds: u64 = seconds.map_or(600, |text| text.parse().unwrap());
    let packed = Packed::new(TEMPLATE);
    // Malformed requests that happen to be well-formed have ever new prompts: what is kept of them must be full before memory is
    // compared.
    let words = ["--parallel", "16", "--queue", "1024", "--prefix-cache", "1"];
    let server = Server::start(&packed.pack(), &words);
    // The allocator, the caches of grammars and the kept prefixes fill up in the first part.
    const PARTS: u64 = 10;
    let part = Duration::from_secs(seconds) / PARTS as u32;
    let mut complete = 0;
    let mut resident = Vec::new();
    for number in 0..PARTS {
        complete += storm(&server, 64, part, 1000 * number);
        resident.push(resident_bytes(&server));
    }
    if let Some(file) = std::env::var_os("UC_STORM_RECEIPT") {
        let receipt = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": "pack of examples/tiny-stories",
            "clients": 64, "slots": 16, "seconds": seconds,
            "answers_equal_to_those_given_alone": complete,
            "answers_that_differ": 0,
            "resident_bytes_after_each_tenth": resident,
            "metrics": metrics_of(&server, "_total"),
        });
        std::fs::write(file, format!("{receipt:#}\n")).unwrap();
    }
    assert!(complete > 64, "{complete}");
    let growth = resident[PARTS as usize - 1] as f64 / resident[0] as f64;
    assert!(growth < 1.1, "{resident:?} after {complete} answers");
}
