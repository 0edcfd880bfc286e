//! The driver with small stage programs: order, overlap, retention, freshness and what it says.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::time::Duration;

mod house;

use house::*;

#[test]
fn jobs_run_in_order_and_stages_work_on_different_layers_at_once() {
    let house = House::new();
    house.order("hold-code-0");
    let child = house.compress().spawn().expect("uc");
    // Layer 1 goes through the teacher while layer 0 is still being coded.
    house.await_trace("start code 0");
    house.await_trace("end teach 1");
    house.lift("hold-code-0");
    let output = child.wait_with_output().expect("uc");
    expect_code(&output, 0);
    for layer in 0..4 {
        let at = |what: &str| house.position(&format!("{what} {layer}"));
        assert!(at("end load") < at("start teach") && at("end load") < at("start code"));
        if layer > 0 {
            let before = house.position(&format!("end teach {}", layer - 1));
            assert!(before < at("start teach"));
        }
    }
    assert_eq!(house.position("end finish run"), house.trace().len() - 1);
    assert!(
        !house.trace().iter().any(|line| line.contains("publish")),
        "it is optional"
    );
}

#[test]
fn one_process_per_stage_does_all_of_its_jobs() {
    let house = House::new();
    house.complete();
    let sessions = house
        .events()
        .iter()
        .filter(|e| e["event"] == "session")
        .count();
    assert_eq!(sessions, 1);
    let log = std::fs::read_to_string(house.run_dir().join("logs/load.log")).expect("log");
    assert_eq!(log.matches("in hand").count(), 4);
}

#[test]
fn intermediates_are_deleted_and_results_kept() {
    let house = House::new();
    house.complete();
    for layer in 0..4 {
        assert!(
            !house
                .run_dir()
                .join(format!("layers/{layer:03}/weights"))
                .exists()
        );
        assert!(!house.run_dir().join(format!("hidden/{layer:03}")).exists());
        assert!(
            house
                .run_dir()
                .join(format!("layers/{layer:03}/codes"))
                .exists()
        );
    }
    assert!(!house.run_dir().join("hidden/004").exists());
    let retired = house
        .events()
        .iter()
        .filter(|e| e["event"] == "retired")
        .count();
    assert_eq!(retired, 4 + 5);
    house.forget_trace();
    house.complete();
    assert!(
        house.trace().is_empty(),
        "nothing is stale: {:?}",
        house.trace()
    );
}

#[test]
fn a_stage_waits_for_its_slowest_reader() {
    let house = House::new();
    house.order("hold-code-0");
    let child = house.compress().spawn().expect("uc");
    house.await_trace("end teach 1");
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        !house.trace().contains(&"start load 2".to_owned()),
        "{:?}",
        house.trace()
    );
    house.lift("hold-code-0");
    expect_code(&child.wait_with_output().expect("uc"), 0);
}

#[test]
fn a_changed_setting_redoes_what_depends_on_it_and_says_why() {
    let house = House::new();
    house.complete();
    let before = house.results();
    house.forget_trace();
    let set = ["--set", "quantize.bpw=4"];
    let plan = house
        .uc(&["plan", "run", set[0], set[1]])
        .output()
        .expect("uc");
    let words = expect_code(&plan, 0);
    assert!(
        words.contains("code layers 0-3: `setting.quantize.bpw` changed 5.0 -> 4.0"),
        "{words}"
    );
    assert!(words.contains("finish: waits for codes"), "{words}");
    assert!(
        words.contains("load layers 0-3: weights was deleted and"),
        "{words}"
    );
    assert!(house.trace().is_empty(), "a plan does nothing");

    let output = house
        .uc(&["resume", "run", set[0], set[1]])
        .output()
        .expect("uc");
    let words = expect_code(&output, 0);
    assert!(words.contains("stale: code layers 0-3"), "{words}");
    assert_ne!(house.results(), before);
    let words = expect_code(&house.uc(&["plan", "run"]).output().expect("uc"), 0);
    assert!(words.contains("0 of 14 jobs to do"), "{words}");
    // The same settings give the same bytes again.
    let output = house
        .uc(&["resume", "run", "--set", "quantize.bpw=5"])
        .output()
        .expect("uc");
    expect_code(&output, 0);
    assert_eq!(house.results(), before);
}

#[test]
fn damage_is_found_and_mended_without_redoing_the_rest() {
    let house = House::new();
    house.complete();
    let before = house.results();
    house.write("run/layers/002/codes", "damaged");
    house.forget_trace();
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(house.results(), before);
    assert!(
        !house.trace().contains(&"start finish run".to_owned()),
        "the digest is as before"
    );
    assert!(!house.trace().contains(&"start code 3".to_owned()));
}

#[test]
fn another_program_version_makes_its_stages_stale() {
    let house = House::new();
    house.complete();
    house.write("control/version", "2");
    let words = expect_code(&house.uc(&["plan", "run"]).output().expect("uc"), 0);
    assert!(words.contains("`stage.version` changed 1 -> 2"), "{words}");
}

#[test]
fn a_run_directory_belongs_to_one_model() {
    let house = House::new();
    house.complete();
    house.write("model/layers.txt", "3");
    let words = expect_code(&house.compress().output().expect("uc"), 2);
    assert!(words.contains("not the same source"), "{words}");
    let words = expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 4);
    assert!(words.contains("layers.txt changed"), "{words}");
}

#[test]
fn without_a_run_directory_equal_wishes_share_one() {
    let house = House::new();
    let run = |bpw: &str| {
        let arguments = [
            "compress",
            "model",
            "--pipeline",
            "pipeline.toml",
            "--bpw",
            bpw,
        ];
        expect_code(&house.uc(&arguments).output().expect("uc"), 0);
        std::fs::read_dir(house.root.join("runs"))
            .expect("runs")
            .count()
    };
    assert_eq!((run("5"), run("5"), run("4")), (1, 1, 2));
}

