//! `uc stage NAME --run RUN [--layer N]`: a single job, with its log on this terminal.

use camino::Utf8PathBuf;
use uc_store::plan::{JobId, Per, Plan, StagePlan, Unit};
use uc_store::run::RunDir;
use uc_store::{ExitCode, StoreError};

use crate::cli::StageArgs;
use crate::plan::planning;
use crate::process::programs::Programs;
use crate::process::runner;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::report::suggestion::closest;
use crate::schedule::limits::Limits;
use crate::session::{self, Session};

/// Most missing inputs that a message lists.
const MAX_MISSING: usize = 20;

/// Runs the verb. The job runs even if its result is up to date.
pub fn run(args: &StageArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env().allowing(&args.trust.allow_program);
    let threads = session::threads(args.threads);
    let (run, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    planning::check_pack_folder(&plan, &args.run, args.trust.out.as_deref())?;
    let stage = find_stage(&plan, &args.name)?;
    let job = JobId {
        stage: stage.name.clone(),
        unit: unit(stage, args.layer, plan.model.layers)?,
    };
    let mut session = match programs.refresh_versions(&mut plan)? {
        true => Session::create(&args.run, plan, _lock)?,
        false => Session { run, plan, _lock },
    };
    if args.with_inputs {
        ask_for(&mut session.plan, &job.stage);
        session.make_inputs(
            &job,
            &programs,
            Limits::new(threads, None)?,
            display,
            signals,
        )?;
    }
    refuse_missing_inputs(&session, &job, args)?;

    let stage = session.plan.stage(&job.stage).expect("found above");
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
    let exit = runner::foreground(&program, &arguments, threads, || signals.count() > 0)?;
    exit.into_result()?;
    if args.with_inputs {
        let run = &args.run;
        display.info(&format!(
            "{job}: done; the inputs stay until the next uc resume {run}"
        ));
    }
    Ok(())
}

fn find_stage<'a>(plan: &'a Plan, name: &str) -> anyhow::Result<&'a StagePlan> {
    let known: Vec<&str> = plan.stages.iter().map(|s| s.name.as_str()).collect();
    plan.stage(name).ok_or_else(|| {
        let hint = closest(name, known.iter().copied());
        let hint = hint.map_or_else(String::new, |stage| format!(" (did you mean {stage}?)"));
        let error = StoreError::Unknown {
            kind: "stage",
            name: format!("{name}{hint}"),
            known: known.join(", "),
        };
        error.into()
    })
}

/// What the job works on.
fn unit(stage: &StagePlan, layer: Option<u32>, layers: u32) -> anyhow::Result<Unit> {
    let name = &stage.name;
    let last = layers.saturating_sub(1);
    let message = match (stage.per, layer) {
        (Per::Run, None) => return Ok(Unit::Run),
        (Per::Layer, Some(layer)) if layer < layers => return Ok(Unit::Layer(layer)),
        (Per::Shard, _) => {
            format!("stage {name} fetches shards when jobs need them; uc resume runs it")
        }
        (Per::Run, Some(_)) => {
            format!("stage {name} has one job for the whole run: leave out --layer")
        }
        (Per::Layer, None) => format!("stage {name} needs --layer 0..{last}"),
        (Per::Layer, Some(layer)) => {
            format!("stage {name} has no layer {layer}: it needs --layer 0..{last}")
        }
    };
    Err(failure(ExitCode::Usage, message))
}

/// Makes an optional stage part of the work of this session.
fn ask_for(plan: &mut Plan, stage: &str) {
    for spec in plan.stages.iter_mut().filter(|spec| spec.name == stage) {
        spec.optional = false;
    }
}

/// An error that says how to get the inputs of a job, if some are missing.
fn refuse_missing_inputs(session: &Session, job: &JobId, args: &StageArgs) -> anyhow::Result<()> {
    let (plan, root) = (&session.plan, session.run.root());
    let stage = plan.stage(&job.stage).expect("a job of the plan");
    let inputs = plan.inputs(stage, job.unit).into_iter();
    let missing: Vec<String> = inputs
        .filter(|id| plan.external(id).is_none())
        .filter(|id| {
            plan.path(root, id)
                .is_none_or(|path: Utf8PathBuf| !path.exists())
        })
        .map(|id| id.to_string())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let more = match missing.len().saturating_sub(MAX_MISSING) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed = missing[..missing.len().min(MAX_MISSING)].join(", ");
    let layer = args
        .layer
        .map_or_else(String::new, |layer| format!(" --layer {layer}"));
    let message = format!(
        "{job}: {listed}{more} missing; a run deletes such files after their last use. Make them with: \
         uc stage {} --run {}{layer} --with-inputs",
        job.stage, args.run
    );
    Err(failure(ExitCode::MissingInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::test_stage;

    #[test]
    fn the_message_names_the_layers_that_a_stage_has() {
        let stage = |per| test_stage::stage("quantize", per);
        let error = |per, layer| {
            unit(&stage(per), layer, 5)
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(error(Per::Layer, None), "stage quantize needs --layer 0..4");
        assert!(error(Per::Layer, Some(5)).contains("no layer 5: it needs --layer 0..4"));
        assert!(error(Per::Run, Some(0)).contains("leave out --layer"));
        assert_eq!(
            unit(&stage(Per::Layer), Some(4), 5).expect("a layer"),
            Unit::Layer(4)
        );
        assert_eq!(unit(&stage(Per::Run), None, 5).expect("the run"), Unit::Run);
    }
}
