//! Statuses and answers that are not what they should be.

use std::io::{Read, Write};
use std::net::TcpListener;

use uc_fake_hub::Options;
use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{Endpoint, Hub, HubError, Token, Visibility};

use crate::support::{Fixture, REPO, client, limits, noise};

#[test]
fn each_status_has_its_error() {
    let table: [(u16, &str, bool); 14] = [
        (400, "refused", false),
        (401, "unauthorised", false),
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
fn what_is_missing_is_named_by_the_hub() {
    let fixture = Fixture::new();
    let code = |error: HubError| match error {
        HubError::NotFound { said, .. } => said.code.unwrap_or_default().into_string(),
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
    fixture.fake_hub.put(REPO, "file", &noise(1, 100));
    let mut file = fixture.remote("file");
    file.path = "absent".into();
    let error = fixture.download(&file, 8).expect_err("absent");
    assert_eq!(code(error), "EntryNotFound");
}

#[test]
fn a_private_repository_needs_the_right_token() {
    let fixture = Fixture::with(Options {
        private: true,
        ..Options::default()
    });
    fixture.snapshot();
    for token in [None, Some("hf_wrong")] {
        let hub = client(&fixture.fake_hub, limits(), token);
        for error in [
            hub.info(&fixture.repo, "main").expect_err("no right"),
            hub.create_repo(&fixture.repo, Visibility::Public)
                .expect_err("no right"),
        ] {
            assert!(matches!(error, HubError::Unauthorised { .. }), "{error}");
        }
    }
}

#[test]
fn what_the_server_asks_to_wait_is_waited() {
    let fixture = Fixture::new();
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Info, [Fault::TooMany(7)]));
    let mut watchdog = fixture.watchdog();
    let listing = watchdog.run("listing", |_| fixture.hub.info(&fixture.repo, "main"));
    listing.expect("the second attempt");
    let waits = fixture.clock.0.lock().expect("notes").clone();
    assert!(
        waits.len() == 1 && waits[0].as_secs_f64() >= 7.0,
        "{waits:?}"
    );
}

#[test]
fn nobody_listening_is_a_connection_error() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let hub = Hub::new(Endpoint::new(&url, None).expect("valid"), limits()).expect("client");
    let error = hub.info(&fixture.repo, "main").expect_err("nobody");
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
    assert!(error.is_transient());
}

#[test]
fn a_server_without_tls_is_not_taken_for_a_hub_over_https() {
    let repo = "a/b".parse().expect("a name");
    let (hub, server) = fixed(&json("{}"));
    let url = hub.endpoint().url().replace("http://", "https://");
    let token = Token::new("hf_secret").expect("valid");
    let hub = Hub::new(Endpoint::new(&url, token).expect("valid"), limits()).expect("client");
    let error = hub.info(&repo, "main").expect_err("no TLS there");
    assert!(matches!(error, HubError::Insecure { .. }), "{error}");
    assert!(!server.join().expect("the server").contains("secret"));
}

/// A client of a server that gives one fixed answer, and what it was asked.
fn fixed(answer: &str) -> (Hub, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let answer = answer.to_owned();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut asked = vec![0; 65536];
        let read = stream.read(&mut asked).expect("a request");
        stream.write_all(answer.as_bytes()).expect("answered");
        String::from_utf8_lossy(&asked[..read]).into_owned()
    });
    let token = Token::new("hf_secret").expect("valid");
    let endpoint = Endpoint::new(&url, token).expect("valid");
    (Hub::new(endpoint, limits()).expect("a client"), server)
}

fn json(body: &str) -> String {
    format!(
        "HTTP/1.1 200 -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn answers_are_validated_before_they_are_used() {
    let repo = "a/b".parse().expect("a name");
    let commit = "0".repeat(40);
    let with = |file: &str| format!("{{\"sha\": \"{commit}\", \"siblings\": [{file}]}}");
    let id = "0123456789012345678901234567890123456789";
    let file =
        |path: &str| format!("{{\"rfilename\": \"{path}\", \"size\": 1, \"blobId\": \"{id}\"}}");
    for body in [
        "not json".to_owned(),
        "{}".to_owned(),
        with(&file("../x")),
        with(&file("/etc/passwd")),
        with(&file("a\\\\b")),
        with(&[file("a"), file("a")].join(",")),
        with("{\"rfilename\": \"a\"}"),
        with("{\"rfilename\": \"a\", \"size\": 1, \"blobId\": \"12\"}"),
        with("{\"rfilename\": \"a\", \"lfs\": {\"sha256\": \"12\", \"size\": 1}}"),
    ] {
        let (hub, server) = fixed(&json(&body));
        let error = hub.info(&repo, "main").expect_err(&body);
        assert!(
            matches!(error, HubError::Malformed { .. }),
            "{body}: {error}"
        );
        assert!(!error.is_transient());
        server.join().expect("the server");
    }
    let (hub, server) = fixed(&json("{\"sha\": \"main\"}"));
    let error = hub.info(&repo, "main").expect_err("no commit");
    assert!(
        matches!(error, HubError::Name { what: "commit", .. }),
        "{error}"
    );
    server.join().expect("the server");
}

#[test]
fn redirects_that_would_carry_a_body_or_lead_nowhere_are_not_followed() {
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
        let (hub, server) = fixed(&redirect(status, to));
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
        let (hub, server) = fixed(&redirect(302, to));
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
