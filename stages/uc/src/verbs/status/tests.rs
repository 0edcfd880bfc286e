//! The status of an active, a complete and a dead run, as text and as JSON.

use uc_settings::Settings;
use uc_store::plan::{Artifact, ModelSource, PLAN_VERSION, Per, Unit};

use super::*;
use crate::plan::test_stage;

fn stage(name: &str, per: Per, optional: bool) -> StagePlan {
    StagePlan {
        optional,
        ..test_stage::stage(name, per)
    }
}

fn plan(layers: u32) -> Plan {
    Plan {
        version: PLAN_VERSION,
        tool_version: "0".into(),
        model: ModelSource {
            name: "model".into(),
            path: "/model".into(),
            layers,
            linear_parameters: 1,
            total_parameters: 1,
            hub: None,
        },
        pack_dir: "pack".into(),
        settings: Settings::default(),
        externals: BTreeMap::new(),
        artifacts: BTreeMap::<String, Artifact>::new(),
        stages: vec![
            stage("load", Per::Layer, false),
            stage("quantize", Per::Layer, false),
            stage("report", Per::Run, false),
            stage("upload", Per::Run, true),
        ],
    }
}

const LOG: &str = r#"{"time":"2026-01-01T00:00:00.000Z","event":"session","pid":7}
{"time":"2026-01-01T00:00:00.000Z","event":"job-states","stage":"load","waiting":[0,1,2,3]}
{"time":"2026-01-01T00:00:00.000Z","event":"job-states","stage":"quantize","stale":[3],"waiting":[0,1,2]}
{"time":"2026-01-01T00:00:00.000Z","event":"started","stage":"load","layer":0}
{"time":"2026-01-01T00:00:02.000Z","event":"finished","stage":"load","layer":0,"seconds":2.0,"peak_rss_bytes":1048576}
{"time":"2026-01-01T00:00:02.000Z","event":"started","stage":"load","layer":1}
{"time":"2026-01-01T00:00:02.000Z","event":"started","stage":"quantize","layer":0}
{"time":"2026-01-01T00:00:04.000Z","event":"finished","stage":"load","layer":1,"seconds":2.0,"peak_rss_bytes":2097152}
{"time":"2026-01-01T00:00:05.000Z","event":"job-failure","stage":"quantize","layer":0,"class":"stage-failed","message":"it was killed by signal 9 (the system does that when memory runs out)"}
{"time":"2026-01-01T00:00:05.000Z","event":"started","stage":"quantize","layer":1}
{"time":"2026-01-01T00:00:09.000Z","event":"progress","stage":"quantize","layer":1,"done":5,"total":9,"unit":"tensors"}
{"time":"2026-01-01T00:00:1"#;

fn observe(active: bool, done: &[(&str, Option<u32>)], now: &str) -> Observation<'static> {
    Observation {
        root: Utf8Path::new("/run"),
        active,
        process: active.then_some(7),
        done: done
            .iter()
            .map(|(stage, layer)| JobId {
                stage: (*stage).into(),
                unit: layer.map_or(Unit::Run, Unit::Layer),
            })
            .collect(),
        disk: disk::Disk {
            artifacts: BTreeMap::from([("codes".into(), 3 << 20), ("weights".into(), 9 << 20)]),
            other: 4096,
            free: Some(5 << 30),
        },
        now: humantime::parse_rfc3339(now).expect("time"),
    }
}

const LOADED: [(&str, Option<u32>); 2] = [("load", Some(0)), ("load", Some(1))];

#[test]
fn an_active_run_shows_what_is_running_how_fast_and_what_failed() {
    let now = observe(true, &LOADED, "2026-01-01T00:00:30.000Z");
    let status = assess(&plan(4), Replay::from_text(LOG), now);
    insta::assert_snapshot!("active", text::render(&status, None));
    let json = serde_json::to_string_pretty(&status).expect("plain data");
    insta::assert_snapshot!("active-json", json);
}

#[test]
fn a_run_that_died_is_distinguished_from_one_that_was_stopped() {
    let now = || observe(false, &LOADED, "2026-01-01T00:10:00.000Z");
    let died = assess(&plan(4), Replay::from_text(LOG), now());
    insta::assert_snapshot!("died", text::render(&died, None));
    let end = "\n{\"time\":\"2026-01-01T00:00:10.000Z\",\"event\":\"session-end\",\"ok\":false}\n";
    let stopped = assess(&plan(4), Replay::from_text(&format!("{LOG}{end}")), now());
    assert_eq!(stopped.state, RunState::Stopped);
    assert!(died.running.is_empty() && stopped.running.is_empty());
}

