//! Uploads under every fault.

use std::collections::BTreeMap;

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_hub::{Created, HubError, LocalFile, Mode, Pushed, Visibility, differences};

use crate::support::{Fixture, REPO, noise};

/// One file of each kind: in parts, whole to storage, in the commit, empty.
fn files(fixture: &Fixture) -> (Vec<LocalFile>, BTreeMap<String, Vec<u8>>) {
    let contents = [
        ("deep/parts.bin", noise(1, 45_000)),
        ("whole.bin", noise(2, 9000)),
        ("config.json", b"{}\n".to_vec()),
        ("deep/empty", Vec::new()),
    ];
    let files = contents
        .iter()
        .map(|(path, data)| fixture.local(path, data));
    let files = files.collect();
    let contents = contents
        .into_iter()
        .map(|(path, data)| (path.to_owned(), data));
    (files, contents.collect())
}

fn push(fixture: &Fixture, files: &[LocalFile], attempts: u32) -> Result<Pushed, HubError> {
    let mut watchdog = fixture.watchdog_of(attempts);
    fixture.hub.push(
        &fixture.repo,
        "main",
        "Files",
        files,
        &mut watchdog,
        |_, _| {},
    )
}

fn remote(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    let mut content = fixture.fake_hub.content(REPO, "main");
    content.remove(".gitattributes");
    content.remove("another.txt");
    content
}

#[test]
fn an_upload_survives_every_fault_at_every_step_and_commits_once() {
    let everywhere = [
        Fault::Reset,
        Fault::ResetInRequest,
        Fault::LostAnswer,
        Fault::CutBody,
        Fault::ResetBody,
        Fault::Stall,
        Fault::Drip(1),
        Fault::Status(500),
        Fault::Status(503),
        Fault::TooMany(2),
    ];
    let of_parts = [Fault::Expired, Fault::CorruptPart];
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
            Route::Part => &of_parts,
            Route::Complete => &of_parts[..1],
            Route::Commit => &[Fault::Conflict],
            _ => &[],
        };
        for fault in everywhere.iter().chain(special) {
            let fixture = Fixture::new();
            let (files, contents) = files(&fixture);
            fixture
                .fake_hub
                .set_faults(Schedule::script(route, [fault.clone()]));
            let pushed = push(&fixture, &files, 8);
            pushed.unwrap_or_else(|error| panic!("{fault:?} at {route:?}: {error}"));
            assert!(remote(&fixture) == contents, "{fault:?} at {route:?}");
            let foreign = usize::from(*fault == Fault::Conflict);
            let commits = fixture.fake_hub.commits(REPO, "main");
            assert_eq!(commits, 2 + foreign, "{fault:?} at {route:?}");
        }
    }
}

#[test]
fn what_the_remote_holds_is_not_sent_again() {
    let fixture = Fixture::new();
    let (files, contents) = files(&fixture);
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
    // One file changes: it alone goes.
    let mut changed = files;
    changed[2] = fixture.local("config.json", b"{\"a\": 1}\n");
    let third = push(&fixture, &changed, 1).expect("pushed");
    assert_eq!((third.committed, third.present, third.sent), (1, 3, 0));
    assert_ne!(remote(&fixture), contents);
}

#[test]
fn a_broken_connection_costs_one_part() {
    let fixture = Fixture::new();
    let (files, _) = files(&fixture);
    let mut script = Schedule::script(Route::Part, []);
    if let Schedule::Script(routes) = &mut script {
        let parts = routes.get_mut(&Route::Part).expect("made above");
        // The first two go through: a drip changes nothing.
        parts.extend([Fault::Drip(0), Fault::Drip(0), Fault::ResetInRequest]);
    }
    fixture.fake_hub.set_faults(script);
    push(&fixture, &files[..1], 2).expect("pushed");
    assert_eq!(
        fixture.count("PUT /part/u1/"),
        6,
        "five parts and one repeated"
    );
    assert_eq!(fixture.count("PUT /part/u1/3"), 2);
}

#[test]
fn an_expired_url_is_replaced_by_a_fresh_one() {
    let fixture = Fixture::new();
    let (files, contents) = files(&fixture);
    fixture
        .fake_hub
        .set_faults(Schedule::script(Route::Part, [Fault::Expired]));
    push(&fixture, &files, 2).expect("pushed");
    assert_eq!(remote(&fixture), contents);
    assert!(fixture.count("PUT /part/u2/") > 0, "another upload began");
}

#[test]
fn others_that_keep_committing_are_a_conflict_and_no_retry_storm() {
    let fixture = Fixture::new();
    let (files, contents) = files(&fixture);
    let script = Schedule::script(Route::Commit, vec![Fault::Conflict; 5]);
    fixture.fake_hub.set_faults(script);
    let error = push(&fixture, &files, 8).expect_err("overtaken");
    assert!(
        matches!(error, HubError::Conflict { status: 412, .. }),
        "{error}"
    );
    assert!(!error.is_transient());
    assert_eq!(fixture.count("POST /api/models/tester/model/commit"), 5);
    push(&fixture, &files, 8).expect("a later run completes");
    assert_eq!(remote(&fixture), contents);
    assert!(
        fixture
            .fake_hub
            .content(REPO, "main")
            .contains_key("another.txt")
    );
}

#[test]
fn a_commit_on_an_old_parent_names_it() {
    let fixture = Fixture::new();
    let file = fixture.local("a.txt", b"a");
    let parent = fixture.snapshot().commit;
    fixture.fake_hub.put(REPO, "b.txt", b"b");
    let files = [(&file, Mode::Regular)];
    let outcome = fixture
        .hub
        .commit(&fixture.repo, "main", &parent, "late", &files);
    let Err(HubError::Conflict { expected, said, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(expected, parent.to_string());
    assert!(said.message.expect("why").contains("A commit has happened"));
}

#[test]
fn a_repository_is_made_once() {
    let fixture = Fixture::new();
    let other = "tester/new".parse().expect("a name");
    let create = || fixture.hub.create_repo(&other, Visibility::Private);
    assert_eq!(create().expect("made"), Created::New);
    assert_eq!(create().expect("there"), Created::Existed);
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_refused() {
    let fixture = Fixture::new();
    let (files, _) = files(&fixture);
    for index in [0, 2] {
        std::fs::write(&files[index].source, b"[]\n").expect("written");
        let error = push(&fixture, &files[index..=index], 1).expect_err("changed");
        assert!(matches!(error, HubError::LocalChanged { .. }), "{error}");
    }
    let ignored = fixture.local("a.ignored", b"a");
    let error = push(&fixture, &[ignored], 1).expect_err("excluded");
    assert!(matches!(error, HubError::Ignored { .. }), "{error}");
    assert_eq!(fixture.fake_hub.commits(REPO, "main"), 1);
}
