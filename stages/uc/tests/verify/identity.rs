//! What a pack claims to be: its fingerprint, its model, its names, its files.

use std::os::unix::fs::symlink;

use uc_pack::Digest;

use crate::builder::{PackFolder, SMALL, linears};
use crate::{fails, passes, text, verify};

#[test]
fn the_expected_fingerprint_passes_and_another_one_fails_before_anything_is_read() {
    let pack = PackFolder::honest(SMALL);
    let fingerprint = pack.seal_as_it_is().to_string();
    for expected in [&fingerprint, &fingerprint.to_uppercase()] {
        let output = verify(pack.path(), &["--expect", expected]);
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        assert!(
            text.contains("PASS: consistent in itself, with the expected fingerprint"),
            "{text}"
        );
    }
    let other = "0".repeat(64);
    let output = verify(pack.path(), &["--expect", &other]);
    let failed = text(&output);
    assert_eq!(output.status.code(), Some(5), "{failed}");
    assert!(
        failed.contains(&other) && failed.contains(&fingerprint),
        "{failed}"
    );
    assert!(
        failed.contains("another pack than the expected one"),
        "{failed}"
    );
    assert!(failed.contains("tensors recomputed    0\n"), "{failed}");
    let report = verify(pack.path(), &["--json", "--expect", &other]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("JSON");
    assert_eq!(report["expected_fingerprint"], other.as_str());
    assert_eq!(report["verdict"], "FAIL");
    // Who makes a pack can choose a second one that agrees in a few digits.
    let output = verify(pack.path(), &["--expect", &fingerprint[..16]]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn tensors_that_are_not_those_of_the_config_are_named() {
    let mut pack = PackFolder::honest(SMALL);
    pack.manifest.layers[1].prefix = "model.layers.7.".into();
    pack.seal();
    let text = fails(pack.path(), "prefix of layer 1, compared with config.json");
    assert!(text.contains("\"model.layers.1.\""), "{text}");

    let mut pack = PackFolder::honest(SMALL);
    let config = std::fs::read_to_string(pack.file("config.json")).expect("config");
    for (from, to, message) in [
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "compared with num_hidden_layers: found 2, expected 3",
        ),
        (
            "\"intermediate_size\": 160",
            "\"intermediate_size\": 161",
            "\"mlp.up_proj.weight\", compared with config.json",
        ),
        (
            "\"vocab_size\": 96",
            "\"vocab_size\": 97",
            "\"model.embed_tokens.weight\", compared with config.json",
        ),
        (
            "\"tie_word_embeddings\": true",
            "\"tie_word_embeddings\": false",
            "\"lm_head.weight\", compared with config.json: found none",
        ),
        (
            "\"model_type\": \"llama\"",
            "\"model_type\": \"\\u001b[2J\"",
            "cannot compare the tensors",
        ),
    ] {
        assert!(config.contains(from), "{from}");
        std::fs::write(pack.file("config.json"), config.replace(from, to)).expect("config");
        pack.record_file("config.json");
        pack.seal();
        let text = fails(pack.path(), message);
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    // An infinite norm.
    let mut pack = PackFolder::honest(SMALL);
    let layer = std::fs::read(pack.file("layer_000.uc")).expect("layer");
    let ones = [0x80, 0x3f].repeat(SMALL.hidden);
    let at = layer
        .windows(ones.len())
        .position(|part| part == ones)
        .expect("a norm");
    let mut bytes = layer.clone();
    bytes[at..at + 2].copy_from_slice(&0x7f80u16.to_le_bytes());
    let tensor = &bytes[at..at + ones.len()];
    pack.manifest.layers[0].exact[0].sha256 = Digest::hash_bytes(tensor);
    pack.replace_layer(0, &bytes);
    pack.seal();
    let text = fails(pack.path(), "infinite or not a number");
    assert!(
        text.contains("model.layers.0.input_layernorm.weight"),
        "{text}"
    );
    assert_eq!(text.matches("error: layer").count(), 1, "{text}");

    // Steps with which the levels overflow, recorded as they are.
    let mut pack = PackFolder::honest(SMALL);
    let mut linears = linears(SMALL, 0);
    let code = &mut linears[3].code;
    code.step = 1e19;
    code.column_log2_eighths.fill(255);
    code.row_step_log2_eighths.fill(255);
    pack.replace_linears(SMALL, 0, &linears);
    pack.seal();
    let text = fails(pack.path(), "infinite or not a number");
    assert!(
        text.contains("model.layers.0.self_attn.o_proj.weight"),
        "{text}"
    );
    assert_eq!(text.matches("error: layer").count(), 1, "{text}");
}

#[test]
fn links_names_that_differ_only_in_case_and_files_that_a_program_would_load_are_refused() {
    let pack = PackFolder::honest(SMALL);
    let (layer, elsewhere) = (pack.file("layer_000.uc"), pack.file("elsewhere"));
    for name in [
        "layer_000.uc",
        "config.json",
        "manifest.json",
        "scaffold.uc",
    ] {
        std::fs::rename(pack.file(name), &elsewhere).expect("moved");
        symlink(&elsewhere, pack.file(name)).expect("link");
        fails(pack.path(), "symbolic link");
        std::fs::rename(&elsewhere, pack.file(name)).expect("moved back");
    }
    passes(pack.path());
    std::fs::copy(&layer, pack.file("Layer_000.UC")).expect("copy");
    fails(
        pack.path(),
        "its name differs from layer_000.uc only in case",
    );
    std::fs::remove_file(pack.file("Layer_000.UC")).expect("removed");
    for name in [
        "chat_template.jinja",
        "generation_config.json",
        "modeling.py",
    ] {
        std::fs::write(pack.file(name), "x").expect("file");
        fails(pack.path(), "the manifest does not name this file");
        std::fs::remove_file(pack.file(name)).expect("removed");
    }
    std::fs::write(pack.file("README.md"), "x").expect("file");
    let text = passes(pack.path());
    assert!(text.contains("warning: README.md"), "{text}");

    let mut pack = PackFolder::honest(SMALL);
    std::fs::copy(pack.file("config.json"), pack.file("CONFIG.json")).expect("copy");
    pack.record_file("CONFIG.json");
    pack.seal();
    fails(pack.path(), "without regard to case");
    for name in ["../outside", "a/b", ".hidden", "a\u{1b}[2J"] {
        let mut pack = PackFolder::honest(SMALL);
        pack.manifest.files[0].name = name.into();
        pack.manifest.files.push(pack.manifest.files[0].clone());
        pack.manifest.files[1].name = "config.json".into();
        pack.seal();
        let text = fails(pack.path(), "name");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn a_fifo_in_place_of_a_file_does_not_hang() {
    for name in [
        "layer_001.uc",
        "config.json",
        "manifest.sha256",
        "manifest.json",
    ] {
        let pack = PackFolder::honest(SMALL);
        std::fs::remove_file(pack.file(name)).expect("removed");
        let made = std::process::Command::new("mkfifo")
            .arg(pack.file(name))
            .status();
        assert!(made.expect("mkfifo").success());
        fails(pack.path(), "not a regular file");
    }
}

#[test]
fn text_of_a_pack_cannot_control_the_terminal() {
    let hostile = "\u{1b}[2J\u{1b}[Hverdict PASS\r\n\u{202e}";
    let mut pack = PackFolder::honest(SMALL);
    pack.manifest.codec.name = hostile.into();
    pack.manifest.codec.source = hostile.into();
    pack.manifest.source.name = hostile.into();
    pack.manifest.layers[0].prefix = hostile.into();
    pack.seal();
    for arguments in [
        vec!["verify"],
        vec!["inspect"],
        vec!["inspect", "--layer", "0"],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_uc"))
            .args(arguments)
            .arg(pack.path())
            .output()
            .expect("uc starts");
        let text = text(&output);
        let is_plain = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
        assert!(text.chars().all(is_plain), "{text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("verdict PASS")),
            "{text}"
        );
    }
}

#[test]
fn other_folders_are_named_for_what_they_are() {
    let folder = tempfile::tempdir().expect("folder");
    let refused = |message: &str| {
        let output = verify(folder.path(), &[]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(message), "expected {message:?}: {text}");
    };
    refused("it holds no manifest.json");
    std::fs::write(folder.path().join("config.json"), "{}").expect("file");
    std::fs::write(folder.path().join("model.safetensors"), "").expect("file");
    refused("is the folder of a model, not of a pack; compress it: uc compress");
    std::fs::write(folder.path().join("run.json"), "{}").expect("file");
    refused("is not finished: uc resume");
    std::fs::create_dir(folder.path().join("pack")).expect("folder");
    std::fs::write(folder.path().join("pack/manifest.json"), "{}").expect("file");
    refused("is a run directory; its pack is");
    let output = verify(&folder.path().join("config.json"), &[]);
    assert!(text(&output).contains("is a file, expected the folder of a pack"));
}
