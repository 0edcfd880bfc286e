//! How a stage program runs its jobs: one from the command line, or those that the driver sends.
//!
//! Owns the locks that a stage process holds and its tie to the driver. The job itself is in [`Job`].

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::Context;

use super::{Job, Program, StageArgs, Task, classify};
use crate::error::StoreError;
use crate::events::{Event, EventKind, JobRequest};
use crate::output;
use crate::plan::{JobId, Plan, StagePlan};
use crate::resources;
use crate::run::{RunDir, parent_process};
use crate::source::Verified;

/// Runs one job that was started by hand.
pub(super) fn run_one_job(
    program: Program,
    args: &StageArgs,
    task: &mut Task,
) -> anyhow::Result<()> {
    let (run, plan, stage) = open(program, args, task)?;
    let _run_lock = run.lock_by_hand()?;
    if _run_lock.is_none() {
        // `uc stage` holds the lock. If it dies, this process must not write next to another driver.
        die_with_parent(&run)?;
    }
    let _lock = run.stage_lock(&stage)?;
    let unit = plan
        .stage(&stage)
        .expect("`open` found the stage")
        .unit(args.layer);
    let id = JobId { stage, unit };
    let mut print_metric = |event: Event| {
        if let EventKind::Metric { name, value } = event.kind {
            output::print_line(format_args!("{name}: {value}"));
        }
    };
    execute(
        &run,
        &plan,
        &id,
        task,
        &mut Verified::default(),
        &mut print_metric,
    )
}

/// Runs the jobs that the driver sends, until standard input ends.
pub(super) fn run_jobs(program: Program, args: &StageArgs, task: &mut Task) -> anyhow::Result<()> {
    let (run, plan, stage) = open(program, args, task)?;
    die_with_parent(&run)?;
    let _lock = run.stage_lock(&stage)?;
    let mut verified = Verified::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read jobs from standard input")?;
        let request: JobRequest = serde_json::from_str(&line)
            .with_context(|| format!("job request `{line}`, expected {{\"layer\": N}}"))?;
        let id = JobId {
            stage: stage.clone(),
            unit: request.unit,
        };
        if let Err(error) = execute(&run, &plan, &id, task, &mut verified, &mut emit) {
            let message = output::error_text(&error);
            output::print_message(format_args!("error: {id}: {message}"));
            let class = classify(program, &error);
            emit(Event {
                stage: id.stage,
                unit: id.unit,
                kind: EventKind::Failed { class, message },
            });
        }
    }
    Ok(())
}

/// Opens the run directory and finds the stage; returns the run, its plan and the name of the stage.
fn open(program: Program, args: &StageArgs, task: &Task) -> anyhow::Result<(RunDir, Plan, String)> {
    let root = args.run.as_deref().context("--run is required")?;
    let (run, plan) = RunDir::open(root)?;
    let runs_this_task = |stage: &&StagePlan| {
        let task_name = stage.argv.get(1).map_or("", String::as_str);
        let binary = stage.argv.first().map_or("", String::as_str);
        let binary = binary.rsplit('/').next().unwrap_or(binary);
        binary == program.name && task_name == task.name
    };
    let stage = match &args.stage {
        Some(name) => plan.stage(name),
        None => plan.stages.iter().find(runs_this_task),
    };
    let Some(stage) = stage else {
        let known: Vec<_> = plan.stages.iter().map(|s| s.name.as_str()).collect();
        return Err(StoreError::Unknown {
            kind: "stage",
            name: args
                .stage
                .clone()
                .unwrap_or_else(|| format!("{} {}", program.name, task.name)),
            known: known.join(", "),
        }
        .into());
    };
    let name = stage.name.clone();
    Ok((run, plan, name))
}

/// Asks the kernel to kill this process when its parent dies.
///
/// # Errors
/// If the kernel refuses.
pub fn end_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot tie this process to its driver")
}

/// Ties this process to its driver: an orphan would write checkpoints next to a resumed run.
fn die_with_parent(run: &RunDir) -> anyhow::Result<()> {
    end_with_parent()?;
    // If the driver died before that call, no signal comes. Then the parent is no longer the process named in the lock.
    let holder = run.lock_holder();
    anyhow::ensure!(
        holder.is_none() || holder == parent_process(),
        "the driver that started this process is gone"
    );
    Ok(())
}

/// Writes an event to standard output.
fn emit(event: Event) {
    let line = serde_json::to_string(&event).expect("events are plain data");
    let mut out = std::io::stdout().lock();
    // A closed pipe means that the driver is gone; the death signal ends this process.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Runs one job, from the verification of its inputs to its receipt.
pub(super) fn execute(
    run: &RunDir,
    plan: &Plan,
    id: &JobId,
    task: &mut Task,
    verified: &mut Verified,
    emit: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut job = Job::begin(run, plan, id, verified, emit)?;
    job.event(EventKind::Started);
    let _span = tracing::info_span!("job", stage = %id.stage, unit = %id.unit).entered();
    tracing::info!("started");
    (task.work)(&mut job)?;
    job.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let peak_rss_bytes = resources::peak_rss_bytes();
    tracing::info!(seconds, peak_rss_bytes, "finished");
    emit(Event {
        stage: id.stage.clone(),
        unit: id.unit,
        kind: EventKind::Finished {
            seconds,
            peak_rss_bytes,
        },
    });
    Ok(())
}
