//! A reader that closes its end of a pipe early: every verb and every stage program ends quietly, with the exit status of its
//! work.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use uc_tests::{compress, program, repository, succeed, tiny_model, uc};

/// The end of a pipe whose other end is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    writer.into()
}

/// Exit status and standard error of a command whose standard output is a closed pipe.
fn with_closed_output(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdout(closed_pipe()).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

/// A command line of a program, by its words.
fn words(mut command: Command, words: &[&str]) -> Command {
    command.args(words);
    command
}

/// Every verb of the documentation is among those that are tested, and its help ends quietly.
fn check_help_of_every_verb(tested: &BTreeSet<&str>) {
    let document = std::fs::read_to_string(repository().join("docs/cli.md")).expect("docs");
    for section in document.split("\n## `uc ").skip(1) {
        let verb = section.split([' ', '`']).next().expect("verb");
        assert!(tested.contains(verb), "{verb} is not tested");
        let (code, text) = with_closed_output(&mut words(uc(), &[verb, "--help"]));
        assert_eq!((code, text.as_str()), (Some(0), ""), "{verb} --help");
    }
}

/// A command line of `uc` that takes little time and reaches no network.
fn of_line(line: &[&str]) -> Command {
    let mut command = words(uc(), line);
    if line.contains(&"compress") || line.contains(&"eval") {
        command.args(uc_tests::QUICK);
    }
    // Nothing listens there.
    command
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_TOKEN", "none");
    command
}

#[test]
fn every_verb_ends_quietly_when_its_reader_has_gone() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(&mut compress(&tiny_model(), &run));
    let run = run.to_str().expect("UTF-8");
    let pack = format!("{run}/pack");
    let eval = format!("{run}-eval");
    let pages = format!("{run}-pages");
    let export = format!("{run}-export");
    let model = tiny_model();
    let model = model.to_str().expect("UTF-8");
    let config = format!("{model}/config.json");
    let lines: [&[&str]; 27] = [
        &["compress", model, "--run", run],
        &["compress", model, "--run", run, "--dry-run"],
        &["resume", run, "--json"],
        &["upload", run, "--repo", "a/b", "--attempts", "1"],
        &["status", run],
        &["status", run, "--json"],
        &["status", run, "--watch", "--json"],
        &["plan", run],
        &["plan", "--config", &config],
        &["plan", "--config", &config, "--json"],
        &["stage", "manifest", "--run", run, "--with-inputs"],
        &["verify", &pack],
        &["verify", &pack, "--json"],
        &["inspect", &pack],
        &["inspect", &pack, "--json"],
        &["inspect", &pack, "--layer", "0"],
        &["inspect", &pack, "--tensor", "model.norm"],
        &["diff", &pack, &pack],
        &["export", &pack, "--to", "safetensors", "--out", &export],
        &[
            "export",
            &pack,
            "--to",
            "gguf",
            "--out",
            &export,
            "--dry-run",
            "--force",
        ],
        &["eval", &pack, "--model", model, "--run", &eval],
        &["generate", &pack, "-p", "Once", "-n", "4"],
        &["bench", &pack, "-n", "2", "--runs", "1"],
        // Refused after the model is loaded: a server would not end.
        &["serve", &pack, "--port", "0", "--context", "100000"],
        &["completions", "bash"],
        &["man", "--out", &pages],
        &["--help"],
    ];
    check_help_of_every_verb(&lines.iter().map(|line| line[0]).collect());
    for line in lines {
        let expected = match line[0] {
            // The network fails.
            "upload" => Some(11),
            "serve" => Some(2),
            _ => Some(0),
        };
        let (code, text) = with_closed_output(&mut of_line(line));
        assert_eq!(code, expected, "{line:?}: {text}");
        assert!(!text.contains("panicked"), "{line:?}: {text}");
        assert!(!text.contains("pipe"), "{line:?}: {text}");
        // Both streams, as in `uc … 2>&1 | head -1`.
        if ["resume", "upload", "verify", "status"].contains(&line[0]) {
            let mut command = of_line(line);
            let status = command.stdout(closed_pipe()).stderr(closed_pipe()).status();
            assert_eq!(status.expect("starts").code(), expected, "{line:?}");
        }
    }
}

#[test]
fn stage_programs_end_quietly_when_their_reader_has_gone() {
    let model = tiny_model();
    let model = model.to_str().expect("UTF-8");
    let config = format!("{model}/config.json");
    let lines: [(&str, &[&str]); 6] = [
        ("shard-loader", &["inspect", model]),
        ("shard-loader", &["describe", "--config", &config]),
        ("shard-loader", &["layer", "--describe"]),
        ("quantize", &["layer", "--describe"]),
        ("evaluator", &["--help"]),
        ("pack-writer", &["--version"]),
    ];
    for (name, line) in lines {
        let (code, text) = with_closed_output(&mut words(program(name), line));
        assert_eq!((code, text.as_str()), (Some(0), ""), "{name} {line:?}");
    }
    // The error is lost with the stream, its exit status is not.
    let mut command = words(program("shard-loader"), &["inspect", "/absent"]);
    let open = command.output().expect("starts").status.code();
    let closed = command.stderr(closed_pipe()).status().expect("starts");
    assert_eq!(closed.code(), open);
    assert_ne!(open, Some(0));
}

#[test]
fn a_damaged_pack_is_reported_by_the_exit_status_even_if_nobody_reads() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(&mut compress(&tiny_model(), &run));
    let layer = run.join("pack/layer_000.uc");
    let mut bytes = std::fs::read(&layer).expect("layer");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).expect("written");
    let mut verify = uc();
    verify.arg("verify").arg(run.join("pack"));
    assert_eq!(with_closed_output(&mut verify).0, Some(5));
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let full = full.expect("/dev/full");
    let mut command = words(uc(), &["completions", "fish"]);
    let output = command.stdout(full).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(text.contains("cannot write to standard output"), "{text}");
}