#[test]
fn a_finished_run_without_a_log_is_complete_by_its_receipts() {
    let mut done: Vec<(&str, Option<u32>)> = vec![("report", None)];
    for layer in 0..4 {
        done.extend([("load", Some(layer)), ("quantize", Some(layer))]);
    }
    let now = observe(false, &done, "2026-01-01T00:10:00.000Z");
    let status = assess(&plan(4), Replay::default(), now);
    insta::assert_snapshot!("complete", text::render(&status, None));
}

#[test]
fn a_clock_that_was_set_back_shows_no_negative_time() {
    let now = observe(true, &LOADED, "2025-01-01T00:00:00.000Z");
    let status = assess(&plan(4), Replay::from_text(LOG), now);
    assert_eq!(status.silent_seconds, Some(0.0));
    assert!(status.running.iter().all(|job| job.seconds >= 0.0));
}

#[test]
fn a_job_that_the_log_finished_without_a_receipt_is_stale() {
    let now = observe(false, &[("load", Some(0))], "2026-01-01T00:10:00.000Z");
    let status = assess(&plan(4), Replay::from_text(LOG), now);
    use JobState::*;
    assert_eq!(status.stages[0].jobs, [Done, Stale, Waiting, Waiting]);
    assert_eq!(status.stages[1].jobs, [Failed, Waiting, Waiting, Stale]);
}

#[test]
fn many_layers_share_characters_and_the_most_urgent_is_shown() {
    let mut jobs = vec![JobState::Done; 126];
    jobs[5] = JobState::Failed;
    let now = observe(true, &[], "2026-01-01T00:00:30.000Z");
    let mut status = assess(&plan(126), Replay::from_text(LOG), now);
    status.stages[0].jobs = jobs;
    let text = text::render(&status, None);
    let row = text
        .lines()
        .find(|line| line.starts_with("load"))
        .expect("row");
    assert!(row.contains("#!####"), "{row}");
    assert!(text.lines().all(|line| line.chars().count() < 200));
}

#[test]
fn the_text_fits_the_terminal() {
    let now = || observe(true, &LOADED, "2026-01-01T00:00:30.000Z");
    for layers in [4, 126] {
        let mut status = assess(&plan(layers), Replay::from_text(LOG), now());
        status.run = "/a/rather/long/path/to/a/run/directory/of/a/model/with-a-long-name".into();
        for index in 0..12 {
            let mut plan = plan(layers);
            plan.stages[0].name = format!("sensitivity-backward{index}");
            let more = assess(&plan, Replay::from_text(LOG), now());
            status.stages.extend(more.stages.into_iter().take(1));
        }
        for columns in [60, 80, 120] {
            let text = text::render(&status, Some(columns));
            for line in text.lines() {
                assert!(terminal::width(line) <= columns, "{columns}: {line}");
            }
            assert!(text.contains("sensitivity-backward11"), "{text}");
            for rows in [5, 12, 24, 50] {
                let size = terminal::Size { columns, rows };
                let text = text::render_fitting(&status, size);
                assert!(text.lines().count() < rows, "{rows}:\n{text}");
                assert!(text.lines().all(|line| terminal::width(line) <= columns));
                assert!(text.contains("running (process 7)"), "{text}");
            }
        }
    }
}

#[test]
fn a_forecast_gives_a_time_left_before_the_first_job_is_done() {
    let expectation = r#"{"time":"2026-01-01T00:00:00.000Z","event":"expectation","seconds_per_job":{"load":2.0,"quantize":20.0,"report":1.0},"concurrency":1.0}"#;
    let session = r#"{"time":"2026-01-01T00:00:00.000Z","event":"session","pid":7}"#;
    let log = format!("{session}\n{expectation}\n");
    let now = observe(true, &[], "2026-01-01T00:00:00.000Z");
    let status = assess(&plan(4), Replay::from_text(&log), now);
    assert_eq!(status.seconds_left, Some(89.0));
    assert_eq!(status.share, 0.0);
    assert!(
        status
            .stages
            .iter()
            .all(|stage| stage.seconds_left.is_none())
    );
}
