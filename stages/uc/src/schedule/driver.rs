//! The driver's loop: starts jobs, listens to the stages, restarts what died, deletes what nobody needs any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use uc_store::ExitCode;
use uc_store::events::{Event, EventKind, JobRequest};
use uc_store::freshness::{self, Freshness, PendingWork, Reason};
use uc_store::plan::{ArtifactId, JobId, Plan, Unit};
use uc_store::receipt::{Receipt, job_key};
use uc_store::run::RunDir;
use uc_store::sha::Sha256Digest;

use crate::process::programs::Programs;
use crate::process::runner::{Ending, Launch, Message, Worker, WorkerId};
use crate::process::signals::Listener;
use crate::report::event_log_replay::{Found, MISHAP, SESSION_END};
use crate::report::event_log_writer::Journal;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::schedule::scheduler::{Board, Budget, Status};
use crate::schedule::shards::Place;

pub mod source;

use source::Source;

/// How often the driver looks for hung jobs.
const TICK: Duration = Duration::from_millis(200);
/// How long a process may take to leave when no job follows or when it was asked to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a stage whose lock is held is started again.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Brings a run up to date.
#[derive(Debug)]
pub struct Driver<'a> {
    plan: &'a Plan,
    run: &'a RunDir,
    programs: &'a Programs,
    budget: Budget,
    display: &'a mut Display,
    journal: Journal,
    board: Board<'a>,
    work: PendingWork,
    /// Where shards come and go.
    source: Option<Source>,
    /// Whether something happened since shards were looked at.
    unsettled: bool,
    workers: BTreeMap<String, Worker>,
    /// Processes that were told to leave; their stage may not start another before they are gone.
    leaving: BTreeMap<String, Worker>,
    jobs: BTreeMap<String, RunningJob>,
    /// What the network failed, in words; the first one ends the run once nothing else is left to do.
    given_up: Vec<String>,
    started: u64,
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    signals: &'a Listener,
}

/// A job that a worker has in hand.
#[derive(Debug)]
struct RunningJob {
    id: JobId,
    heard: Instant,
}

/// Why a job did not come to its end.
#[derive(Debug)]
struct Mishap {
    class: ExitCode,
    message: String,
    /// Whether the cause may lie outside the job's input.
    may_retry: bool,
}

