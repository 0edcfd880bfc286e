//! A model of the Hub is compressed like a folder: downloaded, resumed, verified, pinned to its commit.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_fake_hub::{FakeHub, Options};
use uc_tests::{
    compress, contents, fail_with, program, repository, succeed, tiny_model, uc, words,
};

const REPO: &str = "tester/tiny-stories";

/// A Hub that wants its token and has a repository with the files of a folder, and with others that are no model.
fn fake_hub(model: &Path) -> FakeHub {
    let fake_hub = FakeHub::start(Options {
        private: true,
        lfs_threshold: 20_000,
        ..Options::default()
    });
    for (name, bytes) in contents(model) {
        fake_hub.put(REPO, &name, &bytes);
    }
    for name in [
        "README.md",
        "pytorch_model.bin",
        "onnx/model.safetensors",
        "original/params.json",
    ] {
        fake_hub.put(REPO, name, b"not for this");
    }
    fake_hub
}

/// `uc compress` of the Hub's model; models go to a folder beside the run.
fn from_hub(fake_hub: &FakeHub, model: &str, run: &Path) -> Command {
    let mut command = compress(Path::new(model), run);
    at(&mut command, fake_hub, run);
    command
}

fn at(command: &mut Command, fake_hub: &FakeHub, run: &Path) {
    command.env("HF_ENDPOINT", fake_hub.endpoint());
    command.env("HF_TOKEN", Options::default().token);
    command.env("UC_MODELS", run.parent().expect("folder").join("models"));
    let texts = tiny_model();
    command.env("UC_SHARE", texts.ancestors().nth(2).expect("repository"));
}

/// Every file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => files(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

/// The pack without its manifest, and the manifest without what only a model of the Hub has.
fn comparable(run: &Path) -> (BTreeMap<String, Vec<u8>>, serde_json::Value) {
    let mut pack = contents(&run.join("pack"));
    pack.remove("manifest.sha256");
    let manifest = pack.remove("manifest.json").expect("manifest");
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    manifest["source"]
        .as_object_mut()
        .expect("object")
        .remove("hub");
    (pack, manifest)
}

fn assert_no_token(folder: &Path) {
    let mut all = Vec::new();
    files(folder, &mut all);
    let token = Options::default().token;
    for path in all {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let found = bytes
            .windows(token.len())
            .any(|part| part == token.as_bytes());
        assert!(!found, "the token stands in {}", path.display());
    }
}

#[test]
fn a_model_by_its_name_gives_the_pack_of_its_folder_and_says_where_it_is_from() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let local = folder.path().join("local");
    succeed(&mut compress(&tiny_model(), &local));

    // A broken connection and a busy Hub on the way; the other faults are those of the client's own tests.
    let run = folder.path().join("run");
    let faults = [Fault::ResetBody, Fault::TooMany(0)];
    fake_hub.set_faults(Schedule::script(Route::Object, faults));
    let output = succeed(&mut from_hub(&fake_hub, REPO, &run));
    assert!(!words(&output).contains(&Options::default().token));
    let commit = succeed(uc().arg("inspect").arg(run.join("pack")));
    assert!(
        words(&commit).contains("tester/tiny-stories at "),
        "{}",
        words(&commit)
    );
    assert!(comparable(&run) == comparable(&local));
    let status = succeed(uc().arg("status").arg(&run));
    assert!(words(&status).contains("source tester/tiny-stories at"));
    assert_no_token(folder.path());

    // Only the model came.
    let mut downloaded = Vec::new();
    files(
        &folder.path().join("models/tester--tiny-stories"),
        &mut downloaded,
    );
    let names: Vec<_> = downloaded
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

    // A second run downloads nothing again, and one by the commit is the same though the branch has moved.
    let objects = |fake_hub: &FakeHub| fake_hub.seen().iter().filter(|seen| seen.storage).count();
    let before = objects(&fake_hub);
    fake_hub.put(REPO, "config.json", b"{}");
    let plan = std::fs::read_to_string(run.join("run.json")).expect("plan");
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    let commit = plan["model"]["hub"]["commit"]
        .as_str()
        .expect("commit")
        .to_owned();
    let again = folder.path().join("again");
    succeed(&mut from_hub(
        &fake_hub,
        &format!("{REPO}@{commit}"),
        &again,
    ));
    assert_eq!(objects(&fake_hub), before);
    assert!(contents(&run.join("pack")) == contents(&again.join("pack")));

    // An existing folder wins over the Hub.
    let inner = folder.path().join("here/tester/tiny-stories");
    std::fs::create_dir_all(&inner).expect("folder");
    let mut command = from_hub(&fake_hub, REPO, &folder.path().join("third"));
    let said = fail_with(command.current_dir(folder.path().join("here")), 4);
    assert!(said.contains("config.json"), "{said}");
}

