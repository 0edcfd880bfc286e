//! `uc plan --config` without weights: names, shapes and parameter counts equal those of real checkpoints, sizes equal those
//! of a run, and an index that differs is refused.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uc_tests::{
    QUICK, compress, contents, fail_with, json as output_json, program, repository, succeed,
    tiny_model, uc,
};

const USAGE: i32 = 2;
const BAD_INPUT: i32 = 4;

type Tensors = BTreeMap<String, Vec<u64>>;

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shape(value: &Value) -> Vec<u64> {
    serde_json::from_value(value["shape"].clone()).expect("a shape")
}

/// The shapes of the plan's tensors by full name, and the whole output of `shard-loader describe`.
fn describe(config: &Path, index: &Path) -> (Tensors, Value) {
    let mut command = program("shard-loader");
    command.args(["describe", "--tensors", "--config"]);
    let output = succeed(command.arg(config).arg("--index").arg(index));
    let description: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let tensors = serde_json::from_value(description["tensors"].clone()).expect("shapes");
    (tensors, description)
}

/// An index that places these tensors in one shard.
fn single_shard_index<'a>(names: impl Iterator<Item = &'a String>) -> Value {
    let map: BTreeMap<&String, &str> = names.map(|name| (name, "model.safetensors")).collect();
    json!({"metadata": {}, "weight_map": map})
}

fn assert_index_agrees(description: &Value, what: &str) {
    for list in ["missing", "left_over"] {
        assert_eq!(description["index"][list], json!([]), "{what}");
    }
}

/// The folder with configurations of real models and the names and shapes of their tensors, which are not part of the
/// project.
fn real_models() -> Option<PathBuf> {
    let named = std::env::var_os("UC_MODELS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| repository().join("../shared/models"));
    let exists = folder.join("configs").is_dir();
    if !exists {
        eprintln!(
            "{} does not exist: plans of real models are not tested; UC_MODELS names the folder",
            folder.display()
        );
    }
    exists.then_some(folder)
}

#[test]
fn plans_of_real_models_have_the_names_and_shapes_of_their_checkpoints() {
    let Some(folder) = real_models() else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("configs")).expect("configs") {
        let config = entry.expect("entry").path();
        if config.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let name = config
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("name");
        let generated = folder.join("indexes/generated").join(name);
        let index = generated.join("model.safetensors.index.json");
        let expected: BTreeMap<String, Value> =
            serde_json::from_value(read(&generated.join("tensors.json"))).expect("tensors");
        let expected: Tensors = expected
            .into_iter()
            .map(|(tensor, entry)| (tensor, shape(&entry)))
            .collect();
        let (tensors, description) = describe(&config, &index);
        assert!(tensors == expected, "{name}: tensors differ");
        let parameters: u64 = expected.values().map(|s| s.iter().product::<u64>()).sum();
        assert_eq!(description["total_parameters"], parameters, "{name}");
        assert_index_agrees(&description, name);
        let real = folder.join("indexes/real").join(name);
        let real = real.join("model.safetensors.index.json");
        if real.exists() {
            assert_index_agrees(&describe(&config, &real).1, name);
        }
        count += 1;
    }
    assert_eq!(count, 33);
}

#[test]
fn plans_of_small_models_of_every_family_have_the_names_and_shapes_of_their_files() {
    let folder = tempfile::tempdir().expect("folder");
    let mut count = 0;
    for entry in std::fs::read_dir(repository().join("tests/golden")).expect("golden") {
        let case = entry.expect("entry").path();
        let bytes = std::fs::read(case.join("model.safetensors")).expect("weights");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let mut header: BTreeMap<String, Value> =
            serde_json::from_slice(&bytes[8..8 + length]).expect("header");
        header.remove("__metadata__");
        let index = folder.path().join("index.json");
        std::fs::write(&index, single_shard_index(header.keys()).to_string()).expect("written");
        let (tensors, description) = describe(&case.join("config.json"), &index);
        let expected: Tensors = header
            .into_iter()
            .map(|(name, entry)| (name, shape(&entry)))
            .collect();
        assert_eq!(tensors, expected, "{}", case.display());
        assert_index_agrees(&description, &case.display().to_string());
        count += 1;
    }
    assert!(count > 40, "{count} cases");
}

/// A small dense model.
fn dense() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 4096, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
    })
}

/// A small mixture of experts.
fn mixture_of_experts() -> Value {
    json!({
        "model_type": "qwen3_moe", "hidden_size": 128, "intermediate_size": 384, "moe_intermediate_size": 96,
        "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true, "mlp_only_layers": [0],
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1024,
        "hidden_act": "silu", "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": false
    })
}

