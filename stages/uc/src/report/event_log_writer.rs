//! Appends to `events.jsonl`: every event of every session with its time. `event_log_replay` reads it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::SystemTime;

use camino::Utf8Path;
use serde_json::Value;
use uc_store::StoreError;
use uc_store::events::Event;
use uc_store::run::RunDir;

use crate::report::event_log::{JobStates, SESSION};

/// An event log that is open for appending.
#[derive(Debug)]
pub struct EventLogWriter {
    file: File,
    /// Whether the last line is incomplete.
    torn: bool,
}

impl EventLogWriter {
    /// Opens the log of a run and records the start of a session.
    pub fn open(run: &RunDir) -> Result<Self, StoreError> {
        let mut log = Self::append_to(run.root(), &run.events_path())?;
        log.write_driver_event(SESSION, serde_json::json!({"pid": std::process::id()}));
        Ok(log)
    }

    fn append_to(run: &Utf8Path, path: &Utf8Path) -> Result<Self, StoreError> {
        let file = uc_store::atomic::open_log_below(run, path)?;
        let torn = is_torn(path).map_err(StoreError::io("read", path))?;
        Ok(Self { file, torn })
    }

    /// Records states of jobs of a stage.
    pub fn write_job_states(&mut self, states: &JobStates) {
        let value = serde_json::to_value(states).expect("plain data");
        self.write_driver_event(JobStates::EVENT, value);
    }

    /// Records an event of a job.
    pub fn write_job_event(&mut self, event: &Event) {
        let value = serde_json::to_value(event).expect("events are plain data");
        self.write(value);
    }

    /// Records an event of the driver; `fields` is an object.
    pub fn write_driver_event(&mut self, event: &str, fields: Value) {
        let mut value = fields;
        value["event"] = event.into();
        self.write(value);
    }

    fn write(&mut self, mut value: Value) {
        value["time"] = humantime::format_rfc3339_millis(SystemTime::now())
            .to_string()
            .into();
        let start = if self.torn { "\n" } else { "" };
        // Nothing depends on the log. A full disk is reported where it matters: by the stages that write their files.
        let written = self.file.write_all(format!("{start}{value}\n").as_bytes());
        self.torn = written.is_err();
    }
}

/// Whether a log ends in the middle of a line.
fn is_torn(path: &Utf8Path) -> std::io::Result<bool> {
    let mut file = uc_input::open(path)?;
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_a_crash_truncated_does_not_damage_the_next_one() {
        let temporary = tempfile::tempdir().expect("folder");
        let path = Utf8Path::from_path(temporary.path())
            .expect("utf-8")
            .join("log");
        for (text, torn) in [("", false), ("{}\n", false), ("{}\n{\"ev", true)] {
            uc_store::atomic::write_bytes(&path, text.as_bytes()).expect("written");
            assert_eq!(is_torn(&path).expect("read"), torn);
        }
        let mut log =
            EventLogWriter::append_to(path.parent().expect("folder"), &path).expect("opened");
        log.write_driver_event(SESSION, serde_json::json!({"pid": 1}));
        let text = std::fs::read_to_string(&path).expect("log");
        let last = text.lines().last().expect("a line");
        serde_json::from_str::<Value>(last).expect("complete");
        assert_eq!(text.lines().count(), 3);
    }
}
