//! Limits and order: the queue, cancellation, time, keys, browsers, the end of the server.

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{NAME, Running, served, settings};
use uc_tests::http::Reply;

const TEXT: &str = "/v1/completions";

/// A request that takes as long as possible.
fn long() -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": 250, "temperature": 0, "stream": true})
}

/// The value of a metric.
fn metric(server: &Running, name: &str) -> f64 {
    let text = server.get("/metrics").text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name}: {text}"))
        .parse()
        .unwrap()
}

/// Waits until something is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a request and reads the first bytes of its stream.
fn begin(server: &Running, body: &Value) -> std::net::TcpStream {
    let mut stream = server.connect();
    let request = server.request("POST", TEXT, &[], body.to_string().as_bytes());
    stream.write_all(&request).unwrap();
    let mut byte = [0; 64];
    stream.read_exact(&mut byte).unwrap();
    stream
}

#[test]
fn a_full_queue_turns_requests_away_until_a_client_leaves() {
    let mut settings = settings();
    settings.batch.slots = 1;
    settings.queue = 1;
    // The model must not finish while the test goes on.
    settings.batch.context = 256;
    let server = Running::start(served(None), settings);
    let texts = |count: usize| json!({"prompt": vec!["a"; count], "max_tokens": 1});
    // More than ever fits.
    server.post(TEXT, &texts(3)).error(400, Some("n"));
    let mut body = long();
    body["n"] = 2.into();
    let (mut turned_away, mut tries) = (None, 0);
    while turned_away.is_none() && tries < 20 {
        tries += 1;
        let stream = begin(&server, &body);
        let reply = server.post(TEXT, &texts(2));
        if reply.status == 429 {
            turned_away = Some(reply);
        }
        drop(stream);
        eventually("the client's sequences are cancelled", || {
            metric(&server, "uc_sequences_running") == 0.0
        });
    }
    let reply = turned_away.expect("one of the tries comes in time");
    reply.error(429, None);
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(server.post(TEXT, &texts(2)).status, 200);
}

#[test]
fn a_client_that_goes_away_frees_its_slot() {
    let server = Running::usual();
    let mut cancelled = 0.0;
    for is_stream in [true, false] {
        // Some may be complete before the client is gone.
        let start = Instant::now();
        loop {
            let mut body = long();
            body["stream"] = is_stream.into();
            let mut stream = server.connect();
            let request = server.request("POST", TEXT, &[], body.to_string().as_bytes());
            stream.write_all(&request).unwrap();
            eventually("it has begun", || {
                metric(&server, "uc_sequences_running") > 0.0
                    || metric(&server, "uc_sequences_cancelled_total") > cancelled
                    || metric(&server, "uc_generated_tokens_total") > 0.0
            });
            drop(stream);
            eventually("it has ended", || {
                metric(&server, "uc_sequences_running") == 0.0
            });
            let now = metric(&server, "uc_sequences_cancelled_total");
            if now > cancelled {
                cancelled = now;
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "never cancelled");
        }
    }
}

#[test]
fn an_answer_has_a_time_limit() {
    let mut settings = settings();
    settings.timeout = Duration::from_millis(1);
    let server = Running::start(served(None), settings);
    let mut body = long();
    body["stream"] = false.into();
    let reply = server.post(TEXT, &body);
    reply.error(504, None);
    assert_eq!(reply.json()["error"]["code"], "timeout");
    eventually("it is cancelled", || {
        metric(&server, "uc_sequences_running") == 0.0
    });
}

