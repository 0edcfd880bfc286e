//! What `uc status` reports; also the JSON of `--json`.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::Serialize;
use uc_store::plan::{HubSource, Unit};

use super::disk::Disk;
use crate::report::event_log_replay::{FailureRecord, JobState, JobView, StageCost};

/// The state of a run.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The run directory.
    pub run: Utf8PathBuf,
    /// Name of the model.
    pub model: String,
    /// Repository and commit of a model of the Hub.
    pub hub: Option<HubSource>,
    /// The shards of a source that is fetched on demand.
    pub shards: Option<ShardsStatus>,
    /// Number of layers.
    pub layers: u32,
    /// Folder of the pack.
    pub pack: Utf8PathBuf,
    /// State of the run.
    pub state: RunState,
    /// Whether a driver is working on it.
    pub active: bool,
    /// Process id of the driver, while it works.
    pub process: Option<u32>,
    /// Number of jobs done, without optional stages.
    pub done: u64,
    /// Number of jobs, without optional stages.
    pub total: u64,
    /// Wall time of all sessions.
    pub wall_seconds: f64,
    /// Seconds since the last event, while a driver works.
    pub silent_seconds: Option<f64>,
    /// Share of the work that is done, 0 to 1; jobs count by their time.
    pub share: f64,
    /// Estimated seconds until the run is complete: the forecast, corrected by what was measured.
    pub seconds_left: Option<f64>,
    /// Whether the estimate leaves out a stage of which nothing is known yet.
    pub seconds_left_partial: bool,
    /// Disk use.
    pub disk: Disk,
    /// Every stage, in plan order.
    pub stages: Vec<StageStatus>,
    /// Jobs in progress.
    pub running: Vec<Running>,
    /// The most recent failed attempts.
    pub failures: Vec<FailureRecord>,
}

/// The state of a source whose shards are fetched on demand.
#[derive(Debug, Serialize)]
pub struct ShardsStatus {
    /// The stage that fetches them.
    pub stage: String,
    /// File names by shard number.
    pub files: BTreeMap<u32, String>,
    /// Number of shards.
    pub total: usize,
    /// Number of shards on disk.
    pub present: usize,
    /// Bytes of all shards.
    pub total_bytes: u64,
    /// Bytes of the shards on disk.
    pub present_bytes: u64,
    /// Bytes that they may take up; none if fetched shards are kept.
    pub budget: Option<u64>,
    /// Bytes received from the Hub in all sessions.
    pub received_bytes: u64,
}

/// The state of a run as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Every job is done.
    Complete,
    /// A driver is working on it.
    Running,
    /// The last session ended in order before every job was done.
    Stopped,
    /// The last session did not record its end: its driver was killed, or the machine went down.
    Died,
}

/// The state of one stage.
#[derive(Debug, Serialize)]
pub struct StageStatus {
    /// Stage name.
    pub name: String,
    /// Whether it runs only on request.
    pub optional: bool,
    /// Number of jobs done.
    pub done: u64,
    /// Number of jobs.
    pub total: u64,
    /// State of every job, by layer.
    pub jobs: Vec<JobState>,
    /// Jobs per second in this session.
    pub rate: Option<f64>,
    /// Estimated seconds until it is done, while one of its jobs runs.
    pub seconds_left: Option<f64>,
    /// Cost of its jobs, from the event log.
    pub cost: StageCost,
    /// Metrics of its jobs, by layer.
    pub metrics: BTreeMap<String, serde_json::Value>,
}

/// A job in progress.
#[derive(Debug, Serialize)]
pub struct Running {
    /// Stage name.
    pub stage: String,
    /// What the job works on.
    #[serde(flatten)]
    pub unit: Unit,
    /// Seconds since the attempt started.
    pub seconds: f64,
    /// What the log says about the job.
    #[serde(flatten)]
    pub view: JobView,
}
