//! `uc status RUN`: the state of a run, once or repeatedly. Hashes no outputs; `uc plan` does.
//!
//! Receipts determine what is done; the event log determines what is running, how fast, and what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::time::{Duration, SystemTime};

use camino::Utf8Path;
use uc_settings::SourceRetention;
use uc_store::output;
use uc_store::plan::{JobId, Per, Plan, StagePlan};
use uc_store::run::RunDir;

use crate::cli::StatusArgs;
use crate::report::colour::{print_report, report};
use crate::report::completion::completed_jobs;
use crate::report::event_log_replay::{JobState, Replay};
use crate::report::json::print_json;
use crate::report::outlook::{StageWork, outlook};
use crate::report::terminal;

mod disk;
mod text;
mod view;

use view::{RunState, Running, ShardsStatus, StageStatus, Status};

/// Runs the verb.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let mut first = true;
    loop {
        // Everything is read again each time: even the plan may have changed.
        let (run, plan) = RunDir::open(&args.run)?;
        let status = read_status(&run, &plan)?;
        show(&status, args, first)?;
        if !args.watch || !status.active || output::is_closed() {
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
            output::print_line(serde_json::to_string(status)?);
            Ok(())
        }
        (false, false) => {
            let size = terminal::size(std::io::stdout());
            let columns = size.map(|size| size.columns);
            print_report(&text::render(status, columns));
            Ok(())
        }
        (false, true) => {
            match terminal::size(std::io::stdout()) {
                Some(size) => draw_in_place(&text::render_fitting(status, size)),
                None if first => print_report(&text::render(status, None)),
                None => print_report(&format!("\n{}", text::render(status, None))),
            }
            Ok(())
        }
    }
}

/// Draws a text over the one before it: every line is overwritten to its end, and what is below is cleared. Nothing is
/// cleared before, so the table does not flicker.
fn draw_in_place(text: &str) {
    let lines = report(text).replace('\n', "\x1b[K\n");
    output::print(format_args!("\x1b[H{lines}\x1b[J"));
}

fn read_status(run: &RunDir, plan: &Plan) -> anyhow::Result<Status> {
    let active = is_locked(&run.root().join("lock"));
    let observed = Observation {
        root: run.root(),
        process: active.then(|| run.lock_holder()).flatten(),
        active,
        done: completed_jobs(run, plan)?,
        disk: disk::measure(run, plan),
        now: SystemTime::now(),
    };
    let mut status = assess(plan, Replay::read(run), observed);
    for stage in &mut status.stages {
        stage.metrics = metrics(run, plan, &stage.name);
    }
    Ok(status)
}

/// What is known about a run besides its log.
struct Observation<'a> {
    root: &'a Utf8Path,
    active: bool,
    process: Option<u32>,
    /// The jobs whose receipts are up to date.
    done: BTreeSet<JobId>,
    disk: disk::Disk,
    now: SystemTime,
}

/// Combines plan, log and observation; reads nothing else.
fn assess(plan: &Plan, mut replay: Replay, observed: Observation<'_>) -> Status {
    // The clock may have been set back since the last event.
    let silent = |last: SystemTime| observed.now.duration_since(last).unwrap_or_default();
    let silent_seconds = replay
        .last_event
        .filter(|_| observed.active)
        .map(|last| silent(last).as_secs_f64());
    if !observed.active {
        replay.interrupt_running_jobs();
    }
    let stages = stage_statuses(plan, &replay, &observed);
    let required = || stages.iter().filter(|stage| !stage.optional);
    let (done, total) = (
        required().map(|stage| stage.done).sum(),
        required().map(|stage| stage.total).sum(),
    );
    let now = replay.wall_seconds + silent_seconds.unwrap_or(0.0);
    let running = replay
        .jobs
        .iter()
        .filter(|(_, job)| job.state == JobState::Running)
        .map(|(id, job)| Running {
            stage: id.stage.clone(),
            unit: id.unit,
            seconds: now - job.started,
            view: job.clone(),
        })
        .collect();
    let works: Vec<StageWork> = required()
        .map(|stage| replay.stage_work(&stage.name, stage.done, stage.total))
        .collect();
    let outlook = outlook(&works, replay.expectation.as_ref(), replay.session(now));
    Status {
        run: observed.root.to_owned(),
        model: plan.model.name.clone(),
        hub: plan.model.hub.clone(),
        shards: shards(plan, replay.received_bytes),
        layers: plan.model.layers,
        pack: observed.root.join(&plan.pack_dir),
        state: match (observed.active, done == total, replay.ended) {
            (true, ..) => RunState::Running,
            (false, true, _) => RunState::Complete,
            (false, false, Some(_)) => RunState::Stopped,
            (false, false, None) => RunState::Died,
        },
        active: observed.active,
        process: observed.process,
        done,
        total,
        wall_seconds: now,
        silent_seconds,
        share: outlook.share,
        seconds_left: outlook.seconds_left,
        seconds_left_partial: outlook.is_partial,
        disk: observed.disk,
        stages,
        running,
        failures: replay.failures,
    }
}

