//! SIGKILL at random moments, to the driver and to every stage: the final pack has the bytes of an undisturbed run, and a
//! kill costs at most the one job that a stage was working on.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use uc_tests::kills::{LostWork, Random, children, lost_work, signal};
use uc_tests::{compress, contents, succeed, tiny_model, uc};

/// The files of the pack and the metrics, by name.
fn products(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(&run.join("pack"));
    let metrics = std::fs::read(run.join("eval/metrics.json")).expect("metrics");
    files.insert("eval/metrics.json".into(), metrics);
    files
}

/// A series of kills with its outcome.
#[derive(Debug, Default)]
struct Series {
    /// Kills by program.
    killed: BTreeMap<String, usize>,
    kills: usize,
    /// Runs that completed.
    completed: usize,
    interrupted: u64,
    max_interrupted_at_once: u64,
}

impl Series {
    /// Checks a run that completed despite the kills.
    fn check_completed(&mut self, run: &Path, expected: &BTreeMap<String, Vec<u8>>) {
        self.completed += 1;
        let files = products(run);
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&files), names(expected));
        for (name, bytes) in expected {
            assert!(files[name] == *bytes, "{name} differs: {self:?}");
        }
        let LostWork {
            interrupted,
            max_interrupted_at_once,
            repeated,
        } = lost_work(run);
        assert_eq!(repeated, 0, "finished work was repeated: {self:?}");
        assert!(
            max_interrupted_at_once <= 1,
            "a kill cost more than one job: {self:?}"
        );
        self.interrupted += interrupted;
        self.max_interrupted_at_once = self.max_interrupted_at_once.max(max_interrupted_at_once);
    }

    fn record_kill(&mut self, name: &str) {
        *self.killed.entry(name.to_owned()).or_default() += 1;
        self.kills += 1;
    }

    /// Kills random processes `kills` times, checks every run that completes in between, and lets the last one complete.
    fn run_with_kills(
        &mut self,
        run: &Path,
        threads: &str,
        kills: usize,
        random: &mut Random,
        expected: &BTreeMap<String, Vec<u8>>,
    ) {
        let start_or_resume = |options: &[&str]| {
            let mut command = match run.join("run.json").exists() {
                true => uc(),
                false => compress(&tiny_model(), run),
            };
            if run.join("run.json").exists() {
                command.arg("resume").arg(run);
            }
            command.args(["--threads", threads]).args(options);
            command
        };
        let end = self.kills + kills;
        while self.kills < end {
            let mut command: Command = start_or_resume(&["-q"]);
            let log = run.with_extension("log");
            let file = std::fs::File::create(&log).expect("file");
            command.stdout(Stdio::null()).stderr(file);
            let mut driver = command.spawn().expect("uc starts");
            std::thread::sleep(Duration::from_millis(5 + random.below(900)));
            if let Some(status) = driver.try_wait().expect("state") {
                // The run completed before the kill. Start over, so that every kill hits work in progress.
                let text = std::fs::read_to_string(&log).expect("text");
                assert!(status.success(), "{text} after {self:?}");
                self.check_completed(run, expected);
                std::fs::remove_dir_all(run).expect("removed");
                continue;
            }
            let stages = children(driver.id());
            if random.below(2) > 0 && !stages.is_empty() {
                let (id, name) = &stages[random.below(stages.len() as u64) as usize];
                signal(*id, "-9");
                self.record_kill(name);
                // The driver restarts the stage, or is itself killed while it does so.
                std::thread::sleep(Duration::from_millis(random.below(400)));
                if random.below(4) == 0 {
                    let status = driver.wait().expect("ended");
                    let text = std::fs::read_to_string(&log).expect("text");
                    assert!(status.success(), "{text} after {self:?}");
                    continue;
                }
            }
            signal(driver.id(), "-9");
            let completed = driver.wait().expect("ended").success();
            if !completed {
                self.record_kill("uc");
            }
        }
        succeed(&mut start_or_resume(&[]));
        self.check_completed(run, expected);
    }
}

fn check(kills: usize, seed: u64) {
    let folder = tempfile::tempdir().expect("folder");
    let undisturbed = folder.path().join("undisturbed");
    succeed(&mut compress(&tiny_model(), &undisturbed));
    let expected = products(&undisturbed);
    let mut series = Series::default();
    let mut random = Random(seed);
    for threads in ["1", "2"] {
        let run = folder.path().join(threads);
        series.run_with_kills(&run, threads, kills / 2, &mut random, &expected);
    }
    let killed: BTreeSet<&str> = series.killed.keys().map(String::as_str).collect();
    assert!(killed.contains("uc") && killed.len() > 2, "{series:?}");
    println!("{series:?}");
}

#[test]
fn twenty_random_kills_change_no_byte_and_cost_at_most_one_job_each() {
    check(20, 1);
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn five_hundred_random_kills_change_no_byte_and_cost_at_most_one_job_each() {
    check(500, 2);
}