impl<'a> Driver<'a> {
    /// Prepares to do the work that the walk found.
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
            board: Board::new(plan, &work, budget),
            journal: Journal::open(run)?,
            plan,
            run,
            programs,
            budget,
            display,
            work,
            source,
            unsettled: true,
            workers: BTreeMap::new(),
            leaving: BTreeMap::new(),
            jobs: BTreeMap::new(),
            given_up: Vec::new(),
            started: 0,
            sender,
            receiver,
            signals,
        })
    }

    /// Works until everything is done.
    pub fn run(mut self) -> anyhow::Result<()> {
        self.show_stages();
        self.note_found(&self.work.states.keys().cloned().collect::<Vec<_>>());
        let outcome = self.work_on();
        if outcome.is_err() {
            self.stop_workers();
        }
        self.signals.detach();
        self.display.end_stages();
        self.journal
            .note(SESSION_END, serde_json::json!({"ok": outcome.is_ok()}));
        outcome
    }

    fn show_stages(&mut self) {
        let mut stages: Vec<(String, u64, u64)> = Vec::new();
        for stage in self
            .plan
            .stages
            .iter()
            .filter(|stage| self.board.has_work(&stage.name))
        {
            let jobs = self.board.jobs().filter(|(id, _)| id.stage == stage.name);
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
        self.display.begin_stages(&stages);
        if let Some(source) = &self.source {
            let files = self.plan.shards();
            let named = files.filter_map(|(shard, file)| {
                let name = file.path.file_name()?.to_owned();
                Some((u32::try_from(shard).ok()?, name))
            });
            self.display.name_jobs(source.stage(), named.collect());
        }
    }

    fn work_on(&mut self) -> anyhow::Result<()> {
        self.retire(None)?;
        self.decide()?;
        loop {
            self.start_jobs()?;
            self.move_shards()?;
            if self.board.is_complete() {
                break;
            }
            if self.jobs.is_empty() {
                if let Some(first) = self.given_up.first() {
                    return Err(failure(ExitCode::Network, first.clone()));
                }
                let stuck = self
                    .board
                    .jobs()
                    .find(|(_, status)| *status != Status::Done);
                let stuck = stuck.map_or_else(String::new, |(id, _)| id.to_string());
                let message = format!("nothing can start although {stuck} is not done");
                return Err(failure(ExitCode::Internal, message));
            }
            match self.receiver.recv_timeout(TICK) {
                Ok(message) => self.handle(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this driver holds a sender"),
            }
            self.end_hung_jobs()?;
            // Those that have left are taken note of, or the system keeps their entries until the end of the run.
            self.leaving.retain(|_, worker| worker.ended().is_none());
        }
        for worker in self.workers.values_mut() {
            worker.close();
        }
        let workers = std::mem::take(&mut self.workers);
        let leaving = std::mem::take(&mut self.leaving);
        for mut worker in workers.into_values().chain(leaving.into_values()) {
            worker.wait(PATIENCE);
        }
        Ok(())
    }

    /// Starts every job that may start now.
    fn start_jobs(&mut self) -> anyhow::Result<()> {
        let is_there = |source: &Option<Source>, id: &JobId| {
            source.as_ref().is_none_or(|source| source.is_there(id))
        };
        while let Some(id) = self.board.next_if(|id| is_there(&self.source, id)) {
            self.board.set(&id, Status::Running);
            self.hand_over(id)?;
        }
        Ok(())
    }

    /// Gives a job to the process of its stage.
    fn hand_over(&mut self, id: JobId) -> anyhow::Result<()> {
        if !self.workers.contains_key(&id.stage) {
            let worker = self.start_worker(&id.stage)?;
            self.workers.insert(id.stage.clone(), worker);
        }
        let worker = self.workers.get_mut(&id.stage).expect("just there");
        // A worker that is gone closes its output; that message decides what happens to the job.
        let _ = worker.send(&JobRequest { unit: id.unit });
        self.unsettled = true;
        let heard = Instant::now();
        self.jobs.insert(id.stage.clone(), RunningJob { id, heard });
        Ok(())
    }

    fn start_worker(&mut self, stage: &str) -> anyhow::Result<Worker> {
        let spec = self.plan.stage(stage).expect("a job of the plan");
        let launch = Launch {
            program: self.programs.of_stage(&spec.argv)?,
            arguments: &spec.argv[1..],
            run: self.run.root(),
            threads: self.budget.cpus,
            verbosity: self.display.verbosity(),
            log: self.run.log_path(stage),
            echo: self.display.verbosity() > 0,
        };
        if let Some(mut gone) = self.leaving.remove(stage) {
            gone.wait(PATIENCE);
        }
        self.started += 1;
        let id = WorkerId {
            stage: stage.into(),
            number: self.started,
        };
        Worker::start(&launch, id, &self.sender)
    }

    fn handle(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Event { worker, event } if self.is_current(&worker) => self.on_event(event),
            Message::Noise { worker, line } => {
                self.display.detail(&format!("{}: {line}", worker.stage));
                Ok(())
            }
            Message::Log { stage, line } => {
                self.display.detail(&format!("{stage}: {line}"));
                Ok(())
            }
            Message::Closed(worker) if self.is_current(&worker) => {
                let mut gone = self.workers.remove(&worker.stage).expect("current");
                let ending = gone.wait(PATIENCE);
                let class = ending.class();
                if class == ExitCode::Locked {
                    // A killed driver's stage may still be on its way out.
                    std::thread::sleep(LOCK_PAUSE);
                }
                let mishap = Mishap {
                    class,
                    message: ending.to_string(),
                    may_retry: class.is_transient() || class == ExitCode::Locked,
                };
                self.on_mishap(&gone, mishap)
            }
            Message::Signal => self.interrupt(),
            // The last words of a process that was replaced.
            Message::Event { .. } | Message::Closed(_) => Ok(()),
        }
    }

    fn is_current(&self, id: &WorkerId) -> bool {
        self.workers
            .get(&id.stage)
            .is_some_and(|worker| worker.id() == id)
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        self.journal.event(&event);
        let Some(job) = self.jobs.get_mut(&event.stage) else {
            return Ok(());
        };
        job.heard = Instant::now();
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
            EventKind::Metric { name, value } => {
                self.display.detail(&format!("{id}: {name} = {value}"));
            }
            EventKind::Finished { seconds, .. } => self.on_finished(&id, seconds)?,
            EventKind::Failed { class, message } => {
                let mut worker = self.workers.remove(&id.stage).expect("it has just spoken");
                // A fresh process for the next try: nothing that went wrong is carried along.
                worker.close();
                worker.wait(PATIENCE);
                let mishap = Mishap {
                    class,
                    message,
                    may_retry: class.is_transient(),
                };
                self.on_mishap(&worker, mishap)?;
            }
            EventKind::Retired { .. } => {}
        }
        Ok(())
    }

    /// A job published its outputs: what waited for them may start, what only they needed may go.
    fn on_finished(&mut self, id: &JobId, seconds: f64) -> anyhow::Result<()> {
        self.jobs.remove(&id.stage);
        self.unsettled = true;
        if let Some(source) = &mut self.source
            && let Some(shard) = source.fetched_by(id)
        {
            source.shards.set(shard, Place::Here);
            source.retries = 0;
            self.display.job_done(id, Some(seconds));
            return Ok(());
        }
        let Some(receipt) = Receipt::read(self.run, id)? else {
            let message = format!("{id} said that it finished, but left no receipt");
            return Err(failure(ExitCode::Internal, message));
        };
        let digests = &self.work.digests;
        let key = job_key(self.plan, id, |input| digests.get(input).copied())?;
        if key.as_ref() != Ok(&receipt.key) {
            // An input was made again while the job ran, with other bytes.
            self.board.set(id, Status::Stale);
            let layers = vec![id.unit.layer()];
            self.journal.found(&Found {
                stage: id.stage.clone(),
                stale: layers,
                ..Found::default()
            });
            return Ok(());
        }
        let changed = self.take_digests(&receipt);
        self.work.states.insert(id.clone(), Freshness::Fresh);
        self.board.set(id, Status::Done);
        self.display.job_done(id, Some(seconds));
        if changed {
            // A redone job gave other bytes than were recorded: everything behind it has to be looked at again.
            self.display.warn(&format!(
                "{id} gave another result than before; checking what follows"
            ));
            self.work = freshness::plan_work(self.plan, self.run)?;
            self.board.update(&self.work);
            self.note_found(&self.work.states.keys().cloned().collect::<Vec<_>>());
        }
        self.decide()?;
        self.retire(Some(id))?;
        if !self.board.has_work(&id.stage)
            && let Some(mut worker) = self.workers.remove(&id.stage)
        {
            // Its memory is free for the others; it leaves while they work.
            worker.close();
            self.leaving.insert(id.stage.clone(), worker);
        }
        Ok(())
    }

    /// Records the digests of a receipt; tells whether one differs from what was known.
    fn take_digests(&mut self, receipt: &Receipt) -> bool {
        let mut changed = false;
        for output in &receipt.outputs {
            let digest = Sha256Digest(output.sha256);
            let known = self.work.digests.insert(output.artifact.clone(), digest);
            changed |= known.is_some_and(|known| known != digest);
        }
        changed
    }

    /// Decides for waiting jobs whose inputs are known by now whether they have to run.
    fn decide(&mut self) -> anyhow::Result<()> {
        let (mut retired, mut done) = (false, Vec::new());
        loop {
            let decidable = self.board.decidable();
            if decidable.is_empty() {
                break;
            }
            for id in decidable {
                let state = freshness::state_of(self.plan, self.run, &id, &mut self.work)?;
                retired |= state == Freshness::Retired;
                let status = match &state {
                    Freshness::Fresh | Freshness::Retired => Status::Done,
                    Freshness::Stale(_) => Status::Stale,
                };
                self.board.set(&id, status);
                if status == Status::Done {
                    self.display.job_done(&id, None);
                    done.push(id.clone());
                } else {
                    self.display.detail(&format!("{id}: {}", reasons(&state)));
                }
                self.work.states.insert(id.clone(), state);
                self.note_found(&[id]);
            }
        }
        if retired {
            self.demand()?;
        }
        done.iter().try_for_each(|id| self.retire(Some(id)))
    }

    /// Marks jobs whose retired outputs are needed again.
    fn demand(&mut self) -> anyhow::Result<()> {
        let before: Vec<JobId> = self.work.to_run(self.plan);
        freshness::demand_retired(self.plan, self.run, &mut self.work)?;
        for id in self.work.to_run(self.plan) {
            if !before.contains(&id) && self.board.status(&id) == Some(Status::Done) {
                self.board.set(&id, Status::Stale);
                self.note_found(&[id]);
            }
        }
        Ok(())
    }

    /// Deletes intermediates that no job needs any more.
    fn retire(&mut self, around: Option<&JobId>) -> anyhow::Result<()> {
        for id in self.board.retirable(around) {
            if !self.run.artifact_path(self.plan, &id)?.exists() {
                continue;
            }
            freshness::retire(self.plan, self.run, &id)?;
            let maker = self.plan.producer(&id);
            self.note_retired(&id, maker);
        }
        Ok(())
    }

    fn note_retired(&mut self, id: &ArtifactId, maker: Option<JobId>) {
        let (stage, unit) = maker.map_or((String::new(), Unit::Run), |job| (job.stage, job.unit));
        self.journal.event(&Event {
            stage,
            unit,
            kind: EventKind::Retired {
                artifact: id.to_string(),
            },
        });
    }

    /// Notes for those who watch what the walk says of jobs.
    fn note_found(&mut self, jobs: &[JobId]) {
        let mut stages: BTreeMap<&str, Found> = BTreeMap::new();
        for id in jobs {
            let found = stages.entry(&id.stage).or_default();
            let is_new = |reason: &Reason| matches!(reason, Reason::NoReceipt | Reason::Waits(_));
            let list = match self.work.states.get(id) {
                Some(Freshness::Fresh | Freshness::Retired) => &mut found.done,
                Some(Freshness::Stale(reasons)) if !reasons.iter().all(is_new) => &mut found.stale,
                _ => &mut found.waiting,
            };
            list.push(id.unit.layer());
        }
        for (stage, mut found) in stages {
            found.stage = stage.to_owned();
            self.journal.found(&found);
        }
    }

    fn end_hung_jobs(&mut self) -> anyhow::Result<()> {
        let plan = self.plan;
        let hung = self.jobs.values().find_map(|job| {
            let limit = plan
                .stage(&job.id.stage)
                .map_or(0, |stage| stage.stall_timeout);
            let silent = job.heard.elapsed();
            (limit > 0 && silent >= Duration::from_secs(limit))
                .then(|| (job.id.stage.clone(), silent.as_secs()))
        });
        let Some((stage, silent)) = hung else {
            return Ok(());
        };
        let mut worker = self.workers.remove(&stage).expect("it has a job");
        worker.kill();
        worker.wait(PATIENCE);
        let mishap = Mishap {
            class: ExitCode::StageFailed,
            message: format!("it said nothing for {silent} s and was ended"),
            may_retry: true,
        };
        self.on_mishap(&worker, mishap)
    }

    /// A worker ended or a job failed: another try, or the end of the run.
    fn on_mishap(&mut self, worker: &Worker, mishap: Mishap) -> anyhow::Result<()> {
        let stage = worker.id().stage.clone();
        let Some(job) = self.jobs.remove(&stage) else {
            // It was idle: the next job starts another process.
            return Ok(());
        };
        let id = job.id;
        self.unsettled = true;
        self.journal.note(
            MISHAP,
            serde_json::json!({"stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                               "class": mishap.class, "message": mishap.message}),
        );
        let title = self.display.title(&id);
        if mishap.may_retry && self.retry(&id, mishap.class) {
            self.display
                .warn(&format!("{title}: {}; trying again", mishap.message));
            return Ok(());
        }
        let class = mishap.class.class();
        let mut message = format!("{title} failed ({class}): {}", mishap.message);
        if mishap.may_retry && mishap.class != ExitCode::Network {
            let tries = self.plan.stage(&stage).map_or(0, |stage| stage.retries) + 1;
            message += &format!(" ({tries} tries)");
        }
        let lines = worker.last_lines();
        let log = self.run.log_path(&stage);
        message += &match lines.is_empty() {
            true => format!("\nthe last process added nothing to {log}"),
            false => format!("\nlast lines of {log}:"),
        };
        for line in lines {
            message += &format!("\n    {line}");
        }
        message += &format!("\nafter the cause is gone: uc resume {}", self.run.root());
        if mishap.class == ExitCode::Network && self.board.status(&id).is_some() {
            // Only what needs the network waits for it; everything else is done first.
            self.board.set(&id, Status::GivenUp);
            self.display.warn(&format!(
                "{title}: {}; the rest goes on",
                mishap.message.lines().next().unwrap_or_default()
            ));
            self.given_up.push(message);
            return Ok(());
        }
        Err(failure(mishap.class, message))
    }

    /// Ends in order: nothing new starts, the stages are asked to end.
    fn interrupt(&mut self) -> anyhow::Result<()> {
        self.display.say("stopping; once more stops at once");
        let message = format!("interrupted; continue with: uc resume {}", self.run.root());
        Err(failure(ExitCode::Interrupted, message))
    }

    /// Ends every process; a signal in the meantime ends them at once.
    fn stop_workers(&mut self) {
        let workers = || self.workers.values().chain(self.leaving.values());
        workers().for_each(Worker::terminate);
        let deadline = Instant::now() + PATIENCE;
        let asked = self.signals.count();
        for worker in self.workers.values_mut().chain(self.leaving.values_mut()) {
            while worker.ended().is_none()
                && Instant::now() < deadline
                && self.signals.count() == asked
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            worker.wait(Duration::ZERO);
        }
        self.workers.clear();
        self.leaving.clear();
    }
}

/// Reasons in one line.
pub fn reasons(state: &Freshness) -> String {
    match state {
        Freshness::Stale(reasons) => {
            let texts: Vec<String> = reasons.iter().map(Reason::to_string).collect();
            texts.join("; ")
        }
        Freshness::Fresh => "up to date".into(),
        Freshness::Retired => "up to date, intermediates deleted".into(),
    }
}

/// How a foreground job ended, as an outcome.
pub fn foreground_outcome(ending: Ending) -> anyhow::Result<()> {
    match ending {
        Ending::Exit(0) => Ok(()),
        other => Err(failure(other.class(), format!("the stage failed: {other}"))),
    }
}
