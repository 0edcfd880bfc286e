//! Uploads with every fault.

use std::collections::BTreeMap;

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{HubError, LocalFile, PushOutcome, RepoCreation, UploadMode, Visibility, differences};

use crate::fixture::{Fixture, REPO, noise};

/// One file of each kind (to storage in parts, to storage in one piece, in the commit, empty) and their content.
fn test_files(fixture: &Fixture) -> (Vec<LocalFile>, BTreeMap<String, Vec<u8>>) {
    let contents = [
        ("deep/parts.bin", noise(1, 45_000)),
        ("whole.bin", noise(2, 9000)),
        ("config.json", b"{}\n".to_vec()),
        ("deep/empty", Vec::new()),
    ];
    let files = contents
        .iter()
        .map(|(path, data)| fixture.local_file(path, data));
    let files = files.collect();
    let contents = contents
        .into_iter()
        .map(|(path, data)| (path.to_owned(), data));
    (files, contents.collect())
}

/// Pushes files to `main`.
fn push(
    fixture: &Fixture,
    files: &[LocalFile],
    max_attempts: u32,
) -> Result<PushOutcome, HubError> {
    let mut retrier = fixture.retrier_with(max_attempts);
    fixture.hub.push(
        &fixture.repo,
        "main",
        "Files",
        files,
        &mut retrier,
        |_, _| {},
    )
}

/// The remote files that the test uploaded.
fn remote_files(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    let mut files = fixture.fake_hub.files(REPO, "main");
    files.remove(".gitattributes");
    files.remove("another.txt");
    files
}

#[test]
fn an_upload_survives_every_fault_at_every_step_and_commits_once() {
    let everywhere = [
        Fault::Reset,
        Fault::ResetInRequest,
        Fault::LostResponse,
        Fault::TruncateBody,
        Fault::ResetBody,
        Fault::Stall,
        Fault::SlowBody(1),
        Fault::Status(500),
        Fault::Status(503),
        Fault::TooManyRequests(2),
    ];
    let part_faults = [Fault::ExpiredUrl, Fault::CorruptPart];
    let routes = [
        Route::Info,
        Route::Tree,
        Route::Preupload,
        Route::Batch,
        Route::Part,
        Route::Complete,
        Route::Verify,
        Route::Commit,
    ];
    for route in routes {
        let special: &[Fault] = match route {
            Route::Part => &part_faults,
            Route::Complete => &part_faults[..1],
            Route::Commit => &[Fault::ConcurrentCommit],
            _ => &[],
        };
        for fault in everywhere.iter().chain(special) {
            let fixture = Fixture::new();
            let (files, contents) = test_files(&fixture);
            fixture
                .fake_hub
                .set_faults(Schedule::script(route, [fault.clone()]));
            let pushed = push(&fixture, &files, 8);
            pushed.unwrap_or_else(|error| panic!("{fault:?} at {route:?}: {error}"));
            assert!(remote_files(&fixture) == contents, "{fault:?} at {route:?}");
            let concurrent = usize::from(*fault == Fault::ConcurrentCommit);
            let commits = fixture.fake_hub.commit_count(REPO, "main");
            assert_eq!(commits, 2 + concurrent, "{fault:?} at {route:?}");
        }
    }
}

#[test]
fn files_that_the_remote_holds_are_not_sent_again() {
    let fixture = Fixture::new();
    let (files, contents) = test_files(&fixture);
    let first = push(&fixture, &files, 1).expect("pushed");
    assert_eq!((first.committed, first.present, first.sent), (4, 0, 54_000));
    let tree = fixture.hub.tree(&fixture.repo, "main").expect("listing");
    assert_eq!(differences(&tree, &files).expect("compared"), []);
    assert_eq!(tree, fixture.snapshot().files, "both listings agree");
    let before = (fixture.count("PUT"), fixture.count("POST"));
    let again = push(&fixture, &files, 1).expect("nothing to do");
    assert_eq!((again.committed, again.present, again.sent), (0, 4, 0));
    assert_eq!(again.commit, first.commit);
    assert_eq!((fixture.count("PUT"), fixture.count("POST")), before);
    // Only the file that changed is sent.
    let mut changed = files;
    changed[2] = fixture.local_file("config.json", b"{\"a\": 1}\n");
    let third = push(&fixture, &changed, 1).expect("pushed");
    assert_eq!((third.committed, third.present, third.sent), (1, 3, 0));
    assert_ne!(remote_files(&fixture), contents);
}

