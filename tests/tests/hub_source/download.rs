//! The download of a model: which files, from which commit, and how it fails.

use std::path::Path;
use std::process::{Command, Stdio};

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_fake_hub::{FakeHub, Options};
use uc_tests::kills::{children, signal};
use uc_tests::{
    compress, contents, fail_with, files_below, output_text, program, succeed, tiny_model, uc,
};

use crate::fixture::{
    NETWORK, REPO, assert_no_token, comparable_pack, compress_from_hub, fake_hub,
    has_partial_download, has_resumed, read_json, set_hub, spawn, storage_requests, wait_for,
};

#[test]
fn a_model_given_by_name_yields_the_pack_of_its_folder_and_records_its_origin() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let local = folder.path().join("local");
    succeed(&mut compress(&tiny_model(), &local));

    // A broken connection and a busy Hub. The client's own tests cover the other faults.
    let run = folder.path().join("run");
    let faults = [Fault::ResetBody, Fault::TooManyRequests(0)];
    fake_hub.set_faults(Schedule::script(Route::Object, faults));
    let output = succeed(&mut compress_from_hub(&fake_hub, REPO, &run));
    assert!(!output_text(&output).contains(&Options::default().token));
    let inspected = output_text(&succeed(uc().arg("inspect").arg(run.join("pack"))));
    assert!(inspected.contains("tester/tiny-stories at "), "{inspected}");
    assert!(comparable_pack(&run) == comparable_pack(&local));
    let status = succeed(uc().arg("status").arg(&run));
    assert!(output_text(&status).contains("source tester/tiny-stories at"));
    assert_no_token(folder.path());
    assert_only_model_files(&folder.path().join("models/tester--tiny-stories"));

    // A second run downloads nothing. Pinned to the commit, it makes the same pack although the branch has moved.
    let before = storage_requests(&fake_hub);
    fake_hub.commit_file(REPO, "config.json", b"{}");
    let plan = read_json(&run.join("run.json"));
    let commit = plan["model"]["hub"]["commit"].as_str().expect("commit");
    let again = folder.path().join("again");
    let pinned = format!("{REPO}@{commit}");
    succeed(&mut compress_from_hub(&fake_hub, &pinned, &again));
    assert_eq!(storage_requests(&fake_hub), before);
    assert!(contents(&run.join("pack")) == contents(&again.join("pack")));

    // An existing folder takes precedence over the Hub.
    let inner = folder.path().join("here/tester/tiny-stories");
    std::fs::create_dir_all(&inner).expect("folder");
    let mut command = compress_from_hub(&fake_hub, REPO, &folder.path().join("third"));
    let message = fail_with(command.current_dir(folder.path().join("here")), 4);
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn a_dry_run_of_a_model_of_the_hub_downloads_no_weights_and_keeps_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let run = folder.path().join("run");
    let mut command = compress_from_hub(&fake_hub, REPO, &run);
    let text = output_text(&succeed(command.arg("--dry-run")));
    assert!(text.contains("nothing was written"), "{text}");
    assert!(text.contains("estimated time"), "{text}");
    assert!(files_below(folder.path()).is_empty());
    // Of the weights, only the header is requested.
    let requests = fake_hub.requests();
    assert!(requests.iter().any(|request| request.range.is_some()));
}

/// Checks that a folder holds the weights, and none of the repository's other files.
fn assert_only_model_files(folder: &Path) {
    let files = files_below(folder);
    let names: Vec<_> = files
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .collect();
    assert!(names.contains(&"model.safetensors"), "{names:?}");
    for other in [
        "README.md",
        "pytorch_model.bin",
        "params.json",
        "calibration.txt",
    ] {
        assert!(!names.contains(&other), "{names:?}");
    }
}

#[test]
fn a_repository_without_a_usable_model_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let run = folder.path().join("run");
    for (model, code, word) in [
        ("tester/absent", 4, "tester/absent"),
        ("tester/tiny-stories@absent", 4, "absent"),
        ("tester/tiny-stories@bad..name", 2, "bad..name"),
    ] {
        let message = fail_with(&mut compress_from_hub(&fake_hub, model, &run), code);
        assert!(message.contains(word), "{message}");
    }
    fake_hub.commit_file("tester/other", "config.json", b"{}");
    fake_hub.commit_file("tester/other", "pytorch_model.bin", b"x");
    let mut command = compress_from_hub(&fake_hub, "tester/other", &run);
    let message = fail_with(&mut command, 4);
    assert!(
        message.contains("pytorch_model.bin") && message.contains("model.safetensors"),
        "{message}"
    );

    // Bytes after the last tensor are detected from the header alone.
    for (name, mut bytes) in contents(&tiny_model()) {
        if name == "model.safetensors" {
            bytes.extend([0; 3]);
        }
        fake_hub.commit_file("tester/longer", &name, &bytes);
    }
    let mut command = program("shard-loader");
    command.args(["fetch", "tester/longer", "--headers", "--to"]);
    set_hub(command.arg(folder.path().join("longer")), &fake_hub, &run);
    let message = fail_with(&mut command, 4);
    assert!(message.contains("by its header"), "{message}");
}

/// `shard-loader fetch` without waits between attempts.
fn fetch(fake_hub: &FakeHub, folder: &Path, attempts: Option<&str>) -> Command {
    let mut command = program("shard-loader");
    command.args(["fetch", REPO]);
    if let Some(attempts) = attempts {
        command.args(["--attempts", attempts]);
    }
    command.args(["--longest-wait", "0", "--to"]).arg(folder);
    set_hub(&mut command, fake_hub, folder);
    command
}

#[test]
fn a_download_that_fails_too_often_is_resumed_by_the_next_one() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let models = folder.path().join("models");
    fake_hub.set_faults(Schedule::script(
        Route::Object,
        [Fault::TruncateBody, Fault::Reset],
    ));
    let message = fail_with(&mut fetch(&fake_hub, &models, Some("1")), NETWORK);
    assert!(message.contains("download of "), "{message}");
    fake_hub.set_faults(Schedule::None);
    succeed(&mut fetch(&fake_hub, &models, Some("1")));
    assert!(has_resumed(&fake_hub));
}

#[test]
fn an_interrupted_download_ends_at_once_and_keeps_what_it_received() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let mut command = compress_from_hub(&fake_hub, REPO, &folder.path().join("run"));
    fake_hub.set_faults(Schedule::script(Route::Object, [Fault::Stall]));
    let mut child = spawn(command.stderr(Stdio::null()));
    let is_stalled = || {
        let requests = fake_hub.requests();
        requests
            .iter()
            .any(|request| request.fault == Some(Fault::Stall))
    };
    wait_for("a stalled download", || {
        is_stalled() && has_partial_download(folder.path())
    });
    let processes = children(child.id());
    assert!(!processes.is_empty());
    signal(child.id(), "-INT");
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    wait_for("the end of its processes", || {
        processes
            .iter()
            .all(|(id, _)| !Path::new(&format!("/proc/{id}/fd")).exists())
    });
    assert!(has_partial_download(folder.path()));
}

#[test]
fn content_with_the_wrong_digest_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let weights = contents(&tiny_model())
        .remove("model.safetensors")
        .expect("weights");
    let mut corrupt = weights.clone();
    corrupt[9000] ^= 1;
    fake_hub.corrupt_object(&weights, &corrupt);
    let message = fail_with(
        &mut fetch(&fake_hub, &folder.path().join("models"), None),
        NETWORK,
    );
    assert!(message.contains("SHA-256"), "{message}");
}
