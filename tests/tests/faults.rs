//! What goes wrong in a run directory or around it: a resume gives the same pack, or a refusal names the file.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use uc_tests::kills::{signal, workers_of};
use uc_tests::{compress, contents, copy_model, fail_with, json, succeed, uc, words};

const BAD_INPUT: i32 = 4;
const DISK_FULL: i32 = 7;
const IO: i32 = 12;
const INTERRUPTED: i32 = 130;
/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A finished run and what it made.
struct Finished {
    _keep: tempfile::TempDir,
    model: PathBuf,
    run: PathBuf,
    expected: BTreeMap<String, Vec<u8>>,
}

fn product(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(&run.join("pack"));
    let metrics = std::fs::read(run.join("eval/metrics.json")).expect("metrics");
    files.insert("eval/metrics.json".into(), metrics);
    files
}

impl Finished {
    fn new() -> Self {
        let keep = tempfile::tempdir().expect("folder");
        let (model, run) = (keep.path().join("model"), keep.path().join("run"));
        copy_model(&model);
        succeed(&mut compress(&model, &run));
        Self {
            expected: product(&run),
            model,
            run,
            _keep: keep,
        }
    }

    fn resume(&self) -> Command {
        let mut command = uc();
        command.arg("resume").arg(&self.run);
        command
    }

    /// Resumes and compares what is there then.
    fn mended(&self, what: &str) {
        let output = self.resume().output().expect("uc");
        assert!(output.status.success(), "{what}: {}", words(&output));
        self.is_as_it_was(what);
    }

    fn is_as_it_was(&self, what: &str) {
        let found = product(&self.run);
        assert!(
            found.keys().eq(self.expected.keys()),
            "{what}: {:?}",
            found.keys()
        );
        for (name, bytes) in &self.expected {
            assert!(found[name] == *bytes, "{name} differs after {what}");
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        collect(&self.run, &mut files, &mut Vec::new());
        files
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        collect(&self.run, &mut Vec::new(), &mut folders);
        folders
    }

    /// The path below the run directory.
    fn name(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.run).expect("below");
        below.display().to_string()
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>, folders: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            folders.push(path.clone());
            collect(&path, files, folders);
        } else {
            files.push(path);
        }
    }
}

/// What a loss of power, a bad disk or a hand does to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Delete,
    /// The name was there before the data: half of it, or nothing but zeros.
    Halve,
    Zero,
    Flip,
}

const DAMAGES: [Damage; 4] = [Damage::Delete, Damage::Halve, Damage::Zero, Damage::Flip];

