//! A pack goes to a repository: while it is made and afterwards, under faults, over kills, and not at all when it is
//! damaged.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use uc_fake_hub::faults::{Fault, Route, Schedule};
use uc_fake_hub::{FakeHub, Options};
use uc_tests::kills::{losses, signal, workers_of};
use uc_tests::{compress, contents, fail_with, json, program, repository, succeed, uc, words};
use uc_tests::{copy_model, tiny_model};

const REPO: &str = "tester/pack";
const DAMAGED: i32 = 5;
const PERMISSION: i32 = 8;
const NETWORK: i32 = 11;
const IO: i32 = 12;
const INTERRUPTED: i32 = 130;
/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn fake_hub() -> FakeHub {
    FakeHub::start(Options {
        lfs_threshold: 20_000,
        part_size: 30_000,
        page: 3,
        ..Options::default()
    })
}

fn with_hub(mut command: Command, fake_hub: &FakeHub) -> Command {
    command.env("HF_ENDPOINT", fake_hub.endpoint());
    command.env("HF_TOKEN", Options::default().token);
    command
}

/// `uc compress MODEL --upload REPO`, without waits between attempts.
fn compress_to(fake_hub: &FakeHub, model: &Path, run: &Path) -> Command {
    let mut command = with_hub(compress(model, run), fake_hub);
    command.args(["--upload", REPO, "--set", "upload.longest_wait=0"]);
    command
}

fn resume(fake_hub: &FakeHub, run: &Path) -> Command {
    let mut command = with_hub(uc(), fake_hub);
    command.arg("resume").arg(run);
    command
}

fn upload(fake_hub: &FakeHub, run: &Path) -> Command {
    let mut command = with_hub(uc(), fake_hub);
    command.arg("upload").arg(run).args(["--repo", REPO]);
    command
}

/// What a repository should hold of a run whose pack is whole here.
fn expected(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut expected = contents(&run.join("pack"));
    expected.remove("remote.json");
    let card = std::fs::read(run.join("hub/README.md")).expect("the card");
    expected.insert("README.md".into(), card);
    expected
}

fn remote(fake_hub: &FakeHub) -> BTreeMap<String, Vec<u8>> {
    let mut content = fake_hub.content(REPO, "main");
    content.remove(".gitattributes");
    content
}

fn count(fake_hub: &FakeHub, part: &str) -> usize {
    let seen = fake_hub.seen();
    seen.iter().filter(|seen| seen.line.contains(part)).count()
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// Lines of the log of events with these fields.
fn events(run: &Path, wanted: &[(&str, &str)]) -> Vec<(usize, Value)> {
    let text = std::fs::read(run.join("events.jsonl")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text.lines().map(serde_json::from_str::<Value>).enumerate();
    let parsed = lines.filter_map(|(at, value)| Some((at, value.ok()?)));
    parsed
        .filter(|(_, value)| wanted.iter().all(|(key, word)| value[*key] == *word))
        .collect()
}

fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn all_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => all_files(&path, found),
            path => found.push(path),
        }
    }
}

fn token_is_in_no_file(run: &Path) {
    let token = Options::default().token;
    let mut files = Vec::new();
    all_files(run, &mut files);
    assert!(files.len() > 20);
    for path in files {
        let bytes = std::fs::read(&path).expect("file");
        let found = bytes
            .windows(token.len())
            .any(|part| part == token.as_bytes());
        assert!(!found, "the token is in {}", path.display());
    }
}

/// Runs until it succeeds; what fails must say that it was the network.
fn until_done(mut commands: impl Iterator<Item = Command>) -> std::process::Output {
    for tries in 0.. {
        let output = commands.next().expect("endless").output().expect("uc");
        let said = words(&output);
        assert!(!said.contains(&Options::default().token), "{said}");
        if output.status.success() {
            return output;
        }
        assert!(output.status.code() == Some(NETWORK) && tries < 8, "{said}");
    }
    unreachable!("an endless range")
}

