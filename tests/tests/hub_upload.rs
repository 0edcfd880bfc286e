//! A pack goes to a repository: under faults, over a kill, and not at all when it is damaged.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use uc_hub_double::faults::{Fault, Route, Schedule};
use uc_hub_double::{Double, Options};
use uc_tests::{compress, contents, fail_with, json, program, succeed, tiny_model, uc, words};

const REPO: &str = "tester/pack";

fn double() -> Double {
    Double::start(Options {
        lfs_threshold: 20_000,
        part_size: 30_000,
        page: 3,
        ..Options::default()
    })
}

fn upload(double: &Double, run: &Path) -> Command {
    let mut command = program("hub-upload");
    command.args(["upload", "--repo", REPO, "--longest-wait", "0", "--run"]);
    command.arg(run);
    command.env("HF_ENDPOINT", double.endpoint());
    command.env("HF_TOKEN", Options::default().token);
    command
}

/// A finished run, and what a repository should hold of it.
fn finished_run(folder: &Path) -> (std::path::PathBuf, BTreeMap<String, Vec<u8>>) {
    let run = folder.join("run");
    succeed(&mut compress(&tiny_model(), &run));
    succeed(uc().args(["stage", "hub-upload", "--run"]).arg(&run));
    let mut expected = contents(&run.join("pack"));
    let card = std::fs::read(run.join("hub/README.md")).expect("the card");
    expected.insert("README.md".into(), card);
    (run, expected)
}

fn remote(double: &Double) -> BTreeMap<String, Vec<u8>> {
    let mut content = double.content(REPO, "main");
    content.remove(".gitattributes");
    content
}

#[test]
fn a_pack_reaches_its_repository_whatever_happens_on_the_way() {
    let folder = tempfile::tempdir().expect("folder");
    let (run, expected) = finished_run(folder.path());

    // Faults of every kind, and reruns until it says that it is done.
    let stormy = double();
    let mut runs = 0;
    for seed in 0.. {
        stormy.set_faults(Schedule::random(seed, 30, 15));
        runs += 1;
        let mut command = upload(&stormy, &run);
        let output = command.output().expect("the program starts");
        let said = words(&output);
        assert!(!said.contains(&Options::default().token), "{said}");
        if output.status.success() {
            assert!(said.contains("done: tester/pack holds"), "{said}");
            break;
        }
        assert!(output.status.code() == Some(11) && runs < 8, "{said}");
    }
    assert!(remote(&stormy) == expected);

    // Nothing is sent twice, and the outcome is on disk.
    stormy.set_faults(Schedule::None);
    let commits = stormy.commits(REPO, "main");
    let puts = |double: &Double| {
        let seen = double.seen();
        seen.iter()
            .filter(|seen| seen.line.starts_with("PUT"))
            .count()
    };
    let before = puts(&stormy);
    succeed(&mut upload(&stormy, &run));
    assert_eq!(
        (stormy.commits(REPO, "main"), puts(&stormy)),
        (commits, before)
    );
    let read = |name: &str| -> serde_json::Value {
        let text = std::fs::read(run.join("hub").join(name)).expect(name);
        serde_json::from_slice(&text).expect("JSON")
    };
    let outcome = read("upload.json");
    assert_eq!(outcome["repository"], REPO);
    assert_eq!(outcome["files"], expected.len());
    assert_eq!(read("watchdog.json")["phase"], "done");

    // A process that is killed in the middle; its successor completes.
    let other = double();
    let mut faults = vec![Fault::Drip(0), Fault::Drip(0)];
    faults.extend(vec![Fault::Stall; 20]);
    let script = Schedule::script(Route::Part, faults);
    other.set_faults(script);
    let mut child = upload(&other, &run).spawn().expect("the program starts");
    let start = std::time::Instant::now();
    while puts(&other) < 3 && start.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert!(remote(&other) != expected);
    other.set_faults(Schedule::None);
    succeed(&mut upload(&other, &run));
    assert!(remote(&other) == expected);
}

#[test]
fn what_must_not_or_cannot_be_sent_is_refused_with_its_class() {
    let folder = tempfile::tempdir().expect("folder");
    let (run, _) = finished_run(folder.path());
    let double = double();

    let mut without = upload(&double, &run);
    without
        .env_remove("HF_TOKEN")
        .env("HF_TOKEN_PATH", "/nonexistent");
    assert!(fail_with(&mut without, 8).contains("HF_TOKEN"));
    let mut wrong = upload(&double, &run);
    let said = fail_with(wrong.env("HF_TOKEN", "hf_wrong"), 8);
    assert!(said.contains("401") && !said.contains("hf_wrong"), "{said}");
    let mut nobody = upload(&double, &run);
    nobody
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .args(["--attempts", "2"]);
    let said = fail_with(&mut nobody, 11);
    assert!(said.contains("gave up after 2 attempts"), "{said}");
    fail_with(upload(&double, &run).args(["--repo", "no-owner"]), 2);

    // A damaged pack stays at home.
    let layer = run.join("pack/layer_000.uc");
    let mut bytes = std::fs::read(&layer).expect("layer");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).expect("damaged");
    let said = fail_with(&mut upload(&double, &run), 5);
    assert!(said.contains("does not verify"), "{said}");
    let report = uc()
        .arg("verify")
        .arg(run.join("pack"))
        .arg("--json")
        .output();
    assert!(
        json(&report.expect("it starts"))
            .to_string()
            .contains("layer_000")
    );
    let seen = double.seen();
    assert!(
        seen.iter().all(|seen| !seen.line.contains("/commit/")),
        "nothing was committed"
    );
}
