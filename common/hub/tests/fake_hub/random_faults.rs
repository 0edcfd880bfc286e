//! Hundreds of uploads and downloads under faults by chance: each completes with equal bytes, or fails cleanly and a
//! rerun completes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use uc_fake_hub::faults::Schedule;
use uc_hub::HubError;

use crate::support::{Fixture, REPO, TOKEN, noise};

const RUNS: u64 = 240;

/// What a run must not fail with, however many faults it meets.
fn check_clean(seed: u64, error: &HubError) {
    let clean = match error {
        HubError::GaveUp { last, tried, .. } => last.is_transient() && tried.len() >= 8,
        HubError::Conflict { .. } | HubError::Hash { repeated: true, .. } => true,
        _ => false,
    };
    assert!(clean, "seed {seed}: {error}");
    assert!(!format!("{error} {error:?}").contains(TOKEN), "seed {seed}");
}

/// One upload and download of everything; how many of its two halves needed a rerun.
fn run(seed: u64) -> (usize, usize) {
    let fixture = Fixture::new();
    // A few faults for most, a storm for some.
    let (percent, most) = if seed.is_multiple_of(4) {
        (75, 60)
    } else {
        (25, 12)
    };
    let mut contents = BTreeMap::new();
    for (index, size) in [45_000, 9000, 700, 0].into_iter().enumerate() {
        let size = size + if size > 0 { seed as usize % 97 } else { 0 };
        contents.insert(
            format!("deep/{index}.bin"),
            noise(seed + index as u64, size),
        );
    }
    let local = |(path, data): (&String, &Vec<u8>)| fixture.local(path, data);
    let files: Vec<_> = contents.iter().map(local).collect();
    let mut reruns = 0;

    let push = || {
        let mut watchdog = fixture.watchdog();
        fixture.hub.push(
            &fixture.repo,
            "main",
            "Files",
            &files,
            &mut watchdog,
            |_, _| {},
        )
    };
    fixture
        .fake_hub
        .set_faults(Schedule::random(seed, percent, most));
    if let Err(error) = push() {
        check_clean(seed, &error);
        reruns += 1;
        fixture.fake_hub.set_faults(Schedule::None);
        push().unwrap_or_else(|error| panic!("seed {seed}, rerun: {error}"));
    }
    let mut remote = fixture.fake_hub.content(REPO, "main");
    remote.retain(|path, _| path.starts_with("deep/"));
    assert!(remote == contents, "seed {seed}: the remote differs");

    let pull = || -> Result<(), HubError> {
        let mut watchdog = fixture.watchdog();
        let snapshot = watchdog.run("listing", |_| fixture.hub.info(&fixture.repo, "main"))?;
        for file in snapshot
            .files
            .iter()
            .filter(|file| contents.contains_key(&file.path))
        {
            let into = fixture.folder.join("down").join(&file.path);
            let (repo, commit) = (&fixture.repo, &snapshot.commit);
            fixture
                .hub
                .download(repo, commit, file, &into, &mut watchdog, |_| {})?;
        }
        Ok(())
    };
    fixture
        .fake_hub
        .set_faults(Schedule::random(seed + 1_000_000, percent, most));
    if let Err(error) = pull() {
        check_clean(seed, &error);
        reruns += 1;
        fixture.fake_hub.set_faults(Schedule::None);
        pull().unwrap_or_else(|error| panic!("seed {seed}, rerun: {error}"));
    }
    for (path, data) in &contents {
        let here = std::fs::read(fixture.folder.join("down").join(path)).expect("downloaded");
        assert!(here == *data, "seed {seed}: {path} differs");
    }
    let seen = fixture.fake_hub.seen();
    let at_storage = seen.iter().filter(|seen| seen.storage);
    assert!(at_storage.clone().all(|seen| seen.authorization.is_none()));
    (
        seen.iter().filter(|seen| seen.fault.is_some()).count(),
        reruns,
    )
}

/// Runs of these seeds; faults and reruns in all.
fn runs(seeds: std::ops::Range<u64>) -> (usize, usize) {
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
                    let (met, again) = run(seed);
                    faults.fetch_add(met, Ordering::Relaxed);
                    reruns.fetch_add(again, Ordering::Relaxed);
                }
            });
        }
    });
    let (faults, reruns) = (faults.into_inner(), reruns.into_inner());
    println!("seeds {seeds:?}: {faults} faults, {reruns} halves needed a rerun");
    (faults, reruns)
}

#[test]
fn every_run_ends_with_equal_bytes_or_a_clean_error_and_a_rerun_that_completes() {
    let (faults, reruns) = runs(0..RUNS);
    let few = "too few to prove anything";
    assert!(faults as u64 > 4 * RUNS, "{faults} faults are {few}");
    assert!(reruns > 0 && (reruns as u64) < RUNS, "{reruns} reruns");
}

#[test]
#[ignore = "minutes; `make test-full` runs it"]
fn so_do_two_thousand_more() {
    runs(RUNS..RUNS + 2000);
}
