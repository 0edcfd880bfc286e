//! kill -9 at random moments, of the driver and of every stage: the final pack has the bytes of an undisturbed run.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use uc_tests::{compress, contents, succeed, tiny_model, uc};

/// SplitMix64: the same kills on every machine, as far as a clock can be the same.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Process ids and names of the direct children of a process.
fn children(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else {
            continue;
        };
        let ppid = stat[close + 1..]
            .split_whitespace()
            .nth(1)
            .and_then(|p| p.parse().ok());
        if ppid == Some(parent) {
            found.push((id, stat[open + 1..close].to_owned()));
        }
    }
    found
}

fn kill(id: u32) {
    // The process may have ended by itself in the meantime.
    let _ = Command::new("kill")
        .args(["-9", &id.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Kills until `kills` have struck, then lets the run end; returns what was struck.
fn disturbed(run: &Path, threads: &str, kills: usize, seed: u64) -> BTreeSet<String> {
    let mut random = Random(seed);
    let mut struck = BTreeSet::new();
    let mut count = 0;
    let mut first = true;
    while count < kills {
        let mut command = if first {
            compress(&tiny_model(), run)
        } else {
            uc()
        };
        if !first {
            command.arg("resume").arg(run);
        }
        command
            .args(["--threads", threads, "-q"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut driver = command.spawn().expect("uc starts");
        std::thread::sleep(Duration::from_millis(30 + random.below(700)));
        first = first && !run.join("run.json").exists();
        if driver.try_wait().expect("state").is_some() {
            // It got to the end: start over, so that every kill finds work in progress.
            let _ = std::fs::remove_dir_all(run);
            first = true;
            continue;
        }
        let stages = children(driver.id());
        if random.below(2) == 0 || stages.is_empty() {
            kill(driver.id());
            driver.wait().expect("ended");
            struck.insert("uc".to_owned());
            count += 1;
        } else {
            let (id, name) = &stages[random.below(stages.len() as u64) as usize];
            kill(*id);
            struck.insert(name.clone());
            count += 1;
            std::thread::sleep(Duration::from_millis(random.below(200)));
            kill(driver.id());
            driver.wait().expect("ended");
        }
    }
    let mut last = uc();
    if run.join("run.json").exists() {
        last.arg("resume").arg(run);
    } else {
        last = compress(&tiny_model(), run);
    }
    succeed(last.args(["--threads", threads]));
    struck
}

fn check(kills: usize, seed: u64) {
    let folder = tempfile::tempdir().expect("folder");
    let calm = folder.path().join("calm");
    succeed(&mut compress(&tiny_model(), &calm));
    let expected = contents(&calm.join("pack"));
    for threads in ["1", "2"] {
        let run = folder.path().join(threads);
        let struck = disturbed(&run, threads, kills, seed);
        assert!(
            struck.contains("uc") && struck.len() > 2,
            "only {struck:?} were killed"
        );
        let found = contents(&run.join("pack"));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (name, bytes) in &expected {
            assert!(
                found[name] == *bytes,
                "{name} differs after kills of {struck:?}"
            );
        }
        let metrics = |run: &Path| std::fs::read(run.join("eval/metrics.json")).expect("metrics");
        assert_eq!(metrics(&run), metrics(&calm));
    }
}

#[test]
fn twenty_random_kills_change_no_byte_with_one_and_with_two_threads() {
    check(20, 1);
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn two_hundred_random_kills_change_no_byte() {
    check(200, 2);
}
