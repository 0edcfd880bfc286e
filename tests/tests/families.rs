//! Every model family through the whole pipeline: a small model with random weights is calibrated, quantized, packed,
//! verified and evaluated. The pack must keep its budget and stay close to the teacher.
#![allow(clippy::disallowed_methods)]

use std::path::Path;

use uc_tests::{compress, contents, json, program, repository, succeed};

/// Makes a small model of the family with random weights.
fn make_model(family: &str, model: &Path, options: &[&str]) {
    let config = repository().join(format!("examples/small-configs/{family}.json"));
    let mut make = program("random-model");
    make.arg("--config").arg(config).arg("--out").arg(model);
    succeed(make.args(options));
}

/// Makes a model of the family, compresses it and returns the summary.
fn compress_family(family: &str, folder: &Path) -> serde_json::Value {
    let model = folder.join("model");
    make_model(family, &model, &[]);
    json(&succeed(
        compress(&model, &folder.join("run")).arg("--json"),
    ))
}

fn check(family: &str) {
    let folder = tempfile::tempdir().expect("folder");
    let summary = compress_family(family, folder.path());
    let totals = &summary["pack"]["totals"];
    let bits = totals["bits_per_weight_linears"].as_str().expect("bits");
    let bits: f64 = bits.parse().expect("a number");
    assert!((4.98..=5.0).contains(&bits), "{family}: {bits}");
    assert_eq!(summary["pack"]["verdict"], "PASS", "{family}");
    let metric = |name: &str| summary["metrics"][name]["value"].as_f64().expect(name);
    // A router with random weights sends a few tokens to other experts after quantization; hence the median.
    assert!(
        (0.0..0.02).contains(&metric("median_kl")),
        "{family}: {summary}"
    );
    assert!(
        (0.0..0.1).contains(&metric("mean_kl")),
        "{family}: {summary}"
    );
    assert!(
        (0.9..1.1).contains(&metric("ppl_ratio")),
        "{family}: {summary}"
    );
}

macro_rules! families {
    ($($family:ident)*) => {
        const FAMILIES: &[&str] = &[$(stringify!($family)),*];
        $(
            #[test]
            fn $family() {
                check(stringify!($family));
            }
        )*
    };
}

families!(
    deepseek_v3 gemma2 gemma3_text gpt2 gpt_neox granite granitemoe llama mamba mamba2 mistral mixtral olmo2 phi3 phimoe
    qwen2 qwen3 qwen3_moe
);

#[test]
fn every_small_configuration_is_tested() {
    let folder = repository().join("examples/small-configs");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| {
            let path = entry.expect("entry").path();
            path.file_stem()
                .expect("name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    assert_eq!(names, FAMILIES);
}

#[test]
fn the_summary_lists_the_calibration_tokens_of_every_expert() {
    let folder = tempfile::tempdir().expect("folder");
    let summary = compress_family("qwen3_moe", folder.path());
    let experts = &summary["experts"]["1"];
    let tokens = experts["tokens"].as_object().expect("tokens of inputs");
    // 8 experts with two inputs each; two experts for each of 6 windows of 128 tokens.
    assert_eq!(tokens.len(), 16, "{experts}");
    let into: u64 = (0..8)
        .map(|e| tokens[&format!("experts.{e}.in")].as_u64().expect("count"))
        .sum();
    assert_eq!(into, 2 * 6 * 128, "{experts}");
    let filled = experts["filled_up"].as_array().expect("list");
    for (name, count) in tokens {
        let width = if name.ends_with("down_in") { 96 } else { 128 };
        let short = count.as_u64().expect("count") < width;
        assert_eq!(filled.iter().any(|f| f == name.as_str()), short, "{name}");
    }
    assert!(summary["experts"].get("0").is_none(), "layer 0 is dense");
}

#[test]
fn a_layer_split_over_shards_gives_the_same_pack_and_f32_weights_are_accepted() {
    let folder = tempfile::tempdir().expect("folder");
    let pack = |name: &str, options: &[&str]| {
        let (model, run) = (
            folder.path().join(name),
            folder.path().join(format!("run-{name}")),
        );
        make_model("granitemoe", &model, options);
        succeed(compress(&model, &run).arg("--no-eval"));
        contents(&run.join("pack"))
    };
    let (single, shards) = (pack("single", &[]), pack("shards", &["--shards", "7"]));
    for layer in ["layer_000.uc", "layer_001.uc", "scaffold.uc"] {
        assert!(single[layer] == shards[layer], "{layer}");
    }
    // Norms and routers stay in f32, four bytes a value, which leaves slightly fewer bits to the linears.
    let wide = pack("f32", &["--dtype", "f32"]);
    let lengths = [&single, &wide].map(|pack| pack["layer_000.uc"].len() as f64);
    assert!((lengths[0] / lengths[1] - 1.0).abs() < 0.002, "{lengths:?}");
    assert!(wide["scaffold.uc"].len() > 3 * single["scaffold.uc"].len() / 2);
}

/// Experts, width and inner width of the layer below: its linears take 402 MB in f32.
const EXPERTS: u64 = 128;
const WIDTH: u64 = 512;

/// What a stage may take at most for a layer of [`EXPERTS`] experts, in bytes: the cache or the result whose size grows with the
/// number of experts, and for everything else (the program, one linear with its work memory) a quarter of the layer.
fn most_bytes(stage: &str) -> u64 {
    let square = WIDTH * WIDTH * size_of::<f32>() as u64;
    // The linears gate, up and down of every expert.
    let layer = 3 * EXPERTS * square;
    let grows = match stage {
        // The factors of the two inputs of every expert are cached between passes.
        "rates" | "quantize" | "overlay-fit" => 2 * EXPERTS * square,
        // The second moments of the output gradients are the result: diagonal blocks of 128 outputs.
        "sensitivity-backward" => layer * 128 / WIDTH,
        _ => 0,
    };
    grows + layer / 4
}

/// In a stage only caches and results may grow with the number of experts.
#[test]
#[ignore = "minutes; part of `make test-full`"]
fn no_stage_holds_all_experts_of_a_layer() {
    let folder = tempfile::tempdir().expect("folder");
    let small = repository().join("examples/small-configs/qwen3_moe.json");
    let text = std::fs::read(small).expect("configuration");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    for (key, value) in [
        ("hidden_size", WIDTH),
        ("moe_intermediate_size", WIDTH),
        ("num_experts", EXPERTS),
        ("num_experts_per_tok", 8),
        ("num_hidden_layers", 1),
    ] {
        config[key] = value.into();
    }
    config["mlp_only_layers"] = serde_json::json!([]);
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let model = folder.path().join("model");
    let mut make = program("random-model");
    succeed(make.arg("--config").arg(&path).arg("--out").arg(&model));
    let mut run = compress(&model, &folder.path().join("run"));
    run.args([
        "--set",
        "calibration.windows=8",
        "--set",
        "allocation.windows=8",
    ]);
    let summary = json(&succeed(run.arg("--json")));
    let stages = summary["stages"].as_object().expect("stages");
    for (stage, metrics) in stages {
        let (peak, most) = (metrics["peak_rss_bytes"].as_u64(), most_bytes(stage));
        let peak = peak.expect("bytes");
        assert!(peak < most, "{stage}: {peak} of at most {most} bytes");
    }
    assert_eq!(summary["pack"]["verdict"], "PASS");
}
