//! `uc diff` and `uc inspect --tensor` on small packs, honest and not: exit status, formats, refusals.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::builder::{PackFolder, SMALL, Sizes, linears};
use crate::text;

const USAGE: i32 = 2;
const BAD_INPUT: i32 = 4;
const DAMAGED: i32 = 5;
const DIFFERENT: i32 = 13;
const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";

fn uc(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uc"));
    command.args(arguments).output().expect("uc starts")
}

/// Standard output of a command that succeeds.
#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let output = uc(arguments);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Checks that a command ends with a status and a message; standard output stays empty.
#[track_caller]
fn refuses(arguments: &[&str], status: i32, messages: &[&str]) {
    let output = uc(arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(output.stdout.is_empty(), "{text}");
    for message in messages {
        assert!(text.contains(message), "expected {message:?}: {text}");
    }
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(arguments)).expect("JSON")
}

fn path(pack: &PackFolder) -> &str {
    pack.path().to_str().expect("UTF-8")
}

/// A pack of which one linear has another step, and the setting that would explain it.
fn changed() -> PackFolder {
    let mut pack = PackFolder::honest(SMALL);
    let mut changed = linears(SMALL, 0);
    changed[0].code.step = 0.02;
    pack.replace_linears(SMALL, 0, &changed);
    let settings = &mut pack.manifest.codec.settings;
    settings.insert("rate".into(), "4\u{1b}[2J".into());
    pack.seal();
    pack
}

#[test]
fn a_pack_and_its_copy_are_identical_and_others_differ_with_an_exit_status_only_on_request() {
    let (a, b) = (PackFolder::honest(SMALL), changed());
    let (a, b) = (path(&a), path(&b));
    let identical = succeeds(&["diff", a, a, "--exit-code"]);
    assert!(
        identical.contains("packs           identical\n"),
        "{identical}"
    );
    let different = succeeds(&["diff", a, b]);
    for line in [
        "packs           DIFFERENT\n",
        "  codec.settings.rate\n    a  5\n    b  4\\u{1b}[2J\n",
        "tensors         19 identical, 1 differ\n",
    ] {
        assert!(different.contains(line), "{line:?}: {different}");
    }
    let row = different
        .lines()
        .find(|line| line.starts_with("model.layers.0.self_attn.q_proj "))
        .expect("row");
    assert!(row.contains(" 2.000 "), "the ratio of the steps: {row}");
    assert!(!different.contains("k_proj"), "{different}");
    assert!(succeeds(&["diff", a, b, "--all"]).contains("k_proj"));
    assert!(
        different.lines().all(|line| line.chars().count() <= 80),
        "{different}"
    );

    let output = uc(&["diff", a, b, "--exit-code"]);
    assert_eq!(output.status.code(), Some(DIFFERENT), "{}", text(&output));
    assert!(output.stderr.is_empty(), "{}", text(&output));
    // The other layer is the same.
    succeeds(&["diff", a, b, "--exit-code", "--layer", "1"]);
}

#[test]
fn ranks_are_shown_where_they_differ_and_tensors_of_one_pack_come_first() {
    let (a, b) = (PackFolder::honest(SMALL), changed());
    assert!(!succeeds(&["diff", path(&a), path(&b)]).contains("ranks"));
    let sizes = Sizes { rank: 0, ..SMALL };
    let mut b = PackFolder::honest(sizes);
    let mut other = linears(sizes, 1);
    other[6].name = "mlp.down.weight".into();
    b.replace_linears(sizes, 1, &other);
    b.seal();
    let found = succeeds(&["diff", path(&a), path(&b)]);
    let table = found.split("\ntensor ").nth(1).expect("table");
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].ends_with("ranks"), "{found}");
    let first = [
        "model.layers.1.mlp.down_proj  only in a",
        "model.layers.1.mlp.down  only in b",
    ];
    for (row, start) in rows[1..].iter().zip(first) {
        let squeezed = row.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed, start.replace("  ", " "), "{found}");
    }
    assert!(rows[3].ends_with(" 2, 0"), "{found}");
    assert!(
        found.contains("13 differ, 1 only in a, 1 only in b"),
        "{found}"
    );
    assert!(
        found.lines().all(|line| line.chars().count() <= 80),
        "{found}"
    );
}

#[test]
fn json_and_csv_hold_every_tensor() {
    let (a, b) = (PackFolder::honest(SMALL), changed());
    let (a, b) = (path(&a), path(&b));
    let found = json(&["diff", a, b, "--json"]);
    assert_eq!(found["identical"], false);
    assert_eq!(found["summary"]["differing"], 1);
    let tensors = found["tensors"].as_array().expect("list");
    assert_eq!(tensors.len(), 20);
    let q = &tensors[0];
    assert_eq!(
        (&q["name"], &q["outcome"]),
        (&TENSOR.into(), &"differs".into())
    );
    // Twice the step gives about twice the weights.
    let error = q["error"]["relative_squared_error"]
        .as_f64()
        .expect("number");
    assert!((0.9..1.1).contains(&error), "{error}");

    let table = succeeds(&["diff", a, b, "--csv"]);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split(',').collect())
        .collect();
    assert_eq!(lines.len(), 21);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    let column = |name: &str| lines[0].iter().position(|column| *column == name);
    let value = |name: &str| lines[1][column(name).expect("column")];
    assert_eq!((value("tensor"), value("outcome")), (TENSOR, "differs"));
    assert_eq!((value("step_a"), value("step_b")), ("0.01", "0.02"));
    let parsed: f64 = value("relative_squared_error").parse().expect("number");
    assert!((parsed / error - 1.0).abs() < 1e-12, "{parsed}");

    let quick = json(&["diff", a, b, "--json", "--manifest"]);
    assert_eq!(quick["tensors"][0]["outcome"], "differs");
    assert_eq!(quick["tensors"][0]["error"], Value::Null);
}