#[test]
fn layers_go_up_while_later_ones_are_made_whatever_happens_on_the_way() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let stormy = fake_hub();
    let mut seeds = 0..;
    let commands = std::iter::from_fn(|| {
        let seed = seeds.next()?;
        stormy.set_faults(Schedule::random(seed, 30, 20));
        let mut command = compress_to(&stormy, &tiny_model(), &run);
        command.arg("--json");
        Some(command)
    });
    let output = until_done(commands);
    let expected = expected(&run);
    assert!(remote(&stormy) == expected);
    let summary = json(&output);
    assert_eq!(summary["upload"]["repository"], REPO);
    assert_eq!(summary["upload"]["files"], expected.len());
    assert_eq!(summary["upload"], read_json(&run.join("pack/remote.json")));
    assert_eq!(summary["pack"]["verdict"], "PASS");
    succeed(uc().arg("verify").arg(run.join("pack")));
    token_is_in_no_file(&run);

    // Nothing is sent twice, and another repository makes nothing stale but the upload.
    stormy.set_faults(Schedule::None);
    let before = (stormy.commits(REPO, "main"), count(&stormy, "PUT"));
    let said = words(&succeed(&mut upload(&stormy, &run)));
    assert!(said.contains("uploaded to           tester/pack"), "{said}");
    assert_eq!(
        before,
        (stormy.commits(REPO, "main"), count(&stormy, "PUT"))
    );
    let other = fake_hub();
    succeed(&mut upload(&other, &run));
    assert!(remote(&other) == expected);
    assert_eq!(losses(&run).cut_off, 0);
    let quantized = events(&run, &[("event", "finished"), ("stage", "quantize")]);
    assert_eq!(quantized.len(), 4);
}

#[test]
fn whoever_is_killed_in_the_middle_the_next_one_completes() {
    let folder = tempfile::tempdir().expect("folder");
    let (run, plain) = (folder.path().join("run"), folder.path().join("plain"));
    succeed(&mut compress(&tiny_model(), &plain));
    let fake_hub = fake_hub();
    let stalls = || Schedule::script(Route::Part, vec![Fault::Stall; 200]);
    fake_hub.set_faults(stalls());
    let begin = || {
        let mut command = compress_to(&fake_hub, &tiny_model(), &run);
        command.args(["--delete-uploaded", "--attempts", "1000"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("uc")
    };
    let uploading = || {
        let mut found = None;
        await_that("a layer is being sent", || {
            let sends = |id: &u32| {
                let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let mut arguments = arguments.split(|byte| *byte == 0);
                arguments.any(|word| word == b"upload-layer")
            };
            found = workers_of(&run).into_iter().find(sends);
            found.is_some() && count(&fake_hub, "PUT") > 0
        });
        found.expect("just found")
    };

    // The stage: another process is started for its job.
    let mut driver = begin();
    signal(uploading(), "-9");
    await_that("it is missed", || {
        !events(&run, &[("event", "job-failure"), ("stage", "upload-layer")]).is_empty()
    });
    let failures = events(&run, &[("event", "job-failure"), ("stage", "upload-layer")]);
    assert_eq!(failures[0].1["class"], "stage-failed");
    // The driver: its stages go with it.
    uploading();
    driver.kill().expect("killed");
    driver.wait().expect("gone");
    await_that("its stages are gone", || workers_of(&run).is_empty());
    assert!(!run.join("pack/remote.json").exists());

    fake_hub.set_faults(Schedule::None);
    succeed(&mut resume(&fake_hub, &run));
    assert_eq!(layer_files(&run), 0);
    let mut there = remote(&fake_hub);
    there.remove("README.md");
    assert!(there == contents(&plain.join("pack")));
}

#[test]
fn a_network_that_is_down_costs_the_upload_and_nothing_else() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(
        Route::Batch,
        vec![Fault::Status(503); 900],
    ));
    let mut command = compress_to(&fake_hub, &tiny_model(), &run);
    let output = command.args(["--attempts", "2", "--json"]).output();
    let output = output.expect("uc");
    let said = words(&output);
    assert_eq!(output.status.code(), Some(NETWORK), "{said}");
    assert!(said.contains("gave up after 2 attempts"), "{said}");
    assert!(said.contains("uc resume"), "{said}");
    let summary = json(&output);
    assert_eq!(summary["pack"]["verdict"], "PASS");
    assert!(summary["metrics"]["pack_ppl"]["value"].is_f64());
    assert_eq!(summary["upload"], Value::Null);
    succeed(uc().arg("verify").arg(run.join("pack")));

    fake_hub.set_faults(Schedule::None);
    let made = || events(&run, &[("event", "finished"), ("stage", "pack-writer")]).len();
    assert_eq!(made(), 4);
    succeed(&mut resume(&fake_hub, &run));
    assert_eq!(made(), 4);
    assert!(remote(&fake_hub) == expected(&run));

    // Nobody there at all.
    let mut nobody = upload(&fake_hub, &run);
    nobody
        .args(["--attempts", "1"])
        .env("HF_ENDPOINT", "http://127.0.0.1:1");
    fail_with(&mut nobody, NETWORK);
}

