//! What the server holds does not grow with the number of requests: live bytes, counted by the allocator, so that neither its
//! pools nor the time matter.

#![allow(unsafe_code)] // an allocator

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Running, TAGGED, served, settings};

/// The system's allocator, and the bytes that are live.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens of answers that the client does not wait for.
const LONG: usize = 100;

/// Requests of all kinds, with their paths.
fn requests() -> Vec<(&'static str, Value)> {
    let talk = json!([{"role": "user", "content": "Hello"}]);
    let schema =
        json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    let (text, chat) = ("/v1/completions", "/v1/chat/completions");
    vec![
        (
            text,
            json!({"prompt": "Once", "max_tokens": 8, "temperature": 0, "logprobs": 2}),
        ),
        (
            text,
            json!({"prompt": ["The king", "A"], "max_tokens": 4, "seed": 2, "n": 2}),
        ),
        (
            text,
            json!({"prompt": "The king of", "max_tokens": 0, "seed": 3, "echo": true, "logprobs": 1}),
        ),
        (
            chat,
            json!({"messages": talk, "max_tokens": 8, "seed": 5, "response_format": format}),
        ),
        (
            chat,
            json!({"messages": talk, "max_tokens": 8, "seed": 6, "tools": [tool], "tool_choice": "required"}),
        ),
        (text, json!({"prompt": 1})),
    ]
}

/// Every request, whole, as a stream, and as a stream that the client leaves.
fn round(server: &Running, requests: &[(&str, Value)]) {
    for (path, body) in requests {
        server.post(path, body);
        let mut body = body.clone();
        body["stream"] = true.into();
        server.post(path, &body);
        body["max_tokens"] = LONG.into();
        let mut stream = server.connect();
        let request = server.request("POST", path, &[], body.to_string().as_bytes());
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut [0; 50]).unwrap();
    }
}

/// Live bytes when nothing is computed and no connection is open but the one that asks.
fn settled(server: &Running) -> isize {
    let start = Instant::now();
    loop {
        let text = server.get("/metrics").text();
        let is = |line: &str| text.lines().any(|found| found == line);
        if is("uc_sequences_running 0") && is("uc_sequences_waiting 0") && is("uc_connections 1") {
            // The last connection is closed after its answer.
            std::thread::sleep(Duration::from_millis(20));
            return LIVE.load(Ordering::Relaxed);
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn live_memory_does_not_grow_with_the_number_of_requests() {
    const ROUNDS: usize = 21;
    let server = Running::start(served(Some(TAGGED)), settings());
    let requests = requests();
    let reading = || {
        round(&server, &requests);
        settled(&server)
    };
    // Kept prefixes and lists grow to their sizes at first. What is kept for each thread, such as the memory of a regular
    // expression, comes when two threads first use it at the same time, in any round, but few times.
    reading();
    let readings = [(); ROUNDS].map(|()| reading());
    let mut growth: Vec<isize> = readings.windows(2).map(|pair| pair[1] - pair[0]).collect();
    growth.sort_unstable();
    let each = growth[growth.len() / 2] as f64 / (requests.len() * 3) as f64;
    // A copy of a prompt, a ticket or a sample of a time would be more.
    assert!(
        each < 20.0,
        "{each} bytes for each request: {readings:?} after each round"
    );
}
