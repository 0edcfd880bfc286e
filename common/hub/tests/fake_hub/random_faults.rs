//! Hundreds of uploads and downloads with random faults. Each completes with equal content, or fails with an expected error
//! and completes when it is run again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use uc_fake_hub::faults::Schedule;
use uc_hub::HubError;

use crate::fixture::{Fixture, REPO, TOKEN, noise};

const RUNS: u64 = 240;

/// Checks that an error is one that many faults may cause, and that it does not contain the token.
fn check_expected(seed: u64, error: &HubError) {
    let expected = match error {
        HubError::RetriesExhausted { last, failures, .. } => {
            last.is_transient() && failures.len() >= 8
        }
        HubError::Conflict { .. } | HubError::DigestMismatch { repeated: true, .. } => true,
        _ => false,
    };
    assert!(expected, "seed {seed}: {error}");
    assert!(!format!("{error} {error:?}").contains(TOKEN), "seed {seed}");
}

/// The content of the files of one run.
fn random_contents(seed: u64) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for (index, size) in [45_000, 9000, 700, 0].into_iter().enumerate() {
        let size = size + if size > 0 { seed as usize % 97 } else { 0 };
        contents.insert(
            format!("deep/{index}.bin"),
            noise(seed + index as u64, size),
        );
    }
    contents
}

/// Runs an operation with these faults and, if it fails, once more without faults. Returns whether it was run again.
fn with_rerun<T>(
    seed: u64,
    fixture: &Fixture,
    faults: Schedule,
    operation: impl Fn() -> Result<T, HubError>,
) -> bool {
    fixture.fake_hub.set_faults(faults);
    let Err(error) = operation() else {
        return false;
    };
    check_expected(seed, &error);
    fixture.fake_hub.set_faults(Schedule::None);
    operation().unwrap_or_else(|error| panic!("seed {seed}, rerun: {error}"));
    true
}

/// Uploads files and downloads them again. Returns the number of faults that occurred, and how many of the two
/// transfers were run again.
fn run(seed: u64) -> (usize, usize) {
    let fixture = Fixture::new();
    // Few faults for most seeds, many for some.
    let (percent, max_faults) = if seed.is_multiple_of(4) {
        (75, 60)
    } else {
        (25, 12)
    };
    let contents = random_contents(seed);
    let local_file = |(path, data): (&String, &Vec<u8>)| fixture.local_file(path, data);
    let files: Vec<_> = contents.iter().map(local_file).collect();

    let upload = || {
        let mut retrier = fixture.retrier();
        fixture.hub.push(
            &fixture.repo,
            "main",
            "Files",
            &files,
            &mut retrier,
            |_, _| {},
        )
    };
    let faults = Schedule::random(seed, percent, max_faults);
    let mut reruns = usize::from(with_rerun(seed, &fixture, faults, upload));
    let mut remote = fixture.fake_hub.files(REPO, "main");
    remote.retain(|path, _| path.starts_with("deep/"));
    assert!(remote == contents, "seed {seed}: the remote differs");

    let download = || -> Result<(), HubError> {
        let mut retrier = fixture.retrier();
        let snapshot = retrier.run("listing", |_| fixture.hub.info(&fixture.repo, "main"))?;
        for file in snapshot
            .files
            .iter()
            .filter(|file| contents.contains_key(&file.path))
        {
            let into = fixture.folder.join("down").join(&file.path);
            let (repo, commit) = (&fixture.repo, &snapshot.commit);
            fixture
                .hub
                .download(repo, commit, file, &into, &mut retrier, |_| {})?;
        }
        Ok(())
    };
    let faults = Schedule::random(seed + 1_000_000, percent, max_faults);
    reruns += usize::from(with_rerun(seed, &fixture, faults, download));
    for (path, data) in &contents {
        let local = std::fs::read(fixture.folder.join("down").join(path)).expect("downloaded");
        assert!(local == *data, "seed {seed}: {path} differs");
    }
    let requests = fixture.fake_hub.requests();
    let mut to_storage = requests.iter().filter(|request| request.storage);
    assert!(to_storage.all(|request| request.authorization.is_none()));
    let faults = requests.iter().filter(|request| request.fault.is_some());
    (faults.count(), reruns)
}

/// Runs these seeds in parallel. Returns the total numbers of faults and reruns.
fn run_all(seeds: std::ops::Range<u64>) -> (usize, usize) {
    let (next, faults, reruns) = (
        AtomicU64::new(seeds.start),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let (met, rerun) = run(seed);
                    faults.fetch_add(met, Ordering::Relaxed);
                    reruns.fetch_add(rerun, Ordering::Relaxed);
                }
            });
        }
    });
    let (faults, reruns) = (faults.into_inner(), reruns.into_inner());
    println!("seeds {seeds:?}: {faults} faults, {reruns} transfers were run again");
    (faults, reruns)
}

#[test]
fn every_transfer_completes_or_fails_with_an_expected_error_and_completes_on_a_rerun() {
    let (faults, reruns) = run_all(0..RUNS);
    let few = "too few for a meaningful test";
    assert!(faults as u64 > 4 * RUNS, "{faults} faults are {few}");
    assert!(reruns > 0 && (reruns as u64) < RUNS, "{reruns} reruns");
}

#[test]
#[ignore = "minutes; `make test-full` runs it"]
fn two_thousand_more_transfers_behave_the_same() {
    run_all(RUNS..RUNS + 2000);
}
