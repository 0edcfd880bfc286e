//! Downloads with every fault.

use std::time::Duration;

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{FileId, HubError, RemoteFile, RetryPhase};

use crate::fixture::{Fixture, REPO, TOKEN, hub_client, limits, noise};

/// Every fault that can occur during a download.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Reset,
        Fault::LostResponse,
        Fault::TruncateBody,
        Fault::ResetBody,
        Fault::Stall,
        Fault::SlowBody(1),
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
        Fault::Status(408),
        Fault::TooManyRequests(3),
        Fault::CorruptByte,
        Fault::IgnoreRange,
        Fault::WrongRange,
        Fault::ExpiredUrl,
    ]
}

#[test]
fn a_download_survives_every_fault_at_the_hub_and_at_storage() {
    for fault in faults() {
        for (route, size) in [
            (Route::Resolve, 3000),
            (Route::Resolve, 50_000),
            (Route::Object, 50_000),
        ] {
            if fault == Fault::ExpiredUrl && route == Route::Resolve {
                continue; // only the signed URLs of storage expire
            }
            let fixture = Fixture::new();
            let data = noise(size as u64, size);
            fixture.fake_hub.commit_file(REPO, "deep/file", &data);
            let file = fixture.remote_file("deep/file");
            // The truncation comes first, so that the fault occurs in a resumed download.
            let script = [Fault::TruncateBody, fault.clone()];
            fixture.fake_hub.set_faults(Schedule::script(route, script));
            let got = fixture.download(&file, 8);
            let got = got.unwrap_or_else(|error| panic!("{fault:?} at {route:?}: {error}"));
            assert!(got == data, "{fault:?} at {route:?}");
        }
    }
}

#[test]
fn a_truncated_download_resumes_in_a_later_process() {
    let fixture = Fixture::new();
    let data = noise(1, 50_000);
    fixture.fake_hub.commit_file(REPO, "file", &data);
    let file = fixture.remote_file("file");
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::TruncateBody]));
    let error = fixture.download(&file, 1).expect_err("one attempt");
    assert!(
        matches!(
            error.cause(),
            HubError::Truncated {
                found: 25_000,
                expected: 50_000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fixture.download(&file, 1).expect("the rest"), data);
    let ranges: Vec<_> = fixture
        .fake_hub
        .requests()
        .into_iter()
        .filter(|request| request.storage)
        .collect();
    assert_eq!(ranges[0].range, None);
    assert_eq!(ranges[1].range.as_deref(), Some("bytes=25000-"));
    // A complete file is not requested again.
    let before = fixture.count("GET /objects");
    assert_eq!(fixture.download(&file, 1).expect("present"), data);
    assert_eq!(fixture.count("GET /objects"), before);
    let entries = fixture
        .folder
        .join("down")
        .read_dir_utf8()
        .expect("folder")
        .count();
    assert_eq!(entries, 1, "only the file remains");
}

#[test]
fn a_file_that_changes_during_its_download_is_not_published() {
    let fixture = Fixture::new();
    let (data, other) = (noise(1, 50_000), noise(2, 50_000));
    fixture.fake_hub.commit_file(REPO, "file", &data);
    let file = fixture.remote_file("file");
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::TruncateBody]));
    fixture.download(&file, 1).expect_err("one attempt");
    fixture.fake_hub.corrupt_object(&data, &other);
    let error = fixture.download(&file, 8).expect_err("other bytes");
    assert!(
        matches!(
            error,
            HubError::DigestMismatch {
                repeated: true,
                kind: "SHA-256",
                ..
            }
        ),
        "{error}"
    );
    assert!(!fixture.folder.join("down/file").exists());
    fixture.fake_hub.corrupt_object(&data, &data);
    assert_eq!(
        fixture.download(&file, 1).expect("the original bytes"),
        data
    );
}

