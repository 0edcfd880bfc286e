//! kill -9 at random moments, of the driver and of every stage: the final pack has the bytes of an undisturbed run, and
//! a kill costs at most the one job that a stage had in hand.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use uc_tests::kills::{Losses, Random, children, losses, signal};
use uc_tests::{compress, contents, succeed, tiny_model, uc};

/// What a pack and its metrics must be, byte for byte.
fn product(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(&run.join("pack"));
    let metrics = std::fs::read(run.join("eval/metrics.json")).expect("metrics");
    files.insert("eval/metrics.json".into(), metrics);
    files
}

/// A series of kills and what came of it.
#[derive(Debug, Default)]
struct Series {
    struck: BTreeMap<String, usize>,
    kills: usize,
    completed: usize,
    cut_off: u64,
    most_at_once: u64,
}

impl Series {
    /// Looks at a run that got to its end in spite of the kills.
    fn complete(&mut self, run: &Path, expected: &BTreeMap<String, Vec<u8>>) {
        self.completed += 1;
        let found = product(run);
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(expected));
        for (name, bytes) in expected {
            assert!(found[name] == *bytes, "{name} differs: {self:?}");
        }
        let Losses {
            cut_off,
            most_at_once,
            done_again,
        } = losses(run);
        assert_eq!(done_again, 0, "finished work was done again: {self:?}");
        assert!(most_at_once <= 1, "a kill cost more than a layer: {self:?}");
        self.cut_off += cut_off;
        self.most_at_once = self.most_at_once.max(most_at_once);
    }

    fn strike(&mut self, name: &str) {
        *self.struck.entry(name.to_owned()).or_default() += 1;
        self.kills += 1;
    }

    /// Kills until `kills` have struck, looks at every run that got to its end, and lets the last one get there.
    fn disturb(
        &mut self,
        run: &Path,
        threads: &str,
        kills: usize,
        random: &mut Random,
        expected: &BTreeMap<String, Vec<u8>>,
    ) {
        let begin = |quiet: &[&str]| {
            let mut command = match run.join("run.json").exists() {
                true => uc(),
                false => compress(&tiny_model(), run),
            };
            if run.join("run.json").exists() {
                command.arg("resume").arg(run);
            }
            command.args(["--threads", threads]).args(quiet);
            command
        };
        let end = self.kills + kills;
        while self.kills < end {
            let mut command: Command = begin(&["-q"]);
            let said = run.with_extension("said");
            let file = std::fs::File::create(&said).expect("file");
            command.stdout(Stdio::null()).stderr(file);
            let mut driver = command.spawn().expect("uc starts");
            std::thread::sleep(Duration::from_millis(5 + random.below(900)));
            if let Some(status) = driver.try_wait().expect("state") {
                // It got to the end: start over, so that every kill finds work in progress.
                let said = std::fs::read_to_string(&said).expect("text");
                assert!(status.success(), "{said} after {self:?}");
                self.complete(run, expected);
                std::fs::remove_dir_all(run).expect("removed");
                continue;
            }
            let stages = children(driver.id());
            if random.below(2) > 0 && !stages.is_empty() {
                let (id, name) = &stages[random.below(stages.len() as u64) as usize];
                signal(*id, "-9");
                self.strike(name);
                // The driver starts the stage again, or goes in the middle of that.
                std::thread::sleep(Duration::from_millis(random.below(400)));
                if random.below(4) == 0 {
                    let status = driver.wait().expect("ended");
                    let said = std::fs::read_to_string(&said).expect("text");
                    assert!(status.success(), "{said} after {self:?}");
                    continue;
                }
            }
            signal(driver.id(), "-9");
            let by_itself = driver.wait().expect("ended").success();
            if !by_itself {
                self.strike("uc");
            }
        }
        succeed(&mut begin(&[]));
        self.complete(run, expected);
    }
}

fn check(kills: usize, seed: u64) {
    let folder = tempfile::tempdir().expect("folder");
    let calm = folder.path().join("calm");
    succeed(&mut compress(&tiny_model(), &calm));
    let expected = product(&calm);
    let mut series = Series::default();
    let mut random = Random(seed);
    for threads in ["1", "2"] {
        let run = folder.path().join(threads);
        series.disturb(&run, threads, kills / 2, &mut random, &expected);
    }
    let struck: BTreeSet<&str> = series.struck.keys().map(String::as_str).collect();
    assert!(struck.contains("uc") && struck.len() > 2, "{series:?}");
    println!("{series:?}");
}

#[test]
fn twenty_random_kills_change_no_byte_and_cost_at_most_a_layer_each() {
    check(20, 1);
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn five_hundred_random_kills_change_no_byte_and_cost_at_most_a_layer_each() {
    check(500, 2);
}
