//! A source larger than its disk budget: shards are fetched, evicted and fetched again, and the pack stays the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use uc_fake_hub::FakeHub;
use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_tests::kills::{Random, processes_of_run, signal};
use uc_tests::{compress, contents, fail_with, files_below, output_text, succeed, uc};

use crate::fixture::{
    MonitoredRun, NETWORK, REPO, assert_no_token, comparable_pack, compress_with_budget, fake_hub,
    has_extension, has_partial_download, has_resumed, many_layers, monitor, read_json, resume,
    set_hub, shard_bytes, spawn, storage_requests, wait_for,
};

/// The shards of a model by name.
fn shards(model: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(model);
    files.retain(|name, _| name.ends_with(".safetensors"));
    files
}

fn largest_shard(model: &Path) -> u64 {
    let shards = shards(model);
    let sizes = shards.values().map(|bytes| bytes.len() as u64);
    sizes.max().expect("shards")
}

/// Compresses the model from its folder, without the Hub.
fn compress_locally(fake_hub: &FakeHub, model: &Path, run: &Path) {
    let mut command = compress(model, run);
    set_hub(&mut command, fake_hub, run);
    succeed(&mut command);
}

/// Monitors a run. As soon as it has a plan, the branch moves and downloads meet transient faults of every kind.
fn monitor_while_the_branch_moves(
    fake_hub: &FakeHub,
    command: Command,
    run: &Path,
) -> MonitoredRun {
    let faults = [
        Fault::ResetBody,
        Fault::TruncateBody,
        Fault::TooManyRequests(0),
        Fault::CorruptByte,
        Fault::Status(500),
        Fault::SlowBody(1),
        Fault::IgnoreRange,
        Fault::Reset,
    ];
    let mut moved = false;
    let monitored = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| monitor(command, run));
        while !watcher.is_finished() {
            if !moved && run.join("run.json").exists() {
                fake_hub.commit_file(REPO, "config.json", b"{}");
                let shard = "model-00001-of-00006.safetensors";
                fake_hub.commit_file(REPO, shard, &vec![7; 50_000]);
                fake_hub.set_faults(Schedule::script(Route::Object, faults.clone()));
                moved = true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        watcher.join().expect("monitored")
    });
    assert!(moved);
    monitored
}

/// Bytes of disk that a run announces before it starts: "source: … about N MiB …".
fn announced_disk_bytes(log: &str) -> f64 {
    let announcement = log.lines().find(|line| line.starts_with("source: "));
    let announcement = announcement.expect("an announcement before the run");
    println!("{announcement}");
    assert!(announcement.contains("to download"), "{announcement}");
    let rest = announcement.split("about ").last();
    let mebibytes = rest.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    mebibytes.expect("MiB of disk") * f64::from(1 << 20)
}

#[test]
fn a_source_larger_than_its_budget_yields_the_same_pack() {
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path());
    let fake_hub = fake_hub(&model);
    let source: u64 = shards(&model)
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum();
    let largest = largest_shard(&model);
    let local = folder.path().join("local");
    compress_locally(&fake_hub, &model, &local);

    // Refused before anything starts: a budget smaller than the shards of one job, and eviction from a user's folder.
    let run = folder.path().join("run");
    let message = fail_with(&mut compress_with_budget(&fake_hub, &run, largest), 3);
    assert!(
        message.contains("retention.budget") && message.contains("expected at least"),
        "{message}"
    );
    let mut command = compress(&model, &run);
    let message = fail_with(command.args(["--set", "retention.source=evict"]), 3);
    assert!(message.contains("nothing is ever deleted"), "{message}");

    let budget = 2 * largest + 4096;
    assert!(budget < source / 2, "{budget} of {source}");
    let mut command = compress_with_budget(&fake_hub, &run, budget);
    command.env("UC_LOG", "warn");
    let MonitoredRun {
        code,
        peak_shards,
        peak_run,
        log,
    } = monitor_while_the_branch_moves(&fake_hub, command, &run);
    assert_eq!(code, Some(0), "{log}");
    println!(
        "source {source}, budget {budget}, peak of shards {peak_shards}, of the run {peak_run}"
    );
    assert!(peak_shards <= budget, "{peak_shards} of {budget}");
    let announced = announced_disk_bytes(&log);
    assert!(peak_run as f64 <= announced, "{peak_run} of {announced}");
    assert!(comparable_pack(&run) == comparable_pack(&local));
    assert_eq!(shard_bytes(&run), 0);
    let source_digest = |run: &Path| {
        let plan = read_json(&run.join("run.json"));
        let digest = plan["externals"]["source"]["digest"].as_str();
        digest.map(str::to_owned)
    };
    assert_eq!(source_digest(&run), source_digest(&local));
    assert_no_token(folder.path());

    // Another budget or none makes nothing stale, and nothing is downloaded again.
    let before = storage_requests(&fake_hub);
    for setting in ["retention.budget=1 GiB", "retention.source=keep"] {
        let mut command = resume(&fake_hub, &run);
        let message = output_text(&succeed(command.args(["--set", setting])));
        assert!(message.contains(": 0 of "), "{message}");
    }
    assert_eq!(storage_requests(&fake_hub), before);
}