#[test]
fn what_cannot_be_downloaded_ends_with_its_class_and_a_rerun_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let fake_hub = fake_hub(&tiny_model());
    let run = folder.path().join("run");
    for (model, code, word) in [
        ("tester/absent", 4, "tester/absent"),
        ("tester/tiny-stories@absent", 4, "absent"),
        ("tester/tiny-stories@bad..name", 2, "bad..name"),
    ] {
        let said = fail_with(&mut from_hub(&fake_hub, model, &run), code);
        assert!(said.contains(word), "{said}");
    }
    fake_hub.put("tester/other", "config.json", b"{}");
    fake_hub.put("tester/other", "pytorch_model.bin", b"x");
    let said = fail_with(&mut from_hub(&fake_hub, "tester/other", &run), 4);
    assert!(
        said.contains("pytorch_model.bin") && said.contains("model.safetensors"),
        "{said}"
    );

    // Bytes behind the last tensor: seen by the header alone.
    for (name, mut bytes) in contents(&tiny_model()) {
        if name == "model.safetensors" {
            bytes.extend([0; 3]);
        }
        fake_hub.put("tester/longer", &name, &bytes);
    }
    let mut command = program("shard-loader");
    command.args(["fetch", "tester/longer", "--headers", "--to"]);
    at(command.arg(folder.path().join("longer")), &fake_hub, &run);
    let said = fail_with(&mut command, 4);
    assert!(said.contains("by its header"), "{said}");

    // A network that fails too often: exit status 11, what came stays, and the next one goes on from there.
    let models = folder.path().join("models");
    let fetch = |attempts: &str| {
        let mut command = program("shard-loader");
        command.args([
            "fetch",
            REPO,
            "--attempts",
            attempts,
            "--longest-wait",
            "0",
            "--to",
        ]);
        command.arg(&models);
        at(&mut command, &fake_hub, &run);
        command
    };
    fake_hub.set_faults(Schedule::script(
        Route::Object,
        [Fault::CutBody, Fault::Reset],
    ));
    let said = fail_with(&mut fetch("1"), 11);
    assert!(said.contains("download of "), "{said}");
    fake_hub.set_faults(Schedule::None);
    succeed(&mut fetch("1"));
    assert!(
        fake_hub
            .seen()
            .iter()
            .any(|seen| seen.storage && seen.range.is_some())
    );
    // Stopped by the user in the middle: 130 at once, no process is left behind, and what came stays.
    let stopped = folder.path().join("stopped");
    let mut command = from_hub(&fake_hub, REPO, &stopped.join("run"));
    fake_hub.set_faults(Schedule::script(Route::Object, [Fault::Stall]));
    let mut child = command
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("uc");
    let is_growing = || {
        let mut all = Vec::new();
        files(&stopped, &mut all);
        all.iter().any(|path| {
            let growing = path.extension().is_some_and(|ending| ending == "growing");
            growing && std::fs::metadata(path).is_ok_and(|found| found.len() > 0)
        })
    };
    let stalls = || {
        fake_hub
            .seen()
            .iter()
            .any(|seen| seen.fault == Some(Fault::Stall))
    };
    until("a file that does not come on", || stalls() && is_growing());
    let children = uc_tests::kills::children(child.id());
    assert!(!children.is_empty());
    uc_tests::kills::signal(child.id(), "-INT");
    assert_eq!(child.wait().expect("gone").code(), Some(130));
    until("its process to be gone", || {
        children
            .iter()
            .all(|(id, _)| !Path::new(&format!("/proc/{id}/fd")).exists())
    });
    assert!(is_growing());
    fake_hub.set_faults(Schedule::None);
    // Bytes that are not those that the Hub names.
    let config = contents(&tiny_model())
        .remove("model.safetensors")
        .expect("weights");
    let mut other = config.clone();
    other[9000] ^= 1;
    fake_hub.tamper(&config, &other);
    let mut fresh = program("shard-loader");
    fresh
        .args(["fetch", REPO, "--longest-wait", "0", "--to"])
        .arg(folder.path().join("fresh"));
    at(&mut fresh, &fake_hub, &run);
    let said = fail_with(&mut fresh, 11);
    assert!(said.contains("SHA-256"), "{said}");
}

