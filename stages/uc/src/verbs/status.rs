//! `uc status RUN`: where a run stands, once or again and again. Hashes no outputs: that is `uc plan`'s work.
//!
//! What is done the receipts say; what runs, how fast, and what went wrong the log of events says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use uc_settings::SourceRetention;
use uc_store::plan::{HubSource, JobId, Per, Plan, StagePlan, Unit};
use uc_store::run::RunDir;

use crate::cli::StatusArgs;
use crate::report::event_log_replay::{History, JobState, JobView, Mishap, StageCost};
use crate::report::event_log_writer;
use crate::session;
use crate::verbs::print_json;

mod disk;
mod text;

/// The state of a run.
#[derive(Debug, Serialize)]
struct Status {
    run: Utf8PathBuf,
    model: String,
    /// Repository and commit of a model of the Hub.
    hub: Option<HubSource>,
    /// The shards of a source that comes and goes.
    shards: Option<ShardsStatus>,
    layers: u32,
    pack: Utf8PathBuf,
    state: RunState,
    /// Whether a driver works on it now.
    active: bool,
    /// The driver, while it works.
    process: Option<u32>,
    done: u64,
    total: u64,
    wall_seconds: f64,
    /// Since the driver or a stage last said something, while a driver works.
    silent_seconds: Option<f64>,
    /// Seconds that the slowest stage still takes; the run takes at least as long.
    seconds_left: Option<f64>,
    /// Whether a stage that has work left has no figure yet, so that more may be left than is said.
    seconds_left_partial: bool,
    disk: disk::Disk,
    stages: Vec<StageStatus>,
    running: Vec<Running>,
    mishaps: Vec<Mishap>,
}

/// How a source stands whose shards come and go.
#[derive(Debug, Serialize)]
struct ShardsStatus {
    /// The stage that fetches them, and their files by the number of its job.
    stage: String,
    files: BTreeMap<u32, String>,
    /// Number of shards, and of those on disk.
    total: usize,
    here: usize,
    /// Bytes of all, and of those on disk.
    total_bytes: u64,
    here_bytes: u64,
    /// What they may take; none where they stay once they are here.
    budget: Option<u64>,
    /// Bytes that came from the Hub in all sessions.
    received: u64,
}

/// How a run stands as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum RunState {
    /// Everything is done.
    Complete,
    /// A driver is at work.
    Running,
    /// The last session ended in order before everything was done.
    Stopped,
    /// The last session left no word of its end: its driver was killed, or the machine went down.
    Died,
}

/// The state of one stage.
#[derive(Debug, Serialize)]
struct StageStatus {
    name: String,
    optional: bool,
    done: u64,
    total: u64,
    /// State of every job, layer by layer.
    jobs: Vec<JobState>,
    /// Jobs per second in this session.
    rate: Option<f64>,
    seconds_left: Option<f64>,
    /// What its jobs took, by the log of events.
    cost: StageCost,
    /// What its jobs reported of themselves, by layer.
    metrics: BTreeMap<String, serde_json::Value>,
}

/// A job in progress.
#[derive(Debug, Serialize)]
struct Running {
    stage: String,
    #[serde(flatten)]
    unit: Unit,
    seconds: f64,
    #[serde(flatten)]
    view: JobView,
}

/// Runs the verb.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let mut first = true;
    loop {
        // Everything is read anew each time: the plan too may be another by now.
        let (run, plan) = RunDir::open(&args.run)?;
        let status = look(&run, &plan)?;
        show(&status, args, first)?;
        if !args.watch || !status.active {
            return Ok(());
        }
        first = false;
        std::thread::sleep(Duration::from_secs(args.interval.into()));
    }
}

fn show(status: &Status, args: &StatusArgs, first: bool) -> anyhow::Result<()> {
    match (args.json, args.watch) {
        (true, false) => print_json(status),
        (true, true) => {
            println!("{}", serde_json::to_string(status)?);
            Ok(())
        }
        (false, _) => {
            let mut out = std::io::stdout().lock();
            let text = text::of(status);
            match (args.watch && out.is_terminal(), first) {
                // Cursor home, clear the screen: the table stays in its place.
                (true, _) => write!(out, "\x1b[H\x1b[2J{text}")?,
                (false, true) => write!(out, "{text}")?,
                (false, false) => write!(out, "\n{text}")?,
            }
            Ok(out.flush()?)
        }
    }
}

fn look(run: &RunDir, plan: &Plan) -> anyhow::Result<Status> {
    let active = is_locked(&run.root().join("lock"));
    let seen = Seen {
        root: run.root(),
        process: active.then(|| run.lock_holder()).flatten(),
        active,
        done: session::done(run, plan)?,
        disk: disk::measure(run, plan),
        now: SystemTime::now(),
    };
    let mut status = assess(plan, event_log_writer::history(run), seen);
    for stage in &mut status.stages {
        stage.metrics = metrics(run, plan, &stage.name);
    }
    Ok(status)
}

/// What was seen of a run besides its log.
struct Seen<'a> {
    root: &'a Utf8Path,
    active: bool,
    process: Option<u32>,
    /// The jobs whose receipts are up to date.
    done: BTreeSet<JobId>,
    disk: disk::Disk,
    now: SystemTime,
}