#[test]
fn a_tensor_is_shown_as_text_json_and_csv() {
    let pack = PackFolder::honest(SMALL);
    let pack = path(&pack);
    let shown = succeeds(&["inspect", pack, "--tensor", TENSOR]);
    for part in [
        "stored          coded, ",
        "bits of entropy",
        "\nlevels\n",
        "█",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(
        shown.lines().all(|line| line.chars().count() <= 80),
        "{shown}"
    );
    let short = TENSOR.trim_end_matches(".weight");
    assert_eq!(shown, succeeds(&["inspect", pack, "--tensor", short]));

    let found = json(&["inspect", pack, "--tensor", TENSOR, "--json"]);
    assert_eq!(
        (&found["name"], &found["parameters"]),
        (&TENSOR.into(), &4096.into())
    );
    let code = &found["storage"]["coded"];
    assert_eq!((&code["rank"], &code["escapes"]), (&2.into(), &0.into()));
    assert_eq!(found["error"], Value::Null);
    let table = succeeds(&["inspect", pack, "--tensor", TENSOR, "--csv"]);
    let counted = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[1] == "level").then(|| fields[3].parse::<u64>().expect("count"))
    });
    assert_eq!(counted.sum::<u64>(), 4096);

    let exact = succeeds(&["inspect", pack, "--tensor", "model.embed_tokens"]);
    assert!(
        exact.contains("exactly, as BF16") && !exact.contains("\nlevels\n"),
        "{exact}"
    );
}

#[test]
fn names_options_and_folders_that_do_not_fit_are_refused() {
    let pack = PackFolder::honest(SMALL);
    let pack = path(&pack);
    let inspect = |name| ["inspect", pack, "--tensor", name];
    refuses(&inspect("router"), USAGE, &["no tensor is named router"]);
    let near = TENSOR.replace("q_proj", "q_porj");
    refuses(&inspect(&near), USAGE, &[&format!("did you mean {TENSOR}")]);
    refuses(
        &["inspect", pack, "--tensor", TENSOR, "--csv", "--json"],
        USAGE,
        &["--csv"],
    );
    refuses(&["inspect", pack, "--csv"], USAGE, &["--tensor"]);
    refuses(
        &["inspect", pack, "--tensor", TENSOR, "--layer", "0"],
        USAGE,
        &["--layer"],
    );
    refuses(&["diff", pack, pack, "--csv", "--json"], USAGE, &["--csv"]);
    refuses(
        &["diff", pack, pack, "--layer", "2"],
        USAGE,
        &["layer 2", "2 layers"],
    );
    refuses(&["diff", pack], USAGE, &["<B>"]);
    refuses(&["diff", pack, "/absent"], BAD_INPUT, &["/absent"]);

    let folder = tempfile::tempdir().expect("folder");
    let name = folder.path().to_str().expect("UTF-8");
    std::fs::write(folder.path().join("config.json"), "{}").expect("config");
    std::fs::write(folder.path().join("model.safetensors"), "").expect("weights");
    refuses(
        &["diff", pack, name],
        USAGE,
        &["the folder of a model", "uc compress"],
    );
    std::fs::write(folder.path().join("run.json"), "{}").expect("plan");
    refuses(&["diff", name, pack], USAGE, &["is a run directory"]);
}

#[test]
fn packs_without_layers_and_damaged_ones_are_refused_by_file() {
    let (a, freed) = (PackFolder::honest(SMALL), changed());
    std::fs::remove_file(freed.file("layer_000.uc")).expect("removed");
    let note = r#"{"repository": "owner/name"}"#;
    std::fs::write(freed.file("remote.json"), note).expect("note");
    let words = ["layer_000.uc", "owner/name holds it"];
    refuses(&["diff", path(&a), path(&freed)], BAD_INPUT, &words);
    refuses(
        &["inspect", path(&freed), "--tensor", TENSOR],
        BAD_INPUT,
        &words,
    );
    succeeds(&["diff", path(&a), path(&freed), "--manifest"]);
    // Only the layer that was asked for has to be there.
    succeeds(&["diff", path(&a), path(&freed), "--layer", "1"]);

    let damaged = changed();
    damage(&damaged.file("layer_000.uc"));
    refuses(
        &["diff", path(&a), path(&damaged)],
        DAMAGED,
        &["layer_000.uc", "SHA-256"],
    );
    refuses(
        &["inspect", path(&damaged), "--tensor", TENSOR],
        DAMAGED,
        &["layer_000.uc"],
    );
    damage(&damaged.file("manifest.json"));
    refuses(
        &["diff", path(&damaged), path(&a)],
        DAMAGED,
        &["manifest.json"],
    );
}

/// Flips a bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn packs_of_different_models_are_refused_with_what_they_are_of() {
    let a = PackFolder::honest(SMALL);
    let larger = Sizes {
        hidden: 128,
        inner: 320,
        ..SMALL
    };
    let b = PackFolder::honest(larger);
    let words = ["no linear of the same name and shape", "of test: 2 layers"];
    refuses(&["diff", path(&a), path(&b)], BAD_INPUT, &words);
}