#[test]
fn an_upload_that_waits_shows_it_and_ends_in_order_when_it_is_told_to() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(Route::Batch, vec![Fault::TooMany(60); 9]));
    let mut command = compress_to(&fake_hub, &tiny_model(), &run);
    command.args(["--set", "upload.longest_wait=60"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut driver = command.spawn().expect("uc");
    let waits = || {
        let output = uc().arg("status").arg(&run).arg("--json").output();
        let status: Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
        let running = status["running"].as_array()?;
        let retry = running.iter().find_map(|job| job.get("retry"))?;
        Some(retry.clone())
    };
    await_that("it waits", || waits().is_some());
    let retry = waits().expect("still");
    assert_eq!(
        (&retry["attempt"], &retry["attempts"]),
        (&2.into(), &8.into())
    );
    let error = retry["error"].as_str().expect("text");
    assert!(error.contains("429"), "{error}");
    let text = words(&succeed(uc().arg("status").arg(&run)));
    assert!(text.contains("; attempt 2 of 8 in "), "{text}");

    signal(driver.id(), "-INT");
    let status = driver.wait().expect("ended");
    assert_eq!(status.code(), Some(INTERRUPTED));
    assert!(workers_of(&run).is_empty());
    fake_hub.set_faults(Schedule::None);
    succeed(&mut resume(&fake_hub, &run));
    assert!(remote(&fake_hub) == expected(&run));
}

#[test]
fn what_must_not_or_cannot_be_sent_is_refused_with_its_class() {
    let folder = tempfile::tempdir().expect("folder");
    let (model, run) = (folder.path().join("model"), folder.path().join("run"));
    copy_model(&model);
    let fake_hub = fake_hub();

    // Who may not write is told so before anything is computed.
    let mut without = compress_to(&fake_hub, &model, &run);
    without
        .env_remove("HF_TOKEN")
        .env("HF_TOKEN_PATH", "/nonexistent");
    assert!(fail_with(&mut without, PERMISSION).contains("HF_TOKEN"));
    let mut wrong = compress_to(&fake_hub, &model, &run);
    let said = fail_with(wrong.env("HF_TOKEN", "hf_wrong"), PERMISSION);
    assert!(said.contains("401") && !said.contains("hf_wrong"), "{said}");
    assert!(!run.join("pack").exists());
    fail_with(compress(&model, &run).args(["--upload", "no-owner"]), 3);
    fail_with(compress(&model, &run).args(["--delete-uploaded"]), 2);

    // A damaged layer stays at home.
    succeed(&mut compress(&model, &run));
    let whole = contents(&run.join("pack"));
    let layer = run.join("pack/layer_001.uc");
    let mut bytes = whole["layer_001.uc"].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damage = || std::fs::write(&layer, &bytes).expect("damaged");
    damage();
    std::fs::rename(&model, folder.path().join("elsewhere")).expect("moved");
    let said = fail_with(&mut upload(&fake_hub, &run), IO);
    assert!(said.contains("layer_001.uc is damaged"), "{said}");
    assert!(said.contains("model/config.json"), "{said}");
    let is_there = |fake_hub: &FakeHub| remote(fake_hub).contains_key("layer_001.uc");
    assert!(!is_there(&fake_hub));
    let mut alone = with_hub(uc(), &fake_hub);
    alone.args(["stage", "upload-layer", "--layer", "1", "--run"]);
    let said = fail_with(alone.arg(&run), DAMAGED);
    assert!(said.contains("layer_001.uc"), "{said}");
    assert!(!is_there(&fake_hub));

    // With its model at hand the run mends itself first, as always.
    std::fs::rename(folder.path().join("elsewhere"), &model).expect("back");
    damage();
    succeed(&mut upload(&fake_hub, &run));
    let mut there = remote(&fake_hub);
    there.remove("README.md");
    assert!(there == whole);
}

/// A model of small layers.
fn many_layers(folder: &Path, layers: u64) -> PathBuf {
    let config = repository().join("examples/small-configs/llama.json");
    let mut config = read_json(&config);
    config["num_hidden_layers"] = layers.into();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let model = folder.join("model");
    let mut command = program("random-model");
    command.arg("--config").arg(&path).arg("--out").arg(&model);
    succeed(&mut command);
    for text in ["calibration.txt", "evaluation.txt"] {
        let from = repository().join("examples/tiny-stories").join(text);
        std::fs::copy(from, model.join(text)).expect("copied");
    }
    model
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // Files vanish while one looks.
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    sizes.sum()
}

fn layer_files(run: &Path) -> usize {
    let entries = std::fs::read_dir(run.join("pack")).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().contains("layer_"))
        .count()
}

