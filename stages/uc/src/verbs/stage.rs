//! `uc stage NAME --run RUN [--layer N]`: a single job, with its log on this terminal.

use uc_store::StoreError;
use uc_store::run::RunDir;

use crate::cli::StageArgs;
use crate::plan::planning;
use crate::process::programs::Programs;
use crate::process::runner;
use crate::process::signals::Listener;
use crate::report::progress::Display;
use crate::session;

/// Runs the verb. The job runs even if its result is up to date.
pub fn run(args: &StageArgs, display: &Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env().allowing(&args.trust.allow_program);
    let (_, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    planning::check_pack_folder(&plan, &args.run, args.trust.out.as_deref())?;
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
    let program = programs.for_command(&stage.argv)?;
    let mut arguments = stage.argv[1..].to_vec();
    arguments.extend(["--run", args.run.as_str(), "--stage", &stage.name].map(str::to_owned));
    if let Some(layer) = args.layer {
        arguments.extend(["--layer".into(), layer.to_string()]);
    }
    // This verb is for reading logs; -v adds more.
    let verbosity = usize::from(display.verbosity()) + 1;
    arguments.extend(std::iter::repeat_n("-v".to_owned(), verbosity));
    // Attached so that a signal stops the job before this process exits.
    let (sender, _messages) = crossbeam_channel::unbounded();
    signals.attach(sender);
    let threads = session::threads(args.threads);
    let exit = runner::foreground(&program, &arguments, threads, || signals.count() > 0)?;
    exit.into_result()
}
