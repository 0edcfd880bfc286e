//! Disk of a many-layer run: what is there at any moment stays within the bound of docs/architecture.md.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use uc_tests::{compress, program, repository, succeed, uc};

const LAYERS: u64 = 24;

/// How many files of each kind the bound allows, by the start of their path; every other file is a result or a record.
///
/// The bounds follow from `max_lead = 2` of shard-loader, teacher-cache and survey in pipeline.toml.
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

/// What the survey keeps of every layer: the backward sweep turns the states of a layer into its sensitivity.
const SWEPT: [&str; 2] = ["sensitivity/hidden/", "sensitivity/sensitivity.safetensors"];

/// A model of many layers.
fn model(folder: &Path) -> std::path::PathBuf {
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

/// Kind of a file: its path without the layer and, while it is being written, under the name that it will have.
fn kind(path: &str) -> String {
    let parts = path.split('/').map(|part| {
        let part = part.strip_suffix(".partial").unwrap_or(part);
        part.strip_prefix('.').unwrap_or(part)
    });
    let is_layer = |part: &&str| part.len() == 3 && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = parts.filter(|part| !is_layer(part)).collect();
    parts.join("/")
}

/// Number and bytes of the files of each kind, with the largest one.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    files: u64,
    bytes: u64,
    largest: u64,
}

fn look(root: &Path, folder: &Path, counts: &mut BTreeMap<String, Count>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        // Files vanish while one looks.
        let Ok(found) = entry.metadata() else {
            continue;
        };
        let path = entry.path();
        if found.is_dir() {
            look(root, &path, counts);
            continue;
        }
        let below = path
            .strip_prefix(root)
            .expect("below")
            .display()
            .to_string();
        let name = kind(&below);
        let kinds = BOUNDS.iter().map(|(start, _)| *start).chain(SWEPT);
        let bounded = kinds.into_iter().find(|start| name.starts_with(start));
        let name = bounded.unwrap_or("kept").to_owned();
        let count = counts.entry(name).or_default();
        count.files += 1;
        count.bytes += found.len();
        count.largest = count.largest.max(found.len());
    }
}

#[test]
#[ignore = "a minute; part of `make test-full`"]
fn a_run_of_many_layers_stays_within_the_bound_that_is_promised() {
    let folder = tempfile::tempdir().expect("folder");
    let model = model(folder.path());
    let run = folder.path().join("run");
    let mut command = compress(&model, &run);
    command.args(["-q"]).stdout(Stdio::null());
    let mut driver = command.spawn().expect("uc");
    let (mut peak, mut looks, mut swept) = (0, 0u64, 0);
    let mut most: BTreeMap<String, Count> = BTreeMap::new();
    let status = loop {
        let mut counts = BTreeMap::new();
        look(&run, &run, &mut counts);
        looks += 1;
        peak = peak.max(counts.values().map(|count| count.bytes).sum::<u64>());
        let of_sweep = SWEPT.iter().filter_map(|name| counts.get(*name));
        swept = swept.max(of_sweep.map(|count| count.files).sum());
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
    // A look takes time: a file may be seen as deleted only after its successor was seen.
    let slack = 1;
    let mut bound = most["kept"].bytes;
    for (name, limit) in BOUNDS {
        let found = most.get(name).copied().unwrap_or_default();
        assert!(found.files <= limit + slack, "{name}: {found:?} of {limit}");
        bound += limit * found.largest;
    }
    let largest = SWEPT.iter().map(|name| most[*name].largest).max();
    assert!(swept <= LAYERS + 2 + slack, "{swept}: {most:#?}");
    bound += (LAYERS + 2) * largest.expect("two");
    let source = std::fs::metadata(model.join("model.safetensors"))
        .expect("source")
        .len();
    println!("peak {peak} of at most {bound} bytes, source {source}, {looks} looks: {most:#?}");
    assert!(peak <= bound, "{peak} > {bound}: {most:#?}");
    assert!(
        most["layers/weights.safetensors"].bytes < source / 4,
        "{most:#?}"
    );
    succeed(uc().arg("verify").arg(run.join("pack")));
}
