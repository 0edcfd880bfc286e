//! Hubs that answer with anything: endless bodies and listings, names that leave a folder, sizes beyond the disk, redirects in a
//! circle. Each ends in an error within bounded time and memory, and nothing appears on disk.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use uc_hub::{Endpoint, FileId, Hub, HubError, RemoteFile, RepoName};
use uc_store::StoreError;
use uc_store::sha::hash_bytes;

use crate::fixture::{Fixture, limits};

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A server that sends the same head to every request, and then a body.
fn serve(head: String, body: impl Fn(&mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("stream"));
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let mut stream = stream;
            // The client may hang up at any time.
            let _ = stream.write_all(head.as_bytes());
            body(&mut stream);
        }
    });
    format!("http://{address}")
}

fn serve_json(body: String) -> String {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    serve(head, move |stream| drop(stream.write_all(body.as_bytes())))
}

fn info_error(url: &str) -> String {
    let hub = Hub::new(Endpoint::new(url, None).expect("valid"), limits()).expect("a client");
    let repo: RepoName = "a/b".parse().expect("valid");
    let start = Instant::now();
    let error = hub.info(&repo, "main").expect_err("refused").to_string();
    assert!(start.elapsed() < Duration::from_secs(20), "{error}");
    error
}

fn listing(names: impl Iterator<Item = String>) -> String {
    let files: Vec<String> = names
        .map(|name| {
            let name = serde_json::to_string(&name).expect("text");
            format!("{{\"rfilename\":{name},\"size\":1,\"blobId\":\"{COMMIT}\"}}")
        })
        .collect();
    format!(
        "{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
        files.join(",")
    )
}

#[test]
fn endless_answers_are_cut_off() {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_owned();
    let endless = serve(
        head,
        |stream| while stream.write_all(&[b' '; 1 << 16]).is_ok() {},
    );
    let error = info_error(&endless);
    assert!(error.contains("more than 67108864 bytes"), "{error}");
    let error = info_error(&serve_json(listing((0..100_001).map(|n| n.to_string()))));
    assert!(error.contains("a listing of 100001 files"), "{error}");
    let error = info_error(&serve_json(format!("{{\"x\":{}", "[".repeat(1 << 20))));
    assert!(error.contains("EOF while parsing"), "{error}");
}

#[test]
fn names_that_leave_their_folder_or_control_the_terminal_are_refused() {
    for name in [
        "../x",
        "a/../../x",
        "/etc/x",
        "a\\x",
        "a\u{1b}[2J",
        "x\0",
        "",
    ] {
        let error = info_error(&serve_json(listing([name.to_owned()].into_iter())));
        assert!(
            error.contains("a path inside the repository"),
            "{name:?}: {error}"
        );
        assert!(!error.contains('\u{1b}'), "{error}");
    }
    let twice = ["a", "a"].map(str::to_owned).into_iter();
    let error = info_error(&serve_json(listing(twice)));
    assert!(error.contains("a duplicate path"), "{error}");
}

#[test]
fn redirects_in_a_circle_or_to_another_scheme_are_not_followed() {
    let redirect = |to: &str| {
        let head = format!(
            "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        info_error(&serve(head, |_| {}))
    };
    assert!(redirect("/again").contains("too many hops"));
    for to in ["file:///etc/passwd", "ftp://h/x", "//", "http://user@h/x"] {
        assert!(redirect(to).contains("not an http or https URL"), "{to}");
    }
}

#[test]
fn a_message_of_the_server_cannot_control_the_terminal() {
    let body = "{\"error\":\"\u{1b}[2Jx\u{202e}y\"}";
    let length = body.len();
    let head =
        format!("HTTP/1.1 404 Not Found\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let error = info_error(&serve(head, move |stream| {
        drop(stream.write_all(body.as_bytes()))
    }));
    assert!(!error.contains(['\u{1b}', '\u{202e}']), "{error}");
}

#[test]
fn a_size_beyond_the_free_disk_is_refused_before_any_byte_is_requested() {
    let fixture = Fixture::new();
    let file = RemoteFile {
        path: "model.safetensors".into(),
        size: u64::MAX,
        id: FileId::Sha256(hash_bytes(b"x")),
    };
    let commit = COMMIT.parse().expect("valid");
    let target = fixture.folder.join("model.safetensors");
    let mut retrier = fixture.retrier_with(1);
    let error = fixture
        .hub
        .download(&fixture.repo, &commit, &file, &target, &mut retrier, |_| {})
        .expect_err("refused");
    let HubError::Store(StoreError::Io { source, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(fixture.fake_hub.requests().is_empty());
}
