//! `uc bench` on the pack of a tiny model: the JSON follows its schema and agrees with itself; the table; what is refused.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use uc_tests::schema::violations;
use uc_tests::{compress, fail_with, json, repository, succeed, tiny_model, uc};

/// A pack of one of the embedded models in a temporary folder.
fn packed(model: &Path) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(compress(model, &run).arg("--no-eval"));
    (folder, run.join("pack"))
}

/// `uc bench PACK` with little work and these words.
fn bench(pack: &Path, words: &[&str]) -> Command {
    let mut command = uc();
    command.arg("bench").arg(pack);
    command.args(["-n", "3", "--runs", "2"]).args(words);
    command
}

fn schema() -> Value {
    let text = std::fs::read(repository().join("docs/bench-schema.json")).expect("schema");
    serde_json::from_slice(&text).expect("JSON")
}

/// A number in a document.
fn number(document: &Value, pointer: &str) -> f64 {
    let value = document.pointer(pointer);
    let value = value.unwrap_or_else(|| panic!("no {pointer} in {document}"));
    value.as_f64().expect("a number")
}

#[test]
fn the_json_follows_its_schema_and_agrees_with_itself() {
    let (_folder, pack) = packed(&tiny_model());
    let words = [
        "--prompts",
        "8,9999,8",
        "--batches",
        "2,1",
        "--threads",
        "2",
        "--json",
    ];
    let found = json(&succeed(&mut bench(&pack, &words)));
    assert_eq!(violations(&schema(), &found), Vec::<String>::new());
    let verified = json(&succeed(uc().arg("verify").arg(&pack).arg("--json")));
    assert_eq!(found["pack"]["fingerprint"], verified["fingerprint"]);
    // Lengths and batches are sorted, each once; a prompt is cut to the context.
    let values = |list: &str, name: &str| {
        let list = found[list].as_array().expect("a list").iter();
        list.map(|entry| entry[name].as_u64()).collect::<Vec<_>>()
    };
    assert_eq!(values("prompts", "tokens"), [Some(8), Some(256)]);
    assert_eq!(values("generation", "batch"), [Some(1), Some(2)]);
    assert_eq!(values("generation", "tokens"), [Some(3), Some(6)]);
    for runs in [
        "/prompts/0/tokens_per_second/runs",
        "/generation/1/seconds/runs",
    ] {
        let runs = found.pointer(runs).and_then(Value::as_array);
        assert_eq!(runs.map(Vec::len), Some(2));
    }
    // Two sequences have twice the states of one.
    let states = |batch: usize| number(&found["generation"][batch], "/state_bytes");
    assert_eq!(2.0 * states(0), states(1));
    assert_eq!(number(&found, "/memory/state_bytes"), states(1));
    // All linears are read, and the head, which is in memory beside the embedding of 1024 tokens.
    let reads = |name: &str| number(&found["weights_read"], name);
    assert_eq!(
        reads("/linear_bytes"),
        number(&found, "/memory/linear_bytes")
    );
    let embedding = 2.0 * 1024.0 * 128.0;
    assert_eq!(
        reads("/head_bytes") + embedding,
        number(&found, "/memory/exact_bytes")
    );
    assert_eq!(
        reads("/total_bytes"),
        reads("/linear_bytes") + reads("/head_bytes")
    );
    let rate = 3.0 * reads("/total_bytes") / number(&found, "/generation/0/seconds/median");
    let stated = number(&found, "/generation/0/weight_bytes_per_second");
    assert!((rate / stated - 1.0).abs() < 1e-9, "{rate} {stated}");
    let share = stated / number(&found, "/bandwidth/bytes_per_second");
    assert!((share / number(&found, "/generation/0/share_of_bandwidth") - 1.0).abs() < 1e-9);
    assert!(number(&found, "/plain_bandwidth/bytes_per_second") > 0.0);
    let peak = number(&found, "/memory/peak_resident_bytes");
    // The buffer whose reading is timed does not count.
    assert!(peak < number(&found, "/bandwidth/buffer_bytes"), "{peak}");
    let resident = number(&found, "/memory/resident_bytes");
    assert!(1.1 * peak > resident && resident > reads("/total_bytes"));
}

#[test]
fn of_a_mixture_only_the_experts_of_a_token_are_read() {
    let (_folder, pack) = packed(&repository().join("examples/tiny-experts"));
    let words = [
        "--prompts",
        "4",
        "--batches",
        "1,2",
        "--no-verify",
        "--json",
    ];
    let found = json(&succeed(&mut bench(&pack, &words)));
    assert_eq!(violations(&schema(), &found), Vec::<String>::new());
    assert!(found["load"]["verified_seconds"].is_null());
    assert_eq!(found["weights_read"]["depends_on_routing"], true);
    let held = number(&found, "/memory/linear_bytes");
    let read = number(&found, "/weights_read/linear_bytes");
    assert!(read < 0.9 * held, "{read} of {held}");
    assert!(number(&found, "/weights_read/exact_bytes") > 0.0);
    assert!(found["generation"][0]["share_of_bandwidth"].is_number());
    assert!(found["generation"][1]["share_of_bandwidth"].is_null());
}

#[test]
fn the_table_has_a_line_for_every_measurement_and_bad_numbers_are_refused() {
    let (_folder, pack) = packed(&tiny_model());
    let output = succeed(&mut bench(&pack, &["--prompts", "4,8", "--batches", "1"]));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for title in [
        "fingerprint",
        "weights read",
        "bandwidth",
        "arithmetic fast",
    ] {
        assert!(text.contains(title), "{text}");
    }
    let (_, tables) = text.split_once("prompt tokens").expect("a table");
    let begins = |word: &str| {
        let mut lines = tables.lines();
        lines.any(|line| line.split_whitespace().next() == Some(word))
    };
    assert!(begins("4") && begins("8") && begins("1"), "{text}");

    let refused = |words: &[&str], reason: &str| {
        let mut command = uc();
        let message = fail_with(command.arg("bench").arg(&pack).args(words), 2);
        assert!(message.contains(reason), "{words:?}: {message}");
    };
    refused(&["-n", "256"], "at most 255");
    refused(&["--prompts", "0"], "--prompts");
    refused(&["--prompts", ""], "--prompts");
    refused(&["--batches", "1,x"], "--batches");
    refused(&["--runs", "0"], "--runs");
    let absent = pack.with_file_name("absent");
    let message = fail_with(&mut bench(&absent, &[]), 4);
    assert!(message.contains("absent"), "{message}");
}
