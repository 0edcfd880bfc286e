//! `events.jsonl`: every event of every session with its time, and what can be summed up from it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;
use uc_store::StoreError;
use uc_store::events::{Event, EventKind};
use uc_store::run::RunDir;

/// The event with which the driver opens a session.
const SESSION: &str = "session";

/// The open log.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

/// What the jobs of one stage took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StageCost {
    /// Jobs.
    pub jobs: u64,
    /// Wall seconds of all jobs together.
    pub seconds: f64,
    /// Largest resident memory of a process, bytes.
    pub peak_rss_bytes: u64,
}

/// What a run took, over all sessions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cost {
    /// Per stage; a job that was done again counts as it was done last.
    pub stages: BTreeMap<String, StageCost>,
    /// Seconds from the first to the last event of each session, summed.
    pub wall_seconds: f64,
}

impl Journal {
    /// Opens the log of a run for appending and notes that a session begins.
    pub fn open(run: &RunDir) -> Result<Self, StoreError> {
        let file = uc_store::atomic::open_log(&run.events_path())?;
        let mut journal = Self { file };
        journal.note(SESSION, serde_json::json!({"pid": std::process::id()}));
        Ok(journal)
    }

    /// Notes an event of a job.
    pub fn event(&mut self, event: &Event) {
        let value = serde_json::to_value(event).expect("events are plain data");
        self.write(value);
    }

    /// Notes an event of the driver; `fields` is an object.
    pub fn note(&mut self, event: &str, fields: Value) {
        let mut value = fields;
        value["event"] = event.into();
        self.write(value);
    }

    fn write(&mut self, mut value: Value) {
        value["time"] = humantime::format_rfc3339_millis(SystemTime::now())
            .to_string()
            .into();
        // The log is for people: a full disk shows where it matters, in the stages' own files.
        let _ = self.file.write_all(format!("{value}\n").as_bytes());
    }
}

/// Sums up a log; lines that a crash cut are left out.
pub fn cost(run: &RunDir) -> Cost {
    let text = std::fs::read(run.events_path()).unwrap_or_default();
    cost_of(&String::from_utf8_lossy(&text))
}

fn cost_of(text: &str) -> Cost {
    let mut jobs: BTreeMap<(String, Option<u32>), (f64, u64)> = BTreeMap::new();
    let mut wall = Duration::ZERO;
    let mut last: Option<SystemTime> = None;
    for value in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let time = value["time"]
            .as_str()
            .and_then(|time| humantime::parse_rfc3339(time).ok());
        if let Some(time) = time {
            if let Some(last) = last.filter(|_| value["event"] != SESSION) {
                // A clock that was set back adds nothing.
                wall += time.duration_since(last).unwrap_or_default();
            }
            last = Some(time);
        }
        let Ok(event) = serde_json::from_value::<Event>(value) else {
            continue;
        };
        if let EventKind::Finished {
            seconds,
            peak_rss_bytes,
        } = event.kind
        {
            jobs.insert((event.stage, event.layer), (seconds, peak_rss_bytes));
        }
    }
    let mut stages: BTreeMap<String, StageCost> = BTreeMap::new();
    for ((stage, _), (seconds, peak)) in jobs {
        let cost = stages.entry(stage).or_default();
        cost.jobs += 1;
        cost.seconds += seconds;
        cost.peak_rss_bytes = cost.peak_rss_bytes.max(peak);
    }
    Cost {
        stages,
        wall_seconds: wall.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_and_jobs_are_summed_and_cut_lines_left_out() {
        let finished = |time: &str, layer: u32, seconds: f64, peak: u64| {
            format!(
                "{{\"time\":\"2026-01-01T00:00:{time}Z\",\"stage\":\"a\",\"layer\":{layer},\
                 \"event\":\"finished\",\"seconds\":{seconds},\"peak_rss_bytes\":{peak}}}\n"
            )
        };
        let session = |time: &str| {
            format!("{{\"time\":\"2026-01-01T00:00:{time}Z\",\"event\":\"session\",\"pid\":1}}\n")
        };
        let text = [
            session("00.000"),
            finished("05.000", 0, 5.0, 10),
            "{\"time\":\"2026-01-01T00:00:09.000Z\",\"ev\n".into(),
            session("20.000"),
            finished("22.500", 0, 2.5, 30),
            finished("23.000", 1, 0.5, 20),
        ]
        .concat();
        let cost = cost_of(&text);
        let expected = StageCost {
            jobs: 2,
            seconds: 3.0,
            peak_rss_bytes: 30,
        };
        assert_eq!(cost.stages["a"], expected);
        assert_eq!(cost.wall_seconds, 8.0);
    }
}
