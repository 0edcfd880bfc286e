//! The token is sent to the Hub only and appears in no error and no log.

use std::io::Write;
use std::sync::{Arc, Mutex};

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{HubError, LocalFile};

use crate::fixture::{Fixture, REPO, TOKEN, noise};

/// An in-memory log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("log").extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_token_is_sent_to_the_hub_only_and_appears_in_no_error_and_no_log() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let fixture = Fixture::new();
    transfer_with_faults(&fixture);
    check_authorization_headers(&fixture);
    check_errors(&fixture);

    let log = String::from_utf8(log.0.lock().expect("log").clone()).expect("text");
    assert!(log.contains("failed, retrying"), "{log}");
    for secret in [TOKEN, "signed-secret"] {
        let leaks: Vec<_> = log.lines().filter(|line| line.contains(secret)).collect();
        assert!(leaks.is_empty(), "{leaks:?}");
    }
}

/// Uploads and downloads a file with faults, so that errors of every step are logged.
fn transfer_with_faults(fixture: &Fixture) {
    let data = noise(1, 45_000);
    let file: LocalFile = fixture.local_file("file", &data);
    let mut script = Schedule::script(Route::Part, [Fault::ExpiredUrl, Fault::Status(500)]);
    if let Schedule::Script(routes) = &mut script {
        routes.insert(
            Route::Object,
            [Fault::TruncateBody, Fault::TooManyRequests(1)].into(),
        );
        routes.insert(Route::Info, [Fault::Reset].into());
    }
    fixture.fake_hub.set_faults(script);
    let mut retrier = fixture.retrier();
    fixture
        .hub
        .push(
            &fixture.repo,
            "main",
            "Files",
            &[file],
            &mut retrier,
            |_, _| {},
        )
        .expect("pushed");
    assert_eq!(
        fixture
            .download(&fixture.remote_file("file"), 8)
            .expect("downloaded"),
        data
    );
}

/// Checks that every request to the Hub carried the token, and no request to a signed URL did.
fn check_authorization_headers(fixture: &Fixture) {
    let requests = fixture.fake_hub.requests();
    let (storage, hub): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.storage);
    assert!(
        storage.len() > 8
            && storage
                .iter()
                .all(|request| request.authorization.is_none())
    );
    let is_signed = |line: &str| line.contains("complete_multipart");
    assert!(
        hub.iter()
            .all(|request| request.authorization.is_some() != is_signed(&request.line))
    );
}

/// Checks that errors contain neither the token, even if the server repeats it, nor the signature of a URL.
fn check_errors(fixture: &Fixture) {
    let echo = Schedule::script(Route::Info, [Fault::EchoToken]);
    fixture.fake_hub.set_faults(echo);
    let error = fixture
        .hub
        .info(&fixture.repo, "main")
        .expect_err("refused");
    let text = format!("{error} {error:?}");
    assert!(matches!(error, HubError::Unauthorized { .. }));
    assert!(
        text.contains("Bearer [token]") && !text.contains(TOKEN),
        "{text}"
    );
    assert!(!format!("{:?}", fixture.hub).contains(TOKEN));
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, vec![Fault::Status(400); 8]));
    fixture
        .fake_hub
        .commit_file(REPO, "other", &noise(2, 45_000));
    let error = fixture
        .download(&fixture.remote_file("other"), 8)
        .expect_err("refused");
    assert!(
        !format!("{error} {error:?}").contains("signed-secret"),
        "{error}"
    );
}
