//! `uc stage NAME --run RUN [--layer N]`: one job alone, with its logs on this terminal.

use uc_store::StoreError;
use uc_store::run::RunDir;

use crate::cli::StageArgs;
use crate::process::programs::Programs;
use crate::process::runner;
use crate::process::signals::Listener;
use crate::report::progress::Display;
use crate::schedule::driver::foreground_outcome;
use crate::session;

/// Runs the verb. The job is done even if its result is up to date.
pub fn run(args: &StageArgs, display: &Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::of_this_process();
    let (_, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    if programs.refresh_versions(&mut plan)? {
        RunDir::create(&args.run, &plan)?;
    }
    let stage = plan.stage(&args.name).ok_or_else(|| StoreError::Unknown {
        kind: "stage",
        name: args.name.clone(),
        known: plan
            .stages
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    let program = programs.of_stage(&stage.argv)?;
    let mut arguments = stage.argv[1..].to_vec();
    arguments.extend(["--run", args.run.as_str(), "--stage", &stage.name].map(str::to_owned));
    if let Some(layer) = args.layer {
        arguments.extend(["--layer".into(), layer.to_string()]);
    }
    // Full logs are what this verb is for; -v asks for still more.
    let verbosity = usize::from(display.verbosity()) + 1;
    arguments.extend(std::iter::repeat_n("-v".to_owned(), verbosity));
    // The job is ended with this process, not left behind by it.
    let (sender, _messages) = crossbeam_channel::unbounded();
    signals.attach(sender);
    let threads = session::threads(args.threads);
    let ending = runner::foreground(&program, &arguments, threads, || signals.count() > 0)?;
    foreground_outcome(ending)
}