#[test]
fn a_key_is_asked_for_where_it_matters() {
    const KEY: &str = "sk-0123456789abcdef";
    let mut settings = settings();
    settings.access.key = Some(KEY.to_owned());
    let server = Running::start(served(None), settings);
    for path in ["/", "/health", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/props", "/v1/unknown"] {
        let reply = server.get(path);
        reply.error(401, None);
        assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    server.post(TEXT, &json!({"prompt": "a"})).error(401, None);
    let with = |key: &str| {
        let bearer = format!("Bearer {key}");
        server.exchange(&server.request("GET", "/v1/models", &[("Authorization", &bearer)], b""))
    };
    with(&KEY[..KEY.len() - 1]).error(401, None);
    assert_eq!(with(KEY).status, 200);
    assert!(!server.get("/openapi.json").text().contains(KEY));
}

#[test]
fn pages_of_other_sites_are_refused() {
    let server = Running::usual();
    let from = |origin: &str| {
        server.exchange(&server.request("GET", "/v1/models", &[("Origin", origin)], b""))
    };
    from("http://evil.example").error(403, None);
    from("null").error(403, None);
    assert_eq!(from(&format!("http://{}", server.address)).status, 200);
    let foreign = b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    server.exchange(foreign).error(403, None);
}

#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let mut settings = settings();
    settings.write_time = Duration::from_millis(200);
    let server = Running::start(served(None), settings);
    // Kept-alive requests whose answers nobody reads fill the buffers of the connection.
    let mut stream = server.connect();
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        match stream.write(request.as_bytes()) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The server has closed the connection.
            Err(_) => return,
        }
        if metric(&server, "uc_connections") == 1.0 && start.elapsed() > Duration::from_millis(500)
        {
            // Only the connection of the metric is left.
            return;
        }
    }
    panic!("the connection is still open");
}

#[test]
fn the_end_lets_running_answers_finish_and_refuses_new_ones() {
    let server = Running::usual();
    let mut running = begin(&server, &long());
    let mut kept = server.connect();
    let get = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    kept.write_all(get.as_bytes()).unwrap();
    let mut byte = [0; 15];
    kept.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"HTTP/1.1 200 OK");
    server.control.end();
    let mut rest = Vec::new();
    running.read_to_end(&mut rest).unwrap();
    let text = String::from_utf8_lossy(&rest);
    assert!(
        text.contains("[DONE]") && text.contains("\"finish_reason\":\"length\""),
        "{text}"
    );
    // The idle connection is closed.
    kept.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(server.join().cut, 0);
}

#[test]
fn answers_are_cut_with_a_word_when_the_time_for_the_end_is_over() {
    let mut settings = settings();
    settings.drain = Duration::ZERO;
    let server = Running::start(served(None), settings);
    let mut body = long();
    body["n"] = 60.into();
    let mut stream = begin(&server, &body);
    server.control.end();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let text = String::from_utf8_lossy(&rest);
    assert!(text.contains("\"code\":\"shutting_down\""), "{text}");
    assert_eq!(server.join().cut, 1);
}

#[test]
fn what_is_served_is_described() {
    let server = Running::usual();
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], NAME);
    assert_eq!(
        server.get(&format!("/v1/models/{NAME}")).json(),
        models["data"][0]
    );
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let props = server.get("/props").json();
    assert_eq!(
        (&props["context"], &props["parallel"]),
        (&json!(256), &json!(4))
    );
    assert_eq!(props["tool_calls"], true);
    let tokens = server.answer(
        "/tokenize",
        &json!({"content": "Once upon", "with_pieces": true}),
    );
    let pieces = tokens["tokens"].as_array().unwrap();
    let text: String = pieces
        .iter()
        .map(|piece| piece["piece"].as_str().unwrap())
        .collect();
    assert_eq!(text, "Once upon");
    let ids: Vec<&Value> = pieces.iter().map(|piece| &piece["id"]).collect();
    assert_eq!(
        server.answer("/detokenize", &json!({"tokens": ids}))["content"],
        "Once upon"
    );
    server.answer(TEXT, &json!({"prompt": "a", "max_tokens": 3}));
    server
        .post(TEXT, &json!({"prompt": 1}))
        .error(400, Some("prompt"));
    let text = server.get("/metrics").text();
    for expected in [
        "uc_requests_total{path=\"/v1/completions\",status=\"200\"} 1\n",
        "uc_requests_total{path=\"/v1/completions\",status=\"400\"} 1\n",
        "uc_generated_tokens_total 3\n",
        "uc_time_to_first_token_seconds_count 1\n",
        "uc_time_per_token_seconds_count 1\n",
        "fingerprint=\"f00d\"",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let page = server.get("/");
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );
    let page = page.text();
    assert!(
        !page.contains("http://") && !page.contains("https://") && !page.contains("src=\"/"),
        "no outside resources"
    );
    let _ = Reply::parse(b"");
}
