//! Logs with several sessions, truncated lines and clocks that were set back.

use super::*;

/// A line with a time, given as seconds within a minute.
fn line(second: f64, fields: &str) -> String {
    format!("{{\"time\":\"2026-01-01T00:00:{second:06.3}Z\",{fields}}}\n")
}

fn started(second: f64, stage: &str, layer: u32) -> String {
    let fields = format!("\"event\":\"started\",\"stage\":\"{stage}\",\"layer\":{layer}");
    line(second, &fields)
}

fn finished(second: f64, stage: &str, layer: u32, seconds: f64, peak: u64) -> String {
    let fields = format!(
        "\"event\":\"finished\",\"stage\":\"{stage}\",\"layer\":{layer},\"seconds\":{seconds},\
         \"peak_rss_bytes\":{peak}"
    );
    line(second, &fields)
}

fn session(second: f64) -> String {
    line(second, "\"event\":\"session\",\"pid\":1")
}

fn state(replay: &Replay, stage: &str, layer: u32) -> JobState {
    let id = JobId {
        stage: stage.into(),
        unit: Unit::Layer(layer),
    };
    replay.jobs[&id].state
}

#[test]
fn sessions_and_jobs_are_summed_and_truncated_lines_skipped() {
    let text = [
        session(0.0),
        finished(5.0, "a", 0, 5.0, 10),
        "{\"time\":\"2026-01-01T00:00:09.000Z\",\"ev\n".into(),
        session(20.0),
        finished(22.5, "a", 0, 2.5, 30),
        finished(23.0, "a", 1, 0.5, 20),
    ]
    .concat();
    let replay = Replay::from_text(&text);
    let expected = StageCost {
        jobs: 2,
        seconds: 3.0,
        peak_rss_bytes: 30,
    };
    assert_eq!(replay.costs()["a"], expected);
    assert_eq!(replay.wall_seconds, 8.0);
}

#[test]
fn every_job_has_the_state_of_its_last_event() {
    let states =
        "\"event\":\"job-states\",\"stage\":\"a\",\"done\":[0],\"stale\":[1],\"waiting\":[2,3,4]";
    let failure = "\"event\":\"job-failure\",\"stage\":\"a\",\"layer\":3,\"class\":\"disk-full\",\"message\":\"full\"";
    let progress = "\"event\":\"progress\",\"stage\":\"a\",\"layer\":2,\"done\":1,\"total\":9,\"unit\":\"rows\"";
    let text = [
        session(0.0),
        line(0.0, states),
        started(1.0, "a", 2),
        line(2.0, progress),
        started(2.0, "a", 3),
        line(3.0, failure),
    ]
    .concat();
    let mut replay = Replay::from_text(&text);
    let replayed: Vec<JobState> = (0..5).map(|layer| state(&replay, "a", layer)).collect();
    use JobState::*;
    assert_eq!(replayed, [Done, Stale, Running, Failed, Waiting]);
    assert_eq!(replay.failures[0].message, "full");
    assert_eq!(replay.ended, None);
    // Without a driver nothing runs.
    replay.interrupt_running_jobs();
    assert_eq!(state(&replay, "a", 2), Waiting);
    let ended = Replay::from_text(&(text + &line(4.0, "\"event\":\"session-end\",\"ok\":false")));
    assert_eq!((state(&ended, "a", 2), ended.ended), (Waiting, Some(false)));
}

#[test]
fn a_log_truncated_anywhere_equals_its_complete_lines() {
    let text = [
        session(0.0),
        started(1.0, "a", 0),
        finished(2.0, "a", 0, 1.0, 5),
        started(3.0, "a", 1),
    ]
    .concat();
    for end in 0..=text.len() {
        let complete = text[..end].rfind('\n').map_or("", |at| &text[..=at]);
        let rest = &text[complete.len()..end];
        let is_complete = serde_json::from_str::<Value>(rest).is_ok();
        if !is_complete {
            assert_eq!(
                Replay::from_text(&text[..end]),
                Replay::from_text(complete),
                "truncated at {end}"
            );
        }
    }
}

