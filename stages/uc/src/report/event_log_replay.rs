//! What `events.jsonl` tells of a run: the state of every job, rates and what went wrong, rebuilt from its lines alone.
//!
//! A pure function of the text. Lines that a crash cut and events of kinds that this program does not know are skipped.
//! Time is counted from line to line within a session; a clock that was set back adds nothing, so no duration is
//! negative.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uc_store::events::{Event, EventKind};
use uc_store::plan::{JobId, Unit};

/// Ends of jobs over which a rate is taken, the last ones.
const PACE: usize = 5;
/// Mishaps that are remembered, the last ones.
const MISHAPS: usize = 5;

/// Where a job stands, for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Its outputs are recorded.
    Done,
    /// It was not begun, or it was begun and cut off.
    Waiting,
    /// It was done before and has to be done again.
    Stale,
    /// It runs.
    Running,
    /// Its last try failed.
    Failed,
}

/// How far a job says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// What a unit is.
    pub unit: String,
}

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retry {
    /// The attempt that comes, or that is under way.
    pub attempt: u32,
    /// Attempts in a row that are allowed.
    pub attempts: u32,
    /// Wall time of the run at which it begins or began.
    pub at: f64,
    /// What failed.
    pub error: String,
}

/// What is known of one job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobView {
    /// Where it stands.
    pub state: JobState,
    /// What it said last, while it runs.
    pub progress: Option<Progress>,
    /// What failed on its way and is tried again, until it moves on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Wall time of the run at which its last try began.
    pub began: f64,
    /// What its last complete try took, seconds and peak memory in bytes.
    #[serde(skip)]
    pub took: Option<(f64, u64)>,
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mishap {
    /// When, as the log says it.
    pub time: String,
    /// Stage name.
    pub stage: String,
    /// What the job worked on.
    #[serde(flatten)]
    pub unit: Unit,
    /// Class of the failure.
    pub class: String,
    /// What was said.
    pub message: String,
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

/// How fast a stage is in the session that is described.
#[derive(Debug, Clone, Default, PartialEq)]
struct Pace {
    /// When its first job began.
    began: f64,
    /// When its last few jobs ended, oldest first: a stage that waited for others once is not slow for ever.
    ends: VecDeque<f64>,
}

/// A run, as its log tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Every job that was mentioned.
    pub jobs: BTreeMap<JobId, JobView>,
    /// The last tries that failed, oldest first.
    pub mishaps: Vec<Mishap>,
    /// Seconds from the first to the last event of each session, summed.
    pub wall_seconds: f64,
    /// How the last session ended; `None` while it goes on, or when nothing was left to say so.
    pub ended: Option<bool>,
    /// Bytes that came from the Hub.
    pub received: u64,
    /// Time of the last event.
    pub last: Option<SystemTime>,
    paces: BTreeMap<String, Pace>,
}

/// What the driver notes of jobs whose state it decides without running them; lists of layers, null for a run's job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Stage name.
    pub stage: String,
    /// Good as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Option<u32>>,
    /// To be done again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<Option<u32>>,
    /// To be done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Option<u32>>,
}

impl Found {
    /// Name of the event.
    pub const EVENT: &str = "found";
}

/// Name of the event with which a driver opens a session.
pub const SESSION: &str = "session";
/// Name of the event with which it ends one.
pub const SESSION_END: &str = "session-end";
/// Name of the event of a try that failed.
pub const MISHAP: &str = "mishap";

/// The figure by which a job says how many bytes it received from the Hub.
const RECEIVED: &str = "bytes received";

impl History {
    /// Reads a log.
    pub fn of(text: &str) -> Self {
        let mut history = Self::default();
        let values = text.lines().map(serde_json::from_str::<Value>);
        for value in values.flatten() {
            history.take(value);
        }
        history
    }

    fn take(&mut self, value: Value) {
        let name = value["event"].as_str().unwrap_or_default().to_owned();
        self.advance(&value, name == SESSION);
        match name.as_str() {
            SESSION => {
                self.cut_off();
                self.ended = None;
                self.paces.clear();
            }
            SESSION_END => {
                self.cut_off();
                self.ended = Some(value["ok"].as_bool().unwrap_or(false));
            }
            MISHAP => self.mishap(&value),
            Found::EVENT => {
                if let Ok(found) = serde_json::from_value::<Found>(value) {
                    self.found(found);
                }
            }
            _ => {
                if let Ok(event) = serde_json::from_value::<Event>(value) {
                    self.event(event);
                }
            }
        }
    }

