//! The driver with small stage programs: order, overlap, restarts, retention, signals, locks and exit codes.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const PIPELINE: &str = r#"version = 1
[artifact.weights]
path = "layers/{layer}/weights"
keep = false
[artifact.hidden]
path = "hidden/{layer}"
keep = false
[artifact.codes]
path = "layers/{layer}/codes"
keep = true
[artifact.report]
path = "report"
keep = true
[artifact.extra]
path = "extra"
keep = true
[stage.embed]
argv = ["worker", "job"]
per = "run"
reads = ["source", "calibration-text"]
writes = ["hidden@0"]
[stage.load]
argv = ["worker", "job"]
per = "layer"
reads = ["source"]
writes = ["weights"]
ahead = 1
[stage.teach]
argv = ["worker", "job"]
per = "layer"
reads = ["weights", "hidden"]
writes = ["hidden+1"]
stall_timeout = "2s"
[stage.code]
argv = ["worker", "job"]
per = "layer"
reads = ["weights", "hidden"]
writes = ["codes"]
settings = ["quantize"]
retries = 1
[stage.finish]
argv = ["worker", "job"]
per = "run"
reads = ["codes", "hidden@last"]
writes = ["report"]
[stage.publish]
argv = ["worker", "job"]
per = "run"
reads = ["report"]
writes = ["extra"]
optional = true
"#;

/// A folder with model, pipeline, programs and orders.
struct House {
    _keep: tempfile::TempDir,
    root: PathBuf,
}

