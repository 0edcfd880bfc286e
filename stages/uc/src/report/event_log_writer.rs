//! `events.jsonl`: every event of every session with its time. `history` reads it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::SystemTime;

use camino::Utf8Path;
use serde_json::Value;
use uc_store::StoreError;
use uc_store::events::Event;
use uc_store::run::RunDir;

use crate::report::event_log_replay::{Found, History, SESSION};

/// The open log.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Whether the last line has no end.
    torn: bool,
}

impl Journal {
    /// Opens the log of a run for appending and notes that a session begins.
    pub fn open(run: &RunDir) -> Result<Self, StoreError> {
        let mut journal = Self::at(&run.events_path())?;
        journal.note(SESSION, serde_json::json!({"pid": std::process::id()}));
        Ok(journal)
    }

    fn at(path: &Utf8Path) -> Result<Self, StoreError> {
        let file = uc_store::atomic::open_log(path)?;
        let torn = is_torn(path).map_err(StoreError::io("read", path))?;
        Ok(Self { file, torn })
    }

    /// Notes what was found of the jobs of a stage.
    pub fn found(&mut self, found: &Found) {
        let value = serde_json::to_value(found).expect("plain data");
        self.note(Found::EVENT, value);
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
        let start = if self.torn { "\n" } else { "" };
        // The log is for people: a full disk shows where it matters, in the stages' own files.
        let written = self.file.write_all(format!("{start}{value}\n").as_bytes());
        self.torn = written.is_err();
    }
}

/// What the log of a run tells; nothing where there is none.
pub fn history(run: &RunDir) -> History {
    let text = std::fs::read(run.events_path()).unwrap_or_default();
    History::of(&String::from_utf8_lossy(&text))
}

/// Whether a log ends in the middle of a line.
fn is_torn(path: &Utf8Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
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
    fn a_line_that_a_crash_cut_does_not_spoil_the_next_one() {
        let keep = tempfile::tempdir().expect("folder");
        let path = Utf8Path::from_path(keep.path()).expect("utf-8").join("log");
        for (text, torn) in [("", false), ("{}\n", false), ("{}\n{\"ev", true)] {
            uc_store::atomic::write_bytes(&path, text.as_bytes()).expect("written");
            assert_eq!(is_torn(&path).expect("read"), torn);
        }
        let mut journal = Journal::at(&path).expect("opened");
        journal.note(SESSION, serde_json::json!({"pid": 1}));
        let text = std::fs::read_to_string(&path).expect("log");
        let last = text.lines().last().expect("a line");
        serde_json::from_str::<Value>(last).expect("whole");
        assert_eq!(text.lines().count(), 3);
    }
}
