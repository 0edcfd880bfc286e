//! Input that cannot be used: a clear error that names the file and says what was found, and nothing left to trust.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use uc_tests::{compress, copy_model, fail_with, succeed, uc};

const BAD_PIPELINE: i32 = 3;
const BAD_INPUT: i32 = 4;
const DISK_FULL: i32 = 7;
const PERMISSION: i32 = 8;

struct Broken {
    _keep: tempfile::TempDir,
    model: PathBuf,
    run: PathBuf,
}

/// A copy of the embedded model after `damage`.
fn broken(damage: impl FnOnce(&Path)) -> Broken {
    let keep = tempfile::tempdir().expect("folder");
    let model = keep.path().join("model");
    copy_model(&model);
    damage(&model);
    let run = keep.path().join("run");
    Broken {
        model,
        run,
        _keep: keep,
    }
}

/// Expects a refusal that says all `words` and leaves no pack.
fn refused(case: &Broken, code: i32, words: &[&str]) {
    let said = fail_with(&mut compress(&case.model, &case.run), code);
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
    assert!(!case.run.join("pack/manifest.json").exists(), "{said}");
}

/// Rewrites config.json.
fn configure(model: &Path, key: &str, value: serde_json::Value) {
    let path = model.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("JSON");
    config[key] = value;
    std::fs::write(&path, config.to_string()).expect("written");
}

/// The safetensors file: its parsed header, and where its data begin.
fn header(bytes: &[u8]) -> (serde_json::Map<String, serde_json::Value>, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + length]).expect("header");
    (header, 8 + length)
}

/// Rewrites the header of model.safetensors.
fn reheader(model: &Path, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let (mut fields, data) = header(&bytes);
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
    refused(&case, BAD_INPUT, &["model.safetensors"]);
}

#[test]
fn a_missing_tensor_and_one_of_another_type_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let case = broken(|model| {
        reheader(model, |fields| {
            let tensor = fields.remove(name).expect("tensor");
            fields.insert("model.layers.1.mlp.other.weight".into(), tensor);
        });
    });
    refused(&case, BAD_INPUT, &[name, "model.layers.1.mlp.other.weight"]);
    let case = broken(|model| reheader(model, |fields| fields[name]["dtype"] = "I16".into()));
    refused(&case, BAD_INPUT, &[name, "I16"]);
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let name = "model.layers.2.self_attn.q_proj.weight";
    let case = broken(|model| {
        let path = model.join("model.safetensors");
        let mut bytes = std::fs::read(&path).expect("weights");
        let (fields, data) = header(&bytes);
        let start = fields[name]["data_offsets"][0].as_u64().expect("offset") as usize;
        bytes[data + start + 20..data + start + 22].copy_from_slice(&[0xc0, 0x7f]); // bf16 NaN
        std::fs::write(&path, bytes).expect("written");
    });
    refused(&case, BAD_INPUT, &[name, "NaN", "10"]);
}

#[test]
fn a_bad_config_is_refused_with_the_key_and_both_values() {
    let case = broken(|model| configure(model, "model_type", "gpt_oss".into()));
    refused(&case, BAD_INPUT, &["config.json", "gpt_oss", "llama"]);
    let case = broken(|model| configure(model, "num_key_value_heads", 3.into()));
    refused(
        &case,
        BAD_INPUT,
        &["config.json", "num_key_value_heads", "3"],
    );
    let case = broken(|model| {
        configure(
            model,
            "rope_scaling",
            serde_json::json!({"rope_type": "dynamic", "factor": 2.0}),
        )
    });
    refused(&case, BAD_INPUT, &["config.json", "dynamic"]);
    let case = broken(|model| configure(model, "attention_chunk_size", 8192.into()));
    refused(&case, BAD_INPUT, &["config.json", "attention_chunk_size"]);
    let case = broken(|model| std::fs::write(model.join("config.json"), "{").expect("written"));
    refused(&case, BAD_INPUT, &["config.json"]);
}

#[test]
fn an_absent_tokenizer_and_a_short_text_are_refused() {
    let case = broken(|model| std::fs::remove_file(model.join("tokenizer.json")).expect("removed"));
    refused(&case, BAD_INPUT, &["tokenizer.json"]);
    let case = broken(|model| {
        std::fs::write(model.join("calibration.txt"), "Too short.").expect("written")
    });
    refused(&case, BAD_INPUT, &["tokens"]);
}

#[test]
fn a_full_disk_is_said_and_a_later_run_completes() {
    let case = broken(|_| {});
    // A limit on the size of files stands for a full disk: writing fails in the same place.
    let program = uc();
    let mut limited = Command::new("bash");
    limited
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 200; exec \"$@\"")
        .arg("bash");
    limited.arg(program.get_program());
    let compress = compress(&case.model, &case.run);
    limited.args(compress.get_args());
    let said = fail_with(&mut limited, DISK_FULL);
    assert!(said.contains("File too large"), "{said}");
    assert!(!case.run.join("pack/manifest.json").exists());
    succeed(uc().arg("resume").arg(&case.run));
    succeed(uc().arg("verify").arg(case.run.join("pack")));
}

#[test]
fn a_folder_that_may_not_be_written_is_said() {
    let case = broken(|_| {});
    // Nobody may make folders there, not even root.
    let said = fail_with(
        &mut compress(&case.model, Path::new("/sys/kernel/uc-run")),
        PERMISSION,
    );
    assert!(said.contains("/sys/kernel/uc-run"), "{said}");
}

#[test]
fn mistakes_in_the_pipeline_are_refused_with_file_line_and_key() {
    let case = broken(|_| {});
    let text =
        std::fs::read_to_string(uc_tests::repository().join("pipeline.toml")).expect("default");
    let path = case.model.join("pipeline.toml");
    for (from, to, words) in [
        ("max_lead = 2 ", "ahaed = 2 ", ["ahaed", "pipeline.toml:"]),
        (
            "reads = [\"weights\", \"hidden\"]",
            "reads = [\"wieghts\", \"hidden\"]",
            ["wieghts", "pipeline.toml"],
        ),
        ("bpw = 5.0 ", "bpw = 50.0 ", ["bpw", "50"]),
        (
            "argv = [\"quantize\"]",
            "argv = [\"quantise\"]",
            ["quantise", "pipeline.toml"],
        ),
    ] {
        let changed = text.replacen(from, to, 1);
        if changed == text {
            continue;
        }
        std::fs::write(&path, changed).expect("written");
        let said = fail_with(
            compress(&case.model, &case.run)
                .arg("--pipeline")
                .arg(&path),
            BAD_PIPELINE,
        );
        for word in words {
            assert!(said.contains(word), "`{word}` is missing in: {said}");
        }
        assert!(!case.run.exists(), "a run directory was made for {to}");
    }
}
