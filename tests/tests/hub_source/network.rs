//! No network, the wrong network, and the variables that say how it is used.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use uc_tests::{compress, fail_with, json, program, succeed, tiny_model};

use crate::fixture::{NETWORK, REPO, compress_from_hub, fake_hub, set_hub};

/// An address of the loopback interface where nothing listens.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

/// `uc compress MODEL` with this Hub, without the proxies of the machine.
fn compress_at(endpoint: &str, model: &str, folder: &Path) -> Command {
    let mut command = compress(Path::new(model), &folder.join("run"));
    command.current_dir(folder).env("HF_ENDPOINT", endpoint);
    command
        .env("HF_TOKEN_PATH", "/nonexistent")
        .env_remove("HF_TOKEN");
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command
            .env_remove(variable)
            .env_remove(variable.to_ascii_uppercase());
    }
    command
}

#[test]
fn an_unreachable_hub_and_a_mistyped_name_fail_within_seconds_with_one_message() {
    let folder = tempfile::tempdir().expect("folder");
    let start = Instant::now();
    for endpoint in [closed_port().as_str(), "http://no-such-host.invalid"] {
        let mut command = compress_at(endpoint, "a/b", folder.path());
        let message = fail_with(&mut command, NETWORK);
        assert!(message.contains("a/b is not a local folder"), "{message}");
        assert!(message.contains("cannot be reached"), "{message}");
        assert!(
            !message.contains("done") && !message.contains("WARN"),
            "{message}"
        );
        assert_eq!(message.matches("error:").count(), 1, "{message}");
    }
    std::fs::create_dir_all(folder.path().join("models/llama")).expect("folder");
    let mut command = compress_at(&closed_port(), "models/lama", folder.path());
    let message = fail_with(&mut command, 4);
    assert!(message.contains("holds llama"), "{message}");
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn the_number_of_attempts_is_honoured() {
    let folder = tempfile::tempdir().expect("folder");
    for (attempts, code, word) in [
        ("1", NETWORK, "after 1 attempts"),
        ("none", 4, "UC_HUB_ATTEMPTS"),
    ] {
        let mut command = compress_at(&closed_port(), "a/b", folder.path());
        let message = fail_with(command.env("UC_HUB_ATTEMPTS", attempts), code);
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn requests_go_through_the_proxy_unless_it_is_excluded() {
    let folder = tempfile::tempdir().expect("folder");
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", proxy.local_addr().expect("bound"));
    let server = std::thread::spawn(move || {
        let (stream, _) = proxy.accept().expect("a request");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("a line");
        line
    });
    let through_proxy = |excluded: &str| {
        let mut command = compress_at("http://hub.invalid", "a/b", folder.path());
        command
            .env("HTTP_PROXY", &address)
            .env("NO_PROXY", excluded);
        fail_with(command.env("UC_HUB_ATTEMPTS", "1"), NETWORK)
    };
    let message = through_proxy("hub.invalid");
    assert!(message.contains("cannot be reached"), "{message}");
    assert!(!server.is_finished(), "the proxy was asked");
    through_proxy("other.invalid");
    let line = server.join().expect("a request");
    assert!(line.contains("hub.invalid"), "{line}");
}

#[test]
fn offline_a_model_that_was_downloaded_is_used_and_any_other_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let run = folder.path().join("run");
    let fetch = |model: &str, offline: &str| {
        let mut command = program("shard-loader");
        command.args(["fetch", model, "--to"]);
        command.arg(folder.path().join("models"));
        set_hub(&mut command, &fake_hub, &run);
        command.env("HF_HUB_OFFLINE", offline);
        command
    };
    let message = fail_with(&mut fetch(REPO, "1"), 4);
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    assert!(fake_hub.requests().is_empty());

    let download = json(&succeed(&mut fetch(REPO, "0")));
    let requests = fake_hub.requests().len();
    let commit = download["commit"].as_str().expect("commit");
    for model in [REPO.to_owned(), format!("{REPO}@{commit}")] {
        let offline = json(&succeed(&mut fetch(&model, "1")));
        assert_eq!(offline["folder"], download["folder"]);
        assert_eq!(offline["commit"], download["commit"]);
    }
    fail_with(&mut fetch(&format!("{REPO}@other"), "1"), 4);
    let mut compress = compress_from_hub(&fake_hub, REPO, &run);
    succeed(compress.env("HF_HUB_OFFLINE", "1").arg("--no-eval"));
    assert_eq!(fake_hub.requests().len(), requests);
}