/// The state of every stage that works per layer or per run, in plan order.
fn stage_statuses(plan: &Plan, replay: &Replay, observed: &Observation<'_>) -> Vec<StageStatus> {
    let costs = replay.costs();
    plan.stages
        .iter()
        .filter(|stage| stage.per != Per::Shard)
        .map(|stage| {
            let jobs = job_states(plan, stage, replay, &observed.done);
            let done = jobs.iter().filter(|state| **state == JobState::Done);
            let (done, total) = (done.count() as u64, jobs.len() as u64);
            StageStatus {
                name: stage.name.clone(),
                optional: stage.optional,
                done,
                total,
                rate: replay.rate(&stage.name).filter(|_| observed.active),
                seconds_left: jobs
                    .contains(&JobState::Running)
                    .then(|| replay.seconds_for(&stage.name, total - done))
                    .flatten(),
                jobs,
                cost: costs.get(&stage.name).cloned().unwrap_or_default(),
                metrics: BTreeMap::new(),
            }
        })
        .collect()
}

/// The shards, if they are fetched on demand; checks which files exist.
fn shards(plan: &Plan, received_bytes: u64) -> Option<ShardsStatus> {
    let retention = &plan.settings.retention;
    let stage = plan.fetcher();
    let mut status = ShardsStatus {
        stage: stage.map_or_else(String::new, |stage| stage.name.clone()),
        files: BTreeMap::new(),
        total: 0,
        present: 0,
        total_bytes: 0,
        present_bytes: 0,
        budget: (retention.source == SourceRetention::Evict).then_some(retention.budget.0),
        received_bytes,
    };
    for (shard, file) in plan.shards() {
        let name = file.path.file_name().unwrap_or_default();
        status.files.insert(shard as u32, name.to_owned());
        let is_present = file.path.exists();
        status.total += 1;
        status.total_bytes += file.size;
        status.present += usize::from(is_present);
        status.present_bytes += if is_present { file.size } else { 0 };
    }
    (status.total > 0).then_some(status)
}

/// State of every job of a stage: receipts determine what is done, the log the state of the others.
fn job_states(
    plan: &Plan,
    stage: &StagePlan,
    replay: &Replay,
    done: &BTreeSet<JobId>,
) -> Vec<JobState> {
    let units = stage.units(plan.model.layers).into_iter();
    units
        .map(|unit| {
            let id = JobId {
                stage: stage.name.clone(),
                unit,
            };
            let logged = replay.jobs.get(&id).map(|job| job.state);
            match (logged, done.contains(&id)) {
                (Some(JobState::Running), _) => JobState::Running,
                // It has to be repeated, because a later job needs its deleted outputs.
                (Some(JobState::Stale), true) => JobState::Stale,
                (_, true) => JobState::Done,
                (Some(JobState::Done), false) => JobState::Stale,
                (logged, false) => logged.unwrap_or(JobState::Waiting),
            }
        })
        .collect()
}

/// Metrics of a stage's jobs, by layer.
fn metrics(run: &RunDir, plan: &Plan, stage: &str) -> BTreeMap<String, serde_json::Value> {
    let jobs = plan.jobs().into_iter().filter(|id| id.stage == stage);
    jobs.filter_map(|id| {
        let metrics = uc_input::read_json(run.metrics_path(&id), uc_input::SMALL_JSON).ok()?;
        Some((id.unit.file_name(), metrics))
    })
    .collect()
}

/// Whether a driver holds the lock; a shared lock is tried and released at once.
fn is_locked(path: &Utf8Path) -> bool {
    let Ok(file) = uc_input::open(path) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests;
