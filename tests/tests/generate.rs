//! `uc generate` on the pack of the tiny model: the text, its independence of threads, the JSON, and what is refused.
#![allow(clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use uc_tests::{compress, fail_with, json, output_text, succeed, tiny_model, uc};

/// A pack of the tiny model in a temporary folder.
struct Packed {
    _folder: tempfile::TempDir,
    pack: PathBuf,
}

fn packed() -> Packed {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(&mut compress(&tiny_model(), &run));
    Packed {
        pack: run.join("pack"),
        _folder: folder,
    }
}

/// `uc generate PACK` with these words.
fn generate(pack: &Path, words: &[&str]) -> Command {
    let mut command = uc();
    command.arg("generate").arg(pack).args(words);
    command.stdin(Stdio::null());
    command
}

/// The output of a command that reads this on standard input.
fn with_input(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input).expect("written");
    drop(stdin);
    child.wait_with_output().expect("ends")
}

/// The text that a command prints.
fn text(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).expect("UTF-8")
}

#[test]
fn a_text_goes_on_in_the_same_way_on_any_number_of_threads_and_from_any_source() {
    let packed = packed();
    let pack = &packed.pack;
    let prompt = "Once upon a time";
    let plain = text(&mut generate(pack, &["-p", prompt, "-n", "40"]));
    assert!(plain.trim().len() > 40, "{plain:?}");
    for threads in ["1", "3"] {
        let found = text(&mut generate(
            pack,
            &["-p", prompt, "-n", "40", "--threads", threads],
        ));
        assert_eq!(found, plain, "{threads} threads");
    }
    let piped = with_input(generate(pack, &["-n", "40"]), prompt.as_bytes());
    assert_eq!(String::from_utf8_lossy(&piped.stdout), plain);
    let file = pack.parent().expect("run").join("prompt.txt");
    std::fs::write(&file, prompt).expect("file");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(text(&mut generate(pack, &["-f", file, "-n", "40"])), plain);
    // A stop string in the middle of the text, across tokens.
    let at = plain.len() / 2;
    let at = (at..)
        .find(|&at| plain.is_char_boundary(at))
        .expect("a boundary");
    let stop = &plain[at..at + 7];
    let stopped = text(&mut generate(
        pack,
        &["-p", prompt, "-n", "40", "--stop", stop],
    ));
    let expected = &plain[..plain.find(stop).expect("it occurs")];
    assert_eq!(stopped.strip_suffix('\n'), Some(expected));
    let sampled = |seed| {
        text(&mut generate(
            pack,
            &[
                "-p",
                prompt,
                "-n",
                "40",
                "--temperature",
                "1.5",
                "--seed",
                seed,
            ],
        ))
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    let half = text(&mut generate(
        pack,
        &[
            "-p",
            prompt,
            "-n",
            "40",
            "--cache",
            "f16",
            "--no-verify",
            "-q",
        ],
    ));
    assert!(half.trim().len() > 40, "{half:?}");
}

#[test]
fn both_forms_in_memory_give_the_same_bits_and_the_arithmetics_are_close() {
    let packed = packed();
    let pack = &packed.pack;
    let report = |arithmetic: &str, memory: &str| {
        let words = [
            "-p",
            "Once",
            "-n",
            "30",
            "--json",
            "--arithmetic",
            arithmetic,
            "--memory",
            memory,
        ];
        json(&succeed(&mut generate(pack, &words)))
    };
    let first = |report: &Value| report["tokens"][0]["logprob"].as_f64().expect("a number");
    let [exact, fast] = ["exact", "fast"].map(|arithmetic| {
        let [resident, streamed] = ["resident", "streamed"].map(|form| report(arithmetic, form));
        for report in [&resident, &streamed] {
            assert_eq!(report["arithmetic"], arithmetic);
        }
        assert_eq!(resident["memory_form"], "resident");
        assert_eq!(streamed["memory_form"], "streamed");
        assert_eq!(resident["tokens"], streamed["tokens"], "{arithmetic}");
        let bits = |report: &Value| report["memory"]["linear_bits"].as_f64().expect("bits");
        assert!(bits(&streamed) < bits(&resident), "{arithmetic}");
        resident
    });
    assert!((first(&exact) - first(&fast)).abs() < 0.01);
    assert_ne!(exact["tokens"][0]["logprob"], fast["tokens"][0]["logprob"]);
}

#[test]
fn the_json_has_tokens_probabilities_times_and_what_computed_them() {
    let packed = packed();
    let pack = &packed.pack;
    let words = ["-p", "Once", "-n", "5", "--json", "--top-logprobs", "3"];
    let found = json(&succeed(&mut generate(pack, &words)));
    let verified = json(&succeed(uc().arg("verify").arg(pack).arg("--json")));
    assert_eq!(found["pack"], verified["fingerprint"]);
    assert_eq!(found["arithmetic"], "fast");
    assert_eq!(found["memory_form"], "resident");
    assert_eq!(found["verified"], true);
    assert_eq!(found["finish"], "length");
    let tokens = found["tokens"].as_array().expect("tokens");
    assert_eq!(tokens.len(), 5);
    let mut joined = String::new();
    for token in tokens {
        let top = token["top"].as_array().expect("top");
        assert_eq!(top.len(), 3);
        // Greedy: the token is the most probable one.
        assert_eq!(token["id"], top[0]["id"]);
        assert_eq!(token["logprob"], top[0]["logprob"]);
        assert!(token["logprob"].as_f64().expect("a number") <= 0.0);
        joined += token["text"].as_str().expect("text");
    }
    assert_eq!(Value::from(joined), found["text"]);
    let bits = found["memory"]["linear_bits"].as_f64().expect("bits");
    assert!((5.5..6.5).contains(&bits), "{bits}");
    assert!(found["memory"]["state_bytes"].as_u64() > Some(0));
    assert!(found["times"]["load_seconds"].as_f64() > Some(0.0));
}

#[test]
fn what_cannot_be_generated_is_refused_with_its_reason() {
    let packed = packed();
    let pack = &packed.pack;
    let refused = |words: &[&str], code, reason: &str| {
        let message = fail_with(&mut generate(pack, words), code);
        assert!(message.contains(reason), "{words:?}: {message}");
    };
    refused(&["-p", "a", "--temperature", "-1"], 2, "temperature");
    refused(&["-p", "a", "--top-p", "0"], 2, "top-p");
    refused(&["-p", "a", "--logit-bias", "99999:1"], 2, "logit-bias");
    refused(&["-p", "a", "--context", "100000"], 2, "expected 1 to 256");
    refused(
        &["-p", "one two three four", "--context", "2"],
        4,
        "at most 2",
    );
    refused(&["-p", "a", "--stop", ""], 2, "stop");
    refused(&["-p", "a", "--chat"], 4, "no chat template");
    refused(&["-f", "absent.txt"], 4, "absent.txt");
    let long = "word ".repeat(1000);
    refused(&["-p", &long], 4, "its context");
    let output = with_input(generate(pack, &[]), b"ab\xff");
    assert_eq!(output.status.code(), Some(4), "{}", output_text(&output));
    assert!(output_text(&output).contains("not UTF-8 from byte 2"));

    // A changed byte in the middle of a layer.
    let layer = pack.join("layer_001.uc");
    let mut bytes = std::fs::read(&layer).expect("layer");
    let honest = bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, &bytes).expect("layer");
    refused(&["-p", "a"], 5, "layer_001.uc");
    bytes.clone_from(&honest);
    bytes[8] = 99;
    std::fs::write(&layer, &bytes).expect("layer");
    refused(&["-p", "a"], 4, "99");
    std::fs::remove_file(&layer).expect("layer");
    std::fs::write(pack.join("remote.json"), r#"{"repository": "me/pack"}"#).expect("note");
    refused(&["-p", "a"], 4, "me/pack");
    std::fs::write(&layer, &honest).expect("layer");
    std::fs::write(pack.join("config.json"), "{}").expect("config");
    refused(&["-p", "a"], 5, "config.json");
}
