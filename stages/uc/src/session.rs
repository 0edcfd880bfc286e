//! A session on a run directory: opening it under its lock, reporting what is stale and why, and running the driver.

use camino::Utf8Path;
use uc_store::freshness::{self, Freshness, PendingWork, Reason};
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{JobId, Plan, StagePlan};
use uc_store::resources;
use uc_store::run::{Lock, RunDir};
use uc_store::{ExitCode, StoreError};

use crate::forecast;
use crate::plan::embedded_texts;
use crate::plan::model::Model;
use crate::process::programs::{Programs, rebuilt_warning};
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::report::staleness::{pending_lines, stale_lines};
use crate::schedule::driver::Driver;
use crate::schedule::limits::Limits;
use crate::schedule::source::Source;

pub mod replacement;

/// An open run, locked for this process.
#[derive(Debug)]
pub struct Session {
    /// The run directory.
    pub run: RunDir,
    /// Its plan.
    pub plan: Plan,
    /// Held until the session ends.
    pub _lock: Lock,
}

impl Session {
    /// Creates the run directory, or continues an existing run of the same model. A finished pack is not replaced.
    pub fn enter(root: &Utf8Path, plan: Plan, display: &Display) -> anyhow::Result<Self> {
        Self::enter_or_replace(root, plan, false, display)
    }

    /// As [`Session::enter`]; with `force`, a finished pack is replaced.
    pub fn enter_or_replace(
        root: &Utf8Path,
        plan: Plan,
        force: bool,
        display: &Display,
    ) -> anyhow::Result<Self> {
        // The lock comes first: if two processes start at once, only one writes the plan.
        let at = RunDir::at(root);
        let _lock = at.lock()?;
        let other_ways = "another --run or --out keeps it";
        if !root.join("run.json").exists() {
            replacement::check(&at, None, &plan, force, other_ways)?;
            return Self::create(root, plan, _lock);
        }
        let existing = match RunDir::open(root) {
            Ok((_, existing)) => existing,
            // `plan` replaces it, and no work is lost: every receipt carries the key that it is valid for.
            Err(error @ (StoreError::Malformed { .. } | StoreError::Hash { .. })) => {
                replacement::check(&at, None, &plan, force, other_ways)?;
                display.warn(&format!("{error}; the plan is written again"));
                return Self::create(root, plan, _lock);
            }
            Err(error) => return Err(error.into()),
        };
        let digest = |plan: &Plan| plan.externals.get("source").map(|source| source.digest);
        if digest(&existing) != digest(&plan) {
            let message = format!(
                "{root} is a run of {} ({}), which is not the same source as {}; expected another --run",
                existing.model.name, existing.model.path, plan.model.path
            );
            return Err(failure(ExitCode::Usage, message));
        }
        replacement::check(&at, Some(&existing), &plan, force, other_ways)?;
        display.info(&format!("continuing {root}"));
        if let Some(warning) = rebuilt_warning(&existing, &plan) {
            display.warn(&warning);
        }
        Self::create(root, plan, _lock)
    }

    /// Writes the plan of a locked run, and the texts of this program that it reads.
    pub fn create(root: &Utf8Path, plan: Plan, _lock: Lock) -> anyhow::Result<Self> {
        let run = RunDir::create(root, &plan)?;
        embedded_texts::write_missing(&run, &plan)?;
        Ok(Self { run, plan, _lock })
    }

    /// Runs every job that is not up to date.
    pub fn work(
        &self,
        programs: &Programs,
        limits: Limits,
        display: &mut Display,
        signals: &Listener,
    ) -> anyhow::Result<()> {
        let work = freshness::plan_work(&self.plan, &self.run)?;
        let to_do = work.to_run(&self.plan).len();
        let total = work.states.len();
        display.info(&format!(
            "{}: {to_do} of {total} jobs to do",
            self.run.root()
        ));
        for line in stale_lines(&self.plan, &work) {
            display.info(&format!("stale: {line}"));
        }
        if display.verbosity() > 0 {
            for line in pending_lines(&self.plan, &work) {
                display.detail(&line);
            }
        }
        let driver = self.driver(work, to_do, programs, limits, display, signals)?;
        driver.run()
    }

    /// Makes the inputs of a job that are missing, and what they need in turn.
    pub fn make_inputs(
        &self,
        job: &JobId,
        programs: &Programs,
        limits: Limits,
        display: &mut Display,
        signals: &Listener,
    ) -> anyhow::Result<()> {
        let mut work = freshness::plan_work(&self.plan, &self.run)?;
        // The job counts as one to be done, so that its deleted inputs are needed.
        let stale = Freshness::Stale(vec![Reason::NoReceipt]);
        work.states.insert(job.clone(), stale);
        freshness::demand_retired(&self.plan, &self.run, &mut work)?;
        let to_do = work.to_run(&self.plan).len();
        let driver = self.driver(work, to_do, programs, limits, display, signals)?;
        driver.for_inputs_of(job).run()
    }

    /// A driver for the work that is pending.
    fn driver<'a>(
        &'a self,
        work: PendingWork,
        to_do: usize,
        programs: &'a Programs,
        limits: Limits,
        display: &'a mut Display,
        signals: &'a Listener,
    ) -> anyhow::Result<Driver<'a>> {
        let budget = limits.budget;
        let source = Source::new(&self.plan, &work, budget)?;
        let model = match to_do {
            0 => None,
            _ => self.describe_model(programs),
        };
        if to_do > 0 {
            let to_run = work.to_run(&self.plan);
            let has_work = |stage: &StagePlan| to_run.iter().any(|job| job.stage == stage.name);
            limits.check(&self.plan, model.as_ref(), has_work)?;
            display.info(&format!("memory for jobs: {}", limits.describe_memory()));
        }
        if let Some(source) = &source {
            let other_bytes = model
                .as_ref()
                .and_then(|model| forecast::peak_disk(model, &self.plan, budget));
            display.info(&source.summary(&self.plan, other_bytes));
        }
        let expectation = model.and_then(|model| forecast::expectation(&model, &self.plan, budget));
        display.expect(expectation);
        Driver::new(
            &self.plan, &self.run, programs, budget, work, source, display, signals,
        )
    }

    /// The summary of the model, for forecasts; none if its configuration cannot be read.
    fn describe_model(&self, programs: &Programs) -> Option<ModelSummary> {
        let folder = &self.plan.model.path;
        let index = folder.join("model.safetensors.index.json");
        let index = index.exists().then_some(index);
        Model::describe(&folder.join("config.json"), index.as_deref(), programs).ok()
    }
}

/// The number of threads to use: the requested one, else all cores.
pub fn threads(requested: Option<u32>) -> u32 {
    requested.unwrap_or_else(resources::available_cpus).max(1)
}
