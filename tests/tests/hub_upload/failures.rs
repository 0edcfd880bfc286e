//! Uploads that meet faults, kills and a dead network, and complete in the end.

use std::process::Stdio;

use serde_json::Value;
use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_tests::kills::{lost_work, processes_of_run, signal};
use uc_tests::{compress, contents, fail_with, json, output_text, succeed, tiny_model, uc};

use crate::fixture::{
    INTERRUPTED, NETWORK, REPO, assert_no_token, compress_and_upload, count_requests, events,
    expected_files, fake_hub, layer_count, read_json, remote_files, remote_pack, resume,
    run_until_success, upload, wait_for,
};

#[test]
fn layers_are_uploaded_while_later_ones_are_produced_whatever_faults_occur() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let faulty = fake_hub();
    let mut seeds = 0..;
    let commands = std::iter::from_fn(|| {
        let seed = seeds.next()?;
        faulty.set_faults(Schedule::random(seed, 30, 20));
        let mut command = compress_and_upload(&faulty, &tiny_model(), &run);
        command.arg("--json");
        Some(command)
    });
    let output = run_until_success(commands);
    let expected = expected_files(&run);
    assert!(remote_files(&faulty) == expected);
    let summary = json(&output);
    assert_eq!(summary["upload"]["repository"], REPO);
    assert_eq!(summary["upload"]["files"], expected.len());
    assert_eq!(summary["upload"], read_json(&run.join("pack/remote.json")));
    assert_eq!(summary["pack"]["verdict"], "PASS");
    succeed(uc().arg("verify").arg(run.join("pack")));
    assert_no_token(&run);

    // Nothing is sent twice. Another repository makes only the upload stale.
    faulty.set_faults(Schedule::None);
    let sent = || {
        let commits = faulty.commit_count(REPO, "main");
        (commits, count_requests(&faulty, "PUT"))
    };
    let before = sent();
    let message = output_text(&succeed(&mut upload(&faulty, &run)));
    assert!(
        message.contains("uploaded to           tester/pack"),
        "{message}"
    );
    assert_eq!(before, sent());
    let other = fake_hub();
    succeed(&mut upload(&other, &run));
    assert!(remote_files(&other) == expected);
    assert_eq!(lost_work(&run).interrupted, 0);
    let quantized = events(&run, &[("event", "finished"), ("stage", "quantize")]);
    assert_eq!(quantized.len(), 4);
}

#[test]
fn after_a_kill_of_the_stage_or_the_driver_the_next_one_completes_the_upload() {
    let folder = tempfile::tempdir().expect("folder");
    let (run, reference) = (folder.path().join("run"), folder.path().join("reference"));
    succeed(&mut compress(&tiny_model(), &reference));
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(Route::Part, vec![Fault::Stall; 200]));
    let start = || {
        let mut command = compress_and_upload(&fake_hub, &tiny_model(), &run);
        command.args(["--delete-uploaded", "--attempts", "1000"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("uc")
    };
    let wait_for_uploader = || {
        let mut uploader = None;
        wait_for("the upload of a layer", || {
            let is_uploader = |id: &u32| {
                let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let mut arguments = arguments.split(|byte| *byte == 0);
                arguments.any(|argument| argument == b"upload-layer")
            };
            uploader = processes_of_run(&run).into_iter().find(is_uploader);
            uploader.is_some() && count_requests(&fake_hub, "PUT") > 0
        });
        uploader.expect("found above")
    };

    // If the stage is killed, the driver starts another process for its job.
    let mut driver = start();
    signal(wait_for_uploader(), "-9");
    let failures = || events(&run, &[("event", "job-failure"), ("stage", "upload-layer")]);
    wait_for("the record of the failure", || !failures().is_empty());
    assert_eq!(failures()[0].1["class"], "stage-failed");
    // If the driver is killed, its stages end with it.
    wait_for_uploader();
    driver.kill().expect("killed");
    driver.wait().expect("ended");
    wait_for("the end of the stages", || {
        processes_of_run(&run).is_empty()
    });
    assert!(!run.join("pack/remote.json").exists());

    fake_hub.set_faults(Schedule::None);
    succeed(&mut resume(&fake_hub, &run));
    assert_eq!(layer_count(&run), 0);
    assert!(remote_pack(&fake_hub) == contents(&reference.join("pack")));
}

#[test]
fn without_a_network_only_the_upload_fails() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(
        Route::Batch,
        vec![Fault::Status(503); 900],
    ));
    let mut command = compress_and_upload(&fake_hub, &tiny_model(), &run);
    let output = command.args(["--attempts", "2", "--json"]).output();
    let output = output.expect("uc");
    let message = output_text(&output);
    assert_eq!(output.status.code(), Some(NETWORK), "{message}");
    assert!(message.contains("gave up after 2 attempts"), "{message}");
    assert!(message.contains("uc resume"), "{message}");
    let summary = json(&output);
    assert_eq!(summary["pack"]["verdict"], "PASS");
    assert!(summary["metrics"]["pack_ppl"]["value"].is_f64());
    assert_eq!(summary["upload"], Value::Null);
    succeed(uc().arg("verify").arg(run.join("pack")));

    fake_hub.set_faults(Schedule::None);
    let packed = || events(&run, &[("event", "finished"), ("stage", "pack-writer")]).len();
    assert_eq!(packed(), 4);
    succeed(&mut resume(&fake_hub, &run));
    assert_eq!(packed(), 4);
    assert!(remote_files(&fake_hub) == expected_files(&run));

    // An endpoint where nothing listens.
    let mut unreachable = upload(&fake_hub, &run);
    unreachable
        .args(["--attempts", "1"])
        .env("HF_ENDPOINT", "http://127.0.0.1:1");
    fail_with(&mut unreachable, NETWORK);
}

#[test]
fn a_waiting_upload_is_shown_by_status_and_can_be_interrupted() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(
        Route::Batch,
        vec![Fault::TooManyRequests(60); 9],
    ));
    let mut command = compress_and_upload(&fake_hub, &tiny_model(), &run);
    command.args(["--set", "upload.longest_wait=60"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut driver = command.spawn().expect("uc");
    let pending_retry = || {
        let output = uc().arg("status").arg(&run).arg("--json").output();
        let status: Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
        let running = status["running"].as_array()?;
        let retry = running.iter().find_map(|job| job.get("retry"))?;
        Some(retry.clone())
    };
    wait_for("a pending retry", || pending_retry().is_some());
    let retry = pending_retry().expect("still pending");
    assert_eq!(
        (&retry["attempt"], &retry["attempts"]),
        (&2.into(), &8.into())
    );
    let error = retry["error"].as_str().expect("text");
    assert!(error.contains("429"), "{error}");
    let status = output_text(&succeed(uc().arg("status").arg(&run)));
    assert!(status.contains("; attempt 2 of 8 in "), "{status}");

    signal(driver.id(), "-INT");
    let exit_status = driver.wait().expect("ended");
    assert_eq!(exit_status.code(), Some(INTERRUPTED));
    assert!(processes_of_run(&run).is_empty());
    fake_hub.set_faults(Schedule::None);
    succeed(&mut resume(&fake_hub, &run));
    assert!(remote_files(&fake_hub) == expected_files(&run));
}
