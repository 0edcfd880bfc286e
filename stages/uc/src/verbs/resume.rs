//! `uc resume RUN`: continues an interrupted run, or brings it up to date.

use uc_settings::SourceRetention;
use uc_store::ExitCode;
use uc_store::run::RunDir;

use crate::cli::ResumeArgs;
use crate::plan::embedded_texts;
use crate::plan::planning;
use crate::plan::sources;
use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::schedule::source::check_budget;
use crate::session::{self, Session, replacement};
use crate::verbs::work_and_summarize;

/// Runs the verb.
pub fn run(args: &ResumeArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env();
    let threads = session::threads(args.threads);
    let (run, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    let before = plan.clone();
    planning::apply_settings(&mut plan.settings, &args.set)?;
    let evicts = plan.settings.retention.source == SourceRetention::Evict;
    if evicts && plan.fetcher().is_none() {
        let message =
            "retention.source: found evict for a run whose whole source is on disk; expected keep";
        return Err(failure(ExitCode::BadPipeline, message));
    }
    programs.refresh_versions(&mut plan)?;
    embedded_texts::write_missing(&run, &plan)?;
    for change in sources::refresh(&mut plan, threads, display)? {
        display.info(&change);
    }
    check_budget(&plan)?;
    plan.tool_version = env!("CARGO_PKG_VERSION").into();
    let other_ways = "uc compress with another --run makes another pack";
    replacement::check(&run, Some(&before), &plan, args.force, other_ways)?;
    let session = match plan == before {
        true => Session { run, plan, _lock },
        false => Session::create(&args.run, plan, _lock)?,
    };
    work_and_summarize(&session, &programs, threads, args.json, display, signals)
}