#[test]
fn within_a_process_a_resumed_download_states_its_version_and_never_mixes_two() {
    let fixture = Fixture::new();
    let (data, other) = (noise(1, 50_000), noise(2, 50_000));
    fixture.fake_hub.commit_file(REPO, "file", &data);
    let file = fixture.remote_file("file");
    let commit = fixture.snapshot().commit;
    let script = [Fault::TruncateBody];
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, script));
    // The bytes change during the first wait, and are the original ones again after the second.
    let mut waits = 0;
    let mut retrier = fixture.retrier().with_observer(|state| {
        if state.phase == RetryPhase::Waiting {
            waits += 1;
            let with = if waits == 1 { &other } else { &data };
            fixture.fake_hub.corrupt_object(&data, with);
        }
    });
    let into = fixture.folder.join("file");
    let outcome = fixture
        .hub
        .download(&fixture.repo, &commit, &file, &into, &mut retrier, |_| {});
    drop(retrier);
    assert_eq!(waits, 2);
    assert_eq!(
        outcome.expect("the original bytes in the end").received,
        25_000 + 50_000 + 50_000
    );
    assert_eq!(std::fs::read(into).expect("downloaded"), data);
    let requests = fixture.fake_hub.requests();
    let at_storage: Vec<_> = requests.iter().filter(|request| request.storage).collect();
    assert_eq!(at_storage[1].range.as_deref(), Some("bytes=25000-"));
    assert!(at_storage[0].if_range.is_none() && at_storage[1].if_range.is_some());
    assert_eq!(at_storage[2].range, None, "the wrong bytes were discarded");
}

#[test]
fn a_file_that_disagrees_with_the_listing_is_refused_before_its_content_is_read() {
    let fixture = Fixture::new();
    fixture
        .fake_hub
        .commit_file(REPO, "file", &noise(1, 50_000));
    let mut file = fixture.remote_file("file");
    file.id = FileId::Sha256(uc_store::sha::hash_bytes(b"another"));
    let error = fixture.download(&file, 8).expect_err("changed");
    assert!(
        matches!(error, HubError::Changed { what: "ETag", .. }),
        "{error}"
    );
    let mut file = fixture.remote_file("file");
    file.size -= 1;
    let error = fixture.download(&file, 8).expect_err("changed");
    assert!(
        matches!(error, HubError::Changed { what: "size", .. }),
        "{error}"
    );
}

#[test]
fn an_empty_file_is_downloaded() {
    let fixture = Fixture::new();
    fixture.fake_hub.commit_file(REPO, "empty", b"");
    let file = fixture.remote_file("empty");
    assert_eq!(fixture.download(&file, 1).expect("nothing"), b"");
}

#[test]
fn a_stalled_and_a_slow_transfer_are_different_errors() {
    let fixture = Fixture::new();
    fixture
        .fake_hub
        .commit_file(REPO, "file", &noise(1, 50_000));
    let file = fixture.remote_file("file");
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::Stall]));
    let error = fixture.download(&file, 1).expect_err("stalled");
    assert!(matches!(error.cause(), HubError::Stalled { .. }), "{error}");
    let mut short = limits();
    short.request = Duration::from_millis(300);
    let hub = hub_client(&fixture.fake_hub, short, Some(TOKEN));
    let commit = fixture.snapshot().commit;
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::SlowBody(60)]));
    let into = fixture.folder.join("slow");
    let mut retrier = fixture.retrier_with(1);
    let outcome = hub.download(&fixture.repo, &commit, &file, &into, &mut retrier, |_| {});
    let error = outcome.expect_err("too slow");
    assert!(matches!(error.cause(), HubError::Timeout { .. }), "{error}");
}

