//! Error statuses and malformed responses.

use std::io::{Read, Write};
use std::net::TcpListener;

use uc_fake_hub::Options;
use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{Endpoint, Hub, HubError, Token, Visibility};

use crate::fixture::{Fixture, REPO, hub_client, limits, noise};

#[test]
fn each_status_maps_to_its_error() {
    let table: [(u16, &str, bool); 14] = [
        (400, "refused", false),
        (401, "unauthorized", false),
        (402, "quota", false),
        (403, "forbidden", false),
        (404, "not-found", false),
        (408, "server", true),
        (409, "conflict", false),
        (412, "conflict", false),
        (413, "quota", false),
        (416, "range", true),
        (429, "busy", true),
        (500, "server", true),
        (501, "refused", false),
        (504, "server", true),
    ];
    let fixture = Fixture::new();
    for (status, class, transient) in table {
        let script = Schedule::script(Route::Info, [Fault::Status(status)]);
        fixture.fake_hub.set_faults(script);
        let error = fixture
            .hub
            .info(&fixture.repo, "main")
            .expect_err("a fault");
        assert_eq!(
            (error.class(), error.is_transient()),
            (class, transient),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("/api/models/tester/model/revision/main"),
            "{text}"
        );
        assert!(
            text.contains(&status.to_string()) && text.contains("(request fake-hub)"),
            "{text}"
        );
    }
}

#[test]
fn the_error_code_says_what_is_missing() {
    let fixture = Fixture::new();
    let code = |error: HubError| match error {
        HubError::NotFound { detail, .. } => detail.code.unwrap_or_default().into_string(),
        other => panic!("{other}"),
    };
    let absent = "tester/absent".parse().expect("a name");
    let error = fixture.hub.info(&absent, "main").expect_err("absent");
    assert_eq!(code(error), "RepoNotFound");
    let error = fixture
        .hub
        .info(&fixture.repo, "absent")
        .expect_err("absent");
    assert_eq!(code(error), "RevisionNotFound");
    fixture.fake_hub.commit_file(REPO, "file", &noise(1, 100));
    let mut file = fixture.remote_file("file");
    file.path = "absent".into();
    let error = fixture.download(&file, 8).expect_err("absent");
    assert_eq!(code(error), "EntryNotFound");
}

#[test]
fn a_private_repository_requires_the_right_token() {
    let fixture = Fixture::with_options(Options {
        private: true,
        ..Options::default()
    });
    fixture.snapshot();
    for token in [None, Some("hf_wrong")] {
        let hub = hub_client(&fixture.fake_hub, limits(), token);
        for error in [
            hub.info(&fixture.repo, "main").expect_err("no permission"),
            hub.create_repo(&fixture.repo, Visibility::Public)
                .expect_err("no permission"),
        ] {
            assert!(matches!(error, HubError::Unauthorized { .. }), "{error}");
        }
    }
}

#[test]
fn the_wait_that_the_server_asks_for_is_observed() {
    let fixture = Fixture::new();
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Info, [Fault::TooManyRequests(7)]));
    let mut retrier = fixture.retrier();
    let listing = retrier.run("listing", |_| fixture.hub.info(&fixture.repo, "main"));
    listing.expect("the second attempt");
    let waits = fixture.clock.0.lock().expect("not poisoned").clone();
    assert!(
        waits.len() == 1 && waits[0].as_secs_f64() >= 7.0,
        "{waits:?}"
    );
}

#[test]
fn a_closed_port_means_that_the_hub_cannot_be_reached() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let hub = Hub::new(Endpoint::new(&url, None).expect("valid"), limits()).expect("client");
    let error = hub.info(&fixture.repo, "main").expect_err("a closed port");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());
}

#[test]
fn a_server_without_tls_is_not_accepted_at_an_https_endpoint() {
    let repo = "a/b".parse().expect("a name");
    let (hub, server) = with_fixed_response(&json_response("{}"));
    let url = hub.endpoint().url().replace("http://", "https://");
    let token = Token::new("hf_secret").expect("valid");
    let hub = Hub::new(Endpoint::new(&url, token).expect("valid"), limits()).expect("client");
    let error = hub.info(&repo, "main").expect_err("no TLS there");
    assert!(matches!(error, HubError::Insecure { .. }), "{error}");
    assert!(!server.join().expect("the server").contains("secret"));
}

/// A client of a server that sends one fixed response. The thread returns the request.
fn with_fixed_response(response: &str) -> (Hub, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let response = response.to_owned();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = vec![0; 65536];
        let read = stream.read(&mut request).expect("a request");
        stream.write_all(response.as_bytes()).expect("sent");
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let token = Token::new("hf_secret").expect("valid");
    let endpoint = Endpoint::new(&url, token).expect("valid");
    (Hub::new(endpoint, limits()).expect("a client"), server)
}

fn json_response(body: &str) -> String {
    format!(
        "HTTP/1.1 200 -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn responses_are_validated_before_use() {
    let repo = "a/b".parse().expect("a name");
    let commit = "0".repeat(40);
    let info_with = |file: &str| format!("{{\"sha\": \"{commit}\", \"siblings\": [{file}]}}");
    let id = "0123456789012345678901234567890123456789";
    let file =
        |path: &str| format!("{{\"rfilename\": \"{path}\", \"size\": 1, \"blobId\": \"{id}\"}}");
    for body in [
        "not json".to_owned(),
        "{}".to_owned(),
        info_with(&file("../x")),
        info_with(&file("/etc/passwd")),
        info_with(&file("a\\\\b")),
        info_with(&[file("a"), file("a")].join(",")),
        info_with("{\"rfilename\": \"a\"}"),
        info_with("{\"rfilename\": \"a\", \"size\": 1, \"blobId\": \"12\"}"),
        info_with("{\"rfilename\": \"a\", \"lfs\": {\"sha256\": \"12\", \"size\": 1}}"),
    ] {
        let (hub, server) = with_fixed_response(&json_response(&body));
        let error = hub.info(&repo, "main").expect_err(&body);
        assert!(
            matches!(error, HubError::Malformed { .. }),
            "{body}: {error}"
        );
        assert!(!error.is_transient());
        server.join().expect("the server");
    }
    let (hub, server) = with_fixed_response(&json_response("{\"sha\": \"main\"}"));
    let error = hub.info(&repo, "main").expect_err("no commit");
    assert!(
        matches!(error, HubError::InvalidName { what: "commit", .. }),
        "{error}"
    );
    server.join().expect("the server");
}

#[test]
fn redirects_with_a_body_or_to_an_invalid_url_are_not_followed() {
    let repo = "a/b".parse().expect("a name");
    let redirect = |status: u16, to: &str| {
        format!(
            "HTTP/1.1 {status} -\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
    };
    for (status, to) in [
        (307, "http://127.0.0.1:1/x?sig=secret"),
        (302, "/x"),
        (308, "https://other.example/x"),
    ] {
        let (hub, server) = with_fixed_response(&redirect(status, to));
        let error = hub
            .create_repo(&repo, Visibility::Public)
            .expect_err("refused");
        assert!(matches!(error, HubError::Redirect { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        server.join().expect("the server");
    }
    for to in [
        "",
        "ftp://other.example/x",
        "http://user:pw@other.example/",
        "//other.example/x",
    ] {
        let (hub, server) = with_fixed_response(&redirect(302, to));
        let error = hub.info(&repo, "main").expect_err("refused");
        assert!(matches!(error, HubError::Redirect { .. }), "{to}: {error}");
        assert!(
            server
                .join()
                .expect("the server")
                .contains("Bearer hf_secret")
        );
    }
}
