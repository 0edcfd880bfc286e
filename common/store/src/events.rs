//! The messages between driver and stage process: jobs as JSON lines on standard input, events on standard output.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::ExitCode;
use crate::plan::Unit;

/// A job request, one JSON line on a stage's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    /// What the job works on.
    #[serde(flatten)]
    pub unit: Unit,
}

/// An event of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Stage name.
    pub stage: String,
    /// What the job works on.
    #[serde(flatten)]
    pub unit: Unit,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The job started.
    Started,
    /// Part of the job is done.
    Progress {
        /// Units done.
        done: u64,
        /// Units in total.
        total: u64,
        /// Name of the unit.
        unit: String,
    },
    /// The job retries an operation that failed for an external reason.
    Retrying {
        /// The next attempt, or the current one if there is no wait.
        attempt: u32,
        /// Allowed number of attempts in a row.
        attempts: u32,
        /// Wait before the attempt.
        wait_seconds: f64,
        /// What failed.
        error: String,
    },
    /// Something that the user should know.
    Note {
        /// The message.
        message: String,
    },
    /// A metric.
    Metric {
        /// Its name.
        name: String,
        /// Number or text.
        value: Value,
    },
    /// The job's outputs and receipt are published.
    Finished {
        /// Wall time.
        seconds: f64,
        /// Peak resident memory of the process, bytes.
        peak_rss_bytes: u64,
    },
    /// The job failed; nothing was published.
    Failed {
        /// Class of the failure.
        class: ExitCode,
        /// The error chain in one line.
        message: String,
    },
    /// The driver deleted an artifact that no job needs any more.
    Retired {
        /// The artifact.
        artifact: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_single_lines_and_parse_back() {
        let kinds = [
            EventKind::Started,
            EventKind::Progress {
                done: 1,
                total: 2,
                unit: "window".into(),
            },
            EventKind::Retrying {
                attempt: 2,
                attempts: 8,
                wait_seconds: 1.5,
                error: "a\nb".into(),
            },
            EventKind::Note {
                message: "kept".into(),
            },
            EventKind::Metric {
                name: "bpw".into(),
                value: 4.99.into(),
            },
            EventKind::Finished {
                seconds: 1.5,
                peak_rss_bytes: 7,
            },
            EventKind::Failed {
                class: ExitCode::DiskFull,
                message: "a\nb".into(),
            },
            EventKind::Retired {
                artifact: "weights@001".into(),
            },
        ];
        for kind in kinds {
            let event = Event {
                stage: "quantize".into(),
                unit: Unit::Layer(3),
                kind,
            };
            let line = serde_json::to_string(&event).expect("line");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).expect("event"), event);
        }
    }
}
