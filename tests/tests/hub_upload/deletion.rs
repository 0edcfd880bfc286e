//! `--delete-uploaded`: layers are deleted after their upload, and few of them are on disk at any time.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use uc_fake_hub::FakeHub;
use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_tests::{compress, contents, fail_with, json, output_text, succeed, uc};

use crate::fixture::{
    DAMAGED, MISSING_INPUT, NETWORK, REPO, compress_and_upload, events, fake_hub, folder_bytes,
    layer_count, many_layers, remote_pack, resume, upload,
};

/// Most layer files on disk: `max_lead` of pack-writer, and the one that is being written.
const MAX_LAYERS_ON_DISK: usize = 3;
const LAYERS: u64 = 8;

#[test]
fn uploaded_layers_are_deleted_and_few_are_on_disk_at_any_time() {
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path(), LAYERS);
    let reference = folder.path().join("reference");
    succeed(&mut compress(&model, &reference));
    let pack = contents(&reference.join("pack"));

    // If every commit fails, the run stops at the limit, before it fills the disk.
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(
        Route::Commit,
        vec![Fault::Status(500); 900],
    ));
    let mut command = compress_and_upload(&fake_hub, &model, &run);
    fail_with(
        command.args(["--delete-uploaded", "--attempts", "1"]),
        NETWORK,
    );
    assert_eq!(layer_count(&run), MAX_LAYERS_ON_DISK);

    let output = compress_with_slow_commits(&fake_hub, &model, &run, &reference);
    // The first layer was uploaded before the last one was begun.
    let uploaded = events(&run, &[("event", "finished"), ("stage", "upload-layer")]);
    let begun = events(&run, &[("event", "started"), ("stage", "pack-writer")]);
    assert!(uploaded[0].0 < begun[begun.len() - 1].0);
    let summary = json(&output);
    assert_eq!(summary["pack"]["deleted_layers"], LAYERS);
    assert_eq!(summary["pack"]["verdict"], Value::Null);
    assert!(remote_pack(&fake_hub) == pack);

    // The run is complete: nothing remains to be done or sent, and `uc verify` says where the layers are.
    let commits = fake_hub.commit_count(REPO, "main");
    let message = output_text(&succeed(&mut resume(&fake_hub, &run)));
    assert!(message.contains(": 0 of "), "{message}");
    assert!(
        message.contains("8 of 8 layers are only in the repository"),
        "{message}"
    );
    succeed(&mut upload(&fake_hub, &run));
    assert_eq!(fake_hub.commit_count(REPO, "main"), commits);
    let message = fail_with(uc().arg("verify").arg(run.join("pack")), DAMAGED);
    assert!(
        message.contains(
            "layer_003.uc: not in this folder; according to remote.json, tester/pack holds it"
        ),
        "{message}"
    );

    recreate_missing_layers(&model, &run, &reference);
    upload_in_few_commits(&reference);
}

/// Compresses while commits are slow, and checks that the run waits instead of exceeding its limit on disk.
fn compress_with_slow_commits(
    fake_hub: &FakeHub,
    model: &Path,
    run: &Path,
    reference: &Path,
) -> Output {
    fake_hub.set_faults(Schedule::script(
        Route::Commit,
        vec![Fault::TooManyRequests(1); 7],
    ));
    let mut command = compress_and_upload(fake_hub, model, run);
    command.args([
        "--delete-uploaded",
        "--set",
        "upload.longest_wait=1",
        "--json",
    ]);
    let mut driver = command.stdout(Stdio::piped()).spawn().expect("uc");
    let (mut peak_layers, mut peak_bytes) = (0, 0);
    while driver.try_wait().expect("state").is_none() {
        peak_layers = peak_layers.max(layer_count(run));
        peak_bytes = peak_bytes.max(folder_bytes(&run.join("pack")));
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = driver.wait_with_output().expect("output");
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(
        (1..=MAX_LAYERS_ON_DISK).contains(&peak_layers),
        "{peak_layers} layers"
    );
    assert_eq!(layer_count(run), 0);
    let pack = contents(&reference.join("pack"));
    let sizes = pack.iter().map(|(name, bytes)| (name, bytes.len() as u64));
    let (layers, others): (Vec<_>, Vec<_>) = sizes.partition(|(name, _)| name.contains("layer_"));
    let largest = layers.iter().map(|(_, size)| *size).max().expect("layers");
    let others: u64 = others.into_iter().map(|(_, size)| size).sum();
    let remote_record = folder_bytes(&run.join("pack")) - others;
    let limit = MAX_LAYERS_ON_DISK as u64 * largest + others + remote_record;
    println!("pack: peak {peak_bytes} of at most {limit} bytes, {peak_layers} layers of {LAYERS}");
    assert!(peak_bytes <= limit, "{peak_bytes} > {limit}");
    output
}

/// Layers that neither the run nor a repository holds are reported missing. The command in the message recreates them, and
/// a later upload of the whole run deletes what it has sent.
fn recreate_missing_layers(model: &Path, run: &Path, reference: &Path) {
    let pack = contents(&reference.join("pack"));
    let empty = fake_hub();
    let message = fail_with(&mut upload(&empty, run), MISSING_INPUT);
    assert!(
        message.contains("layer_000.uc") && message.contains("uc compress"),
        "{message}"
    );
    succeed(&mut compress(model, run));
    let mut recreated = contents(&run.join("pack"));
    recreated.remove("remote.json");
    assert!(recreated == pack);
    succeed(upload(&empty, run).arg("--delete-uploaded"));
    assert_eq!(layer_count(run), 0);
    assert!(remote_pack(&empty) == pack);
}

/// Layers that are kept on disk go into few commits: the first one of the repository, the description, the eight layers,
/// the manifest.
fn upload_in_few_commits(reference: &Path) {
    let fake_hub = fake_hub();
    succeed(&mut upload(&fake_hub, reference));
    let mut local = contents(&reference.join("pack"));
    local.remove("remote.json");
    assert!(remote_pack(&fake_hub) == local);
    assert_eq!(fake_hub.commit_count(REPO, "main"), 4);
}
