//! Replays `events.jsonl`: rebuilds the state of every job, the rates and the failures of a run from its lines alone.
//!
//! A pure function of the text. Truncated lines and events of unknown kinds are skipped. Time is accumulated from line to
//! line within a session; a clock that was set back adds nothing, so no duration is negative.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uc_store::events::{Event, EventKind};
use uc_store::plan::{JobId, Unit};
use uc_store::run::RunDir;

use crate::report::event_log::{EXPECTATION, JOB_FAILURE, JobStates, SESSION, SESSION_END};
use crate::report::outlook::{Expectation, Session, StageWork};

/// Number of recent completions over which a rate is computed.
const RATE_WINDOW: usize = 5;
/// Largest event log that is read, bytes; a run of 100 layers writes about a megabyte.
const MAX_LOG: u64 = 1 << 30;
/// Number of recent failures that are kept.
const MAX_FAILURES: usize = 5;
/// The metric by which a job reports how many bytes it received from the Hub.
const RECEIVED_BYTES: &str = "bytes received";

/// The state of a job, for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Its outputs are recorded.
    Done,
    /// It was not started, or it was started and interrupted.
    Waiting,
    /// It was done before and has to run again.
    Stale,
    /// It is running.
    Running,
    /// Its last attempt failed.
    Failed,
}

/// The progress that a job reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// Name of the unit.
    pub unit: String,
}

/// A retry inside a running job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retry {
    /// The attempt that is scheduled or under way.
    pub attempt: u32,
    /// Consecutive attempts that are allowed.
    pub attempts: u32,
    /// Wall time of the run at which it starts or started, seconds.
    pub at: f64,
    /// What failed.
    pub error: String,
}

/// What is known about one job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobView {
    /// Its state.
    pub state: JobState,
    /// Its last progress, while it is running.
    pub progress: Option<Progress>,
    /// What failed inside the job and is retried, until the job makes progress again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Wall time of the run at which its last attempt started, seconds.
    pub started: f64,
    /// Seconds and peak memory in bytes of its last completed attempt.
    #[serde(skip)]
    pub cost: Option<(f64, u64)>,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureRecord {
    /// Time, as recorded in the log.
    pub time: String,
    /// Stage name.
    pub stage: String,
    /// What the job worked on.
    #[serde(flatten)]
    pub unit: Unit,
    /// Class of the failure.
    pub class: String,
    /// The error message.
    pub message: String,
}

/// Cost of the jobs of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StageCost {
    /// Jobs.
    pub jobs: u64,
    /// Sum of the wall seconds of all jobs.
    pub seconds: f64,
    /// Largest resident memory of a process, bytes.
    pub peak_rss_bytes: u64,
}

/// The pace of a stage in the last session.
#[derive(Debug, Clone, Default, PartialEq)]
struct Pace {
    /// When its first job started.
    started: f64,
    /// When its most recent jobs ended, oldest first. Only recent ones count: a stage that had to wait once is not slow.
    ends: VecDeque<f64>,
}

/// A run, rebuilt from its log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replay {
    /// Every job that the log mentions.
    pub jobs: BTreeMap<JobId, JobView>,
    /// The most recent failed attempts, oldest first.
    pub failures: Vec<FailureRecord>,
    /// Seconds from the first to the last event of each session, summed.
    pub wall_seconds: f64,
    /// Whether the last session ended with success; `None` while it runs, or if its driver was killed.
    pub ended: Option<bool>,
    /// Bytes received from the Hub.
    pub received_bytes: u64,
    /// Time of the last event.
    pub last_event: Option<SystemTime>,
    /// What the driver expected the run to take.
    pub expectation: Option<Expectation>,
    paces: BTreeMap<String, Pace>,
    /// Wall time of the run at which the last session started.
    session_start: f64,
    /// Sum of the times of the jobs that the last session finished, seconds.
    session_job_seconds: f64,
}

impl Replay {
    /// Replays the log of a run; a missing log counts as empty.
    pub fn read(run: &RunDir) -> Self {
        let text = uc_input::read(run.events_path(), MAX_LOG).unwrap_or_default();
        Self::from_text(&String::from_utf8_lossy(&text))
    }

