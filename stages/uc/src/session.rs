//! A session on a run directory: opening it under its lock, reporting what is stale and why, and running the driver.

use camino::Utf8Path;
use uc_store::freshness;
use uc_store::plan::Plan;
use uc_store::resources;
use uc_store::run::{Lock, RunDir};
use uc_store::{ExitCode, StoreError};

use crate::forecast;
use crate::plan::model::Model;
use crate::process::programs::{Programs, rebuilt_warning};
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::report::staleness::{pending_lines, stale_lines};
use crate::schedule::driver::Driver;
use crate::schedule::scheduler::Budget;
use crate::schedule::source::Source;

/// Share of the machine's memory that jobs may claim, percent.
const MEMORY_SHARE: u64 = 80;

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
    /// Creates the run directory, or continues an existing run of the same model.
    pub fn enter(root: &Utf8Path, plan: Plan, display: &Display) -> anyhow::Result<Self> {
        // The lock comes first: if two processes start at once, only one writes the plan.
        let _lock = RunDir::at(root).lock()?;
        if !root.join("run.json").exists() {
            let run = RunDir::create(root, &plan)?;
            return Ok(Self { run, plan, _lock });
        }
        let existing = match RunDir::open(root) {
            Ok((_, existing)) => existing,
            // `plan` replaces it, and no work is lost: every receipt carries the key that it is valid for.
            Err(error @ (StoreError::Malformed { .. } | StoreError::Hash { .. })) => {
                display.warn(&format!("{error}; the plan is written again"));
                let run = RunDir::create(root, &plan)?;
                return Ok(Self { run, plan, _lock });
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
        display.info(&format!("continuing {root}"));
        if let Some(warning) = rebuilt_warning(&existing, &plan) {
            display.warn(&warning);
        }
        let run = RunDir::create(root, &plan)?;
        Ok(Self { run, plan, _lock })
    }

    /// Runs every job that is not up to date.
    pub fn work(
        &self,
        programs: &Programs,
        threads: u32,
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
        let budget = Budget {
            cpus: threads,
            memory: resources::total_memory_bytes() / 100 * MEMORY_SHARE,
        };
        let source = Source::new(&self.plan, &work, budget)?;
        if let Some(source) = &source {
            let other_bytes = self.estimate_other_disk(programs, budget);
            display.info(&source.summary(&self.plan, other_bytes));
        }
        Driver::new(
            &self.plan, &self.run, programs, budget, work, source, display, signals,
        )?
        .run()
    }

    /// Peak bytes of the pack and the intermediate files; none if the settings do not determine them. For display only.
    fn estimate_other_disk(&self, programs: &Programs, budget: Budget) -> Option<u64> {
        let folder = &self.plan.model.path;
        let index = folder.join("model.safetensors.index.json");
        let index = index.exists().then_some(index);
        let model = Model::describe(&folder.join("config.json"), index.as_deref(), programs);
        forecast::peak_disk(&model.ok()?, &self.plan, budget)
    }
}

/// The number of threads to use: the requested one, else all cores.
pub fn threads(requested: Option<u32>) -> u32 {
    requested.unwrap_or_else(resources::available_cpus).max(1)
}
