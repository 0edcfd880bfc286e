//! Checkpoints as people have them: what lies beside a model is carried, refused or warned of, and a folder that is not a
//! model in the expected form is refused with one short message.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use uc_tests::{compress, copy_model, fail_with, json, output_text, program, succeed, uc};

const BAD_INPUT: i32 = 4;
/// A file name that a commit's folder in the Hub's cache has.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A copy of the embedded model, changed by `change`.
fn model(change: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    copy_model(&model);
    change(&model);
    (folder, model)
}

/// The output of `shard-loader inspect`.
fn inspection(model: &Path) -> Value {
    json(&succeed(program("shard-loader").arg("inspect").arg(model)))
}

/// The only warning about a model.
fn warning(model: &Path) -> String {
    let inspection = inspection(model);
    let warnings = inspection["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings[0].as_str().expect("text").to_owned()
}

/// Expects a refusal of at most 25 lines whose message contains all `words`, by the inspection and by `uc compress`.
fn assert_refused(model: &Path, words: &[&str]) {
    let run = model.with_extension("run");
    for command in [
        program("shard-loader").arg("inspect").arg(model),
        &mut compress(model, &run),
    ] {
        let output = fail_with(command, BAD_INPUT);
        for word in words {
            assert!(output.contains(word), "`{word}` is missing in: {output}");
        }
        assert!(output.contains("expected"), "{output}");
        assert!(output.lines().count() <= 25, "{output}");
        let system = output.matches("os error").count();
        assert!(system <= 1, "the system's error twice: {output}");
    }
    assert!(!run.join("pack/manifest.json").exists());
}

/// Sets keys of a JSON file of the model.
fn set(model: &Path, file: &str, changes: Value) {
    let path = model.join(file);
    let bytes = std::fs::read(&path).expect("file");
    let mut document: Map<String, Value> = serde_json::from_slice(&bytes).expect("JSON");
    document.extend(changes.as_object().expect("an object").clone());
    std::fs::write(&path, Value::Object(document).to_string()).expect("written");
}

/// Changes the header of a safetensors file.
fn change_header(path: &Path, change: impl FnOnce(Map<String, Value>) -> Map<String, Value>) {
    let bytes = std::fs::read(path).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + length]).expect("header");
    let text = serde_json::to_vec(&change(header)).expect("text");
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out.extend(&bytes[8 + length..]);
    std::fs::write(path, out).expect("written");
}

/// Renames every tensor of the model.
fn rename_tensors(model: &Path, rename: impl Fn(&str) -> String) {
    change_header(&model.join("model.safetensors"), |header| {
        let renamed = header.into_iter().map(|(name, value)| match name.as_str() {
            "__metadata__" => (name, value),
            _ => (rename(&name), value),
        });
        renamed.collect()
    });
}