    /// Counts time on to a line; between sessions none passes.
    fn advance(&mut self, value: &Value, is_session: bool) {
        let time = value["time"].as_str();
        let Some(time) = time.and_then(|time| humantime::parse_rfc3339(time).ok()) else {
            return;
        };
        if let Some(last) = self.last.filter(|_| !is_session) {
            self.wall_seconds += time.duration_since(last).unwrap_or_default().as_secs_f64();
        }
        self.last = Some(time);
    }

    /// What ran when the last session ended does not run any more.
    pub fn cut_off(&mut self) {
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
            began: 0.0,
            took: None,
        })
    }

    fn found(&mut self, found: Found) {
        let states = [
            (JobState::Done, &found.done),
            (JobState::Stale, &found.stale),
            (JobState::Waiting, &found.waiting),
        ];
        for (state, layers) in states {
            for &layer in layers {
                let job = self.job(&found.stage, layer.map_or(Unit::Run, Unit::Layer));
                if job.state != JobState::Running {
                    job.state = state;
                }
            }
        }
    }

    fn mishap(&mut self, value: &Value) {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let unit = Unit::deserialize(value).unwrap_or(Unit::Run);
        let mishap = Mishap {
            time: text("time"),
            stage: text("stage"),
            unit,
            class: text("class"),
            message: text("message"),
        };
        let job = self.job(&mishap.stage, unit);
        (job.state, job.progress, job.retry) = (JobState::Failed, None, None);
        if self.mishaps.len() == MISHAPS {
            self.mishaps.remove(0);
        }
        self.mishaps.push(mishap);
    }

    fn event(&mut self, event: Event) {
        let now = self.wall_seconds;
        let (stage, unit) = (event.stage, event.unit);
        match event.kind {
            EventKind::Started => {
                let job = self.job(&stage, unit);
                (job.state, job.progress, job.began) = (JobState::Running, None, now);
                job.retry = None;
                self.paces.entry(stage).or_insert(Pace {
                    began: now,
                    ends: VecDeque::new(),
                });
            }
            EventKind::Progress {
                done,
                total,
                unit: counted,
            } => {
                let job = self.job(&stage, unit);
                let progress = Progress {
                    done,
                    total,
                    unit: counted,
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
                job.took = Some((seconds.max(0.0), peak_rss_bytes));
                let pace = self.paces.entry(stage).or_default();
                if pace.ends.len() == PACE {
                    pace.ends.pop_front();
                }
                pace.ends.push_back(now);
            }
            EventKind::Failed { .. } => {
                let job = self.job(&stage, unit);
                (job.state, job.progress) = (JobState::Failed, None);
            }
            EventKind::Metric { name, value } if name == RECEIVED => {
                self.received += value.as_u64().unwrap_or(0);
            }
            EventKind::Metric { .. } | EventKind::Retired { .. } => {}
        }
    }

    /// What each stage took; a job that was done again counts as it was done last.
    pub fn costs(&self) -> BTreeMap<String, StageCost> {
        let mut stages: BTreeMap<String, StageCost> = BTreeMap::new();
        for (id, job) in &self.jobs {
            if let Some((seconds, peak)) = job.took {
                let cost = stages.entry(id.stage.clone()).or_default();
                cost.jobs += 1;
                cost.seconds += seconds;
                cost.peak_rss_bytes = cost.peak_rss_bytes.max(peak);
            }
        }
        stages
    }

    /// Jobs of a stage per second, of late in the last session, pauses between them counted; `None` before there is one.
    pub fn rate(&self, stage: &str) -> Option<f64> {
        let pace = self.paces.get(stage)?;
        let last = pace.ends.back()?;
        let (jobs, seconds) = match pace.ends.len() {
            1 => (1, last - pace.began),
            count => (count - 1, last - pace.ends[0]),
        };
        (seconds > 0.0).then(|| jobs as f64 / seconds)
    }

    /// Seconds that `jobs` more jobs of a stage take: at its rate, else at the mean of what its jobs took before.
    pub fn seconds_for(&self, stage: &str, jobs: u64) -> Option<f64> {
        if jobs == 0 {
            return Some(0.0);
        }
        let by_rate = self.rate(stage).map(|rate| jobs as f64 / rate);
        by_rate.or_else(|| {
            let of_stage = self.jobs.iter().filter(|(id, _)| id.stage == stage);
            let took: Vec<f64> = of_stage.filter_map(|(_, job)| Some(job.took?.0)).collect();
            (!took.is_empty()).then(|| jobs as f64 * took.iter().sum::<f64>() / took.len() as f64)
        })
    }
}

#[cfg(test)]
mod tests;