/// A model of many layers whose shards hold layers that follow one another, a few of them split between two.
fn many_layers(folder: &Path) -> PathBuf {
    let config = repository().join("examples/small-configs/llama.json");
    let text = std::fs::read(config).expect("config");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    config["num_hidden_layers"] = 9.into();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let model = folder.join("tiny-stories");
    succeed(
        program("random-model")
            .args(["--shards", "6", "--in-order", "--config"])
            .arg(&path)
            .arg("--out")
            .arg(&model),
    );
    model
}

/// Bytes of shards in a run: those that are whole and those on their way.
fn on_disk(run: &Path) -> u64 {
    let entries = std::fs::read_dir(run.join("source"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.ends_with(".safetensors") || name.ends_with(".growing")
        })
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// The pipeline with a fetch that does not wait between its attempts.
fn impatient(run: &Path) -> PathBuf {
    let text = std::fs::read_to_string(repository().join("pipeline.toml")).expect("pipeline");
    let fetch = r#"["shard-loader", "shard""#;
    assert!(text.contains(fetch));
    let hasty = format!(r#"{fetch}, "--longest-wait", "0""#);
    let path = run.with_extension("toml");
    std::fs::write(&path, text.replace(fetch, &hasty)).expect("written");
    path
}

/// Settings of a quick run with a survey whose shards may take so many bytes.
fn evicting(fake_hub: &FakeHub, run: &Path, budget: u64) -> Command {
    let mut command = from_hub(fake_hub, REPO, run);
    command.arg("--pipeline").arg(impatient(run));
    command.args(["--set", "retention.source=evict", "--set"]);
    command.arg(format!("retention.budget={budget} B"));
    command
}

/// How a run ended that was watched.
struct Watched {
    code: Option<i32>,
    /// Most bytes of shards that were seen on disk, and of the whole run directory.
    shards: u64,
    disk: u64,
    said: String,
}

/// Runs to its end and looks at the disk meanwhile.
fn watched(mut command: Command, run: &Path) -> Watched {
    let log = run.with_extension("log");
    let file = std::fs::File::create(&log).expect("log");
    let quiet = command.stdout(std::process::Stdio::null()).stderr(file);
    let mut child = quiet.spawn().expect("uc");
    let (mut shards, mut disk) = (0, 0);
    let status = loop {
        shards = shards.max(on_disk(run));
        let mut all = Vec::new();
        files(run, &mut all);
        let sizes = all
            .iter()
            .filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
        disk = disk.max(sizes.sum());
        if let Some(status) = child.try_wait().expect("state") {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    Watched {
        code: status.code(),
        shards,
        disk,
        said: std::fs::read_to_string(log).expect("log"),
    }
}

#[test]
fn a_source_larger_than_its_budget_comes_and_goes_and_the_pack_is_the_same() {
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path());
    let fake_hub = fake_hub(&model);
    let shards: BTreeMap<String, Vec<u8>> = contents(&model)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .collect();
    let source: u64 = shards.values().map(|bytes| bytes.len() as u64).sum();
    let largest = shards
        .values()
        .map(|bytes| bytes.len() as u64)
        .max()
        .expect("shards");
    let local = folder.path().join("local");
    let mut command = compress(&model, &local);
    at(&mut command, &fake_hub, &local);
    succeed(&mut command);

    // Refused before anything starts: a budget that one job's shards exceed, and a folder of the user's.
    let run = folder.path().join("run");
    let said = fail_with(&mut evicting(&fake_hub, &run, largest), 3);
    assert!(
        said.contains("retention.budget") && said.contains("expected at least"),
        "{said}"
    );
    let mut command = compress(&model, &run);
    let said = fail_with(command.args(["--set", "retention.source=evict"]), 3);
    assert!(said.contains("nothing is ever deleted"), "{said}");

    // The branch moves while the run goes on; faults of every kind that passes.
    let budget = 2 * largest + 4096;
    assert!(budget < source / 2, "{budget} of {source}");
    let faults = [
        Fault::ResetBody,
        Fault::CutBody,
        Fault::TooMany(0),
        Fault::WrongByte,
        Fault::Status(500),
        Fault::Drip(1),
        Fault::IgnoreRange,
        Fault::Reset,
    ];
    let mut command = evicting(&fake_hub, &run, budget);
    command.env("UC_LOG", "warn");
    let mut moved = false;
    let command_run = run.clone();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watched(command, &command_run));
        while !watcher.is_finished() {
            if !moved && run.join("run.json").exists() {
                fake_hub.put(REPO, "config.json", b"{}");
                fake_hub.put(REPO, "model-00001-of-00006.safetensors", &vec![7; 50_000]);
                fake_hub.set_faults(Schedule::script(Route::Object, faults.clone()));
                moved = true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let Watched {
            code,
            shards,
            disk,
            said,
        } = watcher.join().expect("watched");
        assert_eq!(code, Some(0), "{said}");
        println!("source {source}, budget {budget}, most of shards {shards}, of the run {disk}");
        assert!(shards <= budget, "{shards} of {budget}");
        let statement = said.lines().find(|line| line.starts_with("source: "));
        let statement = statement.expect("a statement before the run");
        let fetched = said
            .lines()
            .filter(|line| line.starts_with("fetch of "))
            .count();
        println!("{statement}\n{fetched} were fetched");
        assert!(statement.contains("to download"), "{statement}");
        let stated = statement.split("about ").last();
        let stated = stated.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
        let stated = stated.expect("MiB of disk") * f64::from(1 << 20);
        assert!(disk as f64 <= stated, "{disk} of {statement}");
    });
    assert!(moved);
    assert!(comparable(&run) == comparable(&local));
    assert_eq!(on_disk(&run), 0);
    let digest = |run: &Path| {
        let plan = std::fs::read_to_string(run.join("run.json")).expect("plan");
        let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
        plan["externals"]["source"]["digest"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(digest(&run), digest(&local));
    assert_no_token(folder.path());

    // Nothing is stale afterwards, also with another budget or none, and nothing comes again.
    let objects = |fake_hub: &FakeHub| fake_hub.seen().iter().filter(|seen| seen.storage).count();
    let before = objects(&fake_hub);
    for set in ["retention.budget=1 GiB", "retention.source=keep"] {
        let mut command = uc();
        command.arg("resume").arg(&run).args(["--set", set]);
        at(&mut command, &fake_hub, &run);
        let said = words(&succeed(&mut command));
        assert!(said.contains(": 0 of "), "{said}");
    }
    assert_eq!(objects(&fake_hub), before);
}

/// Waits until something holds, for at most a minute.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 60, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn an_evicting_run_survives_kills_a_dead_network_and_wrong_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path());
    let fake_hub = fake_hub(&model);
    let shards = contents(&model);
    let largest = |name: &str| shards[name].len() as u64;
    let budget = 2
        * (1..=6)
            .map(|shard| largest(&format!("model-{shard:05}-of-00006.safetensors")))
            .max()
            .expect("six");
    let run = folder.path().join("run");
    let objects = || {
        let seen = fake_hub.seen();
        seen.iter().filter(|seen| seen.storage).count()
    };
    let resume = || {
        let mut command = uc();
        command.arg("resume").arg(&run);
        at(&mut command, &fake_hub, &run);
        command
    };

    // The driver is killed in the middle of a shard; its successor goes on in the middle of it.
    let mut child = {
        let mut command = evicting(&fake_hub, &run, budget);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command.spawn().expect("uc")
    };
    until("a plan", || run.join("run.json").exists());
    fake_hub.set_faults(Schedule::script(Route::Object, vec![Fault::Stall; 9]));
    let growing = || {
        let mut all = Vec::new();
        files(&run.join("source"), &mut all);
        let is_growing =
            |path: &PathBuf| path.extension().is_some_and(|ending| ending == "growing");
        all.into_iter().find(is_growing)
    };
    until("a shard on its way", || {
        growing().is_some_and(|path| std::fs::metadata(path).is_ok_and(|found| found.len() > 0))
    });
    child.kill().expect("killed");
    child.wait().expect("gone");
    until("the stages to be gone", || {
        uc_tests::kills::workers_of(&run).is_empty()
    });

    // A network that is dead: exit status 11 and how to go on.
    let before = fake_hub.seen().len();
    let said = fail_with(resume().env("HF_ENDPOINT", "http://127.0.0.1:9"), 11);
    assert!(
        said.contains("fetch of model-") && said.contains("uc resume"),
        "{said}"
    );
    assert_eq!(fake_hub.seen().len(), before);
    let status = words(&succeed(uc().arg("status").arg(&run)));
    assert!(status.contains("fetch"), "{status}");

    // Bytes that are not those that the Hub names: refused, and nothing of them stays.
    fake_hub.set_faults(Schedule::None);
    let last = &shards["model-00006-of-00006.safetensors"];
    let mut other = last.clone();
    other[last.len() - 1] ^= 1;
    fake_hub.tamper(last, &other);
    let Watched {
        code,
        shards: most,
        said,
        ..
    } = watched(resume(), &run);
    assert_eq!(code, Some(11), "{said}");
    assert!(
        said.contains("SHA-256") && said.contains("00006-of-00006"),
        "{said}"
    );
    assert!(most <= budget, "{most} of {budget}");
    let ranges = fake_hub.seen();
    assert!(
        ranges
            .iter()
            .any(|seen| seen.storage && seen.range.is_some())
    );
    fake_hub.tamper(last, last);

    // Drivers that are killed now and then, connections that break, shards that are damaged while nobody looks.
    let mut random = uc_tests::kills::Random(7);
    for _ in 0..3 {
        fake_hub.set_faults(Schedule::script(
            Route::Object,
            [Fault::ResetBody, Fault::CutBody, Fault::Status(503)],
        ));
        let seen = objects();
        let mut child = {
            let mut command = resume();
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            command.spawn().expect("uc")
        };
        let more = 1 + random.below(3) as usize;
        until("objects", || {
            objects() >= seen + more || child.try_wait().is_ok_and(|e| e.is_some())
        });
        let _ = child.kill();
        child.wait().expect("gone");
        until("the stages to be gone", || {
            uc_tests::kills::workers_of(&run).is_empty()
        });
        let mut all = Vec::new();
        files(&run.join("source"), &mut all);
        let shard = all
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "safetensors"));
        if let Some(path) = shard {
            let mut bytes = std::fs::read(&path).expect("shard");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).expect("damaged");
        }
    }
    // The last one loses the process that fetches, and starts another.
    fake_hub.set_faults(Schedule::script(Route::Object, [Fault::Stall]));
    let fetchers = || {
        let mut all = uc_tests::kills::workers_of(&run);
        all.retain(|id| {
            let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == b"shard")
        });
        all
    };
    let last = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watched(resume(), &run));
        let before = fake_hub.seen().len();
        let stalls = || {
            fake_hub.seen()[before..]
                .iter()
                .any(|seen| seen.fault.is_some())
        };
        until("a fetch that hangs", || stalls() || watcher.is_finished());
        for id in fetchers() {
            uc_tests::kills::signal(id, "-KILL");
        }
        watcher.join().expect("watched")
    });
    let Watched {
        code,
        shards: most,
        said,
        ..
    } = last;
    assert!(
        said.contains("killed by signal 9") && said.contains("trying again"),
        "{said}"
    );
    assert_eq!(code, Some(0), "{said}");
    assert!(most <= budget, "{most} of {budget}");
    let local = folder.path().join("local");
    let mut command = compress(&model, &local);
    at(&mut command, &fake_hub, &local);
    succeed(&mut command);
    assert!(comparable(&run) == comparable(&local));
    assert_no_token(folder.path());
}

