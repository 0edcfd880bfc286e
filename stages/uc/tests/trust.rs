//! A run directory and a pipeline of a stranger: what they may name, start, write and delete.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uc_store::sha::hash_bytes;

mod fixture;

use fixture::*;

/// A change of a plan.
type Change = fn(&mut Value);

/// A program that is not a stage program and leaves a trace when it is started.
fn add_foreign_program(fixture: &Fixture) -> PathBuf {
    let trace = fixture.root.join("foreign-was-started");
    let script = format!(
        "#!/bin/sh\ntouch {}\necho '{{\"version\":1}}'\n",
        trace.display()
    );
    fixture.write("bin/foreign", &script);
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fixture.root.join("bin/foreign"), mode).expect("executable");
    trace
}

fn run_json(fixture: &Fixture) -> Value {
    let text = std::fs::read(fixture.run_dir().join("run.json")).expect("plan");
    serde_json::from_slice(&text).expect("JSON")
}

/// Writes a plan with a right seal, as a stranger would.
fn write_run_json(fixture: &Fixture, mut plan: Value) {
    plan.as_object_mut().expect("object").remove("seal");
    let text = serde_json::to_string_pretty(&plan).expect("text");
    let unclosed = text.strip_suffix("\n}").expect("object");
    let seal = hash_bytes(text.as_bytes());
    fixture.write(
        "run/run.json",
        &format!("{unclosed},\n  \"seal\": \"{seal}\"\n}}\n"),
    );
}

/// A file outside the run directory.
fn precious(fixture: &Fixture) -> PathBuf {
    fixture.write("precious", "mine");
    fixture.root.join("precious")
}

fn assert_untouched(path: &Path) {
    assert_eq!(std::fs::read(path).expect("still there"), b"mine");
}

#[test]
fn a_pipeline_starts_no_program_that_is_not_part_of_uc() {
    let fixture = Fixture::new();
    let trace = add_foreign_program(&fixture);
    let pipeline = PIPELINE.replacen("[\"worker\"", "[\"foreign\"", 1);
    fixture.write("pipeline.toml", &pipeline);
    let text = expect_code(&fixture.compress().output().expect("uc"), 3);
    assert!(
        text.contains("`foreign`") && text.contains("--allow-program foreign"),
        "{text}"
    );
    assert!(!trace.exists());
    let mut allowed = fixture.compress();
    allowed.args(["--allow-program", "foreign"]);
    allowed.output().expect("uc");
    assert!(trace.exists());
}

#[test]
fn a_run_directory_starts_no_program_that_is_not_part_of_uc() {
    let fixture = Fixture::new();
    fixture.complete();
    let trace = add_foreign_program(&fixture);
    let mut plan = run_json(&fixture);
    plan["stages"][0]["argv"] = json!(["foreign", "job"]);
    write_run_json(&fixture, plan);
    let plan = output_text(&fixture.uc(&["plan", "run"]).output().expect("uc"));
    assert!(plan.contains("foreign is not a program of uc"), "{plan}");
    for (arguments, code) in [
        (&["plan", "run"][..], 0),
        (&["status", "run"], 0),
        (&["resume", "run"], 3),
        (&["stage", "embed", "--run", "run"], 3),
    ] {
        expect_code(&fixture.uc(arguments).output().expect("uc"), code);
        assert!(!trace.exists(), "{arguments:?}");
    }
}

#[test]
fn a_shard_that_a_plan_places_outside_the_run_is_not_deleted() {
    let fixture = Fixture::new();
    fixture.complete();
    let precious = precious(&fixture);
    let mut plan = run_json(&fixture);
    let shard = json!({"path": precious, "size": 4, "sha256": hash_bytes(b"mine"), "mtime_ns": 0,
                       "shard": {"layers": [], "non_layer": false}});
    let files = plan["externals"]["source"]["files"].as_array_mut();
    files.expect("files").push(shard);
    let mut fetch = plan["stages"][0].clone();
    for (key, value) in [
        ("name", json!("fetch")),
        ("argv", json!(["worker", "job"])),
        ("per", json!("shard")),
        ("reads", json!(["source"])),
        ("writes", json!([])),
    ] {
        fetch[key] = value;
    }
    plan["stages"].as_array_mut().expect("stages").push(fetch);
    plan["settings"]["retention"]["source"] = json!("evict");
    write_run_json(&fixture, plan);
    let output = fixture.uc(&["resume", "run"]).output().expect("uc");
    assert_untouched(&precious);
    // The shard is looked for in the run directory, together with the files beside it.
    assert!(
        output_text(&output).contains("run/source/"),
        "{}",
        output_text(&output)
    );
}