#[test]
fn an_evicting_run_survives_kills_a_dead_network_and_corrupt_shards() {
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path());
    let fake_hub = fake_hub(&model);
    let budget = 2 * largest_shard(&model);
    let run = folder.path().join("run");

    kill_the_driver_during_a_download(&fake_hub, &run, budget);
    fail_without_a_network(&fake_hub, &run);
    let shards = shards(&model);
    let last = &shards["model-00006-of-00006.safetensors"];
    refuse_a_corrupt_shard(&fake_hub, &run, budget, last);
    assert!(has_resumed(&fake_hub));

    let mut random = Random(7);
    for _ in 0..3 {
        kill_the_driver_and_damage_a_shard(&fake_hub, &run, &mut random);
    }
    complete_after_a_killed_fetch(&fake_hub, &run, budget);
    let local = folder.path().join("local");
    compress_locally(&fake_hub, &model, &local);
    assert!(comparable_pack(&run) == comparable_pack(&local));
    assert_no_token(folder.path());
}

/// Starts a command without output.
fn spawn_quietly(command: &mut Command) -> std::process::Child {
    spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn kill_the_driver_during_a_download(fake_hub: &FakeHub, run: &Path, budget: u64) {
    let mut child = spawn_quietly(&mut compress_with_budget(fake_hub, run, budget));
    wait_for("a plan", || run.join("run.json").exists());
    fake_hub.set_faults(Schedule::script(Route::Object, vec![Fault::Stall; 9]));
    wait_for("a partial shard", || {
        has_partial_download(&run.join("source"))
    });
    child.kill().expect("killed");
    child.wait().expect("ended");
    wait_for("the end of the stages", || processes_of_run(run).is_empty());
}

/// Without a network a run ends with its exit code, and its message says how to continue.
fn fail_without_a_network(fake_hub: &FakeHub, run: &Path) {
    let before = fake_hub.requests().len();
    let mut command = resume(fake_hub, run);
    let message = fail_with(command.env("HF_ENDPOINT", "http://127.0.0.1:9"), NETWORK);
    assert!(
        message.contains("fetch of model-") && message.contains("uc resume"),
        "{message}"
    );
    assert_eq!(fake_hub.requests().len(), before);
    let status = output_text(&succeed(uc().arg("status").arg(run)));
    assert!(status.contains("fetch"), "{status}");
}

/// A shard whose digest is wrong is refused, and the run stays within its budget.
fn refuse_a_corrupt_shard(fake_hub: &FakeHub, run: &Path, budget: u64, shard: &[u8]) {
    fake_hub.set_faults(Schedule::None);
    let mut corrupt = shard.to_vec();
    corrupt[shard.len() - 1] ^= 1;
    fake_hub.corrupt_object(shard, &corrupt);
    let MonitoredRun {
        code,
        peak_shards,
        log,
        ..
    } = monitor(resume(fake_hub, run), run);
    assert_eq!(code, Some(NETWORK), "{log}");
    assert!(
        log.contains("SHA-256") && log.contains("00006-of-00006"),
        "{log}"
    );
    assert!(peak_shards <= budget, "{peak_shards} of {budget}");
    fake_hub.corrupt_object(shard, shard);
}

/// The driver is killed after a random number of downloads with faults, and a shard is damaged while no process runs.
fn kill_the_driver_and_damage_a_shard(fake_hub: &FakeHub, run: &Path, random: &mut Random) {
    fake_hub.set_faults(Schedule::script(
        Route::Object,
        [Fault::ResetBody, Fault::TruncateBody, Fault::Status(503)],
    ));
    let before = storage_requests(fake_hub);
    let mut child = spawn_quietly(&mut resume(fake_hub, run));
    let more = 1 + random.below(3) as usize;
    wait_for("requests to storage", || {
        storage_requests(fake_hub) >= before + more
            || child.try_wait().is_ok_and(|status| status.is_some())
    });
    let _ = child.kill();
    child.wait().expect("ended");
    wait_for("the end of the stages", || processes_of_run(run).is_empty());
    let shard: Option<PathBuf> = files_below(&run.join("source"))
        .into_iter()
        .find(|path| has_extension(path, "safetensors"));
    if let Some(path) = shard {
        let mut bytes = std::fs::read(&path).expect("shard");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("damaged");
    }
}

/// The process that fetches is killed while it stalls. The driver starts another one, and the run completes.
fn complete_after_a_killed_fetch(fake_hub: &FakeHub, run: &Path, budget: u64) {
    fake_hub.set_faults(Schedule::script(Route::Object, [Fault::Stall]));
    let fetchers = || {
        let mut workers = processes_of_run(run);
        workers.retain(|id| {
            let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == b"shard")
        });
        workers
    };
    let MonitoredRun {
        code,
        peak_shards,
        log,
        ..
    } = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| monitor(resume(fake_hub, run), run));
        let before = fake_hub.requests().len();
        let is_stalled = || {
            fake_hub.requests()[before..]
                .iter()
                .any(|request| request.fault.is_some())
        };
        wait_for("a stalled fetch", || is_stalled() || watcher.is_finished());
        for id in fetchers() {
            signal(id, "-KILL");
        }
        watcher.join().expect("monitored")
    });
    assert!(
        log.contains("killed by signal 9") && log.contains("trying again"),
        "{log}"
    );
    assert_eq!(code, Some(0), "{log}");
    assert!(peak_shards <= budget, "{peak_shards} of {budget}");
}
