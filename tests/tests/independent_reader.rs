//! `tests/independent/read_pack.py`, written from the specification alone, agrees with `uc` about a pack and finds damages.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, Output};

use uc_tests::{compress, repository, succeed, tiny_model, uc};

fn read_pack(pack: &Path, options: &[&str]) -> Output {
    let mut command = Command::new("python3");
    let script = repository().join("tests/independent/read_pack.py");
    command
        .arg(script)
        .arg(pack)
        .args(options)
        .output()
        .expect("python3 starts")
}

/// Whether python3 with numpy is there; the reader needs both.
fn has_numpy() -> bool {
    let mut command = Command::new("python3");
    let output = command.args(["-c", "import numpy"]).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn the_independent_reader_checks_everything_and_finds_what_is_damaged() {
    if !has_numpy() {
        eprintln!("skipped: no python3 with numpy");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let settings = ["allocation.mode=per-tensor", "calibration.windows=4"];
    let set = settings.iter().flat_map(|setting| ["--set", setting]);
    succeed(
        compress(&tiny_model(), &run)
            .args(["--no-eval", "--rank", "2"])
            .args(set),
    );
    let pack = run.join("pack");
    let output = read_pack(&pack, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("coded linears       28 of 28\n"), "{text}");
    let counts = text
        .lines()
        .find(|line| line.ends_with("checked, 0 wrong"))
        .expect("a count");
    let words: Vec<&str> = counts.split(' ').collect();
    assert_eq!(words[0], words[2], "{counts}");
    let fingerprint = text.lines().last().expect("a fingerprint");
    let fingerprint = fingerprint
        .strip_prefix("fingerprint ")
        .expect("a fingerprint");
    succeed(
        uc().arg("verify")
            .arg(&pack)
            .args(["--expect", fingerprint]),
    );

    for name in [
        "layer_002.uc",
        "scaffold.uc",
        "config.json",
        "manifest.sha256",
    ] {
        let path = pack.join(name);
        let bytes = std::fs::read(&path).expect("file");
        let mut damaged = bytes.clone();
        let last = damaged.len() - 2;
        damaged[last] ^= 1;
        std::fs::write(&path, damaged).expect("damage");
        let output = read_pack(&pack, &["--layers", "1"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(name) && !text.contains(" 0 wrong"), "{text}");
        std::fs::write(&path, bytes).expect("restored");
    }
}