#[test]
fn a_single_job_runs_on_demand_with_its_log_on_the_terminal() {
    let house = House::new();
    house.complete();
    house.forget_trace();
    let output = house
        .uc(&["stage", "publish", "--run", "run"])
        .output()
        .expect("uc");
    let words = expect_code(&output, 0);
    assert!(words.contains("publish has layer run in hand"), "{words}");
    assert!(house.run_dir().join("extra").exists());
    assert_eq!(house.trace(), ["start publish run", "end publish run"]);

    let stage = |arguments: &[&str]| {
        let mut all = vec!["stage", "--run", "run"];
        all.extend(arguments);
        house.uc(&all).output().expect("uc")
    };
    let words = expect_code(&stage(&["polish"]), 2);
    assert!(
        words.contains("polish") && words.contains("publish"),
        "{words}"
    );
    // The weights were deleted after their last reader.
    expect_code(&stage(&["code", "--layer", "0"]), 10);
    expect_code(&stage(&["load", "--layer", "0"]), 0);
    expect_code(&stage(&["load", "--layer", "9"]), 2);
}

#[test]
fn status_counts_what_is_done() {
    let house = House::new();
    house.write("control/fail-code-1", "bad-input");
    expect_code(&house.compress().output().expect("uc"), 4);
    let output = house.uc(&["status", "run", "--json"]).output().expect("uc");
    expect_code(&output, 0);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["total"], 14);
    assert_eq!(status["active"], false);
    let stages = status["stages"].as_array().expect("stages");
    let of = |name: &str| {
        stages
            .iter()
            .find(|stage| stage["name"] == name)
            .expect("stage")
    };
    assert_eq!(of("embed")["done"], 1);
    assert_eq!(of("finish")["done"], 0);
    assert_eq!(of("embed")["figures"]["run"]["seen"], 1);
    assert_eq!(of("publish")["optional"], true);
}

#[test]
fn a_model_that_cannot_be_used_is_refused_in_the_stages_own_words() {
    let house = House::new();
    std::fs::remove_file(house.root.join("model/layers.txt")).expect("removed");
    let words = expect_code(&house.compress().output().expect("uc"), 4);
    assert!(
        words.contains("no layers.txt, expected the number of layers"),
        "{words}"
    );
    assert!(!house.run_dir().exists(), "nothing is begun");
    let absent = house
        .uc(&["compress", "nowhere", "--pipeline", "pipeline.toml"])
        .output();
    let words = expect_code(&absent.expect("uc"), 4);
    assert!(words.contains("nowhere"), "{words}");
}

#[test]
fn mistakes_are_refused_before_anything_starts() {
    let cases = [
        (
            PIPELINE.replace("[\"worker\", \"job\"]", "[\"wörker\"]"),
            &[][..],
            "wörker",
        ),
        (
            PIPELINE.replace("ahead", "ahed"),
            &[],
            "pipeline.toml:27: stage.load.ahed",
        ),
        (
            PIPELINE.replace("reads = [\"report\"]", "reads = [\"rapport\"]"),
            &[],
            "rapport",
        ),
        (
            PIPELINE.into(),
            &["--set", "quantize.bwp=4"],
            "quantize.bwp",
        ),
        (PIPELINE.into(), &["--bpw", "12"], "from 2 to 8"),
        (
            PIPELINE.into(),
            &["--no-eval"],
            "no stage writes `manifest`",
        ),
    ];
    for (pipeline, options, part) in cases {
        let house = House::new();
        house.write("pipeline.toml", &pipeline);
        let words = expect_code(&house.compress().args(options).output().expect("uc"), 3);
        assert!(words.contains(part), "no `{part}` in {words}");
        assert!(!house.run_dir().exists() && house.trace().is_empty());
    }
}

#[test]
fn a_text_with_an_unknown_ending_is_refused() {
    let house = House::new();
    house.write("notes.pdf", "text");
    let output = house
        .compress()
        .args(["--calibration", "notes.pdf"])
        .output()
        .expect("uc");
    let words = expect_code(&output, 4);
    assert!(
        words.contains("notes.pdf") && words.contains("jsonl"),
        "{words}"
    );
}

#[test]
fn the_form_of_the_output_follows_the_options() {
    let house = House::new();
    let quiet = house
        .compress()
        .args(["-q", "--json"])
        .output()
        .expect("uc");
    expect_code(&quiet, 0);
    assert!(quiet.stderr.is_empty(), "{}", words(&quiet));
    let summary: serde_json::Value = serde_json::from_slice(&quiet.stdout).expect("JSON");
    assert_eq!(summary["stages"]["code"]["jobs"], 4);

    let house = House::new();
    let json = house
        .compress()
        .args(["--log-format", "json"])
        .output()
        .expect("uc");
    expect_code(&json, 0);
    let lines = String::from_utf8(json.stderr).expect("text");
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
    assert!(lines.contains("\"event\":\"finished\""), "{lines}");

    let house = House::new();
    let plain = words(&house.compress().output().expect("uc"));
    assert!(
        plain.contains("code of layer 3: done in") && plain.contains("(4/4)"),
        "{plain}"
    );
}

#[test]
fn a_full_or_forbidden_folder_is_named() {
    let house = House::new();
    // /proc accepts no new folder, whoever asks.
    let arguments = [
        "compress",
        "model",
        "--pipeline",
        "pipeline.toml",
        "--run",
        "/proc/uc-run",
    ];
    let output = house.uc(&arguments).output().expect("uc");
    assert!(!output.status.success());
    assert!(
        words(&output).contains("/proc/uc-run"),
        "{}",
        words(&output)
    );
}
