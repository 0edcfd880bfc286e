//! The driver with small stage programs: order, overlap, retention, freshness and output.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::time::Duration;

mod fixture;

use fixture::*;

#[test]
fn jobs_run_in_order_and_stages_work_on_different_layers_concurrently() {
    let fixture = Fixture::new();
    fixture.instruct("hold-code-0");
    let child = fixture.compress().spawn().expect("uc");
    // `teach` processes layer 1 while `code` is still at layer 0.
    fixture.await_trace("start code 0");
    fixture.await_trace("end teach 1");
    fixture.cancel("hold-code-0");
    let output = child.wait_with_output().expect("uc");
    expect_code(&output, 0);
    for layer in 0..4 {
        let at = |what: &str| fixture.position(&format!("{what} {layer}"));
        assert!(at("end load") < at("start teach") && at("end load") < at("start code"));
        if layer > 0 {
            let before = fixture.position(&format!("end teach {}", layer - 1));
            assert!(before < at("start teach"));
        }
    }
    assert_eq!(
        fixture.position("end finish run"),
        fixture.trace().len() - 1
    );
    assert!(
        !fixture.trace().iter().any(|line| line.contains("publish")),
        "it is optional"
    );
}

#[test]
fn one_process_per_stage_runs_all_of_its_jobs() {
    let fixture = Fixture::new();
    fixture.complete();
    let sessions = fixture
        .events()
        .iter()
        .filter(|e| e["event"] == "session")
        .count();
    assert_eq!(sessions, 1);
    let log = std::fs::read_to_string(fixture.run_dir().join("logs/load.log")).expect("log");
    assert_eq!(log.matches("working on").count(), 4);
}

#[test]
fn the_scratch_folder_that_a_done_job_left_is_deleted() {
    let fixture = Fixture::new();
    fixture.complete();
    // As if the stage had been killed between the receipt and the end of the job.
    let left = fixture.run_dir().join("scratch/code/002");
    std::fs::create_dir_all(&left).expect("folder");
    std::fs::write(left.join("pass-00"), "codes").expect("written");
    fixture.complete();
    assert!(!left.exists());
}

#[test]
fn intermediates_are_deleted_and_results_kept() {
    let fixture = Fixture::new();
    fixture.complete();
    for layer in 0..4 {
        assert!(
            !fixture
                .run_dir()
                .join(format!("layers/{layer:03}/weights"))
                .exists()
        );
        assert!(
            !fixture
                .run_dir()
                .join(format!("hidden/{layer:03}"))
                .exists()
        );
        assert!(
            fixture
                .run_dir()
                .join(format!("layers/{layer:03}/codes"))
                .exists()
        );
    }
    assert!(!fixture.run_dir().join("hidden/004").exists());
    let retired = fixture
        .events()
        .iter()
        .filter(|e| e["event"] == "retired")
        .count();
    assert_eq!(retired, 4 + 5);
    fixture.clear_trace();
    fixture.complete();
    assert!(
        fixture.trace().is_empty(),
        "nothing is stale: {:?}",
        fixture.trace()
    );
}

#[test]
fn a_stage_waits_for_its_slowest_reader() {
    let fixture = Fixture::new();
    fixture.instruct("hold-code-0");
    let child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("end teach 1");
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        !fixture.trace().contains(&"start load 2".to_owned()),
        "{:?}",
        fixture.trace()
    );
    fixture.cancel("hold-code-0");
    expect_code(&child.wait_with_output().expect("uc"), 0);
}

#[test]
fn a_changed_setting_reruns_what_depends_on_it_and_reports_why() {
    let fixture = Fixture::new();
    fixture.complete();
    let before = fixture.results();
    fixture.clear_trace();
    let set = ["--set", "quantize.bpw=4"];
    let plan = fixture
        .uc(&["plan", "run", set[0], set[1]])
        .output()
        .expect("uc");
    let text = expect_code(&plan, 0);
    assert!(
        text.contains("code layers 0-3: `setting.quantize.bpw` changed 5.0 -> 4.0"),
        "{text}"
    );
    assert!(text.contains("finish: waits for codes"), "{text}");
    assert!(
        text.contains("load layers 0-3: weights was deleted and"),
        "{text}"
    );
    assert!(fixture.trace().is_empty(), "a plan runs nothing");

    let output = fixture
        .uc(&["resume", "run", set[0], set[1]])
        .output()
        .expect("uc");
    let text = expect_code(&output, 0);
    assert!(text.contains("stale: code layers 0-3"), "{text}");
    assert_ne!(fixture.results(), before);
    let text = expect_code(&fixture.uc(&["plan", "run"]).output().expect("uc"), 0);
    assert!(text.contains("0 of 14 jobs to do"), "{text}");
    // The same settings produce the same bytes again.
    let output = fixture
        .uc(&["resume", "run", "--set", "quantize.bpw=5"])
        .output()
        .expect("uc");
    expect_code(&output, 0);
    assert_eq!(fixture.results(), before);
}

