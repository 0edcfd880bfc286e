//! A job that dies in the middle of a layer: it continues after the last linear that it has stored, and the pack has the bytes of an
//! undisturbed run.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use uc_tests::kills::{children, signal};
use uc_tests::{compress, contents, succeed, tiny_model, uc};

/// Longer than a run of the embedded model takes, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The job may be done before the signal reaches it; then the next run is disturbed.
const ATTEMPTS: usize = 10;

fn start(run: &Path, rank: &str) -> Child {
    let mut command = compress(&tiny_model(), run);
    command.args(["-q", "--rank", rank]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("uc starts")
}

/// Waits until a job of the stage has stored a linear of a pass, and returns its scratch folder; None if the run ends before.
fn wait_for_linear(run: &Path, stage: &str, driver: &mut Child) -> Option<PathBuf> {
    let begun = Instant::now();
    let is_pass = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        name.is_some_and(|name| name.starts_with("pass-")) && size > 0
    };
    let files = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    while driver.try_wait().expect("state").is_none() {
        assert!(begun.elapsed() < TIMEOUT, "no pass of {stage}");
        let jobs = files(&run.join("scratch").join(stage));
        let job = jobs
            .into_iter()
            .find(|job| files(job).iter().any(|path| is_pass(path)));
        if job.is_some() {
            return job;
        }
    }
    None
}

/// Sends a signal to a program of the run, or to the driver, until a job of the stage continues another one's work, and compares the
/// pack with that of an undisturbed run.
fn continues(stage: &str, program: Option<&str>, sent: &str, rank: &str) {
    let folder = tempfile::tempdir().expect("folder");
    let undisturbed = folder.path().join("undisturbed");
    assert!(start(&undisturbed, rank).wait().expect("ended").success());
    let expected = contents(&undisturbed.join("pack"));
    for attempt in 0..ATTEMPTS {
        let run = folder.path().join(format!("run-{attempt}"));
        let mut driver = start(&run, rank);
        let job = wait_for_linear(&run, stage, &mut driver);
        let is_worker = |(_, name): &&(u32, String)| Some(name.as_str()) == program;
        let worker = children(driver.id())
            .iter()
            .find(is_worker)
            .map(|(id, _)| *id);
        signal(worker.unwrap_or(driver.id()), sent);
        if !driver.wait().expect("ended").success() {
            succeed(uc().arg("resume").arg(&run));
        }
        let found = contents(&run.join("pack"));
        assert!(found.keys().eq(expected.keys()));
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{name} differs");
        }
        assert!(job.is_none_or(|job| !job.exists()), "scratch is left");
        let events = std::fs::read_to_string(run.join("events.jsonl")).expect("events");
        let mut lines = events.lines().filter(|line| line.contains(stage));
        if lines.any(|line| line.contains("continues an interrupted job")) {
            return;
        }
    }
    panic!("no job of {stage} continued in {ATTEMPTS} attempts");
}

#[test]
fn a_killed_quantize_continues_after_its_last_linear() {
    continues("quantize", Some("quantize"), "-KILL", "auto");
}

#[test]
fn a_quantize_whose_driver_was_killed_continues_on_resume() {
    continues("quantize", None, "-KILL", "auto");
}

#[test]
fn a_quantize_that_was_stopped_in_order_continues_on_resume() {
    continues("quantize", None, "-TERM", "auto");
}

#[test]
fn a_killed_fit_of_forced_ranks_continues_after_its_last_linear() {
    continues("overlay-fit", Some("overlay-fit"), "-KILL", "2");
}
