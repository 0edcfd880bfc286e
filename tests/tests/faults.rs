//! Faults in and around a run directory: either the resumed run gives the same pack, or the error names the file.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use uc_tests::kills::{processes_of_run, signal};
use uc_tests::{compress, contents, copy_model, fail_with, json, output_text, succeed, uc};

const BAD_INPUT: i32 = 4;
const DAMAGED: i32 = 5;
const DISK_FULL: i32 = 7;
const IO: i32 = 12;
const INTERRUPTED: i32 = 130;
/// Longer than any step takes, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A finished run with the files that it made.
struct FinishedRun {
    _folder: tempfile::TempDir,
    model: PathBuf,
    run: PathBuf,
    expected: BTreeMap<String, Vec<u8>>,
}

/// The files of the pack and the metrics, by name.
fn products(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(&run.join("pack"));
    let metrics = std::fs::read(run.join("eval/metrics.json")).expect("metrics");
    files.insert("eval/metrics.json".into(), metrics);
    files
}

impl FinishedRun {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let (model, run) = (folder.path().join("model"), folder.path().join("run"));
        copy_model(&model);
        succeed(&mut compress(&model, &run));
        Self {
            expected: products(&run),
            model,
            run,
            _folder: folder,
        }
    }

    fn resume(&self) -> Command {
        let mut command = uc();
        command.arg("resume").arg(&self.run);
        command
    }

    /// Resumes the run after the fault `what` and expects the original files.
    fn assert_recovers(&self, what: &str) {
        let output = self.resume().output().expect("uc");
        assert!(output.status.success(), "{what}: {}", output_text(&output));
        self.assert_unchanged(what);
    }

    fn assert_unchanged(&self, what: &str) {
        let files = products(&self.run);
        assert!(
            files.keys().eq(self.expected.keys()),
            "{what}: {:?}",
            files.keys()
        );
        for (name, bytes) in &self.expected {
            assert!(files[name] == *bytes, "{name} differs after {what}");
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        collect_paths(&self.run, &mut files, &mut Vec::new());
        files
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        collect_paths(&self.run, &mut Vec::new(), &mut folders);
        folders
    }

    /// The path below the run directory.
    fn name(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.run).expect("below the run");
        relative.display().to_string()
    }
}

/// Collects the files and folders below a folder, in sorted order.
fn collect_paths(folder: &Path, files: &mut Vec<PathBuf>, folders: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            folders.push(path.clone());
            collect_paths(&path, files, folders);
        } else {
            files.push(path);
        }
    }
}

/// Damage that a power loss, a bad disk or a person may cause to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Delete,
    /// Half of the data is missing.
    Truncate,
    /// The file has its full length, but only zeros: its name was written before its data.
    Zero,
    /// One bit is flipped.
    Flip,
}

const DAMAGES: [Damage; 4] = [Damage::Delete, Damage::Truncate, Damage::Zero, Damage::Flip];

impl Damage {
    fn apply(self, path: &Path) {
        let bytes = std::fs::read(path).expect("file");
        match self {
            Self::Delete => std::fs::remove_file(path).expect("removed"),
            Self::Truncate => std::fs::write(path, &bytes[..bytes.len() / 2]).expect("truncated"),
            Self::Zero => std::fs::write(path, vec![0; bytes.len()]).expect("zeros"),
            Self::Flip => {
                let mut bytes = bytes;
                if let Some(byte) = bytes.len().checked_sub(1).map(|last| &mut bytes[last / 2]) {
                    *byte ^= 1;
                }
                std::fs::write(path, bytes).expect("flipped");
            }
        }
    }
}

