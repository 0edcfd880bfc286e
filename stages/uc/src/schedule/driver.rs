//! The driver's loop: starts jobs, handles what the stages report, restarts failed jobs and stops everything at the end.
//!
//! `outcomes` handles finished and failed jobs, `freshness_updates` decides waiting jobs and deletes intermediate files,
//! `shard_moves` fetches and evicts shards. What may start is decided by the scheduler, never here.

mod freshness_updates;
mod outcomes;
mod shard_moves;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use uc_store::events::JobRequest;
use uc_store::freshness::PendingWork;
use uc_store::plan::{JobId, Plan};
use uc_store::receipt::{Key, job_key};
use uc_store::run::RunDir;
use uc_store::{ExitCode, StoreError};

use crate::plan::planning;
use crate::process::programs::Programs;
use crate::process::runner::{Launch, Message, Worker, WorkerId};
use crate::process::signals::Listener;
use crate::report::event_log::{EXPECTATION, SESSION_END};
use crate::report::event_log_replay::Replay;
use crate::report::event_log_writer::EventLogWriter;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::schedule::scheduler::{Budget, Scheduler, Status};
use crate::schedule::source::Source;

/// Interval at which the driver checks for stalled jobs.
const TICK: Duration = Duration::from_millis(200);
/// How long a process may take to exit once no job follows or once it was asked to stop.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Brings a run up to date.
#[derive(Debug)]
pub struct Driver<'a> {
    plan: &'a Plan,
    run: &'a RunDir,
    programs: &'a Programs,
    budget: Budget,
    display: &'a mut Display,
    log: EventLogWriter,
    scheduler: Scheduler<'a>,
    work: PendingWork,
    /// The source, if its shards are fetched on demand.
    source: Option<Source>,
    /// Whether something happened since the last decision on shards.
    shards_outdated: bool,
    workers: BTreeMap<String, Worker>,
    /// Processes that were told to exit. Their stages start no other process until they have exited.
    exiting: BTreeMap<String, Worker>,
    jobs: BTreeMap<String, RunningJob>,
    /// Error messages of jobs that failed for lack of a network; the first one ends the run once nothing else can run.
    given_up: Vec<String>,
    /// Number of processes started.
    started: u64,
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    signals: &'a Listener,
}

/// A job that a worker is running.
#[derive(Debug)]
struct RunningJob {
    id: JobId,
    last_event: Instant,
    /// The key that its receipt must have if no input changes while it runs; none if an input was unknown.
    key: Option<Key>,
}

