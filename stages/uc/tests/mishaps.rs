//! The driver when things go wrong: stages that die, fail or hang, signals, a second driver, a stage by hand, a watch.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod fixture;

use fixture::*;

#[test]
fn a_stage_that_dies_is_started_again_with_the_same_result() {
    let undisturbed = Fixture::new();
    undisturbed.complete();
    let fixture = Fixture::new();
    fixture.order("crash-teach-1");
    fixture.order("crash-code-2");
    fixture.order("hang-teach-3");
    let words = expect_code(&fixture.compress().output().expect("uc"), 0);
    assert!(
        words.contains("teach of layer 1") && words.contains("trying again"),
        "{words}"
    );
    assert!(words.contains("said nothing"), "{words}");
    assert_eq!(fixture.results(), undisturbed.results());
}

#[test]
fn a_stage_that_keeps_dying_is_given_up_and_the_run_can_be_resumed() {
    let fixture = Fixture::new();
    fixture.order("crash-always-code-2");
    let words = expect_code(&fixture.compress().output().expect("uc"), 9);
    for part in [
        "code of layer 2",
        "signal 6",
        "2 tries",
        "has layer 2 in hand",
        "uc resume",
    ] {
        assert!(words.contains(part), "no `{part}` in {words}");
    }
    let tries = fixture
        .trace()
        .iter()
        .filter(|line| *line == "start code 2")
        .count();
    assert_eq!(tries, 2);
    assert!(workers_of(&fixture).is_empty());
    fixture.lift("crash-always-code-2");
    fixture.forget_trace();
    let output = fixture.uc(&["resume", "run"]).output().expect("uc");
    expect_code(&output, 0);
    assert!(
        !fixture.trace().contains(&"start embed run".to_owned()),
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
        let fixture = Fixture::new();
        fixture.write("control/fail-code-1", class);
        let words = expect_code(&fixture.compress().output().expect("uc"), code);
        assert!(
            words.contains("code of layer 1") && words.contains(class),
            "{words}"
        );
        let tries = fixture
            .trace()
            .iter()
            .filter(|line| *line == "start code 1")
            .count();
        assert_eq!(tries, 1);
    }
}

#[test]
fn a_failure_of_no_known_cause_is_tried_again() {
    let fixture = Fixture::new();
    fixture.write("control/fail-code-1", "internal");
    let words = expect_code(&fixture.compress().output().expect("uc"), 1);
    assert!(words.contains("2 tries"), "{words}");
}

#[test]
fn sigterm_ends_the_run_in_order_and_resume_completes_it() {
    let undisturbed = Fixture::new();
    undisturbed.complete();
    for name in ["-TERM", "-INT"] {
        let fixture = Fixture::new();
        fixture.order("hold-code-1");
        let child = fixture.compress().spawn().expect("uc");
        fixture.await_trace("start code 1");
        signal(&child, name);
        let words = expect_code(&child.wait_with_output().expect("uc"), 130);
        assert!(words.contains("uc resume run"), "{words}");
        assert!(workers_of(&fixture).is_empty());
        fixture.lift("hold-code-1");
        expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
        assert_eq!(fixture.results(), undisturbed.results());
    }
}

#[test]
fn stages_do_not_outlive_a_driver_that_was_killed() {
    let undisturbed = Fixture::new();
    undisturbed.complete();
    let fixture = Fixture::new();
    fixture.order("hold-teach-2");
    let mut child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start teach 2");
    child.kill().expect("killed");
    child.wait().expect("gone");
    await_no_workers(&fixture);
    fixture.lift("hold-teach-2");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(fixture.results(), undisturbed.results());
}