#[test]
fn a_broken_connection_costs_only_one_part() {
    let fixture = Fixture::new();
    let (files, _) = test_files(&fixture);
    let mut script = Schedule::script(Route::Part, []);
    if let Schedule::Script(routes) = &mut script {
        let parts = routes.get_mut(&Route::Part).expect("created above");
        // The first two parts succeed: a pause of zero has no effect.
        parts.extend([
            Fault::SlowBody(0),
            Fault::SlowBody(0),
            Fault::ResetInRequest,
        ]);
    }
    fixture.fake_hub.set_faults(script);
    push(&fixture, &files[..1], 2).expect("pushed");
    assert_eq!(
        fixture.count("PUT /part/u1/"),
        6,
        "five parts, one of them twice"
    );
    assert_eq!(fixture.count("PUT /part/u1/3"), 2);
}

#[test]
fn an_expired_url_is_replaced_by_a_new_one() {
    let fixture = Fixture::new();
    let (files, contents) = test_files(&fixture);
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Part, [Fault::ExpiredUrl]));
    push(&fixture, &files, 2).expect("pushed");
    assert_eq!(remote_files(&fixture), contents);
    assert!(
        fixture.count("PUT /part/u2/") > 0,
        "a second upload was started"
    );
}

#[test]
fn repeated_concurrent_commits_end_in_a_conflict_after_few_attempts() {
    let fixture = Fixture::new();
    let (files, contents) = test_files(&fixture);
    let script = Schedule::script(Route::Commit, vec![Fault::ConcurrentCommit; 5]);
    fixture.fake_hub.set_faults(script);
    let error = push(&fixture, &files, 8).expect_err("overtaken");
    assert!(
        matches!(error, HubError::Conflict { status: 412, .. }),
        "{error}"
    );
    assert!(!error.is_transient());
    assert_eq!(fixture.count("POST /api/models/tester/model/commit"), 5);
    push(&fixture, &files, 8).expect("a later run completes");
    assert_eq!(remote_files(&fixture), contents);
    assert!(
        fixture
            .fake_hub
            .files(REPO, "main")
            .contains_key("another.txt")
    );
}

#[test]
fn the_error_of_a_commit_on_an_outdated_parent_names_the_parent() {
    let fixture = Fixture::new();
    let file = fixture.local_file("a.txt", b"a");
    let parent = fixture.snapshot().commit;
    fixture.fake_hub.commit_file(REPO, "b.txt", b"b");
    let files = [(&file, UploadMode::Regular)];
    let outcome = fixture
        .hub
        .commit(&fixture.repo, "main", &parent, "late", &files);
    let Err(HubError::Conflict {
        expected, detail, ..
    }) = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(expected, parent.to_string());
    assert!(
        detail
            .message
            .expect("why")
            .contains("A commit has happened")
    );
}

#[test]
fn creating_an_existing_repository_is_no_error() {
    let fixture = Fixture::new();
    let other = "tester/new".parse().expect("a name");
    let create = || fixture.hub.create_repo(&other, Visibility::Private);
    assert_eq!(create().expect("created"), RepoCreation::Created);
    assert_eq!(create().expect("exists"), RepoCreation::AlreadyExists);
}

#[test]
fn a_file_that_changed_before_it_is_sent_is_refused() {
    let fixture = Fixture::new();
    let (files, _) = test_files(&fixture);
    for index in [0, 2] {
        std::fs::write(&files[index].source, b"[]\n").expect("written");
        let error = push(&fixture, &files[index..=index], 1).expect_err("changed");
        assert!(matches!(error, HubError::LocalChanged { .. }), "{error}");
    }
    let ignored = fixture.local_file("a.ignored", b"a");
    let error = push(&fixture, &[ignored], 1).expect_err("excluded");
    assert!(matches!(error, HubError::Ignored { .. }), "{error}");
    assert_eq!(fixture.fake_hub.commit_count(REPO, "main"), 1);
}
