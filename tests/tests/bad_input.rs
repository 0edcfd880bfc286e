//! Unusable input: the error names the file and says what was found, and no pack is left behind.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use uc_tests::{compress, copy_model, fail_with, succeed, uc};

const BAD_PIPELINE: i32 = 3;
const BAD_INPUT: i32 = 4;
const DISK_FULL: i32 = 7;
const PERMISSION: i32 = 8;

/// A damaged copy of the embedded model, and the run directory for it.
struct Broken {
    _folder: tempfile::TempDir,
    model: PathBuf,
    run: PathBuf,
}

/// Copies the embedded model and applies `damage` to the copy.
fn broken(damage: impl FnOnce(&Path)) -> Broken {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    copy_model(&model);
    damage(&model);
    let run = folder.path().join("run");
    Broken {
        model,
        run,
        _folder: folder,
    }
}

/// Expects a refusal whose message contains all `words`, and no pack.
fn assert_refused(case: &Broken, code: i32, words: &[&str]) {
    let output = fail_with(&mut compress(&case.model, &case.run), code);
    for word in words {
        assert!(output.contains(word), "`{word}` is missing in: {output}");
    }
    assert!(!case.run.join("pack/manifest.json").exists(), "{output}");
}

/// Sets one key of config.json.
fn set_config(model: &Path, key: &str, value: serde_json::Value) {
    let path = model.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("JSON");
    config[key] = value;
    std::fs::write(&path, config.to_string()).expect("written");
}

/// The parsed header of a safetensors file, and the offset at which its data begin.
fn parse_header(bytes: &[u8]) -> (serde_json::Map<String, serde_json::Value>, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let fields = serde_json::from_slice(&bytes[8..8 + length]).expect("header");
    (fields, 8 + length)
}

/// Changes the header of model.safetensors.
fn change_header(
    model: &Path,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) {
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let (mut fields, data) = parse_header(&bytes);
    change(&mut fields);
    let text = serde_json::to_vec(&fields).expect("text");
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out.extend(&bytes[data..]);
    std::fs::write(&path, out).expect("written");
}

#[test]
fn a_truncated_shard_is_refused_by_name() {
    let case = broken(|model| {
        let path = model.join("model.safetensors");
        let bytes = std::fs::read(&path).expect("weights");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut");
    });
    assert_refused(&case, BAD_INPUT, &["model.safetensors"]);
}

#[test]
fn a_missing_tensor_and_one_of_another_type_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let case = broken(|model| {
        change_header(model, |fields| {
            let tensor = fields.remove(name).expect("tensor");
            fields.insert("model.layers.1.mlp.other.weight".into(), tensor);
        });
    });
    assert_refused(&case, BAD_INPUT, &[name, "model.layers.1.mlp.other.weight"]);
    let case = broken(|model| change_header(model, |fields| fields[name]["dtype"] = "I16".into()));
    assert_refused(&case, BAD_INPUT, &[name, "I16"]);
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let name = "model.layers.2.self_attn.q_proj.weight";
    let case = broken(|model| {
        let path = model.join("model.safetensors");
        let mut bytes = std::fs::read(&path).expect("weights");
        let (fields, data) = parse_header(&bytes);
        let start = fields[name]["data_offsets"][0].as_u64().expect("offset") as usize;
        bytes[data + start + 20..data + start + 22].copy_from_slice(&[0xc0, 0x7f]); // bf16 NaN
        std::fs::write(&path, bytes).expect("written");
    });
    assert_refused(&case, BAD_INPUT, &[name, "NaN", "10"]);
}

/// Applies `change` to every value of the tensors whose names end with one of `names`.
fn change_weights(model: &Path, names: &[&str], change: impl Fn(f32) -> f32) {
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let (fields, data) = parse_header(&bytes);
    let is_chosen = |name: &str| names.iter().any(|end| name.ends_with(end));
    for (_, field) in fields.iter().filter(|(name, _)| is_chosen(name)) {
        let end =
            |index: usize| data + field["data_offsets"][index].as_u64().expect("offset") as usize;
        for pair in bytes[end(0)..end(1)].chunks_mut(2) {
            let value = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
            let upper_half = (change(value).to_bits() >> 16) as u16;
            pair.copy_from_slice(&upper_half.to_le_bytes());
        }
    }
    std::fs::write(&path, bytes).expect("written");
}

