//! The driver under failures: stages that crash, fail or hang, signals, a second driver, a manually started stage, `--watch`.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod fixture;

use fixture::*;

#[test]
fn a_stage_that_crashes_is_restarted_with_the_same_result() {
    let undisturbed = Fixture::new();
    undisturbed.complete();
    let fixture = Fixture::new();
    fixture.instruct("crash-teach-1");
    fixture.instruct("crash-code-2");
    fixture.instruct("hang-teach-3");
    let text = expect_code(&fixture.compress().output().expect("uc"), 0);
    assert!(
        text.contains("teach of layer 1") && text.contains("trying again"),
        "{text}"
    );
    assert!(text.contains("reported nothing"), "{text}");
    assert_eq!(fixture.results(), undisturbed.results());
}

#[test]
fn a_stage_that_keeps_crashing_is_given_up_and_the_run_can_be_resumed() {
    let fixture = Fixture::new();
    fixture.instruct("crash-always-code-2");
    let text = expect_code(&fixture.compress().output().expect("uc"), 9);
    for part in [
        "code of layer 2",
        "signal 6",
        "2 attempts",
        "working on layer 2",
        "uc resume",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let attempts = fixture
        .trace()
        .iter()
        .filter(|line| *line == "start code 2")
        .count();
    assert_eq!(attempts, 2);
    assert!(workers_of(&fixture).is_empty());
    fixture.cancel("crash-always-code-2");
    fixture.clear_trace();
    let output = fixture.uc(&["resume", "run"]).output().expect("uc");
    expect_code(&output, 0);
    assert!(
        !fixture.trace().contains(&"start embed run".to_owned()),
        "it was done"
    );
}

#[test]
fn a_failure_that_a_retry_cannot_fix_ends_the_run_at_once_with_its_class() {
    for (class, code) in [
        ("bad-input", 4),
        ("disk-full", 7),
        ("permission", 8),
        ("damaged", 5),
    ] {
        let fixture = Fixture::new();
        fixture.write("control/fail-code-1", class);
        let text = expect_code(&fixture.compress().output().expect("uc"), code);
        assert!(
            text.contains("code of layer 1") && text.contains(class),
            "{text}"
        );
        let attempts = fixture
            .trace()
            .iter()
            .filter(|line| *line == "start code 1")
            .count();
        assert_eq!(attempts, 1);
    }
}

#[test]
fn a_failure_of_unknown_cause_is_retried() {
    let fixture = Fixture::new();
    fixture.write("control/fail-code-1", "internal");
    let text = expect_code(&fixture.compress().output().expect("uc"), 1);
    assert!(text.contains("2 attempts"), "{text}");
}

#[test]
fn a_stage_that_reads_the_plan_differently_ends_the_run_instead_of_repeating_its_job() {
    let fixture = Fixture::new();
    fixture.instruct("misread");
    let text = expect_code(&fixture.compress().output().expect("uc"), 9);
    for part in ["code of layer", "quantize.damping", "another build"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

#[test]
fn sigterm_stops_the_run_in_order_and_resume_completes_it() {
    let undisturbed = Fixture::new();
    undisturbed.complete();
    for name in ["-TERM", "-INT", "-HUP"] {
        let fixture = Fixture::new();
        fixture.instruct("hold-code-1");
        let child = fixture.compress().spawn().expect("uc");
        fixture.await_trace("start code 1");
        signal(&child, name);
        let text = expect_code(&child.wait_with_output().expect("uc"), 130);
        assert!(text.contains("uc resume run"), "{text}");
        assert!(workers_of(&fixture).is_empty());
        fixture.cancel("hold-code-1");
        expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
        assert_eq!(fixture.results(), undisturbed.results());
    }
}

#[test]
fn stages_do_not_outlive_a_driver_that_was_killed() {
    let undisturbed = Fixture::new();
    undisturbed.complete();
    let fixture = Fixture::new();
    fixture.instruct("hold-teach-2");
    let mut child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start teach 2");
    child.kill().expect("killed");
    child.wait().expect("gone");
    await_no_workers(&fixture);
    fixture.cancel("hold-teach-2");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(fixture.results(), undisturbed.results());
}

#[test]
fn a_second_driver_is_rejected() {
    let fixture = Fixture::new();
    fixture.instruct("hold-code-0");
    let mut child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start code 0");
    for arguments in [
        &["resume", "run"][..],
        &["stage", "code", "--run", "run", "--layer", "0"],
    ] {
        let text = expect_code(&fixture.uc(arguments).output().expect("uc"), 6);
        assert!(text.contains(&format!("process {}", child.id())), "{text}");
    }
    expect_code(&fixture.compress().output().expect("uc"), 6);
    let status = expect_code(&fixture.uc(&["status", "run"]).output().expect("uc"), 0);
    assert!(status.contains("running"), "{status}");
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[test]
fn a_manually_started_stage_is_rejected_beside_a_driver_and_works_alone() {
    let fixture = Fixture::new();
    let manual = |stage: &str| {
        let mut command = Command::new(fixture.root.join("bin/worker"));
        command
            .args(["job", "--run", "run", "--stage", stage, "--layer", "0"])
            .current_dir(&fixture.root)
            .env("FAKE_CONTROL", fixture.root.join("control"));
        command
    };
    fixture.instruct("hold-code-0");
    let child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start code 0");
    // Neither the running stage nor another one.
    for stage in ["code", "load"] {
        let text = expect_code(&manual(stage).output().expect("worker"), 6);
        let holder = format!("process {}", child.id());
        assert!(text.contains(&holder), "{text}");
    }
    fixture.cancel("hold-code-0");
    expect_code(&child.wait_with_output().expect("uc"), 0);
    let before = fixture.results();
    expect_code(&manual("load").output().expect("worker"), 0);
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(fixture.results(), before);

    // Conversely, a driver is rejected while a manually started stage is running.
    fixture.instruct("hold-load-0");
    fixture.clear_trace();
    let mut stage = manual("load").spawn().expect("worker");
    fixture.await_trace("start load 0");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 6);
    fixture.cancel("hold-load-0");
    assert!(stage.wait().expect("ended").success());
}

#[test]
fn of_two_drivers_started_at_once_one_works_and_the_other_changes_nothing() {
    let fixture = Fixture::new();
    fixture.instruct("hold-load-0");
    let mut first = fixture.compress().spawn().expect("uc");
    let mut second = fixture.compress().args(["--bpw", "4"]).spawn().expect("uc");
    fixture.await_trace("start load 0");
    let start = Instant::now();
    let loser = loop {
        assert!(start.elapsed() < TIMEOUT, "both continue");
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
    let plan = std::fs::read(fixture.run_dir().join("run.json")).expect("plan");
    fixture.cancel("hold-load-0");
    for mut child in [first, second] {
        child.wait().expect("ended");
    }
    let after = std::fs::read(fixture.run_dir().join("run.json")).expect("plan");
    assert!(plan == after, "the plan changed during the run");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
}

#[test]
fn a_stage_that_keeps_stalling_is_given_up_with_its_last_lines() {
    let fixture = Fixture::new();
    fixture.instruct("hold-teach-1");
    let child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start teach 1");
    let is_teach = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|word| word == b"teach")
    };
    // Every process of the stage is stopped; the driver kills stalled workers.
    let done = std::sync::atomic::AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for pid in workers_of(&fixture).iter().filter(|pid| is_teach(pid)) {
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
    let text = expect_code(&output, 9);
    for part in [
        "teach of layer 1",
        "reported nothing",
        "attempts",
        "uc resume",
        "logs/teach.log",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(workers_of(&fixture).is_empty());
    let status = status_text(&fixture);
    assert!(
        status.contains("stopped") && status.contains("error"),
        "{status}"
    );
    fixture.cancel("hold-teach-1");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    let status = status_text(&fixture);
    assert!(status.contains("state  complete"), "{status}");
}

fn status_text(fixture: &Fixture) -> String {
    expect_code(&fixture.uc(&["status", "run"]).output().expect("uc"), 0)
}

#[test]
fn a_watch_follows_a_run_to_its_end_and_distinguishes_a_dead_driver_from_a_live_one() {
    let fixture = Fixture::new();
    fixture.instruct("hold-code-0");
    let mut child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start code 0");
    let mut watch = fixture.uc(&["status", "run", "--watch", "--interval", "1", "--json"]);
    let watch = watch.spawn().expect("uc");
    // At least one status is of the active run.
    std::thread::sleep(Duration::from_millis(300));
    let status = status_text(&fixture);
    assert!(status.contains("running (process"), "{status}");
    assert!(status.contains("now    code layer 0"), "{status}");
    child.kill().expect("killed");
    child.wait().expect("gone");
    let lines = expect_code(&watch.wait_with_output().expect("ended"), 0);
    let statuses: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(statuses.last().expect("one")["state"], "died", "{lines}");
    fixture.cancel("hold-code-0");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
}