/// From a repository to a repository, neither the source nor the pack ever whole on this disk, under faults by seed.
#[test]
#[ignore = "minutes; part of `make test-full`"]
fn whole_runs_in_storms_end_equal_or_cleanly_and_a_rerun_completes() {
    const PACK: &str = "tester/pack";
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path());
    let local = folder.path().join("local");
    let mut command = compress(&model, &local);
    at(&mut command, &fake_hub(&model), &local);
    succeed(&mut command);
    let layers = |mut files: BTreeMap<String, Vec<u8>>| {
        files.retain(|name, _| name.ends_with(".uc"));
        files
    };
    let expected = layers(contents(&local.join("pack")));
    let budget = contents(&model)
        .iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(_, bytes)| 2 * bytes.len() as u64)
        .max()
        .expect("shards");

    let (mut failures, mut seeds) = (0, 0);
    for seed in 1..=20 {
        let fake_hub = fake_hub(&model);
        fake_hub.set_faults(Schedule::brisk(seed, 10 + seed as u32 % 25, 150));
        let run = folder.path().join(format!("run-{seed}"));
        for attempt in 0.. {
            let mut command = evicting(&fake_hub, &run, budget);
            command.args([
                "--upload",
                PACK,
                "--delete-uploaded",
                "--set",
                "upload.longest_wait=0",
            ]);
            let output = command.output().expect("uc");
            let said = words(&output);
            assert!(!said.contains(&Options::default().token), "{said}");
            if output.status.success() {
                break;
            }
            assert_eq!(output.status.code(), Some(11), "seed {seed}: {said}");
            assert!(attempt < 8, "seed {seed}: {said}");
            failures += 1;
        }
        let remote = fake_hub.content(PACK, "main");
        assert!(layers(remote) == expected, "seed {seed}");
        assert_eq!(on_disk(&run), 0, "seed {seed}");
        let mut here = Vec::new();
        files(&run.join("pack"), &mut here);
        let layer = |path: &&PathBuf| path.to_string_lossy().contains("layer_");
        assert_eq!(here.iter().filter(layer).count(), 0, "seed {seed}");
        assert_no_token(&run);
        std::fs::remove_dir_all(&run).expect("removed");
        seeds += 1;
    }
    println!("{seeds} runs, {failures} clean failures on the way");
}