/// A configuration, written to a file.
struct Case {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Case {
    fn new(config: &Value) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("config.json");
        std::fs::write(&path, config.to_string()).expect("written");
        Case {
            config: path,
            folder,
        }
    }

    /// An index of all tensors of the plan, after `change`.
    fn index(&self, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> PathBuf {
        let mut describe = program("shard-loader");
        describe.args(["describe", "--tensors", "--config"]);
        let output = succeed(describe.arg(&self.config));
        let description: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let tensors: Tensors =
            serde_json::from_value(description["tensors"].clone()).expect("shapes");
        let mut index = single_shard_index(tensors.keys());
        change(index["weight_map"].as_object_mut().expect("map"));
        let path = self.folder.path().join("model.safetensors.index.json");
        std::fs::write(&path, index.to_string()).expect("written");
        path
    }

    fn plan(&self) -> std::process::Command {
        let mut plan = uc();
        plan.args(["plan", "--config"]).arg(&self.config);
        plan
    }

    /// The printed text without the parts that depend on measured speeds: what bounds a stage, the hours, and what follows.
    fn text(&self, index: &Path) -> String {
        let output = succeed(self.plan().arg("--index").arg(index));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        for part in [
            "peak disk",
            "total bytes",
            "memory limit",
            "estimated time",
            "  measured",
        ] {
            assert!(text.contains(part), "`{part}` is missing in: {text}");
        }
        let (sizes, _) = text.split_once("peak memory").expect("memory");
        let (model, stages) = sizes.split_once("\nstage").expect("stages");
        let stages = stages.trim_end().lines();
        let without_hours = stages.map(|line| {
            let mut columns: Vec<&str> = line.split_inclusive(' ').collect();
            let is_word = |column: &&str| !column.trim().is_empty();
            // Three columns of hours after what bounds the stage.
            for _ in 0..if line.contains("bound by") { 5 } else { 4 } {
                while columns.last().is_some_and(|column| !is_word(column)) {
                    columns.pop();
                }
                columns.pop();
            }
            columns.concat().trim_end().to_owned()
        });
        format!(
            "{model}\nstage{}",
            without_hours.collect::<Vec<_>>().join("\n")
        )
    }
}

#[test]
fn the_plan_of_a_dense_model_is_printed() {
    let case = Case::new(&dense());
    let index = case.index(|_| {});
    insta::assert_snapshot!(case.text(&index));
}

#[test]
fn the_plan_of_a_mixture_of_experts_is_printed() {
    let case = Case::new(&mixture_of_experts());
    let index = case.index(|map| {
        map["model.norm.weight"] = "model-2.safetensors".into();
        map["model.layers.3.mlp.gate.weight"] = "model-2.safetensors".into();
    });
    insta::assert_snapshot!(case.text(&index));
}

#[test]
fn an_index_that_differs_from_the_plan_is_refused_with_every_difference() {
    let case = Case::new(&dense());
    let missing = "model.layers.1.mlp.up_proj.weight";
    let extra = "model.layers.1.mlp.up_proj.bias";
    let index = case.index(|map| {
        map.remove(missing);
        map.insert(extra.into(), "model.safetensors".into());
        map.insert("model.norm.bias".into(), "model.safetensors".into());
        // These are tolerated: the head is tied, and frequencies follow from the configuration.
        map.insert("lm_head.weight".into(), "model.safetensors".into());
        let frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq";
        map.insert(frequencies.into(), "model.safetensors".into());
    });
    let output = fail_with(case.plan().arg("--index").arg(&index), BAD_INPUT);
    for word in [
        "3 differences",
        &format!("{missing}: missing, expected [688, 256]"),
        &format!("{extra}: left over"),
        "model.norm.bias: left over",
        "tolerated             2",
    ] {
        assert!(output.contains(word), "`{word}` is missing in: {output}");
    }
    assert!(!output.contains("inv_freq: left over"), "{output}");
}

#[test]
fn configurations_and_options_that_cannot_be_planned_are_refused() {
    let mut other = dense();
    other["model_type"] = "gpt_oss".into();
    let output = fail_with(&mut Case::new(&other).plan(), BAD_INPUT);
    assert!(
        output.contains("gpt_oss") && output.contains("llama"),
        "{output}"
    );
    let case = Case::new(&dense());
    let absent = case.folder.path().join("absent.json");
    let output = fail_with(case.plan().arg("--index").arg(&absent), BAD_INPUT);
    assert!(output.contains("absent.json"), "{output}");
    for (arguments, word) in [
        (["--memory", "much"], "--memory"),
        (["--gflops", "0"], "--gflops"),
        (["--set", "calibration.windows=0"], "calibration.windows"),
    ] {
        let output = fail_with(case.plan().args(arguments), USAGE);
        assert!(output.contains(word), "{output}");
    }
    fail_with(case.plan().arg("some-run"), USAGE);
    fail_with(uc().arg("plan"), USAGE);
    fail_with(uc().args(["plan", "some-run", "--json"]), USAGE);
    fail_with(uc().args(["plan", "some-run", "--measure"]), USAGE);
}

#[test]
fn the_speeds_of_another_machine_come_from_a_file() {
    let case = Case::new(&dense());
    let receipt = repository().join("docs/benchmarks/probe-amx.json");
    let plan = |file: &Path| {
        let mut command = case.plan();
        command.arg("--speeds").arg(file);
        command
    };
    let forecast = output_json(&succeed(plan(&receipt).arg("--json")));
    assert_eq!(forecast["run"]["machine"]["speeds_of"], "file");
    assert_eq!(forecast["run"]["machine"]["probe"], read(&receipt));
    let mut damaged = read(&receipt);
    damaged["search"] = 0.into();
    let file = case.folder.path().join("speeds.json");
    std::fs::write(&file, damaged.to_string()).expect("written");
    for file in [file, case.folder.path().join("config.json")] {
        let output = fail_with(&mut plan(&file), BAD_INPUT);
        assert!(output.contains(file.to_str().expect("utf-8")), "{output}");
    }
}

#[test]
fn a_job_that_does_not_fit_into_the_memory_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let mut command = compress(&tiny_model(), &run);
    let output = fail_with(command.args(["--memory", "100 MiB"]), USAGE);
    for word in ["100.00 MiB", "nothing was started", "--memory"] {
        assert!(output.contains(word), "`{word}` is missing in: {output}");
    }
    assert!(!run.exists(), "the run directory was made");
    // The forecast says the same, and a setting that helps a wide model.
    let case = Case::new(&dense());
    let output = succeed(case.plan().args(["--memory", "100 MiB"]));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("the run would be refused"), "{text}");
    let mut wide = dense();
    (wide["hidden_size"], wide["intermediate_size"]) = (8192.into(), 28672.into());
    let output = succeed(Case::new(&wide).plan().args(["--memory", "8 GiB"]));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.contains("--set calibration.max_input_block="),
        "{text}"
    );
}