#[test]
fn a_link_in_a_run_directory_leads_nowhere() {
    let fixture = Fixture::new();
    fixture.complete();
    let outside = fixture.root.join("outside");
    for (folder, link) in [("000", "layers"), ("embed", "logs"), ("embed", "receipts")] {
        std::fs::create_dir_all(outside.join(folder)).expect("folder");
        let precious = outside.join(folder).join("weights");
        std::fs::write(&precious, "mine").expect("written");
        let (real, aside) = (fixture.run_dir().join(link), fixture.root.join("aside"));
        std::fs::rename(&real, &aside).expect("moved");
        symlink(&outside, &real).expect("link");
        let resume = ["resume", "run", "--set", "quantize.bpw=4"];
        let text = expect_code(&fixture.uc(&resume).output().expect("uc"), 5);
        assert!(
            text.contains("a link, which is not followed"),
            "{link}: {text}"
        );
        assert_untouched(&precious);
        std::fs::remove_file(&real).expect("removed");
        std::fs::rename(&aside, &real).expect("moved back");
    }
}

#[test]
fn links_in_the_place_of_lock_plan_and_events_are_not_written_through() {
    let fixture = Fixture::new();
    fixture.complete();
    let precious = precious(&fixture);
    for name in ["lock", "events.jsonl"] {
        let real = fixture.run_dir().join(name);
        std::fs::remove_file(&real).expect("removed");
        symlink(&precious, &real).expect("link");
        let output = fixture.uc(&["resume", "run"]).output().expect("uc");
        expect_code(&output, 5);
        assert_untouched(&precious);
        std::fs::remove_file(&real).expect("removed");
    }
    symlink(&precious, fixture.run_dir().join(".run.json.partial")).expect("link");
    expect_code(&fixture.compress().output().expect("uc"), 0);
    assert_untouched(&precious);
}

#[test]
fn names_in_a_plan_that_lead_out_of_the_run_are_refused() {
    let fixture = Fixture::new();
    fixture.complete();
    let plan = run_json(&fixture);
    let changes: [(&str, Change); 5] = [
        ("stage", |plan| plan["stages"][0]["name"] = json!("../../x")),
        ("pack", |plan| plan["pack_dir"] = json!("../outside")),
        ("artifact", |plan| {
            plan["artifacts"]["report"]["path"] = json!("../precious")
        }),
        ("argv", |plan| plan["stages"][0]["argv"] = json!([])),
        ("layers", |plan| {
            plan["model"]["layers"] = json!(4_000_000_000_u32)
        }),
    ];
    for (what, change) in changes {
        let mut changed = plan.clone();
        change(&mut changed);
        write_run_json(&fixture, changed);
        for verb in ["plan", "status", "resume"] {
            let output = fixture.uc(&[verb, "run"]).output().expect("uc");
            let text = expect_code(&output, 3);
            assert!(text.contains("expected"), "{what}: {text}");
        }
    }
}

#[test]
fn a_program_with_other_bytes_and_the_same_version_is_noticed() {
    let fixture = Fixture::new();
    fixture.complete();
    let worker = fixture.root.join("bin/worker");
    let bytes = std::fs::read(&worker).expect("program");
    let install = |bytes: &[u8]| {
        std::fs::remove_file(&worker).expect("removed");
        std::fs::write(&worker, bytes).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&worker, mode).expect("executable");
    };
    // An identical build changes nothing.
    install(&bytes);
    fixture.clear_trace();
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert!(fixture.trace().is_empty());
    install(&[&bytes[..], b"another build"].concat());
    let output = fixture.uc(&["resume", "run"]).output().expect("uc");
    let text = expect_code(&output, 0);
    assert!(text.contains("worker: other bytes"), "{text}");
    fixture.position("end finish run");
}