/// Puts together plan, log and what was seen; reads nothing.
fn assess(plan: &Plan, mut history: History, seen: Seen<'_>) -> Status {
    // The clock may have been set back since the last event.
    let silent = |last: SystemTime| seen.now.duration_since(last).unwrap_or_default();
    let silent_seconds = history
        .last
        .filter(|_| seen.active)
        .map(|last| silent(last).as_secs_f64());
    if !seen.active {
        history.cut_off();
    }
    let costs = history.costs();
    let stages: Vec<StageStatus> = plan
        .stages
        .iter()
        .filter(|stage| stage.per != Per::Shard)
        .map(|stage| {
            let jobs = job_states(plan, stage, &history, &seen.done);
            let done = jobs.iter().filter(|state| **state == JobState::Done);
            let (done, total) = (done.count() as u64, jobs.len() as u64);
            StageStatus {
                name: stage.name.clone(),
                optional: stage.optional,
                done,
                total,
                jobs,
                rate: history.rate(&stage.name).filter(|_| seen.active),
                seconds_left: history.seconds_for(&stage.name, total - done),
                cost: costs.get(&stage.name).cloned().unwrap_or_default(),
                metrics: BTreeMap::new(),
            }
        })
        .collect();
    let counted = || stages.iter().filter(|stage| !stage.optional);
    let (done, total) = (
        counted().map(|stage| stage.done).sum(),
        counted().map(|stage| stage.total).sum(),
    );
    let now = history.wall_seconds + silent_seconds.unwrap_or(0.0);
    let running = history
        .jobs
        .iter()
        .filter(|(_, job)| job.state == JobState::Running)
        .map(|(id, job)| Running {
            stage: id.stage.clone(),
            unit: id.unit,
            seconds: now - job.began,
            view: job.clone(),
        })
        .collect();
    let known = counted().filter_map(|stage| stage.seconds_left);
    Status {
        run: seen.root.to_owned(),
        model: plan.model.name.clone(),
        hub: plan.model.hub.clone(),
        shards: shards(plan, history.received),
        layers: plan.model.layers,
        pack: seen.root.join(&plan.pack_dir),
        state: match (seen.active, done == total, history.ended) {
            (true, ..) => RunState::Running,
            (false, true, _) => RunState::Complete,
            (false, false, Some(_)) => RunState::Stopped,
            (false, false, None) => RunState::Died,
        },
        active: seen.active,
        process: seen.process,
        done,
        total,
        wall_seconds: now,
        silent_seconds,
        seconds_left: known.reduce(f64::max),
        seconds_left_partial: counted().any(|stage| stage.seconds_left.is_none()),
        disk: seen.disk,
        stages,
        running,
        mishaps: history.mishaps,
    }
}

/// The shards, if they come and go; looks at the files.
fn shards(plan: &Plan, received: u64) -> Option<ShardsStatus> {
    let retention = &plan.settings.retention;
    let stage = plan.fetcher();
    let mut status = ShardsStatus {
        stage: stage.map_or_else(String::new, |stage| stage.name.clone()),
        files: BTreeMap::new(),
        total: 0,
        here: 0,
        total_bytes: 0,
        here_bytes: 0,
        budget: (retention.source == SourceRetention::Evict).then_some(retention.budget.0),
        received,
    };
    for (shard, file) in plan.shards() {
        let name = file.path.file_name().unwrap_or_default();
        status.files.insert(shard as u32, name.to_owned());
        let is_here = file.path.exists();
        status.total += 1;
        status.total_bytes += file.size;
        status.here += usize::from(is_here);
        status.here_bytes += if is_here { file.size } else { 0 };
    }
    (status.total > 0).then_some(status)
}

/// State of every job of a stage: the receipts say what is done, the log what became of the others.
fn job_states(
    plan: &Plan,
    stage: &StagePlan,
    history: &History,
    done: &BTreeSet<JobId>,
) -> Vec<JobState> {
    let units = stage.units(plan.model.layers).into_iter();
    units
        .map(|unit| {
            let id = JobId {
                stage: stage.name.clone(),
                unit,
            };
            let logged = history.jobs.get(&id).map(|job| job.state);
            match (logged, done.contains(&id)) {
                (Some(JobState::Running), _) => JobState::Running,
                // Made again for a later job that needs its deleted outputs.
                (Some(JobState::Stale), true) => JobState::Stale,
                (_, true) => JobState::Done,
                (Some(JobState::Done), false) => JobState::Stale,
                (logged, false) => logged.unwrap_or(JobState::Waiting),
            }
        })
        .collect()
}

fn metrics(run: &RunDir, plan: &Plan, stage: &str) -> BTreeMap<String, serde_json::Value> {
    let jobs = plan.jobs().into_iter().filter(|id| id.stage == stage);
    jobs.filter_map(|id| {
        let text = std::fs::read(run.metrics_path(&id)).ok()?;
        Some((id.unit.file_name(), serde_json::from_slice(&text).ok()?))
    })
    .collect()
}

/// Whether a driver holds the lock; asks without taking it for longer than the question.
fn is_locked(path: &Utf8Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests;
