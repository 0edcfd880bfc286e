//! Disk use of a run with many layers: at every moment it stays within the bound that docs/architecture.md states.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use uc_tests::{compress, program, repository, succeed, uc};

const LAYERS: u64 = 24;

/// Maximum number of files of each kind at one time, by the start of their path. Every other file is a result or a record
/// and stays.
///
/// The bounds follow from `max_lead = 2` of shard-loader, teacher-cache and sensitivity-forward in pipeline.toml.
const BOUNDS: [(&str, u64); 8] = [
    ("layers/weights.safetensors", 3),
    ("layers/statistics.safetensors", 3),
    ("layers/codes.bin", 3),
    ("layers/overlay.bin", 3),
    ("hidden/", 3),
    ("eval/hidden/", 3),
    ("sensitivity/statistics/", 3),
    ("sensitivity/gradient/", 3),
];

/// Files that the sensitivity pass keeps for every layer: its backward sweep replaces the hidden states of a layer with
/// the layer's sensitivity.
const SENSITIVITY_PASS: [&str; 2] = ["sensitivity/hidden/", "sensitivity/sensitivity.safetensors"];

/// Makes a model with many layers.
fn make_model(folder: &Path) -> std::path::PathBuf {
    let config = repository().join("examples/small-configs/llama.json");
    let text = std::fs::read(config).expect("config");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    config["num_hidden_layers"] = LAYERS.into();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let model = folder.join("model");
    succeed(
        program("random-model")
            .arg("--config")
            .arg(&path)
            .arg("--out")
            .arg(&model),
    );
    for text in ["calibration.txt", "evaluation.txt"] {
        let from = repository().join("examples/tiny-stories").join(text);
        std::fs::copy(from, model.join(text)).expect("copied");
    }
    model
}

/// The kind of a file: its path without the layer. A file that is being written counts under its final name.
fn kind(path: &str) -> String {
    let parts = path.split('/').map(|part| {
        let part = part.strip_suffix(".partial").unwrap_or(part);
        part.strip_prefix('.').unwrap_or(part)
    });
    let is_layer = |part: &&str| part.len() == 3 && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = parts.filter(|part| !is_layer(part)).collect();
    parts.join("/")
}

/// The files of one kind: their number, their total size and the size of the largest, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    files: u64,
    bytes: u64,
    largest: u64,
}

fn count_files(root: &Path, folder: &Path, counts: &mut BTreeMap<String, Count>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        // A file may be deleted while its folder is being listed.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let path = entry.path();
        if metadata.is_dir() {
            count_files(root, &path, counts);
            continue;
        }
        let below = path
            .strip_prefix(root)
            .expect("below")
            .display()
            .to_string();
        let name = kind(&below);
        let kinds = BOUNDS
            .iter()
            .map(|(start, _)| *start)
            .chain(SENSITIVITY_PASS);
        let bounded = kinds.into_iter().find(|start| name.starts_with(start));
        let name = bounded.unwrap_or("kept").to_owned();
        let count = counts.entry(name).or_default();
        count.files += 1;
        count.bytes += metadata.len();
        count.largest = count.largest.max(metadata.len());
    }
}

#[test]
#[ignore = "a minute; part of `make test-full`"]
fn a_run_of_many_layers_stays_within_the_documented_bound() {
    let folder = tempfile::tempdir().expect("folder");
    let model = make_model(folder.path());
    let run = folder.path().join("run");
    let mut command = compress(&model, &run);
    command.args(["-q"]).stdout(Stdio::null());
    let mut driver = command.spawn().expect("uc");
    let (mut peak, mut samples, mut sensitivity_files) = (0, 0u64, 0);
    let mut most: BTreeMap<String, Count> = BTreeMap::new();
    let status = loop {
        let mut counts = BTreeMap::new();
        count_files(&run, &run, &mut counts);
        samples += 1;
        peak = peak.max(counts.values().map(|count| count.bytes).sum::<u64>());
        let sensitivity = SENSITIVITY_PASS.iter().filter_map(|name| counts.get(*name));
        sensitivity_files = sensitivity_files.max(sensitivity.map(|count| count.files).sum());
        for (name, count) in counts {
            let most = most.entry(name).or_default();
            most.files = most.files.max(count.files);
            most.bytes = most.bytes.max(count.bytes);
            most.largest = most.largest.max(count.largest);
        }
        if let Some(status) = driver.try_wait().expect("state") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");
    // Listing takes time: a file may be counted together with its successor, although they never existed together.
    let slack = 1;
    let mut bound = most["kept"].bytes;
    for (name, limit) in BOUNDS {
        let count = most.get(name).copied().unwrap_or_default();
        assert!(count.files <= limit + slack, "{name}: {count:?} of {limit}");
        bound += limit * count.largest;
    }
    let largest = SENSITIVITY_PASS
        .iter()
        .map(|name| most[*name].largest)
        .max();
    assert!(
        sensitivity_files <= LAYERS + 2 + slack,
        "{sensitivity_files}: {most:#?}"
    );
    bound += (LAYERS + 2) * largest.expect("two kinds");
    let source = std::fs::metadata(model.join("model.safetensors"))
        .expect("source")
        .len();
    println!("peak {peak} of at most {bound} bytes, source {source}, {samples} samples: {most:#?}");
    assert!(peak <= bound, "{peak} > {bound}: {most:#?}");
    assert!(
        most["layers/weights.safetensors"].bytes < source / 4,
        "{most:#?}"
    );
    succeed(uc().arg("verify").arg(run.join("pack")));
}
