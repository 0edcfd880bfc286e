//! `uc resume RUN`: continues an interrupted run, or brings it up to date.

use uc_settings::SourceRetention;
use uc_store::ExitCode;
use uc_store::run::RunDir;

use crate::cli::ResumeArgs;
use crate::plan::embedded_texts;
use crate::plan::model::Model;
use crate::plan::pipeline::memory;
use crate::plan::planning;
use crate::plan::sources;
use crate::process::programs::{Programs, rebuilt_warning};
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::schedule::limits::Limits;
use crate::schedule::source::check_budget;
use crate::session::{self, Session, replacement};
use crate::verbs::work_and_summarize;

/// Runs the verb.
pub fn run(args: &ResumeArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env().allowing(&args.trust.allow_program);
    let threads = session::threads(args.threads);
    let limits = Limits::new(threads, args.memory.as_deref())?;
    let (run, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    planning::check_pack_folder(&plan, &args.run, args.trust.out.as_deref())?;
    let before = plan.clone();
    planning::apply_settings(&mut plan.settings, &args.set)?;
    let evicts = plan.settings.retention.source == SourceRetention::Evict;
    if evicts && plan.fetcher().is_none() {
        let message =
            "retention.source: found evict for a run whose whole source is on disk; expected keep";
        return Err(failure(ExitCode::BadPipeline, message));
    }
    programs.refresh_versions(&mut plan)?;
    if let Some(warning) = rebuilt_warning(&before, &plan) {
        display.warn(&warning);
    }
    embedded_texts::write_missing(&run, &plan)?;
    for change in sources::refresh(&mut plan, threads, display)? {
        display.info(&change);
    }
    if plan.settings != before.settings || args.threads.is_some() {
        let config = plan.model.path.join(uc_pack::CONFIG_FILE);
        memory::refresh(
            &mut plan,
            &Model::describe(&config, None, &programs)?,
            threads,
        );
    }
    check_budget(&plan)?;
    if let Some(repository) = planning::upload_target(&plan) {
        let repository = uc_input::printable(repository);
        display.info(&format!("this run uploads its pack to {repository}"));
    }
    plan.tool_version = env!("CARGO_PKG_VERSION").into();
    let other_ways = "uc compress with another --run makes another pack";
    replacement::check(&run, Some(&before), &plan, args.force, other_ways)?;
    let session = match plan == before {
        true => Session { run, plan, _lock },
        false => Session::create(&args.run, plan, _lock)?,
    };
    work_and_summarize(&session, &programs, limits, args.json, display, signals)
}