#[test]
fn models_of_zeros_and_weights_that_overflow_are_refused_at_once() {
    let embedding = "model.embed_tokens.weight";
    let case = broken(|model| change_weights(model, &[embedding], |_| -0.0));
    assert_refused(&case, BAD_INPUT, &["non-layer", embedding, "131072 zeros"]);
    let case = broken(|model| change_weights(model, &["_proj.weight"], |_| 0.0));
    assert_refused(&case, BAD_INPUT, &["28 linears whose weights are all zero"]);
    let case = broken(|model| change_weights(model, &["1.mlp.up_proj.weight"], |x| 1e32 * x));
    assert_refused(
        &case,
        BAD_INPUT,
        &["layer 1: the forward pass of the model overflows"],
    );
}

#[test]
fn weights_below_the_smallest_step_are_compressed() {
    let case = broken(|model| change_weights(model, &["1.mlp.up_proj.weight"], |x| 1e-37 * x));
    succeed(&mut compress(&case.model, &case.run));
}

#[test]
fn a_bad_config_is_refused_with_the_key_and_both_values() {
    let case = broken(|model| set_config(model, "model_type", "gpt_oss".into()));
    assert_refused(&case, BAD_INPUT, &["config.json", "gpt_oss", "llama"]);
    let case = broken(|model| set_config(model, "num_key_value_heads", 3.into()));
    assert_refused(
        &case,
        BAD_INPUT,
        &["config.json", "num_key_value_heads", "3"],
    );
    let case = broken(|model| {
        set_config(
            model,
            "rope_scaling",
            serde_json::json!({"rope_type": "proportional", "factor": 2.0}),
        )
    });
    assert_refused(&case, BAD_INPUT, &["config.json", "proportional"]);
    let case = broken(|model| set_config(model, "attention_chunk_size", 8192.into()));
    assert_refused(&case, BAD_INPUT, &["config.json", "attention_chunk_size"]);
    let case = broken(|model| std::fs::write(model.join("config.json"), "{").expect("written"));
    assert_refused(&case, BAD_INPUT, &["config.json"]);
}

#[test]
fn a_missing_tokenizer_and_a_short_text_are_refused() {
    let case = broken(|model| std::fs::remove_file(model.join("tokenizer.json")).expect("removed"));
    assert_refused(&case, BAD_INPUT, &["tokenizer.json"]);
    let case = broken(|model| {
        std::fs::write(model.join("calibration.txt"), "Too short.").expect("written")
    });
    assert_refused(&case, BAD_INPUT, &["tokens"]);
}

#[test]
fn a_full_disk_is_reported_and_a_later_run_completes() {
    let case = broken(|_| {});
    // A limit on the file size stands in for a full disk: the same writes fail.
    let program = uc();
    let mut limited = Command::new("bash");
    limited
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 200; exec \"$@\"")
        .arg("bash");
    limited.arg(program.get_program());
    let compress = compress(&case.model, &case.run);
    limited.args(compress.get_args());
    let output = fail_with(&mut limited, DISK_FULL);
    assert!(output.contains("File too large"), "{output}");
    assert!(!case.run.join("pack/manifest.json").exists());
    succeed(uc().arg("resume").arg(&case.run));
    succeed(uc().arg("verify").arg(case.run.join("pack")));
}

#[test]
fn a_folder_that_may_not_be_written_is_named() {
    let case = broken(|_| {});
    // Nobody can create folders there, not even root.
    let output = fail_with(
        &mut compress(&case.model, Path::new("/sys/kernel/uc-run")),
        PERMISSION,
    );
    assert!(output.contains("/sys/kernel/uc-run"), "{output}");
}

#[test]
fn mistakes_in_the_pipeline_are_refused_with_file_line_and_key() {
    let case = broken(|_| {});
    let text =
        std::fs::read_to_string(uc_tests::repository().join("pipeline.toml")).expect("default");
    let path = case.model.join("pipeline.toml");
    for (from, to, words) in [
        (
            "\nmax_lead = 2",
            "\nmax_laed = 2",
            ["max_laed", "pipeline.toml:"],
        ),
        (
            "reads = [\"source\", \"weights\", \"hidden\"",
            "reads = [\"source\", \"wieghts\", \"hidden\"",
            ["wieghts", "pipeline.toml"],
        ),
        ("\nbpw = 5.0", "\nbpw = 50.0", ["bpw", "50"]),
        (
            "argv = [\"quantize\", \"layer\"]",
            "argv = [\"quantise\", \"layer\"]",
            ["quantise", "pipeline.toml"],
        ),
    ] {
        assert!(text.contains(from), "pipeline.toml has no `{from}`");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
        let output = fail_with(
            compress(&case.model, &case.run)
                .arg("--pipeline")
                .arg(&path),
            BAD_PIPELINE,
        );
        for word in words {
            assert!(output.contains(word), "`{word}` is missing in: {output}");
        }
        assert!(!case.run.exists(), "a run directory was made for {to}");
    }
}