impl House {
    fn new() -> Self {
        let keep = tempfile::tempdir().expect("folder");
        let root = keep.path().canonicalize().expect("absolute");
        for folder in ["model", "control", "bin"] {
            std::fs::create_dir(root.join(folder)).expect("folder");
        }
        let house = Self { _keep: keep, root };
        house.write("model/layers.txt", "4");
        house.write("model/calibration.txt", "text");
        house.write("model/evaluation.txt", "other text");
        house.write("pipeline.toml", PIPELINE);
        for name in ["worker", "shard-loader"] {
            let link = house.root.join("bin").join(name);
            std::os::unix::fs::symlink(fake_stage(), link).expect("link");
        }
        house
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.root.join(name), text).expect("written");
    }

    fn order(&self, order: &str) {
        self.write(&format!("control/{order}"), "");
    }

    fn lift(&self, order: &str) {
        std::fs::remove_file(self.root.join("control").join(order)).expect("order");
    }

    fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    fn uc(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uc"));
        command
            .args(arguments)
            .current_dir(&self.root)
            .env("UC_STAGES", self.root.join("bin"))
            .env("FAKE_CONTROL", self.root.join("control"))
            .env_remove("UC_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn compress(&self) -> Command {
        self.uc(&[
            "compress",
            "model",
            "--run",
            "run",
            "--pipeline",
            "pipeline.toml",
            "--threads",
            "4",
        ])
    }

    fn complete(&self) {
        let output = self.compress().output().expect("uc");
        assert!(output.status.success(), "{}", words(&output));
    }

    fn trace(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.root.join("control/trace")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn forget_trace(&self) {
        let _ = std::fs::remove_file(self.root.join("control/trace"));
    }

    fn position(&self, line: &str) -> usize {
        let trace = self.trace();
        trace
            .iter()
            .position(|l| l == line)
            .unwrap_or_else(|| panic!("no `{line}` in {trace:?}"))
    }

    fn await_trace(&self, line: &str) {
        let start = Instant::now();
        while !self.trace().iter().any(|found| found == line) {
            assert!(
                start.elapsed() < PATIENCE,
                "no `{line}` in {:?}",
                self.trace()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Contents of every result file.
    fn results(&self) -> Vec<Vec<u8>> {
        let names = [
            "report",
            "layers/000/codes",
            "layers/001/codes",
            "layers/002/codes",
        ];
        names
            .iter()
            .map(|name| std::fs::read(self.run_dir().join(name)).expect(name))
            .collect()
    }

    fn events(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.run_dir().join("events.jsonl")).expect("events");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// The example beside the test's own folder; cargo builds it with the tests.
fn fake_stage() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().and_then(Path::parent).expect("target folder");
    let path = folder.join("examples/fake-stage");
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn expect_code(output: &Output, code: i32) -> String {
    let words = words(output);
    assert_eq!(output.status.code(), Some(code), "{words}");
    words
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
}

/// Processes that have a folder as their control folder.
fn workers_of(house: &House) -> Vec<u32> {
    let wanted = format!("FAKE_CONTROL={}", house.root.join("control").display());
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|b| *b == 0)
                .any(|entry| entry == wanted.as_bytes())
        })
        .collect()
}

fn await_no_workers(house: &House) {
    let start = Instant::now();
    while !workers_of(house).is_empty() {
        assert!(start.elapsed() < PATIENCE, "stages outlive their driver");
        std::thread::sleep(Duration::from_millis(5));
    }
}

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
fn a_stage_that_dies_is_started_again_with_the_same_result() {
    let undisturbed = House::new();
    undisturbed.complete();
    let house = House::new();
    house.order("crash-teach-1");
    house.order("crash-code-2");
    house.order("hang-teach-3");
    let words = expect_code(&house.compress().output().expect("uc"), 0);
    assert!(
        words.contains("teach of layer 1") && words.contains("trying again"),
        "{words}"
    );
    assert!(words.contains("said nothing"), "{words}");
    assert_eq!(house.results(), undisturbed.results());
}

#[test]
fn a_stage_that_keeps_dying_is_given_up_and_the_run_can_be_resumed() {
    let house = House::new();
    house.order("crash-always-code-2");
    let words = expect_code(&house.compress().output().expect("uc"), 9);
    for part in [
        "code of layer 2",
        "signal 6",
        "2 tries",
        "has layer 2 in hand",
        "uc resume",
    ] {
        assert!(words.contains(part), "no `{part}` in {words}");
    }
    let tries = house
        .trace()
        .iter()
        .filter(|line| *line == "start code 2")
        .count();
    assert_eq!(tries, 2);
    assert!(workers_of(&house).is_empty());
    house.lift("crash-always-code-2");
    house.forget_trace();
    let output = house.uc(&["resume", "run"]).output().expect("uc");
    expect_code(&output, 0);
    assert!(
        !house.trace().contains(&"start embed run".to_owned()),
        "it was done"
    );
}

#[test]
fn what_another_try_cannot_mend_ends_the_run_at_once_with_its_class() {
    for (class, code) in [
        ("bad-input", 4),
        ("disk-full", 7),
        ("permission", 8),
        ("damaged", 5),
    ] {
        let house = House::new();
        house.write("control/fail-code-1", class);
        let words = expect_code(&house.compress().output().expect("uc"), code);
        assert!(
            words.contains("code of layer 1") && words.contains(class),
            "{words}"
        );
        let tries = house
            .trace()
            .iter()
            .filter(|line| *line == "start code 1")
            .count();
        assert_eq!(tries, 1);
    }
}

#[test]
fn a_failure_of_no_known_cause_is_tried_again() {
    let house = House::new();
    house.write("control/fail-code-1", "internal");
    let words = expect_code(&house.compress().output().expect("uc"), 1);
    assert!(words.contains("2 tries"), "{words}");
}

#[test]
fn sigterm_ends_the_run_in_order_and_resume_completes_it() {
    let undisturbed = House::new();
    undisturbed.complete();
    for name in ["-TERM", "-INT"] {
        let house = House::new();
        house.order("hold-code-1");
        let child = house.compress().spawn().expect("uc");
        house.await_trace("start code 1");
        signal(&child, name);
        let words = expect_code(&child.wait_with_output().expect("uc"), 130);
        assert!(words.contains("uc resume run"), "{words}");
        assert!(workers_of(&house).is_empty());
        house.lift("hold-code-1");
        expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
        assert_eq!(house.results(), undisturbed.results());
    }
}

#[test]
fn stages_do_not_outlive_a_driver_that_was_killed() {
    let undisturbed = House::new();
    undisturbed.complete();
    let house = House::new();
    house.order("hold-teach-2");
    let mut child = house.compress().spawn().expect("uc");
    house.await_trace("start teach 2");
    child.kill().expect("killed");
    child.wait().expect("gone");
    await_no_workers(&house);
    house.lift("hold-teach-2");
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(house.results(), undisturbed.results());
}

#[test]
fn a_second_driver_is_refused() {
    let house = House::new();
    house.order("hold-code-0");
    let mut child = house.compress().spawn().expect("uc");
    house.await_trace("start code 0");
    for arguments in [
        &["resume", "run"][..],
        &["stage", "code", "--run", "run", "--layer", "0"],
    ] {
        let words = expect_code(&house.uc(arguments).output().expect("uc"), 6);
        assert!(
            words.contains(&format!("process {}", child.id())),
            "{words}"
        );
    }
    expect_code(&house.compress().output().expect("uc"), 6);
    let status = expect_code(&house.uc(&["status", "run"]).output().expect("uc"), 0);
    assert!(status.contains("running"), "{status}");
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[test]
fn a_stage_by_hand_is_refused_beside_a_driver_and_works_alone() {
    let house = House::new();
    let by_hand = |stage: &str| {
        let mut command = Command::new(house.root.join("bin/worker"));
        command
            .args(["job", "--run", "run", "--stage", stage, "--layer", "0"])
            .current_dir(&house.root)
            .env("FAKE_CONTROL", house.root.join("control"));
        command
    };
    house.order("hold-code-0");
    let child = house.compress().spawn().expect("uc");
    house.await_trace("start code 0");
    // Neither the stage that runs nor one that could run.
    for stage in ["code", "load"] {
        let words = expect_code(&by_hand(stage).output().expect("worker"), 6);
        let holder = format!("process {}", child.id());
        assert!(words.contains(&holder), "{words}");
    }
    house.lift("hold-code-0");
    expect_code(&child.wait_with_output().expect("uc"), 0);
    let before = house.results();
    expect_code(&by_hand("load").output().expect("worker"), 0);
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(house.results(), before);

    // The other way round: a driver is refused while a hand is at work.
    house.order("hold-load-0");
    house.forget_trace();
    let mut hand = by_hand("load").spawn().expect("worker");
    house.await_trace("start load 0");
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 6);
    house.lift("hold-load-0");
    assert!(hand.wait().expect("ended").success());
}

#[test]
fn of_two_drivers_that_begin_at_once_one_works_and_the_other_changes_nothing() {
    let house = House::new();
    house.order("hold-load-0");
    let mut first = house.compress().spawn().expect("uc");
    let mut second = house.compress().args(["--bpw", "4"]).spawn().expect("uc");
    house.await_trace("start load 0");
    let start = Instant::now();
    let loser = loop {
        assert!(start.elapsed() < PATIENCE, "both go on");
        match (
            first.try_wait().expect("state"),
            second.try_wait().expect("state"),
        ) {
            (Some(status), None) | (None, Some(status)) => break status,
            (None, None) => std::thread::sleep(Duration::from_millis(5)),
            (Some(a), Some(b)) => panic!("both ended: {a}, {b}"),
        }
    };
    assert_eq!(loser.code(), Some(6));
    let plan = std::fs::read(house.run_dir().join("run.json")).expect("plan");
    house.lift("hold-load-0");
    for mut child in [first, second] {
        child.wait().expect("ended");
    }
    let after = std::fs::read(house.run_dir().join("run.json")).expect("plan");
    assert!(plan == after, "the plan changed under the run");
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
}

#[test]
fn a_stage_that_is_stopped_again_and_again_is_given_up_with_its_last_lines() {
    let house = House::new();
    house.order("hold-teach-1");
    let child = house.compress().spawn().expect("uc");
    house.await_trace("start teach 1");
    let is_teach = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|word| word == b"teach")
    };
    // Whatever process the stage gets, it is stopped; the driver ends what says nothing.
    let done = std::sync::atomic::AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for pid in workers_of(&house).iter().filter(|pid| is_teach(pid)) {
                    let mut kill = Command::new("kill");
                    let _ = kill
                        .args(["-STOP", &pid.to_string()])
                        .stderr(Stdio::null())
                        .status();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let output = child.wait_with_output().expect("uc");
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        output
    });
    let words = expect_code(&output, 9);
    for part in [
        "teach of layer 1",
        "said nothing",
        "tries",
        "uc resume",
        "logs/teach.log",
    ] {
        assert!(words.contains(part), "no `{part}` in {words}");
    }
    assert!(workers_of(&house).is_empty());
    let status = words_of_status(&house);
    assert!(
        status.contains("stopped") && status.contains("error"),
        "{status}"
    );
    house.lift("hold-teach-1");
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
    let status = words_of_status(&house);
    assert!(status.contains("state  complete"), "{status}");
}

fn words_of_status(house: &House) -> String {
    expect_code(&house.uc(&["status", "run"]).output().expect("uc"), 0)
}

#[test]
fn a_watch_follows_a_run_to_its_end_and_a_dead_driver_is_told_from_a_live_one() {
    let house = House::new();
    house.order("hold-code-0");
    let mut child = house.compress().spawn().expect("uc");
    house.await_trace("start code 0");
    let mut watch = house.uc(&["status", "run", "--watch", "--interval", "1", "--json"]);
    let watch = watch.spawn().expect("uc");
    // At least one look falls on the run that is alive.
    std::thread::sleep(Duration::from_millis(300));
    let status = words_of_status(&house);
    assert!(status.contains("running (process"), "{status}");
    assert!(status.contains("now    code layer 0"), "{status}");
    child.kill().expect("killed");
    child.wait().expect("gone");
    let lines = expect_code(&watch.wait_with_output().expect("ended"), 0);
    let looks: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(looks.last().expect("one")["state"], "died", "{lines}");
    house.lift("hold-code-0");
    expect_code(&house.uc(&["resume", "run"]).output().expect("uc"), 0);
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
