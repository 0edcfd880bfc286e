//! What the driver does with messages of workers: finished jobs, failed attempts, retries, stalled processes.

use std::time::{Duration, Instant};

use uc_store::ExitCode;
use uc_store::events::{Event, EventKind};
use uc_store::freshness::{self, Freshness, Reason};
use uc_store::plan::JobId;
use uc_store::receipt::{Key, Receipt};
use uc_store::sha::Sha256Digest;

use super::{Driver, EXIT_TIMEOUT};
use crate::process::runner::{Message, Worker, WorkerId};
use crate::report::event_log::{JOB_FAILURE, JobStates};
use crate::report::failure::failure;
use crate::schedule::scheduler::Status;
use crate::schedule::shards::ShardState;

/// Pause before a stage whose lock is held by another process is started again.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Why an attempt at a job failed.
#[derive(Debug)]
struct JobFailure {
    class: ExitCode,
    message: String,
    /// Whether another attempt at the same input may succeed.
    may_retry: bool,
}

impl Driver<'_> {
    pub(super) fn handle(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Event { worker, event } if self.is_current(&worker) => self.on_event(event),
            Message::StrayOutput { worker, line } => {
                self.display.detail(&format!("{}: {line}", worker.stage));
                Ok(())
            }
            Message::Log { stage, line } => {
                self.display.detail(&format!("{stage}: {line}"));
                Ok(())
            }
            Message::Closed(worker) if self.is_current(&worker) => {
                let mut worker = self.workers.remove(&worker.stage).expect("current");
                let exit = worker.wait(EXIT_TIMEOUT);
                let class = exit.class();
                if class == ExitCode::Locked {
                    // The stage of a driver that was killed may still be exiting.
                    std::thread::sleep(LOCK_PAUSE);
                }
                let failed = JobFailure {
                    class,
                    message: exit.to_string(),
                    may_retry: class.is_transient() || class == ExitCode::Locked,
                };
                self.on_failure(&worker, failed)
            }
            Message::Signal => self.interrupt(),
            // From a process that was replaced.
            Message::Event { .. } | Message::Closed(_) => Ok(()),
        }
    }

    fn is_current(&self, id: &WorkerId) -> bool {
        self.workers
            .get(&id.stage)
            .is_some_and(|worker| worker.id() == id)
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        self.log.write_job_event(&event);
        let Some(job) = self.jobs.get_mut(&event.stage) else {
            return Ok(());
        };
        job.last_event = Instant::now();
        let id = job.id.clone();
        match event.kind {
            EventKind::Started => self.display.job_started(&id),
            EventKind::Progress { done, total, unit } => {
                self.display.job_progress(&id, done, total, &unit);
            }
            EventKind::Retrying {
                attempt,
                attempts,
                wait_seconds,
                error,
            } => {
                if wait_seconds > 0.0 {
                    let title = self.display.title(&id);
                    self.display.warn(&format!(
                        "{title}: {error}; attempt {attempt} of {attempts} in {wait_seconds:.1} s"
                    ));
                }
            }
            EventKind::Note { message } => {
                let title = self.display.title(&id);
                let message = uc_input::printable(&message);
                self.display.info(&format!("{title}: {message}"));
            }
            EventKind::Metric { name, value } => {
                self.display.detail(&format!("{id}: {name} = {value}"));
            }
            EventKind::Finished { seconds, .. } => self.on_finished(&id, seconds)?,
            EventKind::Failed { class, message } => {
                let mut worker = self.workers.remove(&id.stage).expect("sent this event");
                // The next attempt gets a new process, which carries over no damaged state.
                worker.close();
                worker.wait(EXIT_TIMEOUT);
                let failed = JobFailure {
                    class,
                    message,
                    may_retry: class.is_transient(),
                };
                self.on_failure(&worker, failed)?;
            }
            EventKind::Retired { .. } => {}
        }
        Ok(())
    }

    /// A job published its outputs: its readers may start, and inputs without further readers may be deleted.
    fn on_finished(&mut self, id: &JobId, seconds: f64) -> anyhow::Result<()> {
        let key_before = self.jobs.remove(&id.stage).and_then(|job| job.key);
        self.shards_outdated = true;
        if let Some(source) = &mut self.source
            && let Some(shard) = source.fetched_by(id)
        {
            source.shards.set(shard, ShardState::Present);
            source.retries = 0;
            self.display.job_done(id, Some(seconds));
            return Ok(());
        }
        let Some(receipt) = Receipt::read(self.run, id)? else {
            let message = format!("{id} reported that it finished, but left no receipt");
            return Err(failure(ExitCode::Internal, message));
        };
        let key = self.key(id)?;
        if key.as_ref() != Some(&receipt.key) {
            if let Some(key) = key.filter(|key| Some(key) == key_before.as_ref()) {
                return Err(other_build(id, &receipt.key, &key));
            }
            // An input was made again with other bytes while the job ran.
            self.scheduler.set(id, Status::Stale);
            let layers = vec![id.unit.layer()];
            self.log.write_job_states(&JobStates {
                stage: id.stage.clone(),
                stale: layers,
                ..JobStates::default()
            });
            return Ok(());
        }
        let changed = self.record_digests(&receipt);
        self.work.states.insert(id.clone(), Freshness::Fresh);
        self.scheduler.set(id, Status::Done);
        self.display.job_done(id, Some(seconds));
        if changed {
            // A repeated job produced other bytes than recorded: everything that depends on it is checked again.
            self.display.warn(&format!(
                "{id} produced other bytes than before; checking what depends on it"
            ));
            self.work = freshness::plan_work(self.plan, self.run)?;
            self.scheduler.update(&self.work);
            self.log_all_states();
        }
        self.decide_waiting()?;
        self.delete_retirable(Some(id))?;
        if !self.scheduler.has_work(&id.stage)
            && let Some(mut worker) = self.workers.remove(&id.stage)
        {
            // Frees its memory for other stages; it exits while they work.
            worker.close();
            self.exiting.insert(id.stage.clone(), worker);
        }
        Ok(())
    }

    /// Records the digests of a receipt; returns whether one differs from the known digest.
    fn record_digests(&mut self, receipt: &Receipt) -> bool {
        let mut changed = false;
        for output in &receipt.outputs {
            let digest = Sha256Digest(output.sha256);
            let known = self.work.digests.insert(output.artifact.clone(), digest);
            changed |= known.is_some_and(|known| known != digest);
        }
        changed
    }

    /// Kills a worker whose job has reported nothing for longer than the stage's `stall_timeout`.
    pub(super) fn kill_stalled_job(&mut self) -> anyhow::Result<()> {
        let plan = self.plan;
        let stalled = self.jobs.values().find_map(|job| {
            let limit = plan
                .stage(&job.id.stage)
                .map_or(0, |stage| stage.stall_timeout);
            let silent = job.last_event.elapsed();
            (limit > 0 && silent >= Duration::from_secs(limit))
                .then(|| (job.id.stage.clone(), silent.as_secs()))
        });
        let Some((stage, silent)) = stalled else {
            return Ok(());
        };
        let mut worker = self.workers.remove(&stage).expect("it has a job");
        worker.kill();
        worker.wait(EXIT_TIMEOUT);
        let failed = JobFailure {
            class: ExitCode::StageFailed,
            message: format!("it reported nothing for {silent} s and was killed"),
            may_retry: true,
        };
        self.on_failure(&worker, failed)
    }

    /// Handles a job whose worker exited or reported a failure: retries it, gives it up, or ends the run.
    fn on_failure(&mut self, worker: &Worker, failed: JobFailure) -> anyhow::Result<()> {
        let stage = worker.id().stage.clone();
        let Some(job) = self.jobs.remove(&stage) else {
            // The worker was idle: the next job starts another process.
            return Ok(());
        };
        let id = job.id;
        self.shards_outdated = true;
        self.display.job_ended(&id);
        self.log.write_driver_event(
            JOB_FAILURE,
            serde_json::json!({"stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                               "class": failed.class, "message": failed.message}),
        );
        let title = self.display.title(&id);
        if failed.may_retry && self.retry(&id, failed.class) {
            self.display
                .warn(&format!("{title}: {}; trying again", failed.message));
            return Ok(());
        }
        let message = self.failure_message(&title, worker, &failed);
        if failed.class == ExitCode::Network && self.scheduler.status(&id).is_some() {
            // Only jobs that need the network wait for it; everything else is done first.
            self.scheduler.set(&id, Status::GivenUp);
            self.display.warn(&format!(
                "{title}: {}; the other jobs continue",
                failed.message.lines().next().unwrap_or_default()
            ));
            self.given_up.push(message);
            return Ok(());
        }
        Err(failure(failed.class, message))
    }

    /// The error message of a failed job: the cause, the number of attempts, the end of the log and how to continue.
    fn failure_message(&self, title: &str, worker: &Worker, failed: &JobFailure) -> String {
        let stage = &worker.id().stage;
        let class = failed.class.class();
        let mut message = format!("{title} failed ({class}): {}", failed.message);
        if failed.may_retry && failed.class != ExitCode::Network {
            let attempts = self.plan.stage(stage).map_or(0, |stage| stage.retries) + 1;
            message += &format!(" ({attempts} attempts)");
        }
        let mut lines = worker.last_lines();
        let log = self.run.log_path(stage);
        if lines.is_empty() {
            message += &format!("\nthe last process wrote nothing to {log}");
        }
        // The log ends with the message that the stage also reported.
        lines.retain(|line| !repeats(line, &failed.message));
        if !lines.is_empty() {
            message += &format!("\nlast lines of {log}:");
        }
        for line in lines {
            message += &format!("\n    {line}");
        }
        message += &format!("\nfix this, then run: {}", self.resume_command());
        message
    }
}

/// Whether a line of a log says nothing but a line of a message, perhaps after the name of the job.
fn repeats(line: &str, message: &str) -> bool {
    let mut parts = message
        .lines()
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts.any(|part| {
        let rest = line.trim().strip_suffix(part);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("error: "))
    })
}

/// The error when a stage reads the plan differently than this program.
fn other_build(id: &JobId, found: &Key, expected: &Key) -> anyhow::Error {
    let differences = freshness::key_differences(found, expected);
    let differences: Vec<String> = differences.iter().map(Reason::to_string).collect();
    let message = format!(
        "{id}: its receipt does not match the plan ({}): the stage's program is of another build than uc; install all programs from the same build",
        differences.join("; ")
    );
    failure(ExitCode::StageFailed, message)
}

#[cfg(test)]
mod tests {
    use super::repeats;

    #[test]
    fn a_log_line_that_repeats_the_message_is_recognized() {
        let message = "config.json: found 3, expected 4\n  and more";
        for line in [
            "error: load layer 2: config.json: found 3, expected 4",
            "  and more",
        ] {
            assert!(repeats(line, message), "{line}");
        }
        for line in [
            "load is working on layer 2",
            "error: load layer 2: other",
            "",
        ] {
            assert!(!repeats(line, message), "{line}");
        }
    }
}