impl<'a> Driver<'a> {
    /// Prepares to do the work that the freshness check determined.
    pub fn new(
        plan: &'a Plan,
        run: &'a RunDir,
        programs: &'a Programs,
        budget: Budget,
        work: PendingWork,
        source: Option<Source>,
        display: &'a mut Display,
        signals: &'a Listener,
    ) -> anyhow::Result<Self> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        signals.attach(sender.clone());
        Ok(Self {
            scheduler: Scheduler::new(plan, &work, budget),
            log: EventLogWriter::open(run)?,
            plan,
            run,
            programs,
            budget,
            display,
            work,
            source,
            shards_outdated: true,
            workers: BTreeMap::new(),
            exiting: BTreeMap::new(),
            jobs: BTreeMap::new(),
            given_up: Vec::new(),
            started: 0,
            sender,
            receiver,
            signals,
        })
    }

    /// Works only on what the inputs of a job need, and keeps them.
    pub fn for_inputs_of(mut self, job: &JobId) -> Self {
        self.scheduler.work_only_for_inputs_of(job);
        self
    }

    /// Works until every job is done.
    pub fn run(mut self) -> anyhow::Result<()> {
        self.show_stages();
        if let Some(expectation) = self.display.expectation() {
            let fields = serde_json::to_value(expectation)?;
            self.log.write_driver_event(EXPECTATION, fields);
        }
        self.log_all_states();
        let outcome = self.work_loop();
        if outcome.is_err() {
            self.stop_workers();
        }
        self.signals.detach();
        self.display.end_stages();
        self.log
            .write_driver_event(SESSION_END, serde_json::json!({"ok": outcome.is_ok()}));
        outcome
    }

    fn show_stages(&mut self) {
        let mut stages: Vec<(String, u64, u64)> = Vec::new();
        for stage in self.plan.stages.iter().filter(|stage| !stage.optional) {
            let jobs = self
                .scheduler
                .jobs()
                .filter(|(id, _)| id.stage == stage.name);
            let (mut done, mut total) = (0, 0);
            for (_, status) in jobs {
                total += 1;
                done += u64::from(status == Status::Done);
            }
            stages.push((stage.name.clone(), done, total));
        }
        if let Some(source) = &self.source {
            stages.insert(0, (source.stage().to_owned(), 0, source.traffic().fetches));
        }
        let costs = Replay::read(self.run).costs();
        self.display.start_stages(&stages, &costs);
        if let Some(source) = &self.source {
            let files = self.plan.shards();
            let file_names = files.filter_map(|(shard, file)| {
                let name = file.path.file_name()?.to_owned();
                Some((u32::try_from(shard).ok()?, name))
            });
            self.display.name_jobs(source.stage(), file_names.collect());
        }
    }

    /// Deletes the scratch folders of done jobs: a stage that is killed just after it has written a receipt leaves one behind.
    fn delete_leftover_scratch(&self) -> anyhow::Result<()> {
        let jobs = self.scheduler.jobs();
        let done = jobs.filter(|(_, status)| *status == Status::Done);
        Ok(done
            .map(|(id, _)| id)
            .try_for_each(|id| self.run.remove_work(id))?)
    }

    fn work_loop(&mut self) -> anyhow::Result<()> {
        self.delete_leftover_scratch()?;
        self.delete_retirable(None)?;
        self.decide_waiting()?;
        loop {
            self.start_jobs()?;
            self.move_shards()?;
            if self.scheduler.is_complete() {
                break;
            }
            if self.jobs.is_empty() {
                return Err(self.nothing_can_start());
            }
            match self.receiver.recv_timeout(TICK) {
                Ok(message) => self.handle(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this driver holds a sender"),
            }
            self.kill_stalled_job()?;
            self.display.tick();
            // Reaps processes that have exited; otherwise they would stay zombies until the end of the run.
            self.exiting.retain(|_, worker| worker.try_exit().is_none());
        }
        for worker in self.workers.values_mut() {
            worker.close();
        }
        let workers = std::mem::take(&mut self.workers);
        let exiting = std::mem::take(&mut self.exiting);
        for mut worker in workers.into_values().chain(exiting.into_values()) {
            worker.wait(EXIT_TIMEOUT);
        }
        Ok(())
    }

    /// The error when jobs are left but none can start.
    fn nothing_can_start(&self) -> anyhow::Error {
        if let Some(first) = self.given_up.first() {
            return failure(ExitCode::Network, first.clone());
        }
        let mut jobs = self.scheduler.jobs();
        let stuck = jobs.find(|(_, status)| *status != Status::Done);
        let stuck = stuck.map_or_else(String::new, |(id, _)| id.to_string());
        let message = format!("nothing can start although {stuck} is not done");
        failure(ExitCode::Internal, message)
    }

    /// Starts every job that may start now.
    fn start_jobs(&mut self) -> anyhow::Result<()> {
        let is_source_present = |source: &Option<Source>, id: &JobId| {
            source
                .as_ref()
                .is_none_or(|source| source.is_present_for(id))
        };
        while let Some(id) = self
            .scheduler
            .next_if(|id| is_source_present(&self.source, id))
        {
            self.scheduler.set(&id, Status::Running);
            self.dispatch(id)?;
        }
        Ok(())
    }

    /// Sends a job to the process of its stage, which is started if necessary.
    fn dispatch(&mut self, id: JobId) -> anyhow::Result<()> {
        if !self.workers.contains_key(&id.stage) {
            let worker = self.start_worker(&id.stage)?;
            self.workers.insert(id.stage.clone(), worker);
        }
        let worker = self.workers.get_mut(&id.stage).expect("just inserted");
        // If the worker has exited, its `Closed` message decides what happens to the job.
        let _ = worker.send(&JobRequest { unit: id.unit });
        self.shards_outdated = true;
        let job = RunningJob {
            last_event: Instant::now(),
            key: self.key(&id)?,
            id,
        };
        self.jobs.insert(job.id.stage.clone(), job);
        Ok(())
    }

    /// The key that the receipt of a job must have now; none while an input is unknown.
    fn key(&self, id: &JobId) -> Result<Option<Key>, StoreError> {
        let digests = &self.work.digests;
        Ok(job_key(self.plan, id, |input| digests.get(input).copied())?.ok())
    }

    fn start_worker(&mut self, stage: &str) -> anyhow::Result<Worker> {
        let spec = self.plan.stage(stage).expect("a job of the plan");
        let launch = Launch {
            program: self.programs.for_stage(spec)?,
            arguments: &spec.argv[1..],
            run: self.run.root(),
            threads: self.budget.cpus,
            verbosity: self.display.verbosity(),
            log: self.run.log_path(stage),
            echo: self.display.verbosity() > 0,
        };
        if let Some(mut previous) = self.exiting.remove(stage) {
            previous.wait(EXIT_TIMEOUT);
        }
        self.started += 1;
        let id = WorkerId {
            stage: stage.into(),
            number: self.started,
        };
        Worker::start(&launch, id, &self.sender)
    }

    /// Ends the session in order after a signal; the caller stops the workers.
    fn interrupt(&mut self) -> anyhow::Result<()> {
        self.display.info("Stopping… press Ctrl-C again to force");
        let message = format!("interrupted; continue with: {}", self.resume_command());
        Err(failure(ExitCode::Interrupted, message))
    }

    /// The command that continues this run.
    fn resume_command(&self) -> String {
        planning::resume_command(self.plan, self.run.root(), self.programs)
    }

    /// Stops every process; a signal in the meantime kills them.
    fn stop_workers(&mut self) {
        let workers = || self.workers.values().chain(self.exiting.values());
        workers().for_each(Worker::terminate);
        let deadline = Instant::now() + EXIT_TIMEOUT;
        let signals_before = self.signals.count();
        for worker in self.workers.values_mut().chain(self.exiting.values_mut()) {
            while worker.try_exit().is_none()
                && Instant::now() < deadline
                && self.signals.count() == signals_before
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            worker.wait(Duration::ZERO);
        }
        self.workers.clear();
        self.exiting.clear();
    }
}