/// Damages `run.json`, expects an error that names it, and expects `uc compress` to write it again.
fn assert_damaged_plan_is_refused_and_rewritten(run: &FinishedRun, damage: Damage) {
    let path = run.run.join("run.json");
    damage.apply(&path);
    let output = run.resume().output().expect("uc");
    let text = output_text(&output);
    assert!(!output.status.success(), "{damage:?}: {text}");
    assert!(text.contains("run.json"), "{damage:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    succeed(&mut compress(&run.model, &run.run));
    run.assert_unchanged("rewriting the plan");
}

#[test]
fn a_run_recovers_from_damage_to_all_files_of_a_kind() {
    let run = FinishedRun::new();
    let kind = |name: &str| match name.split('/').next().unwrap_or(name) {
        "receipts" if name.ends_with(".json") => "metrics",
        "receipts" => "receipts",
        "lock" | "locks" | "logs" | "events.jsonl" => "logs and locks",
        "run.json" => "plan",
        "pack" => "pack",
        _ => "artifacts",
    };
    for damage in DAMAGES {
        assert_damaged_plan_is_refused_and_rewritten(&run, damage);
        for target in ["metrics", "receipts", "logs and locks", "pack", "artifacts"] {
            let files = run.files();
            let files = files.iter().filter(|path| kind(&run.name(path)) == target);
            files.for_each(|path| damage.apply(path));
            run.assert_recovers(&format!("{damage:?} of all {target}"));
        }
    }
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn a_run_recovers_from_damage_to_any_file_and_from_loss_of_any_folder() {
    let run = FinishedRun::new();
    for damage in DAMAGES {
        for path in run.files() {
            match run.name(&path).as_str() {
                "run.json" => assert_damaged_plan_is_refused_and_rewritten(&run, damage),
                name => {
                    damage.apply(&path);
                    run.assert_recovers(&format!("{damage:?} of {name}"));
                }
            }
        }
    }
    for folder in run.folders() {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("removed");
            run.assert_recovers(&format!("loss of {}", run.name(&folder)));
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let run = FinishedRun::new();
    // Reading the start of this file is an I/O error for every user.
    let unreadable = Path::new("/proc/self/mem");
    for (name, code, folder_code) in [
        ("receipts/quantize/001.receipt", IO, BAD_INPUT),
        ("run.json", IO, BAD_INPUT),
        ("events.jsonl", IO, DAMAGED),
    ] {
        let path = run.run.join(name);
        let original = std::fs::read(&path).expect("file");
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(unreadable, &path).expect("link");
        if name == "events.jsonl" {
            // The event log is only for people; no job depends on it.
            let output = run.resume().output().expect("uc");
            assert!(!output_text(&output).contains("panicked"));
        } else {
            let text = fail_with(&mut run.resume(), code);
            assert!(text.contains(name), "{name}: {text}");
        }
        std::fs::remove_file(&path).expect("removed");
        // A folder instead of the file.
        std::fs::create_dir(&path).expect("folder");
        let text = fail_with(&mut run.resume(), folder_code);
        assert!(text.contains(name), "{name}: {text}");
        std::fs::remove_dir(&path).expect("removed");
        std::fs::write(&path, original).expect("restored");
        run.assert_recovers(name);
    }
    // An unreadable artifact does not have its recorded size, so it is made again.
    let path = run.run.join("pack/layer_001.uc");
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink(unreadable, &path).expect("link");
    run.assert_recovers("an unreadable layer");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("folder");
    let text = fail_with(&mut run.resume(), IO);
    assert!(text.contains("layer_001.uc"), "{text}");
    std::fs::remove_dir(&path).expect("removed");
    run.assert_recovers("a folder in place of a layer");
}

/// Waits until the event log of a run has a line that contains all `parts`.
fn await_event(run: &Path, parts: &[&str]) {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        let matches = |line: &str| parts.iter().all(|part| line.contains(part));
        if text.lines().any(matches) {
            return;
        }
        assert!(start.elapsed() < TIMEOUT, "no {parts:?} in {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_shard_truncated_during_the_run_is_named_and_the_run_completes_once_it_is_restored() {
    let undisturbed = FinishedRun::new();
    // The manifest records the folder's name, so the copy has the same name in another folder.
    let model = undisturbed.run.with_file_name("other").join("model");
    copy_model(&model);
    let run = undisturbed.run.with_file_name("interrupted");
    let mut command = compress(&model, &run);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let driver = command.spawn().expect("uc");
    await_event(&run, &["finished", "\"sensitivity-forward\""]);
    let shard = model.join("model.safetensors");
    let original = std::fs::read(&shard).expect("weights");
    std::fs::write(&shard, &original[..original.len() / 2]).expect("truncated");
    let output = driver.wait_with_output().expect("ended");
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(BAD_INPUT), "{text}");
    assert!(text.contains("model.safetensors"), "{text}");
    std::fs::write(&shard, original).expect("restored");
    succeed(uc().arg("resume").arg(&run));
    assert!(products(&run) == undisturbed.expected);
}

#[test]
fn a_signal_shuts_a_run_down_in_order_and_leaves_no_process() {
    let undisturbed = FinishedRun::new();
    for name in ["-INT", "-TERM"] {
        let run = undisturbed.run.with_file_name(format!("run{name}"));
        let mut command = compress(&undisturbed.model, &run);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let driver = command.spawn().expect("uc");
        await_event(&run, &["started", "\"teacher-cache\""]);
        signal(driver.id(), name);
        let output = driver.wait_with_output().expect("ended");
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(INTERRUPTED), "{text}");
        assert!(text.contains("uc resume"), "{text}");
        assert!(processes_of_run(&run).is_empty());
        let status = json(&succeed(uc().arg("status").arg(&run).arg("--json")));
        assert_eq!(status["state"], "stopped");
        succeed(uc().arg("resume").arg(&run));
        assert!(products(&run) == undisturbed.expected);
    }
}

#[test]
fn jumps_of_the_clock_change_nothing() {
    let run = FinishedRun::new();
    for time in ["1971-01-01T00:00:00Z", "2099-01-01T00:00:00Z"] {
        // Gives files and log entries the times that a wrong clock would have given them.
        let mut touch = Command::new("touch");
        touch.args(["-d", time]).args(run.files());
        succeed(touch.arg(run.model.join("model.safetensors")));
        let log = run.run.join("events.jsonl");
        let text = std::fs::read_to_string(&log).expect("log");
        let lines = text.lines().map(|line| {
            let mut event: serde_json::Value = serde_json::from_str(line).expect("event");
            event["time"] = time.into();
            event.to_string() + "\n"
        });
        std::fs::write(&log, lines.collect::<String>()).expect("log");
        let output = succeed(&mut run.resume());
        assert!(
            output_text(&output).contains(": 0 of "),
            "{}",
            output_text(&output)
        );
        run.assert_unchanged(time);
        let status = json(&succeed(uc().arg("status").arg(&run.run).arg("--json")));
        assert_eq!(status["state"], "complete");
        assert!(
            status["wall_seconds"]
                .as_f64()
                .is_some_and(|wall| wall >= 0.0)
        );
        // Work done under the other clock gives the same pack.
        std::fs::remove_dir_all(run.run.join("receipts/quantize")).expect("removed");
        run.assert_recovers(time);
    }
}

#[test]
fn the_event_log_and_the_receipts_give_the_same_job_states() {
    let run = FinishedRun::new();
    let status = || json(&succeed(uc().arg("status").arg(&run.run).arg("--json")));
    let jobs = |status: &serde_json::Value| -> Vec<(String, serde_json::Value)> {
        let stages = status["stages"].as_array().expect("stages");
        stages
            .iter()
            .map(|stage| (stage["name"].to_string(), stage["jobs"].clone()))
            .collect()
    };
    let expected = jobs(&status());
    // Without receipts, a job that the log reports as done is stale; nothing else changes.
    let receipts = run.run.join("receipts");
    std::fs::rename(&receipts, run.run.join("away")).expect("moved");
    let text = serde_json::to_string(&jobs(&status())).expect("text");
    assert_eq!(
        text.replace("\"stale\"", "\"done\""),
        serde_json::to_string(&expected).expect("text")
    );
    std::fs::rename(run.run.join("away"), &receipts).expect("moved");
    // Without the log, the states come from the receipts; the next session logs them again.
    std::fs::remove_file(run.run.join("events.jsonl")).expect("removed");
    assert_eq!(jobs(&status()), expected);
    succeed(&mut run.resume());
    assert_eq!(jobs(&status()), expected);
    let watched = succeed(
        uc().arg("status")
            .arg(&run.run)
            .args(["--watch", "--interval", "1"]),
    );
    assert!(
        output_text(&watched).contains("state  complete"),
        "{}",
        output_text(&watched)
    );
}

/// `uc compress` under a limit on the file size, in KiB.
fn limited(model: &Path, run: &Path, kib: u64) -> Command {
    let mut limited = Command::new("bash");
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
    limited
        .args(["-c", &script, "bash"])
        .arg(uc().get_program());
    limited.args(compress(model, run).get_args());
    limited
}

/// Runs under increasing limits on the file size, so that a different write fails each time; then completes every run
/// without a limit.
fn check_file_size_limits(next: impl Fn(u64) -> u64) {
    let undisturbed = FinishedRun::new();
    let (mut kib, mut failures) = (0, 0);
    loop {
        let run = undisturbed.run.with_file_name(format!("limit-{kib}"));
        let output = limited(&undisturbed.model, &run, kib).output().expect("uc");
        let text = output_text(&output);
        assert!(!text.contains("panicked"), "{kib} KiB: {text}");
        let done = output.status.success();
        if !done {
            failures += 1;
            assert_eq!(output.status.code(), Some(DISK_FULL), "{kib} KiB: {text}");
            assert!(
                text.contains(run.to_str().expect("UTF-8")),
                "{kib} KiB: {text}"
            );
            succeed(&mut compress(&undisturbed.model, &run));
        }
        assert!(products(&run) == undisturbed.expected, "{kib} KiB");
        std::fs::remove_dir_all(&run).expect("removed");
        if done {
            break;
        }
        kib = next(kib);
    }
    assert!(failures > 2, "{failures}");
}

#[test]
fn a_limit_on_the_file_size_is_reported_with_the_file_and_the_run_completes_without_it() {
    check_file_size_limits(|kib| (kib * 12).max(3));
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn a_run_recovers_from_file_size_limits_that_fail_at_later_and_later_writes() {
    check_file_size_limits(|kib| (kib * 5 / 4).max(kib + 1));
}

/// Runs on file systems of increasing size, so that a different write fails each time; then completes every run with
/// enough space. Returns `false` if mounting is denied.
fn check_full_disks(sizes: impl Iterator<Item = u64>) -> bool {
    let undisturbed = FinishedRun::new();
    let disk = undisturbed.run.with_file_name("disk");
    std::fs::create_dir(&disk).expect("folder");
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["-rm", "bash", "-c"]);
        command
    };
    let mounted = unshare()
        .arg(format!(
            "mount -t tmpfs -o size=64k none {}",
            disk.display()
        ))
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("mounting is denied here: full disks are not tested");
        return false;
    }
    let (run, copy) = (disk.join("run"), undisturbed.run.with_file_name("copy"));
    let mut failures = 0;
    for kib in sizes {
        let script = format!(
            "set -e; mount -t tmpfs -o size={kib}k none {disk}; code=0; \"$@\" || code=$?; \
             mount -o remount,size=1g {disk}; \
             test $code = 0 || \"$@\" >/dev/null; cp -r {run} {copy}; exit $code",
            disk = disk.display(),
            run = run.display(),
            copy = copy.display()
        );
        let mut command = unshare();
        command.arg(script).arg("bash").arg(uc().get_program());
        command
            .args(compress(&undisturbed.model, &run).get_args())
            .arg("-q");
        let output = command.output().expect("unshare");
        let text = output_text(&output);
        assert!(!text.contains("panicked"), "{kib} KiB: {text}");
        if !output.status.success() {
            failures += 1;
            assert_eq!(output.status.code(), Some(DISK_FULL), "{kib} KiB: {text}");
            assert!(
                text.contains(disk.to_str().expect("UTF-8")),
                "{kib} KiB: {text}"
            );
        }
        assert!(products(&copy) == undisturbed.expected, "{kib} KiB: {text}");
        std::fs::remove_dir_all(&copy).expect("removed");
    }
    assert!(failures > 0, "no disk was too small");
    true
}

#[test]
fn a_full_disk_is_reported_with_the_file_and_the_run_completes_once_there_is_space() {
    check_full_disks([8, 60, 800, 2400].into_iter());
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn a_run_recovers_from_disks_that_fill_at_later_and_later_writes() {
    // tmpfs allocates whole pages, so every step of two pages makes another write fail.
    check_full_disks((4..=64).step_by(8).chain((80..5000).step_by(80)));
}