#[test]
fn freed_layers_never_lie_here_in_greater_number_than_the_bound_says() {
    /// `max_lead` of pack-writer, and the one that is written.
    const BOUND: usize = 3;
    const LAYERS: u64 = 8;
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path(), LAYERS);
    let plain = folder.path().join("plain");
    succeed(&mut compress(&model, &plain));

    // Where the network takes nothing, the run stops at the bound and not at the end of the disk.
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    fake_hub.set_faults(Schedule::script(
        Route::Commit,
        vec![Fault::Status(500); 900],
    ));
    let mut command = compress_to(&fake_hub, &model, &run);
    fail_with(
        command.args(["--delete-uploaded", "--attempts", "1"]),
        NETWORK,
    );
    assert_eq!(layer_files(&run), BOUND);

    // A slow one is waited for.
    fake_hub.set_faults(Schedule::script(Route::Commit, vec![Fault::TooMany(1); 7]));
    let mut command = compress_to(&fake_hub, &model, &run);
    command.args([
        "--delete-uploaded",
        "--set",
        "upload.longest_wait=1",
        "--json",
    ]);
    let mut driver = command.stdout(Stdio::piped()).spawn().expect("uc");
    let (mut most, mut peak) = (0, 0);
    while driver.try_wait().expect("state").is_none() {
        most = most.max(layer_files(&run));
        peak = peak.max(bytes_below(&run.join("pack")));
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = driver.wait_with_output().expect("output");
    assert!(output.status.success(), "{}", words(&output));
    assert!((1..=BOUND).contains(&most), "{most} layers");
    assert_eq!(layer_files(&run), 0);
    let whole = contents(&plain.join("pack"));
    let sizes = whole.iter().map(|(name, bytes)| (name, bytes.len() as u64));
    let (layers, others): (Vec<_>, Vec<_>) = sizes.partition(|(name, _)| name.contains("layer_"));
    let largest = layers.iter().map(|(_, size)| *size).max().expect("layers");
    let others: u64 = others.into_iter().map(|(_, size)| size).sum();
    let note = bytes_below(&run.join("pack")) - others;
    let bound = BOUND as u64 * largest + others + note;
    println!("pack: peak {peak} of at most {bound} bytes, {most} layers of {LAYERS}");
    assert!(peak <= bound, "{peak} > {bound}");
    // The first layer was there before the last was begun.
    let first = events(&run, &[("event", "finished"), ("stage", "upload-layer")]);
    let last = events(&run, &[("event", "started"), ("stage", "pack-writer")]);
    assert!(first[0].0 < last[last.len() - 1].0);
    let summary = json(&output);
    assert_eq!(summary["pack"]["deleted_layers"], LAYERS);
    assert_eq!(summary["pack"]["verdict"], Value::Null);

    // What is there is the pack that a run without an upload makes.
    let mut there = remote(&fake_hub);
    there.remove("README.md");
    assert!(there == contents(&plain.join("pack")));

    // The run stands: nothing is to be done, nothing is sent, and verify says where the layers are.
    let commits = fake_hub.commits(REPO, "main");
    let said = words(&succeed(&mut resume(&fake_hub, &run)));
    assert!(said.contains(": 0 of "), "{said}");
    assert!(
        said.contains("8 of 8 layers are only in the repository"),
        "{said}"
    );
    succeed(&mut upload(&fake_hub, &run));
    assert_eq!(fake_hub.commits(REPO, "main"), commits);
    let said = fail_with(uc().arg("verify").arg(run.join("pack")), DAMAGED);
    assert!(
        said.contains("layer_003.uc: not here; remote.json says that tester/pack holds it"),
        "{said}"
    );

    // What neither has is missed; the command that is named makes it again, the same as it was.
    let empty = self::fake_hub();
    let said = fail_with(&mut upload(&empty, &run), 10);
    assert!(
        said.contains("layer_000.uc") && said.contains("uc compress"),
        "{said}"
    );
    succeed(&mut compress(&model, &run));
    let mut again = contents(&run.join("pack"));
    again.remove("remote.json");
    assert!(again == contents(&plain.join("pack")));
    // A later upload of the whole run frees what it has sent.
    succeed(upload(&empty, &run).arg("--delete-uploaded"));
    assert_eq!(layer_files(&run), 0);
    let mut there = remote(&empty);
    there.remove("README.md");
    assert!(there == contents(&plain.join("pack")));

    // Layers that stay here go into few commits: the description, the eight layers, the manifest, the empty repository.
    let few = self::fake_hub();
    succeed(&mut upload(&few, &plain));
    let mut there = remote(&few);
    there.remove("README.md");
    let mut here = contents(&plain.join("pack"));
    here.remove("remote.json");
    assert!(there == here);
    assert_eq!(few.commits(REPO, "main"), 4);
}