    /// Replays the text of a log.
    pub fn from_text(text: &str) -> Self {
        let mut replay = Self::default();
        let values = text.lines().map(serde_json::from_str::<Value>);
        for value in values.flatten() {
            replay.apply(value);
        }
        replay
    }

    fn apply(&mut self, value: Value) {
        let name = value["event"].as_str().unwrap_or_default().to_owned();
        self.advance(&value, name == SESSION);
        match name.as_str() {
            SESSION => {
                self.interrupt_running_jobs();
                self.ended = None;
                self.paces.clear();
                (self.session_start, self.session_job_seconds) = (self.wall_seconds, 0.0);
            }
            EXPECTATION => self.expectation = serde_json::from_value(value).ok(),
            SESSION_END => {
                self.interrupt_running_jobs();
                self.ended = Some(value["ok"].as_bool().unwrap_or(false));
            }
            JOB_FAILURE => self.apply_failure(&value),
            JobStates::EVENT => {
                if let Ok(states) = serde_json::from_value::<JobStates>(value) {
                    self.apply_job_states(states);
                }
            }
            _ => {
                if let Ok(event) = serde_json::from_value::<Event>(value) {
                    self.apply_job_event(event);
                }
            }
        }
    }

    /// Advances the wall time to the time of a line; time between sessions does not count.
    fn advance(&mut self, value: &Value, is_session: bool) {
        let time = value["time"].as_str();
        let Some(time) = time.and_then(|time| humantime::parse_rfc3339(time).ok()) else {
            return;
        };
        if let Some(last) = self.last_event.filter(|_| !is_session) {
            self.wall_seconds += time.duration_since(last).unwrap_or_default().as_secs_f64();
        }
        self.last_event = Some(time);
    }

    /// Marks running jobs as waiting: when a session has ended, none of its jobs runs any more.
    pub fn interrupt_running_jobs(&mut self) {
        for job in self.jobs.values_mut() {
            if job.state == JobState::Running {
                job.state = JobState::Waiting;
                (job.progress, job.retry) = (None, None);
            }
        }
    }

    fn job(&mut self, stage: &str, unit: Unit) -> &mut JobView {
        let id = JobId {
            stage: stage.to_owned(),
            unit,
        };
        self.jobs.entry(id).or_insert(JobView {
            state: JobState::Waiting,
            progress: None,
            retry: None,
            started: 0.0,
            cost: None,
        })
    }

    fn apply_job_states(&mut self, logged: JobStates) {
        let states = [
            (JobState::Done, &logged.done),
            (JobState::Stale, &logged.stale),
            (JobState::Waiting, &logged.waiting),
        ];
        for (state, layers) in states {
            for &layer in layers {
                let job = self.job(&logged.stage, layer.map_or(Unit::Run, Unit::Layer));
                if job.state != JobState::Running {
                    job.state = state;
                }
            }
        }
    }

    fn apply_failure(&mut self, value: &Value) {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let unit = Unit::deserialize(value).unwrap_or(Unit::Run);
        let failure = FailureRecord {
            time: text("time"),
            stage: text("stage"),
            unit,
            class: text("class"),
            message: text("message"),
        };
        let job = self.job(&failure.stage, unit);
        (job.state, job.progress, job.retry) = (JobState::Failed, None, None);
        if self.failures.len() == MAX_FAILURES {
            self.failures.remove(0);
        }
        self.failures.push(failure);
    }