/// Makes the model one of a single shard whose index also names `extra` tensors.
fn shard(model: &Path, extra: &[(&str, &str)]) {
    const SHARD: &str = "model-00001-of-00001.safetensors";
    let path = model.join("model.safetensors");
    let mut map = BTreeMap::new();
    change_header(&path, |header| {
        let names = header.keys().filter(|name| *name != "__metadata__");
        map.extend(names.map(|name| (name.clone(), SHARD.to_owned())));
        header
    });
    std::fs::rename(&path, model.join(SHARD)).expect("renamed");
    map.extend(
        extra
            .iter()
            .map(|(name, shard)| ((*name).to_owned(), (*shard).to_owned())),
    );
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(
        model.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .expect("index");
}

#[test]
fn files_that_describe_the_model_are_in_the_pack_and_code_is_not() {
    let carried = [
        "LICENSE",
        "NOTICE.txt",
        "added_tokens.json",
        "chat_template.jinja",
        "tokenizer.model",
    ];
    let (folder, model) = model(|model| {
        for name in carried {
            std::fs::write(model.join(name), format!("{{\"text of\": \"{name}\"}}")).expect("file");
        }
        std::fs::write(model.join("modeling_x.py"), "pass").expect("file");
    });
    let run = folder.path().join("run");
    let output = succeed(&mut compress(&model, &run));
    let said = output_text(&output);
    assert!(said.contains("modeling_x.py (code)"), "{said}");
    let pack = run.join("pack");
    let manifest = std::fs::read(pack.join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let files = manifest["files"].as_array().expect("files");
    for name in carried {
        let copy = std::fs::read(pack.join(name)).expect("carried");
        assert_eq!(
            copy,
            std::fs::read(model.join(name)).expect("original"),
            "{name}"
        );
        assert!(
            files.iter().any(|file| file["name"] == name),
            "{name} is not in the manifest"
        );
    }
    assert!(!pack.join("modeling_x.py").exists());
    succeed(uc().arg("verify").arg(&pack));
}

#[test]
fn a_model_in_the_hubs_cache_is_named_by_repository_and_commit() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = folder.path().join("models--org--tiny-model");
    let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots").join(COMMIT));
    copy_model(&blobs);
    std::fs::create_dir_all(&snapshot).expect("folder");
    for entry in std::fs::read_dir(&blobs).expect("blobs") {
        let name = entry.expect("entry").file_name();
        let target = Path::new("../../blobs").join(&name);
        std::os::unix::fs::symlink(target, snapshot.join(name)).expect("link");
    }
    let run = folder.path().join("run");
    succeed(&mut compress(&snapshot, &run));
    let manifest = std::fs::read(run.join("pack/manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["source"]["name"], "org/tiny-model");
    assert_eq!(manifest["source"]["hub"]["repository"], "org/tiny-model");
    assert_eq!(manifest["source"]["hub"]["commit"], COMMIT);
    let output = fail_with(uc().arg("compress").arg(&cache), BAD_INPUT);
    assert!(
        output.contains("cache") && output.contains("snapshots"),
        "{output}"
    );
}

#[test]
fn an_adapter_beside_the_weights_is_refused() {
    let (_folder, model) = model(|model| {
        let adapter = json!({"peft_type": "LORA", "base_model_name_or_path": "x/y"});
        std::fs::write(model.join("adapter_config.json"), adapter.to_string()).expect("file");
    });
    assert_refused(&model, &["adapter_config.json", "LORA of x/y", "merge"]);
}

#[test]
fn folders_without_a_model_in_the_expected_form_are_refused_with_the_way_on() {
    let weights = "model.safetensors";
    let cases: [(&str, &str, &[&str]); 5] = [
        (
            weights,
            "pytorch_model.bin",
            &["PyTorch", "pytorch_model.bin", "save_pretrained"],
        ),
        (
            weights,
            "model-00001-of-00002.safetensors",
            &["without an index", "model-00001-of-00002"],
        ),
        (weights, "adapter_model.safetensors", &["adapter", "merge"]),
        (
            "tokenizer.json",
            "tokenizer.model",
            &["only tokenizer.model", "use_fast"],
        ),
        (
            "config.json",
            "params.json",
            &["params.json", "config.json", "convert"],
        ),
    ];
    for (from, to, words) in cases {
        let (_folder, model) = model(|model| {
            std::fs::rename(model.join(from), model.join(to)).expect("renamed");
        });
        assert_refused(&model, words);
    }
    let (_folder, model) = model(|model| {
        for entry in std::fs::read_dir(model).expect("folder") {
            std::fs::remove_file(entry.expect("entry").path()).expect("removed");
        }
    });
    assert_refused(&model, &["an empty folder", "config.json"]);
}

#[test]
fn quantized_weights_are_refused_by_the_configuration_or_by_the_tensors() {
    for method in [
        "fp8",
        "gptq",
        "awq",
        "bitsandbytes",
        "compressed-tensors",
        "mxfp4",
    ] {
        let (_folder, model) = model(|model| {
            let settings = json!({"quant_method": method, "bits": 4});
            set(
                model,
                "config.json",
                json!({"quantization_config": settings}),
            );
        });
        assert_refused(&model, &["quantization_config", method, "BF16"]);
    }
    for (part, dtype) in [
        (".weight_scale_inv", "BF16"),
        (".qweight", "I16"),
        (".weight", "F16"),
    ] {
        let (_folder, model) = model(|model| {
            rename_tensors(model, |name| match name.strip_suffix("_proj.weight") {
                Some(start) => format!("{start}_proj{part}"),
                None => name.to_owned(),
            });
            change_header(&model.join("model.safetensors"), |mut header| {
                for (name, tensor) in &mut header {
                    if name.contains("_proj") {
                        tensor["dtype"] = dtype.into();
                    }
                }
                header
            });
        });
        match part {
            ".weight" => drop(inspection(&model)), // another type of the same size is a weight type
            _ => assert_refused(&model, &["quantized", part, "BF16"]),
        }
    }
}

#[test]
fn a_wrong_prefix_is_named_instead_of_listing_every_tensor() {
    let (_folder, model) = model(|model| {
        rename_tensors(model, |name| format!("language_model.{name}"));
    });
    assert_refused(&model, &["\"language_model.", "AutoModelForCausalLM"]);
    let (_folder, model) = self::model(|model| {
        rename_tensors(model, |name| name.trim_start_matches("model.").to_owned());
    });
    assert_refused(
        &model,
        &[
            "nothing before the names",
            "\"model.\"",
            "AutoModelForCausalLM",
        ],
    );
}

#[test]
fn at_most_twenty_differences_are_listed() {
    let (_folder, model) = model(|model| rename_tensors(model, |name| format!("{name}.other")));
    assert_refused(&model, &["more,", "in all"]);
}

#[test]
fn an_index_is_compared_for_the_tensors_of_the_model_only() {
    let rotary = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let (_folder, model) = model(|model| {
        shard(
            model,
            &[
                (rotary, "model-00001-of-00001.safetensors"),
                ("vision.weight", "gone.safetensors"),
            ],
        );
    });
    let warning = warning(&model);
    assert!(
        warning.contains(rotary) && warning.contains("about 2 of"),
        "{warning}"
    );
    let (_folder, model) = self::model(|model| {
        shard(model, &[("model.norm.weight", "gone.safetensors")]);
    });
    assert_refused(&model, &["gone.safetensors"]);
}

#[test]
fn what_another_program_would_do_differently_is_warned_of() {
    let (_folder, model) = model(|model| {
        set(
            model,
            "tokenizer_config.json",
            json!({"add_bos_token": true, "bos_token": "<s>"}),
        );
        let tokenizer = model.join("tokenizer.json");
        let bytes = std::fs::read(&tokenizer).expect("tokenizer");
        let mut document: Value = serde_json::from_slice(&bytes).expect("JSON");
        document["post_processor"] = Value::Null;
        std::fs::write(tokenizer, document.to_string()).expect("written");
    });
    let said = warning(&model);
    assert!(
        said.contains("add_bos_token") && said.contains("tokenizer.json is followed"),
        "{said}"
    );
    for (class, is_foreign) in [
        ("modeling_llama.LlamaForCausalLM", false),
        ("modeling_x.MyModel", true),
        ("other/code--modeling_x.MyModel", true),
    ] {
        let (_folder, model) = self::model(|model| {
            set(
                model,
                "config.json",
                json!({"auto_map": {"AutoModelForCausalLM": class}}),
            );
        });
        match is_foreign {
            true => assert!(warning(&model).contains(class), "{class}"),
            false => assert_eq!(inspection(&model)["warnings"], json!([]), "{class}"),
        }
    }
}

#[test]
fn a_header_beside_a_local_model_is_not_read() {
    let (folder, model) = model(|_| {});
    let weights = model.join("model.safetensors");
    let run = |name: &str| {
        let run = folder.path().join(name);
        succeed(&mut compress(&model, &run));
        std::fs::read(run.join("pack/manifest.sha256")).expect("digest")
    };
    let expected = run("before");
    // A header in which two tensors of one shape have changed places.
    let bytes = std::fs::read(&weights).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let text = String::from_utf8(bytes[8..8 + length].to_vec()).expect("UTF-8");
    let (one, other) = ("layers.0.mlp.up_proj", "layers.1.mlp.up_proj");
    let swapped = text
        .replace(one, "TEMPORARY")
        .replace(other, one)
        .replace("TEMPORARY", other);
    assert_ne!(swapped, text);
    let header = [&bytes[..8], swapped.as_bytes()].concat();
    std::fs::write(model.join("model.safetensors.header"), &header).expect("header");
    assert_eq!(run("after"), expected);
    std::fs::remove_file(&weights).expect("removed");
    assert_refused(&model, &["only its header", "model.safetensors"]);
}

#[test]
fn an_overflow_in_the_forward_pass_is_an_error_that_names_the_layer() {
    for (layer, tensor) in [
        (1, "mlp.down_proj"),
        (2, "self_attn.v_proj"),
        (0, "mlp.gate_proj"),
    ] {
        let (folder, model) = model(|model| {
            let path = model.join("model.safetensors");
            let mut bytes = std::fs::read(&path).expect("weights");
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("header");
            let name = format!("model.layers.{layer}.{tensor}.weight");
            let offsets = &header[&name]["data_offsets"];
            let [from, to] = [0, 1].map(|end| offsets[end].as_u64().expect("offset") as usize);
            for value in bytes[8 + length + from..8 + length + to].chunks_exact_mut(2) {
                value.copy_from_slice(&((1e30_f32.to_bits() >> 16) as u16).to_le_bytes()); // bf16
            }
            std::fs::write(path, bytes).expect("written");
        });
        let output = fail_with(&mut compress(&model, &folder.path().join("run")), BAD_INPUT);
        assert!(
            output.contains(&format!("layer {layer}: the forward pass")),
            "{output}"
        );
    }
}
