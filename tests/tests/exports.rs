//! Exports of packs: every tensor of the manifest is in the export, interrupted exports continue, and nothing incomplete appears
//! under the final name.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use uc_tests::{
    compress, contents, fail_with, json, output_text, repository, succeed, tiny_model, uc,
};

/// A pack of a model of the repository's examples.
fn pack_of(model: &Path, folder: &Path) -> std::path::PathBuf {
    succeed(compress(model, &folder.join("run")).arg("--no-eval"));
    folder.join("run/pack")
}

fn export(pack: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = uc();
    command.arg("export").arg(pack).arg("--out").arg(out);
    command.args(options);
    command
}

/// The tensors of a safetensors file: dtype, shape and bytes, by name.
fn tensors(file: &Path) -> BTreeMap<String, (String, Value, Vec<u8>)> {
    let bytes = std::fs::read(file).expect("file");
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
    assert_eq!((8 + length) % 8, 0, "the data are aligned");
    let header: Value = serde_json::from_slice(&rest[..length]).expect("header");
    let entries = header.as_object().expect("object").iter();
    let entries = entries.filter(|(name, _)| *name != "__metadata__");
    let range =
        |entry: &Value, at: usize| entry["data_offsets"][at].as_u64().expect("offset") as usize;
    entries
        .map(|(name, entry)| {
            let bytes = rest[length + range(entry, 0)..length + range(entry, 1)].to_vec();
            let dtype = entry["dtype"].as_str().expect("dtype").to_owned();
            (name.clone(), (dtype, entry["shape"].clone(), bytes))
        })
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn manifest(pack: &Path) -> Value {
    let text = std::fs::read(pack.join("manifest.json")).expect("manifest");
    serde_json::from_slice(&text).expect("JSON")
}

/// Every tensor of a manifest: full name, shape, dtype, digest.
fn listed(manifest: &Value) -> Vec<(String, Value, String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let list = |value: &Value| value.as_array().expect("list").clone();
    let mut all = Vec::new();
    for layer in list(&manifest["layers"]) {
        let name = |tensor: &Value| text(&layer["prefix"]) + &text(&tensor["name"]);
        for linear in list(&layer["linears"]) {
            let digest = text(&linear["reconstructed_sha256"]);
            all.push((
                name(&linear),
                linear["shape"].clone(),
                "BF16".into(),
                digest,
            ));
        }
        for exact in list(&layer["extras"]) {
            let (dtype, digest) = (text(&exact["dtype"]), text(&exact["sha256"]));
            all.push((name(&exact), exact["shape"].clone(), dtype, digest));
        }
    }
    for exact in list(&manifest["scaffold"]["tensors"]) {
        let (dtype, digest) = (text(&exact["dtype"]), text(&exact["sha256"]));
        all.push((text(&exact["name"]), exact["shape"].clone(), dtype, digest));
    }
    all
}

#[test]
fn safetensors_hold_exactly_the_tensors_of_the_manifest() {
    let folder = tempfile::tempdir().expect("folder");
    let (pack, out) = (
        pack_of(&tiny_model(), folder.path()),
        folder.path().join("out"),
    );
    let output = succeed(&mut export(&pack, &out, &["--to", "safetensors", "--json"]));
    let report = json(&output);
    let bytes = std::fs::read(out.join("model.safetensors")).expect("file");
    // transformers refuses a file without it.
    assert!(bytes[8..100].starts_with(br#"{"__metadata__":{"format":"pt"}"#));
    let found = tensors(&out.join("model.safetensors"));
    let expected = listed(&manifest(&pack));
    assert_eq!(found.len(), expected.len(), "a tied head is stored once");
    assert_eq!(report["tensors"], expected.len());
    for (name, shape, dtype, digest) in expected {
        let (found_dtype, found_shape, bytes) = &found[&name];
        assert_eq!((found_dtype, found_shape), (&dtype, &shape), "{name}");
        assert_eq!(sha256(bytes), digest, "{name}");
    }
    // What describes the model is that of the pack; the report lists every file with its digest.
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(
            std::fs::read(out.join(name)).ok(),
            std::fs::read(pack.join(name)).ok(),
            "{name}"
        );
    }
    let files = report["files"].as_array().expect("files");
    for file in files {
        let bytes = std::fs::read(out.join(file["name"].as_str().expect("name"))).expect("file");
        assert_eq!(file["sha256"], sha256(&bytes));
    }
    assert_eq!(
        contents(&out).len(),
        files.len() + 2,
        "and README.md and export.json"
    );
    let fingerprint = sha256(&std::fs::read(pack.join("manifest.json")).expect("manifest"));
    let card = std::fs::read_to_string(out.join("README.md")).expect("card");
    assert!(
        card.contains(&format!("uc verify PACK --expect {fingerprint}")),
        "{card}"
    );
    assert_eq!(report["pack_fingerprint"], fingerprint);
    assert!(!folder.path().join("out.partial").exists());
}

#[test]
fn an_export_of_experts_has_them_as_the_source_stores_them() {
    let folder = tempfile::tempdir().expect("folder");
    let model = repository().join("examples/tiny-experts");
    let (pack, out) = (pack_of(&model, folder.path()), folder.path().join("out"));
    succeed(&mut export(&pack, &out, &["--to", "safetensors"]));
    let shape = |(dtype, shape, _): (String, Value, Vec<u8>)| (dtype, shape);
    let shapes = |file: &Path| -> BTreeMap<String, _> {
        tensors(file)
            .into_iter()
            .map(|(name, tensor)| (name, shape(tensor)))
            .collect()
    };
    let (exported, source) = (
        shapes(&out.join("model.safetensors")),
        shapes(&model.join("model.safetensors")),
    );
    assert_eq!(exported, source);
}

#[test]
fn an_interrupted_export_continues_and_checks_what_it_finds() {
    let folder = tempfile::tempdir().expect("folder");
    let (pack, out) = (
        pack_of(&tiny_model(), folder.path()),
        folder.path().join("out"),
    );
    let partial = folder.path().join("out.partial");
    let options = ["--to", "safetensors", "--threads", "1"];
    // A limit on the size of files is like a full disk. What was begun stays.
    let mut limited = Command::new("sh");
    let uc = format!("{:?}", uc().get_program());
    let line = format!("ulimit -f 600; exec {uc} export \"$@\"");
    limited
        .args(["-c", &line, "sh"])
        .arg(&pack)
        .arg("--out")
        .arg(&out)
        .args(options);
    let text = fail_with(&mut limited, 7);
    assert!(text.contains("out.partial/model.safetensors"), "{text}");
    assert!(!out.exists() && partial.exists());

    // A folder in the place of a file stops the next call after the tensors.
    let obstacle = partial.join("config.json");
    std::fs::create_dir(&obstacle).expect("folder");
    fail_with(&mut export(&pack, &out, &options), 12);
    assert!(!out.exists());
    std::fs::remove_dir(&obstacle).expect("removed");

    // Meanwhile a byte of a layer changes; only that part is written again.
    let weights = partial.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("file");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).expect("written");
    let output = succeed(&mut export(&pack, &out, &options));
    assert!(
        output_text(&output).contains("bytes were there from an earlier call"),
        "{}",
        output_text(&output)
    );
    let found = tensors(&out.join("model.safetensors"));
    for (name, _, _, digest) in listed(&manifest(&pack)) {
        assert_eq!(sha256(&found[&name].2), digest, "{name}");
    }
    assert!(!partial.exists());
}

#[test]
fn what_cannot_be_exported_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let (pack, out) = (
        pack_of(&tiny_model(), folder.path()),
        folder.path().join("out"),
    );
    let safetensors = ["--to", "safetensors"];
    let refuse = |pack: &Path, out: &Path, options: &[&str], code, part: &str| {
        let text = fail_with(&mut export(pack, out, options), code);
        assert!(text.contains(part), "{part}: {text}");
    };
    refuse(&pack, &out, &["--to", "onnx"], 2, "invalid value 'onnx'");
    refuse(
        &pack,
        &out,
        &["--to", "safetensors", "--type", "f16"],
        2,
        "--type",
    );
    let other = "0".repeat(64);
    refuse(
        &pack,
        &out,
        &["--to", "safetensors", "--expect", &other],
        5,
        "does not verify",
    );
    refuse(&tiny_model(), &out, &safetensors, 2, "not of a pack");
    let text = output_text(&succeed(&mut export(
        &pack,
        &out,
        &["--to", "safetensors", "--dry-run"],
    )));
    assert!(
        text.contains("model.safetensors") && text.contains("nothing was written"),
        "{text}"
    );
    assert!(!out.exists() && !folder.path().join("out.partial").exists());

    // An export is replaced on request, another folder never.
    succeed(&mut export(&pack, &out, &safetensors));
    refuse(&pack, &out, &safetensors, 2, "--force replaces it");
    std::fs::write(out.join("config.json"), "damaged").expect("written");
    succeed(&mut export(
        &pack,
        &out,
        &["--to", "safetensors", "--force"],
    ));
    assert_eq!(
        contents(&out)["config.json"],
        contents(&pack)["config.json"]
    );
    refuse(
        &pack,
        &pack,
        &["--to", "safetensors", "--force"],
        2,
        "is no export",
    );

    let fresh = folder.path().join("fresh");
    let layer = pack.join("layer_001.uc");
    let bytes = std::fs::read(&layer).expect("layer");
    std::fs::remove_file(&layer).expect("removed");
    std::fs::write(pack.join("remote.json"), r#"{"repository":"owner/name"}"#).expect("written");
    refuse(
        &pack,
        &fresh,
        &safetensors,
        10,
        "lacks 1 of 4 layer files; they were uploaded to owner/name",
    );
    let mut damaged = bytes;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    std::fs::write(&layer, damaged).expect("written");
    refuse(&pack, &fresh, &safetensors, 5, "does not verify");
    assert!(!fresh.exists() && !folder.path().join("fresh.partial").exists());
}

/// The interpreter with the packages that the scripts of `tests/exports` list.
fn python() -> Command {
    let python = std::env::var("UC_PYTHON")
        .expect("UC_PYTHON names an interpreter with the packages of tests/exports");
    Command::new(python)
}

#[test]
#[ignore = "needs UC_PYTHON with torch and transformers"]
fn transformers_measures_on_an_export_what_the_evaluator_measured_on_the_pack() {
    let folder = tempfile::tempdir().expect("folder");
    for name in ["tiny-stories", "tiny-experts", "tiny-mamba"] {
        let model = repository().join("examples").join(name);
        let (run, out) = (
            folder.path().join(name),
            folder.path().join(format!("{name}-export")),
        );
        succeed(&mut compress(&model, &run));
        succeed(&mut export(
            &run.join("pack"),
            &out,
            &["--to", "safetensors"],
        ));
        let script = repository().join("tests/exports/with_transformers.py");
        let output = succeed(python().arg(script).arg(&model).arg(&run).arg(&out));
        assert!(
            output_text(&output).contains("mean_kl"),
            "{}",
            output_text(&output)
        );
    }
}

/// A folder with random weights for a configuration of `examples/small-configs`, changed by `change`.
fn random_model(name: &str, folder: &Path, change: impl Fn(&mut Value)) -> std::path::PathBuf {
    let config = repository().join(format!("examples/small-configs/{name}.json"));
    let text = std::fs::read(config).expect("configuration");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    change(&mut config);
    // llama.cpp looks for special tokens of Phi-3 if the name of a model contains its name.
    let (path, model) = (
        folder.join("config.json"),
        folder.join(name.replace("phi3", "phi-three")),
    );
    std::fs::write(&path, config.to_string()).expect("written");
    let mut random = uc_tests::program("random-model");
    succeed(random.arg("--config").arg(&path).arg("--out").arg(&model));
    model
}

#[test]
#[ignore = "needs UC_PYTHON with torch, transformers and llama-cpp-python; 15 families"]
fn llama_cpp_computes_on_an_export_what_transformers_computes() {
    let folder = tempfile::tempdir().expect("folder");
    let families = [
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "granitemoe",
        "llama",
        "mamba",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    ];
    let mut models: Vec<_> = families
        .iter()
        .map(|name| {
            random_model(name, folder.path(), |config| {
                // llama.cpp has no layers without experts in this family.
                if *name == "qwen3_moe" {
                    config["mlp_only_layers"] = Value::Array(Vec::new());
                }
                // Without LongRoPE: transformers chooses its factors by the length of a text, llama.cpp by its context.
                if *name == "phi3" {
                    config["rope_scaling"] = Value::Null;
                    config["original_max_position_embeddings"] =
                        config["max_position_embeddings"].clone();
                    config["pad_token_id"] = 0.into();
                }
            })
        })
        .collect();
    let trained = ["tiny-stories", "tiny-experts", "tiny-mamba"];
    models.extend(trained.map(|name| repository().join("examples").join(name)));
    for model in models {
        let name = model
            .file_name()
            .and_then(|name| name.to_str())
            .expect("name")
            .to_owned();
        let at = |part: &str| folder.path().join(format!("{name}-{part}"));
        succeed(compress(&model, &at("run")).arg("--no-eval"));
        let pack = at("run").join("pack");
        succeed(&mut export(
            &pack,
            &at("safetensors"),
            &["--to", "safetensors"],
        ));
        // Random weights are close to ties, which only float32 resolves.
        let kinds: &[&str] = match trained.contains(&name.as_str()) {
            true => &["f32", "bf16", "f16", "q8_0"],
            false => &["f32"],
        };
        for kind in kinds {
            succeed(&mut export(
                &pack,
                &at(kind),
                &["--to", "gguf", "--type", kind],
            ));
            let script = repository().join("tests/exports/with_llama_cpp.py");
            let output = succeed(
                python()
                    .arg(script)
                    .arg(at("safetensors"))
                    .arg(at(kind))
                    .arg(kind),
            );
            let text = output_text(&output);
            assert!(
                text.contains("tokens: equal") && text.contains("logits:"),
                "{name} {kind}: {text}"
            );
        }
    }
}

#[test]
fn an_export_is_evaluated_in_the_place_of_its_pack() {
    let folder = tempfile::tempdir().expect("folder");
    let pack = pack_of(&tiny_model(), folder.path());
    let measure = |out: &str, options: &[&str], model: &Path| {
        let out = folder.path().join(out);
        succeed(&mut export(&pack, &out, options));
        let mut command = uc();
        command
            .current_dir(folder.path())
            .arg("eval")
            .arg(&out)
            .arg("--model")
            .arg(model);
        command
            .arg("--text")
            .arg(tiny_model().join("evaluation.txt"));
        let output = succeed(command.args(uc_tests::QUICK).arg("--json"));
        json(&output)["metrics"].clone()
    };
    let kl = |metrics: &Value| metrics["mean_kl"]["value"].as_f64().expect("a number");
    let exact = measure("bf16", &["--to", "gguf"], &pack);
    assert_eq!(
        kl(&exact),
        0.0,
        "the linears and all other tensors of this model are bfloat16"
    );
    assert_eq!(exact["export"], "gguf bf16");
    let rounded = kl(&measure("q8", &["--to", "gguf", "--type", "q8_0"], &pack));
    assert!(rounded > 0.0 && rounded < 1e-3, "{rounded}");
    // The result is part of the export.
    let read = |name: &str| std::fs::read_to_string(folder.path().join("q8").join(name));
    let stated: Value =
        serde_json::from_str(&read("evaluation.json").expect("file")).expect("JSON");
    assert_eq!(kl(&stated), rounded);
    let card = read("README.md").expect("file");
    assert!(
        card.contains(&format!("mean KL divergence {rounded:.3e} nats")),
        "{card}"
    );
    // Against the source, the export has the error of the pack.
    let total = kl(&measure("st", &["--to", "safetensors"], &tiny_model()));
    assert!(total > 0.0 && total < 1e-2, "{total}");
    assert!(
        !folder.path().join("st/evaluation.json").exists(),
        "measured against the source"
    );
}

#[test]
fn gguf_exports_of_unknown_families_and_tokenizers_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    uc_tests::copy_model(&model);
    let path = model.join("tokenizer.json");
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("file")).expect("JSON");
    tokenizer["pre_tokenizer"]["add_prefix_space"] = true.into();
    std::fs::write(&path, tokenizer.to_string()).expect("written");
    let (pack, out) = (pack_of(&model, folder.path()), folder.path().join("out"));
    let text = fail_with(&mut export(&pack, &out, &["--to", "gguf"]), 4);
    assert!(
        text.contains("pre_tokenizer: found") && text.contains("--to safetensors"),
        "{text}"
    );
    assert!(!out.exists() && !folder.path().join("out.partial").exists());
}