impl Damage {
    fn strike(self, path: &Path) {
        let bytes = std::fs::read(path).expect("file");
        match self {
            Self::Delete => std::fs::remove_file(path).expect("removed"),
            Self::Halve => std::fs::write(path, &bytes[..bytes.len() / 2]).expect("cut"),
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

/// Damages the plan and expects a refusal that names it; `uc compress` writes it anew.
fn plan_is_refused_and_written_anew(run: &Finished, damage: Damage) {
    let path = run.run.join("run.json");
    damage.strike(&path);
    let output = run.resume().output().expect("uc");
    let said = words(&output);
    assert!(!output.status.success(), "{damage:?}: {said}");
    assert!(said.contains("run.json"), "{damage:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    succeed(&mut compress(&run.model, &run.run));
    run.is_as_it_was("a new plan");
}

#[test]
fn damage_to_all_files_of_a_kind_at_once_is_mended() {
    let run = Finished::new();
    let kind = |name: &str| match name.split('/').next().unwrap_or(name) {
        "receipts" if name.ends_with(".json") => "metrics",
        "receipts" => "receipts",
        "lock" | "locks" | "logs" | "events.jsonl" => "marks",
        "run.json" => "plan",
        "pack" => "pack",
        _ => "artifacts",
    };
    for damage in DAMAGES {
        plan_is_refused_and_written_anew(&run, damage);
        for wanted in ["metrics", "receipts", "marks", "pack", "artifacts"] {
            let files = run.files();
            let files = files.iter().filter(|path| kind(&run.name(path)) == wanted);
            files.for_each(|path| damage.strike(path));
            run.mended(&format!("{damage:?} of all {wanted}"));
        }
    }
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn damage_to_any_single_file_and_loss_of_any_folder_is_mended() {
    let run = Finished::new();
    for damage in DAMAGES {
        for path in run.files() {
            match run.name(&path).as_str() {
                "run.json" => plan_is_refused_and_written_anew(&run, damage),
                name => {
                    damage.strike(&path);
                    run.mended(&format!("{damage:?} of {name}"));
                }
            }
        }
    }
    for folder in run.folders() {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("removed");
            run.mended(&format!("loss of {}", run.name(&folder)));
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let run = Finished::new();
    // Reading the start of this file is an input/output error, whoever asks.
    let unreadable = Path::new("/proc/self/mem");
    for (name, code) in [
        ("receipts/quantize/001.receipt", IO),
        ("run.json", IO),
        ("events.jsonl", IO),
    ] {
        let path = run.run.join(name);
        let whole = std::fs::read(&path).expect("file");
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(unreadable, &path).expect("link");
        if name == "events.jsonl" {
            // The log is for people: nothing depends on it.
            let output = run.resume().output().expect("uc");
            assert!(!words(&output).contains("panicked"));
        } else {
            let said = fail_with(&mut run.resume(), code);
            assert!(said.contains(name), "{name}: {said}");
        }
        std::fs::remove_file(&path).expect("removed");
        // A folder in its place.
        std::fs::create_dir(&path).expect("folder");
        let said = fail_with(&mut run.resume(), code);
        assert!(said.contains(name), "{name}: {said}");
        std::fs::remove_dir(&path).expect("removed");
        std::fs::write(&path, whole).expect("mended");
        run.mended(name);
    }
    // An artifact that cannot be read has not its recorded size, and is made again.
    let path = run.run.join("pack/layer_001.uc");
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink(unreadable, &path).expect("link");
    run.mended("an unreadable layer");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("folder");
    let said = fail_with(&mut run.resume(), IO);
    assert!(said.contains("layer_001.uc"), "{said}");
    std::fs::remove_dir(&path).expect("removed");
    run.mended("a folder in place of a layer");
}

/// Waits until the log of a run holds a line with all `parts`.
fn await_event(run: &Path, parts: &[&str]) {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        let found = |line: &str| parts.iter().all(|part| line.contains(part));
        if text.lines().any(found) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "no {parts:?} in {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_shard_that_is_cut_while_the_run_goes_on_is_named_and_the_run_completes_when_it_is_back() {
    let calm = Finished::new();
    // The same name, which the manifest records, in another folder.
    let model = calm.run.with_file_name("other").join("model");
    copy_model(&model);
    let run = calm.run.with_file_name("disturbed");
    let mut command = compress(&model, &run);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let driver = command.spawn().expect("uc");
    await_event(&run, &["finished", "\"sensitivity-forward\""]);
    let shard = model.join("model.safetensors");
    let whole = std::fs::read(&shard).expect("weights");
    std::fs::write(&shard, &whole[..whole.len() / 2]).expect("cut");
    let output = driver.wait_with_output().expect("ended");
    let said = words(&output);
    assert_eq!(output.status.code(), Some(BAD_INPUT), "{said}");
    assert!(said.contains("model.safetensors"), "{said}");
    std::fs::write(&shard, whole).expect("back");
    succeed(uc().arg("resume").arg(&run));
    assert!(product(&run) == calm.expected);
}

#[test]
fn signals_end_a_run_of_real_stages_in_order_and_leave_no_process() {
    let calm = Finished::new();
    for name in ["-INT", "-TERM"] {
        let run = calm.run.with_file_name(format!("run{name}"));
        let mut command = compress(&calm.model, &run);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let driver = command.spawn().expect("uc");
        await_event(&run, &["started", "\"teacher-cache\""]);
        signal(driver.id(), name);
        let output = driver.wait_with_output().expect("ended");
        let said = words(&output);
        assert_eq!(output.status.code(), Some(INTERRUPTED), "{said}");
        assert!(said.contains("uc resume"), "{said}");
        assert!(workers_of(&run).is_empty());
        let status = json(&succeed(uc().arg("status").arg(&run).arg("--json")));
        assert_eq!(status["state"], "stopped");
        succeed(uc().arg("resume").arg(&run));
        assert!(product(&run) == calm.expected);
    }
}

#[test]
fn clocks_that_jump_change_nothing() {
    let run = Finished::new();
    for time in ["1971-01-01T00:00:00Z", "2099-01-01T00:00:00Z"] {
        // Files and log as if another clock had written them.
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
        assert!(words(&output).contains(": 0 of "), "{}", words(&output));
        run.is_as_it_was(time);
        let status = json(&succeed(uc().arg("status").arg(&run.run).arg("--json")));
        assert_eq!(status["state"], "complete");
        assert!(
            status["wall_seconds"]
                .as_f64()
                .is_some_and(|wall| wall >= 0.0)
        );
        // Work that is done under the other clock gives the same pack.
        std::fs::remove_dir_all(run.run.join("receipts/quantize")).expect("removed");
        run.mended(time);
    }
}

#[test]
fn the_log_alone_tells_what_the_receipts_tell() {
    let run = Finished::new();
    let status = || json(&succeed(uc().arg("status").arg(&run.run).arg("--json")));
    let of_jobs = |status: &serde_json::Value| -> Vec<(String, serde_json::Value)> {
        let stages = status["stages"].as_array().expect("stages");
        stages
            .iter()
            .map(|stage| (stage["name"].to_string(), stage["jobs"].clone()))
            .collect()
    };
    let both = of_jobs(&status());
    // Without receipts a job that the log calls done is stale; nothing else changes.
    let receipts = run.run.join("receipts");
    std::fs::rename(&receipts, run.run.join("away")).expect("moved");
    let text = serde_json::to_string(&of_jobs(&status())).expect("text");
    assert_eq!(
        text.replace("\"stale\"", "\"done\""),
        serde_json::to_string(&both).expect("text")
    );
    std::fs::rename(run.run.join("away"), &receipts).expect("moved");
    // Without the log the receipts say it; the next session writes down what it found.
    std::fs::remove_file(run.run.join("events.jsonl")).expect("removed");
    assert_eq!(of_jobs(&status()), both);
    succeed(&mut run.resume());
    assert_eq!(of_jobs(&status()), both);
    let watched = succeed(
        uc().arg("status")
            .arg(&run.run)
            .args(["--watch", "--interval", "1"]),
    );
    assert!(
        words(&watched).contains("state  complete"),
        "{}",
        words(&watched)
    );
}

/// `uc compress` under a limit on the size of files, in KiB.
fn limited(model: &Path, run: &Path, kib: u64) -> Command {
    let mut limited = Command::new("bash");
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
    limited
        .args(["-c", &script, "bash"])
        .arg(uc().get_program());
    limited.args(compress(model, run).get_args());
    limited
}

/// Runs under growing limits, each failing at another write; the run that was stopped last completes.
fn limits(next: impl Fn(u64) -> u64) {
    let calm = Finished::new();
    let (mut kib, mut failures) = (0, 0);
    loop {
        let run = calm.run.with_file_name(format!("limit-{kib}"));
        let output = limited(&calm.model, &run, kib).output().expect("uc");
        let said = words(&output);
        assert!(!said.contains("panicked"), "{kib} KiB: {said}");
        let done = output.status.success();
        if !done {
            failures += 1;
            assert_eq!(output.status.code(), Some(DISK_FULL), "{kib} KiB: {said}");
            assert!(
                said.contains(run.to_str().expect("UTF-8")),
                "{kib} KiB: {said}"
            );
            succeed(&mut compress(&calm.model, &run));
        }
        assert!(product(&run) == calm.expected, "{kib} KiB");
        std::fs::remove_dir_all(&run).expect("removed");
        if done {
            break;
        }
        kib = next(kib);
    }
    assert!(failures > 2, "{failures}");
}

#[test]
fn a_limit_on_files_is_said_by_name_and_the_run_completes_without_it() {
    limits(|kib| (kib * 12).max(3));
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn growing_limits_on_files_stop_the_run_at_one_write_after_the_other() {
    limits(|kib| (kib * 5 / 4).max(kib + 1));
}

/// Runs on file systems of growing size and lets each complete when there is space; `false` where mounting is denied.
///
/// The smaller the file system, the earlier the write that finds it full.
fn small_disks(sizes: impl Iterator<Item = u64>) -> bool {
    let calm = Finished::new();
    let disk = calm.run.with_file_name("disk");
    std::fs::create_dir(&disk).expect("folder");
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["-rm", "bash", "-c"]);
        command
    };
    let try_it = unshare()
        .arg(format!(
            "mount -t tmpfs -o size=64k none {}",
            disk.display()
        ))
        .output();
    if !try_it.is_ok_and(|output| output.status.success()) {
        eprintln!("mounting is denied here: full disks are left out");
        return false;
    }
    let (run, copy) = (disk.join("run"), calm.run.with_file_name("copy"));
    let mut full = 0;
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
            .args(compress(&calm.model, &run).get_args())
            .arg("-q");
        let output = command.output().expect("unshare");
        let said = words(&output);
        assert!(!said.contains("panicked"), "{kib} KiB: {said}");
        if !output.status.success() {
            full += 1;
            assert_eq!(output.status.code(), Some(DISK_FULL), "{kib} KiB: {said}");
            assert!(
                said.contains(disk.to_str().expect("UTF-8")),
                "{kib} KiB: {said}"
            );
        }
        assert!(product(&copy) == calm.expected, "{kib} KiB: {said}");
        std::fs::remove_dir_all(&copy).expect("removed");
    }
    assert!(full > 0, "no disk was too small");
    true
}

#[test]
fn a_full_disk_is_said_by_name_and_the_run_completes_when_there_is_space() {
    small_disks([8, 60, 800, 2400].into_iter());
}

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn disks_of_growing_size_are_full_at_one_write_after_the_other() {
    // tmpfs gives whole pages: every step of two is another write that fails.
    small_disks((4..=64).step_by(8).chain((80..5000).step_by(80)));
}