#[test]
fn progress_is_reported_and_resets_the_count_of_attempts() {
    let fixture = Fixture::new();
    let data = noise(1, 200_000);
    fixture.fake_hub.commit_file(REPO, "file", &data);
    let file = fixture.remote_file("file");
    let mut sensitive = limits();
    sensitive.progress_bytes = 1000;
    let hub = hub_client(&fixture.fake_hub, sensitive, None);
    // More truncations than attempts. Each attempt receives half of the missing bytes.
    fixture.fake_hub.set_faults(Schedule::script(
        Route::Object,
        vec![Fault::TruncateBody; 6],
    ));
    let commit = fixture.snapshot().commit;
    let into = fixture.folder.join("file");
    let mut reported = Vec::new();
    let mut retrier = fixture.retrier_with(2);
    hub.download(
        &fixture.repo,
        &commit,
        &file,
        &into,
        &mut retrier,
        |progress| {
            reported.push(progress.done);
        },
    )
    .expect("each attempt made progress");
    assert!(reported.is_sorted());
    assert_eq!(reported.last(), Some(&200_000));
    assert_eq!(retrier.failed_attempts().len(), 6);
}

#[test]
fn selected_files_are_fetched_at_one_commit() {
    let fixture = Fixture::new();
    fixture.fake_hub.commit_file(REPO, "config.json", b"{}");
    fixture
        .fake_hub
        .commit_file(REPO, "deep/weights.safetensors", &noise(1, 50_000));
    fixture
        .fake_hub
        .commit_file(REPO, "other.bin", &noise(2, 50_000));
    let folder = fixture.folder.join("model");
    let is_selected =
        |file: &RemoteFile| file.path.ends_with(".safetensors") || file.path == "config.json";
    let script = Schedule::script(Route::Object, [Fault::ResetBody]);
    fixture.fake_hub.set_faults(script);
    let fetch = || {
        let (hub, repo) = (&fixture.hub, &fixture.repo);
        let mut snapshot = hub.info(repo, "main")?;
        snapshot.files.retain(is_selected);
        for file in &snapshot.files {
            let (into, mut retrier) = (folder.join(&file.path), fixture.retrier());
            hub.download(repo, &snapshot.commit, file, &into, &mut retrier, |_| {})?;
        }
        Ok::<_, HubError>(snapshot)
    };
    let snapshot = fetch().expect("fetched");
    assert_eq!(snapshot, fetch().expect("already downloaded"));
    assert_eq!(snapshot.commit, fixture.snapshot().commit);
    let paths: Vec<_> = snapshot
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    assert_eq!(paths, ["config.json", "deep/weights.safetensors"]);
    assert!(folder.join("deep/weights.safetensors").exists());
    assert!(!folder.join("other.bin").exists());
    assert_eq!(
        fixture.count("GET /objects"),
        2,
        "one interrupted, one complete"
    );
}

#[test]
fn the_prefix_of_a_file_is_read_in_one_request_that_detects_damage() {
    let fixture = Fixture::new();
    let data = noise(3, 50_000);
    fixture.fake_hub.commit_file(REPO, "file", &data);
    let file = fixture.remote_file("file");
    let commit = fixture.snapshot().commit;
    let read = |bytes| {
        fixture
            .hub
            .read_prefix(&fixture.repo, &commit, &file, bytes)
    };
    assert!(read(0).expect("an empty prefix").is_empty());
    assert!(read(1000).expect("a prefix") == data[..1000]);
    assert!(read(90_000).expect("all of it") == data);
    let requests = fixture.fake_hub.requests();
    let ranges: Vec<_> = requests
        .iter()
        .filter_map(|request| request.range.as_deref())
        .collect();
    assert!(ranges.contains(&"bytes=0-999"), "{ranges:?}");
    let read_with_fault = |fault| {
        fixture
            .fake_hub
            .set_faults(Schedule::script(Route::Object, [fault]));
        read(1000)
    };
    assert!(read_with_fault(Fault::IgnoreRange).expect("cut by the client") == data[..1000]);
    assert!(matches!(
        read_with_fault(Fault::WrongRange),
        Err(HubError::Range { .. })
    ));
    for fault in [
        Fault::TruncateBody,
        Fault::ResetBody,
        Fault::Status(500),
        Fault::Reset,
    ] {
        let error = read_with_fault(fault.clone()).expect_err("damaged");
        assert!(error.is_transient(), "{fault:?}: {error}");
    }
}