#[test]
fn a_second_driver_is_refused() {
    let fixture = Fixture::new();
    fixture.order("hold-code-0");
    let mut child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start code 0");
    for arguments in [
        &["resume", "run"][..],
        &["stage", "code", "--run", "run", "--layer", "0"],
    ] {
        let words = expect_code(&fixture.uc(arguments).output().expect("uc"), 6);
        assert!(
            words.contains(&format!("process {}", child.id())),
            "{words}"
        );
    }
    expect_code(&fixture.compress().output().expect("uc"), 6);
    let status = expect_code(&fixture.uc(&["status", "run"]).output().expect("uc"), 0);
    assert!(status.contains("running"), "{status}");
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[test]
fn a_stage_by_hand_is_refused_beside_a_driver_and_works_alone() {
    let fixture = Fixture::new();
    let by_hand = |stage: &str| {
        let mut command = Command::new(fixture.root.join("bin/worker"));
        command
            .args(["job", "--run", "run", "--stage", stage, "--layer", "0"])
            .current_dir(&fixture.root)
            .env("FAKE_CONTROL", fixture.root.join("control"));
        command
    };
    fixture.order("hold-code-0");
    let child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start code 0");
    // Neither the stage that runs nor one that could run.
    for stage in ["code", "load"] {
        let words = expect_code(&by_hand(stage).output().expect("worker"), 6);
        let holder = format!("process {}", child.id());
        assert!(words.contains(&holder), "{words}");
    }
    fixture.lift("hold-code-0");
    expect_code(&child.wait_with_output().expect("uc"), 0);
    let before = fixture.results();
    expect_code(&by_hand("load").output().expect("worker"), 0);
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    assert_eq!(fixture.results(), before);

    // The other way round: a driver is refused while a hand is at work.
    fixture.order("hold-load-0");
    fixture.forget_trace();
    let mut hand = by_hand("load").spawn().expect("worker");
    fixture.await_trace("start load 0");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 6);
    fixture.lift("hold-load-0");
    assert!(hand.wait().expect("ended").success());
}

#[test]
fn of_two_drivers_that_begin_at_once_one_works_and_the_other_changes_nothing() {
    let fixture = Fixture::new();
    fixture.order("hold-load-0");
    let mut first = fixture.compress().spawn().expect("uc");
    let mut second = fixture.compress().args(["--bpw", "4"]).spawn().expect("uc");
    fixture.await_trace("start load 0");
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
    let plan = std::fs::read(fixture.run_dir().join("run.json")).expect("plan");
    fixture.lift("hold-load-0");
    for mut child in [first, second] {
        child.wait().expect("ended");
    }
    let after = std::fs::read(fixture.run_dir().join("run.json")).expect("plan");
    assert!(plan == after, "the plan changed under the run");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
}

#[test]
fn a_stage_that_is_stopped_again_and_again_is_given_up_with_its_last_lines() {
    let fixture = Fixture::new();
    fixture.order("hold-teach-1");
    let child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start teach 1");
    let is_teach = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|word| word == b"teach")
    };
    // Whatever process the stage gets, it is stopped; the driver ends what says nothing.
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
    assert!(workers_of(&fixture).is_empty());
    let status = words_of_status(&fixture);
    assert!(
        status.contains("stopped") && status.contains("error"),
        "{status}"
    );
    fixture.lift("hold-teach-1");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
    let status = words_of_status(&fixture);
    assert!(status.contains("state  complete"), "{status}");
}

fn words_of_status(fixture: &Fixture) -> String {
    expect_code(&fixture.uc(&["status", "run"]).output().expect("uc"), 0)
}

#[test]
fn a_watch_follows_a_run_to_its_end_and_a_dead_driver_is_told_from_a_live_one() {
    let fixture = Fixture::new();
    fixture.order("hold-code-0");
    let mut child = fixture.compress().spawn().expect("uc");
    fixture.await_trace("start code 0");
    let mut watch = fixture.uc(&["status", "run", "--watch", "--interval", "1", "--json"]);
    let watch = watch.spawn().expect("uc");
    // At least one look falls on the run that is alive.
    std::thread::sleep(Duration::from_millis(300));
    let status = words_of_status(&fixture);
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
    fixture.lift("hold-code-0");
    expect_code(&fixture.uc(&["resume", "run"]).output().expect("uc"), 0);
}
