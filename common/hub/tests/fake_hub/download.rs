//! Downloads under every fault.

use std::time::Duration;

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{FileId, HubError, Phase, RemoteFile};

use crate::support::{Fixture, REPO, TOKEN, client, limits, noise};

/// Every fault that a download can meet.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Reset,
        Fault::LostAnswer,
        Fault::CutBody,
        Fault::ResetBody,
        Fault::Stall,
        Fault::Drip(1),
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
        Fault::Status(408),
        Fault::TooMany(3),
        Fault::WrongByte,
        Fault::IgnoreRange,
        Fault::WrongRange,
        Fault::Expired,
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
            if fault == Fault::Expired && route == Route::Resolve {
                continue; // the Hub itself does not forbid what it has linked
            }
            let fixture = Fixture::new();
            let data = noise(size as u64, size);
            fixture.fake_hub.put(REPO, "deep/file", &data);
            let file = fixture.remote("deep/file");
            // Cut first, so that the fault meets a resumed download.
            let script = [Fault::CutBody, fault.clone()];
            fixture.fake_hub.set_faults(Schedule::script(route, script));
            let got = fixture.download(&file, 8);
            let got = got.unwrap_or_else(|error| panic!("{fault:?} at {route:?}: {error}"));
            assert!(got == data, "{fault:?} at {route:?}");
        }
    }
}

#[test]
fn a_cut_download_goes_on_where_it_was_in_a_later_process() {
    let fixture = Fixture::new();
    let data = noise(1, 50_000);
    fixture.fake_hub.put(REPO, "file", &data);
    let file = fixture.remote("file");
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::CutBody]));
    let error = fixture.download(&file, 1).expect_err("one attempt");
    assert!(
        matches!(
            error.cause(),
            HubError::Cut {
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
        .seen()
        .into_iter()
        .filter(|seen| seen.storage)
        .collect();
    assert_eq!(ranges[0].range, None);
    assert_eq!(ranges[1].range.as_deref(), Some("bytes=25000-"));
    // And what is there is not asked for again.
    let before = fixture.count("GET /objects");
    assert_eq!(fixture.download(&file, 1).expect("present"), data);
    assert_eq!(fixture.count("GET /objects"), before);
    let left = fixture
        .folder
        .join("down")
        .read_dir_utf8()
        .expect("folder")
        .count();
    assert_eq!(left, 1, "nothing but the file stays");
}

#[test]
fn a_file_that_changes_under_the_download_is_neither_spliced_nor_published() {
    let fixture = Fixture::new();
    let (data, other) = (noise(1, 50_000), noise(2, 50_000));
    fixture.fake_hub.put(REPO, "file", &data);
    let file = fixture.remote("file");
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::CutBody]));
    fixture.download(&file, 1).expect_err("one attempt");
    fixture.fake_hub.tamper(&data, &other);
    let error = fixture.download(&file, 8).expect_err("other bytes");
    assert!(
        matches!(
            error,
            HubError::Hash {
                repeated: true,
                kind: "SHA-256",
                ..
            }
        ),
        "{error}"
    );
    assert!(!fixture.folder.join("down/file").exists());
    fixture.fake_hub.tamper(&data, &data);
    assert_eq!(fixture.download(&file, 1).expect("right again"), data);
}

#[test]
fn within_a_process_the_version_is_asked_for_and_another_one_is_not_spliced() {
    let fixture = Fixture::new();
    let (data, other) = (noise(1, 50_000), noise(2, 50_000));
    fixture.fake_hub.put(REPO, "file", &data);
    let file = fixture.remote("file");
    let commit = fixture.snapshot().commit;
    let script = [Fault::CutBody];
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, script));
    // While the client waits the bytes change, and while it waits again they are right again.
    let mut waits = 0;
    let mut watchdog = fixture.watchdog().observed(|state| {
        if state.phase == Phase::Waiting {
            waits += 1;
            let with = if waits == 1 { &other } else { &data };
            fixture.fake_hub.tamper(&data, with);
        }
    });
    let into = fixture.folder.join("file");
    let done = fixture
        .hub
        .download(&fixture.repo, &commit, &file, &into, &mut watchdog, |_| {});
    drop(watchdog);
    assert_eq!(waits, 2);
    assert_eq!(
        done.expect("right in the end").received,
        25_000 + 50_000 + 50_000
    );
    assert_eq!(std::fs::read(into).expect("here"), data);
    let seen = fixture.fake_hub.seen();
    let at_storage: Vec<_> = seen.iter().filter(|seen| seen.storage).collect();
    assert_eq!(at_storage[1].range.as_deref(), Some("bytes=25000-"));
    assert!(at_storage[0].if_range.is_none() && at_storage[1].if_range.is_some());
    assert_eq!(at_storage[2].range, None, "the wrong bytes went");
}

#[test]
fn a_file_that_is_not_what_the_listing_said_is_refused_before_its_bytes() {
    let fixture = Fixture::new();
    fixture.fake_hub.put(REPO, "file", &noise(1, 50_000));
    let mut file = fixture.remote("file");
    file.id = FileId::Sha256(uc_store::sha::hash_bytes(b"another"));
    let error = fixture.download(&file, 8).expect_err("changed");
    assert!(
        matches!(error, HubError::Changed { what: "ETag", .. }),
        "{error}"
    );
    let mut file = fixture.remote("file");
    file.size -= 1;
    let error = fixture.download(&file, 8).expect_err("changed");
    assert!(
        matches!(error, HubError::Changed { what: "size", .. }),
        "{error}"
    );
}

