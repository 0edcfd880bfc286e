//! Names and types of the driver's own events in `events.jsonl`, shared by the writer and the replay.
//!
//! The events of stages are `uc_store::events::Event`.

use serde::{Deserialize, Serialize};

/// Name of the event with which a driver starts a session.
pub const SESSION: &str = "session";
/// Name of the event with which a driver ends a session.
pub const SESSION_END: &str = "session-end";
/// Name of the event with what the run is expected to take, an `outlook::Expectation`.
pub const EXPECTATION: &str = "expectation";
/// Name of the event of a failed attempt.
pub const JOB_FAILURE: &str = "job-failure";

/// States of jobs of one stage that the driver determined without running them. Lists of layers; null is the job of the
/// whole run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStates {
    /// Stage name.
    pub stage: String,
    /// Up to date.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Option<u32>>,
    /// To be run again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<Option<u32>>,
    /// To be run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Option<u32>>,
}

impl JobStates {
    /// Name of the event.
    pub const EVENT: &str = "job-states";
}