#[test]
fn damage_is_found_and_repaired_without_rerunning_the_rest() {
    let fixture = Fixture::new();
    fixture.complete();
    let before = fixture.results();
    fixture.write("run/layers/002/codes", "damaged");
    fixture.clear_trace();
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(fixture.results(), before);
    assert!(
        !fixture.trace().contains(&"start finish run".to_owned()),
        "the digest is as before"
    );
    assert!(!fixture.trace().contains(&"start code 3".to_owned()));
}

#[test]
fn another_program_version_makes_its_stages_stale() {
    let fixture = Fixture::new();
    fixture.complete();
    fixture.write("control/version", "2");
    let plan = ["plan", "run", "--allow-program", "worker"];
    let text = expect_code(&fixture.uc(&plan).output().expect("uc"), 0);
    assert!(text.contains("`stage.version` changed 1 -> 2"), "{text}");
}

#[test]
fn a_run_directory_belongs_to_one_model() {
    let fixture = Fixture::new();
    fixture.complete();
    fixture.write("model/layers.txt", "3");
    let text = expect_code(&fixture.compress().output().expect("uc"), 2);
    assert!(text.contains("not the same source"), "{text}");
    let text = expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 4);
    assert!(text.contains("layers.txt changed"), "{text}");
}

#[test]
fn without_a_run_directory_equal_requests_share_one() {
    let fixture = Fixture::new();
    let run = |bpw: &str| {
        let arguments = [
            "compress",
            "model",
            "--pipeline",
            "pipeline.toml",
            "--bpw",
            bpw,
        ];
        expect_code(&fixture.uc(&arguments).output().expect("uc"), 0);
        std::fs::read_dir(fixture.root.join("runs"))
            .expect("runs")
            .count()
    };
    assert_eq!((run("5"), run("5"), run("4")), (1, 1, 2));
}

#[test]
fn a_single_job_runs_on_demand_with_its_log_on_the_terminal() {
    let fixture = Fixture::new();
    fixture.complete();
    fixture.clear_trace();
    let output = fixture
        .uc(&["stage", "publish", "--run", "run"])
        .output()
        .expect("uc");
    let text = expect_code(&output, 0);
    assert!(text.contains("publish is working on layer run"), "{text}");
    assert!(fixture.run_dir().join("extra").exists());
    assert_eq!(fixture.trace(), ["start publish run", "end publish run"]);

    let stage = |arguments: &[&str]| {
        let mut all = vec!["stage", "--run", "run"];
        all.extend(arguments);
        fixture.uc(&all).output().expect("uc")
    };
    let text = expect_code(&stage(&["polish"]), 2);
    assert!(
        text.contains("polish") && text.contains("publish"),
        "{text}"
    );
    // The weights were deleted after their last reader.
    let text = expect_code(&stage(&["code", "--layer", "0"]), 10);
    assert!(
        text.contains("uc stage code --run run --layer 0 --with-inputs"),
        "{text}"
    );
    expect_code(&stage(&["load", "--layer", "0"]), 0);
    expect_code(&stage(&["load", "--layer", "9"]), 2);
}

#[test]
fn a_single_job_gets_its_deleted_inputs_back_on_request() {
    let fixture = Fixture::new();
    fixture.complete();
    let before = fixture.results();
    fixture.clear_trace();
    let stage = ["stage", "code", "--run", "run", "--layer", "2"];
    let mut command = fixture.uc(&stage);
    let output = command.arg("--with-inputs").output().expect("uc");
    expect_code(&output, 0);
    let trace = fixture.trace();
    let count = |name: &str| {
        let start = format!("start {name} ");
        trace.iter().filter(|line| line.starts_with(&start)).count()
    };
    // Its weights, and the hidden states with all that they come from; nothing that follows.
    assert_eq!((count("embed"), count("load"), count("teach")), (1, 3, 2));
    assert_eq!((count("code"), count("finish")), (1, 0), "{trace:?}");
    assert_eq!(fixture.results(), before);
    assert!(fixture.run_dir().join("layers/002/weights").exists());
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert!(!fixture.run_dir().join("layers/002/weights").exists());
}

