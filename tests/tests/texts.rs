//! Texts of the calibration and the evaluation: marks, encodings, formats, too few and too long windows, and the results of
//! several texts.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use uc_tests::{compress, contents, fail_with, json, output_text, succeed, tiny_model, uc};

const USAGE: i32 = 2;
const BAD_INPUT: i32 = 4;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("file")).expect("JSON")
}

/// The beginning of the embedded model's calibration text.
fn story(bytes: usize) -> String {
    let text = std::fs::read_to_string(tiny_model().join("calibration.txt")).expect("text");
    text[..text.floor_char_boundary(bytes)].to_owned()
}

/// `uc eval` of a pack on a text, in a folder for its run directories.
fn eval(folder: &Path, pack: &Path, text: &Path) -> Command {
    let mut command = uc();
    command.current_dir(folder).arg("eval").arg(pack);
    command
        .arg("--model")
        .arg(tiny_model())
        .arg("--text")
        .arg(text);
    command.args([
        "--set",
        "evaluation.windows=2",
        "--set",
        "evaluation.length=64",
        "--json",
    ]);
    command
}

#[test]
fn missing_and_cut_windows_are_warned_of_and_recorded() {
    let folder = tempfile::tempdir().expect("folder");
    let (text, run) = (folder.path().join("short.txt"), folder.path().join("run"));
    std::fs::write(&text, story(6_000)).expect("written");
    let mut command = uc();
    command
        .arg("compress")
        .arg(tiny_model())
        .arg("--run")
        .arg(&run);
    command
        .arg("--calibration")
        .arg(&text)
        .arg("--evaluation")
        .arg(&text);
    command.args([
        "--set",
        "calibration.length=4096",
        "--set",
        "evaluation.length=4096",
    ]);
    command.arg("--set").arg("evaluation.windows=1");
    let summary = output_text(&succeed(&mut command));
    let manifest = read_json(&run.join("pack/manifest.json"));
    let calibration = &manifest["calibration"];
    let found = calibration["windows"].as_u64().expect("number");
    assert!(found < 96);
    assert_eq!(calibration["request"]["windows"], 96);
    assert_eq!(calibration["request"]["length"], 4096);
    assert_eq!(calibration["request"]["text_bytes"], 6_000);
    for expected in [
        format!("calibration: {found} of 96 windows: the text has no more"),
        format!(
            "calibration: windows of {} tokens in place of 4096",
            calibration["length"]
        ),
        "evaluation: one window gives no confidence intervals".into(),
    ] {
        assert!(
            summary.contains(&expected),
            "`{expected}` is missing in {summary}"
        );
    }
    let metrics = read_json(&run.join("eval/metrics.json"));
    assert!(metrics["mean_kl"]["low"].is_null() && metrics["interval"].is_null());
    assert!(metrics["mean_kl"]["value"].is_f64());
    assert_eq!(metrics["requested_window_length"], 4096);
    assert_eq!(metrics["warnings"].as_array().map(Vec::len), Some(1));
    let divergence = summary.lines().find(|line| line.starts_with("mean KL"));
    assert!(
        divergence.is_some_and(|line| !line.contains('(')),
        "{summary}"
    );
    let shown = output_text(&succeed(uc().arg("inspect").arg(run.join("pack"))));
    for expected in [
        "asked for",
        "short.txt",
        "calibration.max_input_block",
        "model.device",
        "f32",
    ] {
        assert!(
            shown.contains(expected),
            "`{expected}` is missing in {shown}"
        );
    }
}

#[test]
fn results_on_several_texts_stand_side_by_side_and_formats_give_the_same_windows() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(compress(&tiny_model(), &run).arg("--no-eval"));
    let pack = run.join("pack");
    let text = story(20_000);
    let line = serde_json::json!({ "content": text }).to_string();
    let files: [(&str, Vec<u8>); 4] = [
        ("plain.txt", text.clone().into_bytes()),
        ("marked.txt", format!("\u{feff}{text}").into_bytes()),
        ("lines.jsonl", format!("\u{feff}{line}\n").into_bytes()),
        ("other.txt", text.as_bytes()[5_000..].to_vec()),
    ];
    let mut digests = Vec::new();
    for (name, bytes) in &files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let mut command = eval(folder.path(), &pack, &path);
        command.args(["--field", "content"]);
        let summary = json(&succeed(&mut command));
        let metrics = &summary["metrics"];
        assert_eq!(metrics["texts"][0]["name"], *name);
        digests.push(metrics["windows_sha256"].clone());
    }
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
    assert_ne!(digests[0], digests[3]);
    let runs = std::fs::read_dir(folder.path().join("runs")).expect("runs");
    let mut names: Vec<String> = runs
        .map(|run| read_json(&run.expect("entry").path().join("eval/metrics.json")))
        .map(|metrics| {
            metrics["texts"][0]["name"]
                .as_str()
                .expect("name")
                .to_owned()
        })
        .collect();
    names.sort();
    // A directory that is named keeps its results, too.
    let named = folder.path().join("named");
    let path = |name| folder.path().join(name);
    let mut first = eval(folder.path(), &pack, &path("plain.txt"));
    succeed(first.arg("--run").arg(&named));
    let mut other = eval(folder.path(), &pack, &path("other.txt"));
    let output = fail_with(other.arg("--run").arg(&named), USAGE);
    assert!(output.contains("other texts (plain.txt)"), "{output}");
    assert_eq!(
        names,
        ["lines.jsonl", "marked.txt", "other.txt", "plain.txt"]
    );
}

#[test]
fn the_manifest_carries_the_settings_that_decide_the_bytes_and_no_others() {
    let folder = tempfile::tempdir().expect("folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    succeed(compress(&tiny_model(), &one).arg("--no-eval"));
    succeed(compress(&tiny_model(), &two).args([
        "--threads",
        "1",
        "--no-eval",
        "--set",
        "evaluation.seed=7",
    ]));
    let manifest = read_json(&one.join("pack/manifest.json"));
    let settings = manifest["codec"]["settings"].as_object().expect("settings");
    for key in [
        "model.device",
        "calibration.fisher_token_weight",
        "allocation.mode",
        "quantize.bpw",
        "overlay.rank",
    ] {
        assert!(
            settings.contains_key(key),
            "{key} is missing in {settings:?}"
        );
    }
    let is_foreign = |key: &&String| key.starts_with("evaluation") || key.starts_with("upload");
    assert_eq!(settings.keys().find(is_foreign), None);
    assert_eq!(contents(&one.join("pack")), contents(&two.join("pack")));
}

#[test]
fn a_text_in_another_encoding_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let text = folder.path().join("wide.txt");
    let wide: Vec<u8> = story(4_000)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    std::fs::write(&text, wide).expect("written");
    let mut command = compress(&tiny_model(), &folder.path().join("run"));
    let output = fail_with(command.arg("--calibration").arg(&text), BAD_INPUT);
    assert!(output.contains("UTF-16, little-endian"), "{output}");
    assert!(output.contains("wide.txt"), "{output}");
}
