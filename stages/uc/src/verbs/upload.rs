//! `uc upload RUN --repo OWNER/NAME`: uploads the pack of a run with the upload stages of the pipeline.

use uc_store::run::RunDir;

use crate::cli::UploadArgs;
use crate::plan::planning;
use crate::process::programs::{Programs, rebuilt_warning};
use crate::process::signals::Listener;
use crate::report::progress::Display;
use crate::session::{self, Session};
use crate::verbs::work_and_summarize;

/// Runs the verb.
pub fn run(args: &UploadArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env().allowing(&args.trust.allow_program);
    let threads = session::threads(args.threads);
    let (run, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    planning::check_pack_folder(&plan, &args.run, args.trust.out.as_deref())?;
    let before = plan.clone();
    programs.refresh_versions(&mut plan)?;
    if let Some(warning) = rebuilt_warning(&before, &plan) {
        display.warn(&warning);
    }
    planning::add_upload(&mut plan, &args.repo, &args.upload)?;
    planning::reset_upload(&plan, &run)?;
    let run = RunDir::create(&args.run, &plan)?;
    let session = Session { run, plan, _lock };
    work_and_summarize(&session, &programs, threads, args.json, display, signals)
}