/// Checks that no stage of a run takes more memory than its plan declares.
fn check_declared_memory(run: &Path, summary: &Value) {
    let plan = read(&run.join("run.json"));
    let plan = plan.get("plan").unwrap_or(&plan);
    let stages = plan["stages"].as_array().expect("stages");
    let measured = summary["stages"].as_object().expect("stages");
    assert!(measured.len() > 10, "{summary}");
    for (name, cost) in measured {
        let stage = stages.iter().find(|stage| stage["name"] == *name);
        let declared = stage.expect(name)["memory"].as_u64().expect("bytes");
        let peak = cost["peak_rss_bytes"].as_u64().expect("bytes");
        assert!(
            peak <= declared,
            "{name} took {peak} bytes, {declared} are declared"
        );
    }
}

#[test]
fn no_stage_takes_more_memory_than_it_declares() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let output = succeed(compress(&tiny_model(), &run).arg("--json"));
    check_declared_memory(&run, &output_json(&output));
}

/// Writes a model of the tensors that `config` implies, with weights from a counter, and the tokenizer of the embedded model.
fn write_model(folder: &Path, config: &Value) {
    std::fs::create_dir(folder).expect("created");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    std::fs::copy(
        tiny_model().join("tokenizer.json"),
        folder.join("tokenizer.json"),
    )
    .expect("copied");
    let mut describe = program("shard-loader");
    describe.args(["describe", "--tensors", "--config"]);
    let output = succeed(describe.arg(folder.join("config.json")));
    let tensors: Tensors =
        serde_json::from_value(output_json(&output)["tensors"].clone()).expect("shapes");
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in &tensors {
        let (start, width) = (data.len(), *shape.last().expect("a dimension"));
        for index in 0..shape.iter().product::<u64>() {
            let z = (index + start as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let uniform = (z >> 40) as f32 / (1u64 << 24) as f32;
            let value = if shape.len() == 1 {
                1.0
            } else {
                2.0 * (uniform - 0.5) / (width as f32).sqrt()
            };
            data.extend(((value.to_bits() >> 16) as u16).to_le_bytes());
        }
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(folder.join("model.safetensors"), file).expect("written");
}

#[test]
#[ignore = "compresses layers of medium width, which takes minutes"]
fn no_stage_takes_more_memory_than_it_declares_at_medium_width() {
    let folder = tempfile::tempdir().expect("folder");
    let mut wide = dense();
    for (key, value) in [
        ("hidden_size", 1024),
        ("intermediate_size", 3584),
        ("num_hidden_layers", 1),
        ("vocab_size", 1024),
    ] {
        wide[key] = value.into();
    }
    let mut experts = mixture_of_experts();
    for (key, value) in [
        ("hidden_size", 1024),
        ("intermediate_size", 2048),
        ("moe_intermediate_size", 384),
        ("num_hidden_layers", 1),
    ] {
        experts[key] = value.into();
    }
    experts["mlp_only_layers"] = json!([]);
    for (name, config) in [("dense", wide), ("experts", experts)] {
        let (model, run) = (
            folder.path().join(name),
            folder.path().join(format!("{name}-run")),
        );
        write_model(&model, &config);
        let text = |name: &str| tiny_model().join(name);
        let mut command = compress(&model, &run);
        command.arg("--calibration").arg(text("calibration.txt"));
        command
            .arg("--evaluation")
            .arg(text("evaluation.txt"))
            .arg("--json");
        check_declared_memory(&run, &output_json(&succeed(&mut command)));
    }
}

/// Bytes of an artifact's files in a run directory, at the paths that `pipeline.toml` gives them.
fn artifact_bytes(run: &Path, artifact: &str) -> u64 {
    let folders = |folder: &str, file: &str| -> u64 {
        let entries = std::fs::read_dir(run.join(folder)).expect("folder");
        let layers = entries.map(|entry| entry.expect("entry").path());
        layers
            .filter_map(|layer| Some(layer.join(file).metadata().ok()?.len()))
            .sum()
    };
    let flat = |folder: &str, start: &str| -> u64 {
        let files = contents(&run.join(folder)).into_iter();
        let chosen = files.filter(|(name, _)| name.starts_with(start));
        chosen.map(|(_, bytes)| bytes.len() as u64).sum()
    };
    match artifact {
        "weights" => folders("layers", "weights.safetensors"),
        "statistics" => folders("layers", "statistics.safetensors"),
        "codes" => folders("layers", "codes.bin"),
        "layer-record" => folders("layers", "record.json"),
        "sensitivity" => folders("sensitivity", "sensitivity.safetensors"),
        "rates" => folders("sensitivity", "rates.json"),
        "hidden" => flat("hidden", ""),
        "sensitivity-hidden" => flat("sensitivity/hidden", ""),
        "sensitivity-statistics" => flat("sensitivity/statistics", ""),
        "gradient" => flat("sensitivity/gradient", ""),
        "eval-hidden" => flat("eval/hidden", ""),
        "pack-layer" => flat("pack", "layer_"),
        "pack-non-layer" => flat("pack", "scaffold.uc"),
        "non-layer" => run
            .join("non-layer.safetensors")
            .metadata()
            .expect("file")
            .len(),
        other => panic!("no path for {other}"),
    }
}

#[test]
fn predicted_sizes_are_those_of_a_run_that_keeps_all_artifacts() {
    let folder = tempfile::tempdir().expect("folder");
    let pipeline = std::fs::read_to_string(repository().join("pipeline.toml")).expect("pipeline");
    let path = folder.path().join("pipeline.toml");
    std::fs::write(
        &path,
        pipeline.replace("temporary = true", "temporary = false"),
    )
    .expect("written");
    let run = folder.path().join("run");
    let mut command = uc();
    command
        .arg("compress")
        .arg(tiny_model())
        .arg("--run")
        .arg(&run);
    succeed(command.arg("--pipeline").arg(&path).args(QUICK));
    let mut plan = uc();
    plan.args(["plan", "--json", "--config"]);
    plan.arg(tiny_model().join("config.json"));
    let output = succeed(plan.arg("--pipeline").arg(&path).args(QUICK));
    let forecast: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let predicted: BTreeMap<&str, u64> = forecast["run"]["disk"]
        .as_array()
        .expect("list")
        .iter()
        .map(|artifact| {
            let name = artifact["name"].as_str().expect("name");
            (name, artifact["bytes"].as_u64().expect("bytes"))
        })
        .collect();
    for name in [
        "weights",
        "statistics",
        "codes",
        "layer-record",
        "sensitivity",
        "rates",
        "hidden",
        "sensitivity-hidden",
        "sensitivity-statistics",
        "gradient",
        "eval-hidden",
        "pack-layer",
        "pack-non-layer",
        "non-layer",
    ] {
        let actual = artifact_bytes(&run, name) as f64;
        let ratio = predicted[name] as f64 / actual;
        assert!(
            (0.85..1.15).contains(&ratio),
            "{name}: predicted {ratio} of {actual} bytes"
        );
    }
}