    fn apply_job_event(&mut self, event: Event) {
        let now = self.wall_seconds;
        let (stage, unit) = (event.stage, event.unit);
        match event.kind {
            EventKind::Started => {
                let job = self.job(&stage, unit);
                (job.state, job.progress, job.started) = (JobState::Running, None, now);
                job.retry = None;
                self.paces.entry(stage).or_insert(Pace {
                    started: now,
                    ends: VecDeque::new(),
                });
            }
            EventKind::Progress {
                done,
                total,
                unit: unit_name,
            } => {
                let job = self.job(&stage, unit);
                let progress = Progress {
                    done,
                    total,
                    unit: unit_name,
                };
                (job.progress, job.retry) = (Some(progress), None);
            }
            EventKind::Retrying {
                attempt,
                attempts,
                wait_seconds,
                error,
            } => {
                self.job(&stage, unit).retry = Some(Retry {
                    attempt,
                    attempts,
                    at: now + wait_seconds,
                    error,
                });
            }
            EventKind::Finished {
                seconds,
                peak_rss_bytes,
            } => {
                let job = self.job(&stage, unit);
                (job.state, job.progress, job.retry) = (JobState::Done, None, None);
                job.cost = Some((seconds.max(0.0), peak_rss_bytes));
                self.session_job_seconds += seconds.max(0.0);
                let pace = self.paces.entry(stage).or_default();
                if pace.ends.len() == RATE_WINDOW {
                    pace.ends.pop_front();
                }
                pace.ends.push_back(now);
            }
            EventKind::Failed { .. } => {
                let job = self.job(&stage, unit);
                (job.state, job.progress) = (JobState::Failed, None);
            }
            EventKind::Metric { name, value } if name == RECEIVED_BYTES => {
                self.received_bytes += value.as_u64().unwrap_or(0);
            }
            EventKind::Metric { .. } | EventKind::Note { .. } | EventKind::Retired { .. } => {}
        }
    }

    /// Cost of each stage; of a job that ran more than once, only the last completed attempt counts.
    pub fn costs(&self) -> BTreeMap<String, StageCost> {
        let mut stages: BTreeMap<String, StageCost> = BTreeMap::new();
        for (id, job) in &self.jobs {
            if let Some((seconds, peak)) = job.cost {
                let cost = stages.entry(id.stage.clone()).or_default();
                cost.jobs += 1;
                cost.seconds += seconds;
                cost.peak_rss_bytes = cost.peak_rss_bytes.max(peak);
            }
        }
        stages
    }

    /// The work of a stage of which `done` of `total` jobs are done, with the progress of its running jobs.
    pub fn stage_work(&self, stage: &str, done: u64, total: u64) -> StageWork {
        let jobs = || self.jobs.iter().filter(|(id, _)| id.stage == stage);
        let running = jobs().filter(|(_, job)| job.state == JobState::Running);
        let share = |progress: &Progress| progress.done as f64 / progress.total.max(1) as f64;
        let shares = running.filter_map(|(_, job)| job.progress.as_ref().map(share));
        let costs: Vec<f64> = jobs().filter_map(|(_, job)| Some(job.cost?.0)).collect();
        StageWork {
            name: stage.to_owned(),
            done: done as f64 + shares.map(|share| share.min(1.0)).sum::<f64>(),
            total: total as f64,
            measured_jobs: costs.len() as u64,
            measured_seconds: costs.iter().sum(),
        }
    }

    /// What the last session has worked until the wall time `now` of the run.
    pub fn session(&self, now: f64) -> Session {
        let running = self.jobs.values();
        let running = running.filter(|job| job.state == JobState::Running);
        Session {
            seconds: (now - self.session_start).max(0.0),
            job_seconds: self.session_job_seconds
                + running.map(|job| (now - job.started).max(0.0)).sum::<f64>(),
        }
    }

    /// Recent jobs of a stage per second in the last session, including the pauses between them; `None` before the first
    /// completion.
    pub fn rate(&self, stage: &str) -> Option<f64> {
        let pace = self.paces.get(stage)?;
        let last = pace.ends.back()?;
        let (jobs, seconds) = match pace.ends.len() {
            1 => (1, last - pace.started),
            count => (count - 1, last - pace.ends[0]),
        };
        (seconds > 0.0).then(|| jobs as f64 / seconds)
    }

    /// Estimated seconds for `jobs` more jobs of a stage: at its current rate, else at the mean of its completed jobs.
    pub fn seconds_for(&self, stage: &str, jobs: u64) -> Option<f64> {
        if jobs == 0 {
            return Some(0.0);
        }
        let by_rate = self.rate(stage).map(|rate| jobs as f64 / rate);
        by_rate.or_else(|| {
            let stage_jobs = self.jobs.iter().filter(|(id, _)| id.stage == stage);
            let seconds: Vec<f64> = stage_jobs
                .filter_map(|(_, job)| Some(job.cost?.0))
                .collect();
            let total = seconds.iter().sum::<f64>();
            (!seconds.is_empty()).then(|| jobs as f64 * total / seconds.len() as f64)
        })
    }
}

#[cfg(test)]
mod tests;
