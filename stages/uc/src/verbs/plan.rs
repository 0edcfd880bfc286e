//! `uc plan`: for a run, what is stale and why; for the configuration of a model, its size and what a run would take.
//! Writes nothing but the speeds of the machine that `--measure` finds.

use camino::Utf8Path;
use uc_store::ExitCode;
use uc_store::freshness;
use uc_store::output;
use uc_store::plan::{Per, StagePlan};
use uc_store::run::RunDir;

use crate::cli::PlanArgs;
use crate::forecast::probe::Probe;
use crate::forecast::{self, Machine, SpeedsOf, kept_probe};
use crate::plan::model::Model;
use crate::plan::pipeline::Pipeline;
use crate::plan::planning;
use crate::process::programs::Programs;
use crate::report::colour::print_report;
use crate::report::failure::failure;
use crate::report::json::print_json;
use crate::report::progress::Display;
use crate::report::staleness::pending_lines;
use crate::schedule::limits::Limits;
use crate::session;

mod measure;

/// Differences between an index and a plan that are listed, at most.
const LISTED_DIFFERENCES: usize = 20;

/// Runs the verb.
pub fn run(args: &PlanArgs, display: &Display) -> anyhow::Result<()> {
    if args.measure {
        measure_machine(args, display)?;
        if args.config.is_none() {
            return Ok(());
        }
    }
    match (&args.run, &args.config) {
        (Some(run), _) => plan_run(run, args, display),
        (None, Some(config)) => forecast_config(config, args),
        (None, None) => Err(failure(
            ExitCode::Usage,
            "expected a run, --config FILE or --measure",
        )),
    }
}

/// Measures this machine and keeps the speeds for later forecasts. They are printed, unless a forecast that follows says them.
fn measure_machine(args: &PlanArgs, display: &Display) -> anyhow::Result<()> {
    let probe = measure::measure(Utf8Path::new("."), session::threads(args.threads), display)?;
    let file = kept_probe::save(&probe)?;
    display.info(&format!("kept in {file}"));
    match (&args.config, args.json) {
        (Some(_), _) => {}
        (None, true) => print_json(&probe)?,
        (None, false) => {
            let machine = format!("{}, {} cores", probe.processor, probe.cores);
            let lines = std::iter::once(machine).chain(probe.lines());
            lines.for_each(output::print_line);
        }
    }
    Ok(())
}

fn plan_run(root: &Utf8Path, args: &PlanArgs, display: &Display) -> anyhow::Result<()> {
    let (run, mut plan) = RunDir::open(root)?;
    planning::apply_settings(&mut plan.settings, &args.set)?;
    let programs = Programs::from_env().allowing(&args.allow_program);
    for name in programs.refresh_known_versions(&mut plan)? {
        let name = uc_input::printable(&name).into_owned();
        display.info(&format!(
            "{name} is not a program of uc and was not asked for its version; if you trust it, add --allow-program {name}"
        ));
    }
    let work = freshness::plan_work(&plan, &run)?;
    let to_do = work.to_run(&plan);
    for line in pending_lines(&plan, &work) {
        output::print_line(line);
    }
    output::print_line(format_args!(
        "{} of {} jobs to do",
        to_do.len(),
        work.states.len()
    ));
    let on_request = |stage: &&StagePlan| stage.optional && stage.per != Per::Shard;
    for stage in plan.stages.iter().filter(on_request) {
        display.detail(&format!("{} runs only on request", stage.name));
    }
    if !to_do.is_empty() {
        let set: Vec<String> = args.set.iter().map(|set| format!(" --set {set}")).collect();
        let resume = planning::resume_command(&plan, root, &programs);
        output::print_line(format_args!("run it with: {resume}{}", set.concat()));
    }
    Ok(())
}

fn forecast_config(config: &Utf8Path, args: &PlanArgs) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(args.pipeline.as_deref())?;
    let mut settings = pipeline.settings().clone();
    if let Some(bpw) = &args.bpw {
        settings.set("quantize.bpw", bpw)?;
    }
    planning::apply_settings(&mut settings, &args.set)?;
    let machine = machine(args)?;
    let programs = Programs::from_env();
    let model = Model::describe(config, args.index.as_deref(), &programs)?;
    let forecast = forecast::forecast(model, &pipeline, &settings, machine)?;
    match args.json {
        true => print_json(&forecast)?,
        false => print_report(&forecast.text()),
    }
    let index = forecast.model.index.as_ref();
    let differences = index.map_or_else(Vec::new, |index| index.differences());
    if differences.is_empty() {
        return Ok(());
    }
    let file = args.index.as_deref().unwrap_or(config);
    let listed = &differences[..differences.len().min(LISTED_DIFFERENCES)];
    let mut message = format!(
        "{file}: {} differences from the plan of {config}:\n  {}",
        differences.len(),
        listed.join("\n  ")
    );
    if listed.len() < differences.len() {
        message += &format!("\n  and {} more", differences.len() - listed.len());
    }
    Err(failure(ExitCode::BadInput, message))
}

fn machine(args: &PlanArgs) -> anyhow::Result<Machine> {
    let invalid = |option: &str, found: &str, expected: &str| {
        let message = format!("{option}: found {found}, expected {expected}");
        failure(ExitCode::Usage, message)
    };
    if let Some(gflops) = args.gflops
        && !(gflops.is_finite() && gflops > 0.0)
    {
        return Err(invalid("--gflops", &gflops.to_string(), "a number above 0"));
    }
    let limits = Limits::new(0, args.memory.as_deref())?;
    let probe = match &args.speeds {
        Some(file) => Some((speeds(file)?, SpeedsOf::File)),
        None => kept_probe::load(),
    };
    Ok(Machine {
        probe,
        threads: args.threads,
        gflops: args.gflops,
        memory: Some((limits.budget.memory, limits.origin)),
    })
}

/// The speeds in a file that `uc plan --measure --json` has written.
fn speeds(file: &Utf8Path) -> anyhow::Result<Probe> {
    let refused = |found: &str| {
        let expected = "the output of uc plan --measure --json";
        failure(
            ExitCode::BadInput,
            format!("{file}: {found}, expected {expected}"),
        )
    };
    let probe: Probe = uc_input::read_json(file, uc_input::SMALL_JSON)
        .map_err(|error| refused(&error.to_string()))?;
    match probe.is_sound() {
        true => Ok(probe),
        false => Err(refused("found a speed that is not above 0")),
    }
}