#[test]
fn status_counts_completed_jobs() {
    let fixture = Fixture::new();
    fixture.write("control/fail-code-1", "bad-input");
    expect_code(&fixture.compress().output().expect("uc"), 4);
    let output = fixture
        .uc(&["status", "run", "--json"])
        .output()
        .expect("uc");
    expect_code(&output, 0);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["total"], 14);
    assert_eq!(status["active"], false);
    let stages = status["stages"].as_array().expect("stages");
    let stage = |name: &str| {
        stages
            .iter()
            .find(|stage| stage["name"] == name)
            .expect("stage")
    };
    assert_eq!(stage("embed")["done"], 1);
    assert_eq!(stage("finish")["done"], 0);
    assert_eq!(stage("embed")["metrics"]["run"]["jobs"], 1);
    assert_eq!(stage("publish")["optional"], true);
}

#[test]
fn an_unusable_model_is_rejected_with_the_message_of_the_stage() {
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.root.join("model/layers.txt")).expect("removed");
    let text = expect_code(&fixture.compress().output().expect("uc"), 4);
    assert!(
        text.contains("no layers.txt, expected the number of layers"),
        "{text}"
    );
    assert!(!fixture.run_dir().exists(), "nothing is created");
    let absent = fixture
        .uc(&["compress", "nowhere", "--pipeline", "pipeline.toml"])
        .output();
    let text = expect_code(&absent.expect("uc"), 4);
    assert!(text.contains("nowhere"), "{text}");
}

#[test]
fn mistakes_are_rejected_before_anything_starts() {
    let cases = [
        (
            PIPELINE.replace("[\"worker\", \"job\"]", "[\"wörker\"]"),
            &[][..],
            "wörker",
        ),
        (
            PIPELINE.replace("max_lead", "ahed"),
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
        let fixture = Fixture::new();
        fixture.write("pipeline.toml", &pipeline);
        let text = expect_code(&fixture.compress().args(options).output().expect("uc"), 3);
        assert!(text.contains(part), "no `{part}` in {text}");
        assert!(!fixture.run_dir().exists() && fixture.trace().is_empty());
    }
}

#[test]
fn a_text_with_an_unknown_extension_is_rejected() {
    let fixture = Fixture::new();
    fixture.write("notes.pdf", "text");
    let output = fixture
        .compress()
        .args(["--calibration", "notes.pdf"])
        .output()
        .expect("uc");
    let text = expect_code(&output, 4);
    assert!(
        text.contains("notes.pdf") && text.contains("jsonl"),
        "{text}"
    );
}

#[test]
fn the_format_of_the_output_follows_the_options() {
    let fixture = Fixture::new();
    let quiet = fixture
        .compress()
        .args(["-q", "--json"])
        .output()
        .expect("uc");
    expect_code(&quiet, 0);
    assert!(quiet.stderr.is_empty(), "{}", output_text(&quiet));
    let summary: serde_json::Value = serde_json::from_slice(&quiet.stdout).expect("JSON");
    assert_eq!(summary["stages"]["code"]["jobs"], 4);

    let fixture = Fixture::new();
    let json = fixture
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

    let fixture = Fixture::new();
    let plain = output_text(&fixture.compress().output().expect("uc"));
    assert!(
        plain.contains("code of layer 3: done in") && plain.contains("(4/4)"),
        "{plain}"
    );
}

#[test]
fn a_folder_that_cannot_be_created_is_named() {
    let fixture = Fixture::new();
    // Nobody can create a folder in /proc, not even root.
    let arguments = [
        "compress",
        "model",
        "--pipeline",
        "pipeline.toml",
        "--run",
        "/proc/uc-run",
    ];
    let output = fixture.uc(&arguments).output().expect("uc");
    assert!(!output.status.success());
    assert!(
        output_text(&output).contains("/proc/uc-run"),
        "{}",
        output_text(&output)
    );
}