#[test]
fn a_clock_that_is_set_back_makes_no_duration_negative() {
    let text = [
        session(50.0),
        started(51.0, "a", 0),
        finished(10.0, "a", 0, 1.0, 5),
        started(9.0, "a", 1),
        finished(11.0, "a", 1, -3.0, 5),
    ]
    .concat();
    let replay = Replay::from_text(&text);
    assert_eq!(replay.wall_seconds, 3.0);
    assert!(replay.jobs.values().all(|job| job.started >= 0.0));
    assert_eq!(replay.costs()["a"].seconds, 1.0);
    assert_eq!(replay.rate("a"), Some(0.5));
    let back = [
        session(50.0),
        started(9.0, "a", 0),
        finished(8.0, "a", 0, 1.0, 5),
    ]
    .concat();
    let back = Replay::from_text(&back);
    assert_eq!(
        (back.rate("a"), back.seconds_for("a", 2)),
        (None, Some(2.0))
    );
}

#[test]
fn events_of_unknown_kinds_and_malformed_lines_are_skipped() {
    let text = [session(0.0), started(1.0, "a", 0)].concat();
    let more = [
        line(1.0, "\"event\":\"teleported\",\"stage\":\"a\",\"layer\":0"),
        line(1.0, "\"event\":\"job-states\",\"stage\":7"),
        "[]\n7\nnull\n\u{0}\u{0}\u{0}\n{\"event\":7,\"time\":7}\n".to_owned(),
    ];
    assert_eq!(
        Replay::from_text(&(text.clone() + &more.concat())),
        Replay::from_text(&text)
    );
}

#[test]
fn rates_come_from_the_last_session_and_estimates_fall_back_to_earlier_ones() {
    let text = [
        session(0.0),
        started(0.0, "a", 0),
        finished(8.0, "a", 0, 8.0, 5),
        session(10.0),
        started(10.0, "b", 0),
        finished(12.0, "b", 0, 2.0, 5),
        finished(14.0, "b", 1, 1.0, 5),
    ]
    .concat();
    let replay = Replay::from_text(&text);
    assert_eq!((replay.rate("a"), replay.rate("b")), (None, Some(0.5)));
    assert_eq!(replay.seconds_for("a", 2), Some(16.0));
    assert_eq!(replay.seconds_for("b", 2), Some(4.0));
    assert_eq!(
        (replay.seconds_for("c", 1), replay.seconds_for("c", 0)),
        (None, Some(0.0))
    );
}

#[test]
fn a_stage_that_had_to_wait_has_the_rate_of_its_recent_jobs() {
    let seconds = [1, 2, 3, 40, 41, 42, 43, 44];
    let ends = seconds.into_iter().zip(0..);
    let lines: Vec<String> = ends
        .map(|(second, layer)| finished(f64::from(second), "a", layer, 1.0, 5))
        .collect();
    let replay = Replay::from_text(&(session(0.0) + &lines.concat()));
    assert_eq!(replay.rate("a"), Some(1.0));
}

#[test]
fn a_retry_is_shown_until_the_job_makes_progress() {
    let retrying = "\"event\":\"retrying\",\"stage\":\"a\",\"layer\":0,\"attempt\":2,\"attempts\":8,\
                    \"wait_seconds\":4.0,\"error\":\"status 503\"";
    let progress = "\"event\":\"progress\",\"stage\":\"a\",\"layer\":0,\"done\":1,\"total\":9,\"unit\":\"bytes\"";
    let text = [session(0.0), started(1.0, "a", 0), line(2.0, retrying)].concat();
    let id = JobId {
        stage: "a".into(),
        unit: Unit::Layer(0),
    };
    let expected = Retry {
        attempt: 2,
        attempts: 8,
        at: 6.0,
        error: "status 503".into(),
    };
    assert_eq!(Replay::from_text(&text).jobs[&id].retry, Some(expected));
    let progressed = Replay::from_text(&(text + &line(7.0, progress)));
    assert_eq!(progressed.jobs[&id].retry, None);
}