#[test]
fn an_empty_file_arrives() {
    let fixture = Fixture::new();
    fixture.fake_hub.put(REPO, "empty", b"");
    let file = fixture.remote("empty");
    assert_eq!(fixture.download(&file, 1).expect("nothing"), b"");
}

#[test]
fn silence_and_a_crawl_are_told_apart_from_each_other() {
    let fixture = Fixture::new();
    fixture.fake_hub.put(REPO, "file", &noise(1, 50_000));
    let file = fixture.remote("file");
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::Stall]));
    let error = fixture.download(&file, 1).expect_err("silence");
    assert!(matches!(error.cause(), HubError::Stalled { .. }), "{error}");
    let mut short = limits();
    short.request = Duration::from_millis(300);
    let hub = client(&fixture.fake_hub, short, Some(TOKEN));
    let commit = fixture.snapshot().commit;
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, [Fault::Drip(60)]));
    let into = fixture.folder.join("crawled");
    let mut watchdog = fixture.watchdog_of(1);
    let outcome = hub.download(&fixture.repo, &commit, &file, &into, &mut watchdog, |_| {});
    let error = outcome.expect_err("a crawl");
    assert!(matches!(error.cause(), HubError::Timeout { .. }), "{error}");
}

#[test]
fn progress_is_told_and_starts_the_count_anew() {
    let fixture = Fixture::new();
    let data = noise(1, 200_000);
    fixture.fake_hub.put(REPO, "file", &data);
    let file = fixture.remote("file");
    let mut patient = limits();
    patient.progress = 1000;
    let hub = client(&fixture.fake_hub, patient, None);
    // More cuts than attempts: each halves what is missing.
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Object, vec![Fault::CutBody; 6]));
    let commit = fixture.snapshot().commit;
    let into = fixture.folder.join("file");
    let mut told = Vec::new();
    let mut watchdog = fixture.watchdog_of(2);
    hub.download(
        &fixture.repo,
        &commit,
        &file,
        &into,
        &mut watchdog,
        |progress| {
            told.push(progress.done);
        },
    )
    .expect("each attempt brought something");
    assert!(told.is_sorted());
    assert_eq!(told.last(), Some(&200_000));
    assert_eq!(watchdog.tried().len(), 6);
}

#[test]
fn a_folder_is_fetched_at_one_commit_and_only_what_is_wanted() {
    let fixture = Fixture::new();
    fixture.fake_hub.put(REPO, "config.json", b"{}");
    fixture
        .fake_hub
        .put(REPO, "deep/weights.safetensors", &noise(1, 50_000));
    fixture.fake_hub.put(REPO, "other.bin", &noise(2, 50_000));
    let folder = fixture.folder.join("model");
    let wanted =
        |file: &RemoteFile| file.path.ends_with(".safetensors") || file.path == "config.json";
    let script = Schedule::script(Route::Object, [Fault::ResetBody]);
    fixture.fake_hub.set_faults(script);
    let fetch = || {
        let (hub, repo) = (&fixture.hub, &fixture.repo);
        let mut snapshot = hub.info(repo, "main")?;
        snapshot.files.retain(wanted);
        for file in &snapshot.files {
            let (into, mut watchdog) = (folder.join(&file.path), fixture.watchdog());
            hub.download(repo, &snapshot.commit, file, &into, &mut watchdog, |_| {})?;
        }
        Ok::<_, HubError>(snapshot)
    };
    let snapshot = fetch().expect("fetched");
    assert_eq!(snapshot, fetch().expect("there already"));
    assert_eq!(snapshot.commit, fixture.snapshot().commit);
    let paths: Vec<_> = snapshot
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    assert_eq!(paths, ["config.json", "deep/weights.safetensors"]);
    assert!(folder.join("deep/weights.safetensors").exists());
    assert!(!folder.join("other.bin").exists());
    assert_eq!(fixture.count("GET /objects"), 2, "one broken, one whole");
}

#[test]
fn the_beginning_of_a_file_comes_alone_and_damage_shows() {
    let fixture = Fixture::new();
    let data = noise(3, 50_000);
    fixture.fake_hub.put(REPO, "file", &data);
    let file = fixture.remote("file");
    let commit = fixture.snapshot().commit;
    let ask = |bytes| fixture.hub.beginning(&fixture.repo, &commit, &file, bytes);
    assert!(ask(0).expect("nothing").is_empty());
    assert!(ask(1000).expect("a part") == data[..1000]);
    assert!(ask(90_000).expect("all of it") == data);
    let seen = fixture.fake_hub.seen();
    let ranges: Vec<_> = seen
        .iter()
        .filter_map(|seen| seen.range.as_deref())
        .collect();
    assert!(ranges.contains(&"bytes=0-999"), "{ranges:?}");
    let faulty = |fault| {
        fixture
            .fake_hub
            .set_faults(Schedule::script(Route::Object, [fault]));
        ask(1000)
    };
    assert!(faulty(Fault::IgnoreRange).expect("cut here") == data[..1000]);
    assert!(matches!(
        faulty(Fault::WrongRange),
        Err(HubError::Range { .. })
    ));
    for fault in [
        Fault::CutBody,
        Fault::ResetBody,
        Fault::Status(500),
        Fault::Reset,
    ] {
        let error = faulty(fault.clone()).expect_err("damaged");
        assert!(error.is_transient(), "{fault:?}: {error}");
    }
}