#[test]
fn the_card_says_what_the_receipts_say_and_that_nothing_was_measured_where_nothing_was() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let fake_hub = fake_hub();
    succeed(&mut compress_to(&fake_hub, &tiny_model(), &run));
    let card = String::from_utf8(remote(&fake_hub)["README.md"].clone()).expect("text");
    assert!(
        card.starts_with("---\nlibrary_name: ultracompress\n"),
        "{card}"
    );
    // The name of a folder is nobody's base model.
    assert!(!card.contains("base_model"), "{card}");
    let metrics = read_json(&run.join("eval/metrics.json"));
    for name in [
        "teacher_ppl",
        "pack_ppl",
        "ppl_ratio",
        "mean_kl",
        "median_kl",
        "p99_kl",
        "top1_agreement",
    ] {
        let part = |part: &str| metrics[name][part].as_f64().expect(name);
        let row = format!(
            "| {:.6} | {:.6} to {:.6} |",
            part("value"),
            part("low"),
            part("high")
        );
        assert!(card.contains(&row), "{name}: {row} in {card}");
    }
    let windows = format!(
        "over {} windows of {} tokens ({} tokens compared)",
        metrics["windows"], metrics["window_length"], metrics["tokens"]
    );
    let manifest = read_json(&run.join("pack/manifest.json"));
    let totals = &manifest["totals"];
    let mut said = vec![windows];
    for key in [
        "bits_per_weight_linears",
        "bits_per_weight_all",
        "compression_ratio",
    ] {
        said.push(format!("| {} |", totals[key].as_str().expect(key)));
    }
    for key in [
        "linear_parameters",
        "linear_bits",
        "total_parameters",
        "total_bytes",
        "source_bytes",
    ] {
        said.push(format!(" {} ", totals[key]));
    }
    said.push(metrics["texts"][0]["sha256"].as_str().expect("text").into());
    said.push(metrics["pack_fingerprint"].as_str().expect("text").into());
    said.push(format!(
        "hf download {REPO} --local-dir PACK\nuc verify PACK"
    ));
    for words in said {
        assert!(card.contains(&words), "{words} in {card}");
    }

    let run = folder.path().join("unmeasured");
    let other = self::fake_hub();
    let mut command = compress_to(&other, &tiny_model(), &run);
    succeed(command.args(["--no-eval"]));
    assert!(remote(&other) == expected(&run));
    let card = String::from_utf8(remote(&other)["README.md"].clone()).expect("text");
    assert!(card.contains("Nothing was measured"), "{card}");
    assert!(!card.contains("perplexity"), "{card}");
    let fingerprint = &metrics["pack_fingerprint"];
    assert!(card.contains(fingerprint.as_str().expect("text")), "{card}");
}
