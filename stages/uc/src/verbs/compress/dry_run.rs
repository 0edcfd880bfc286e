//! `uc compress MODEL --dry-run`: what the run would do, and what it would take. Writes nothing; a model of the Hub leaves
//! only its headers in a temporary folder, which is deleted.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use uc_store::freshness;
use uc_store::run::RunDir;

use super::{Prepared, limits, prepare};
use crate::cli::CompressArgs;
use crate::forecast::{self, Forecast, Machine, kept_probe};
use crate::plan::model::Model;
use crate::process::programs::Programs;
use crate::report::colour::print_report;
use crate::report::json::print_json;
use crate::report::progress::Display;
use crate::report::staleness::{pending_lines, stale_lines};
use crate::session::replacement;

/// What a run would do.
#[derive(Debug, Serialize)]
struct DryRun {
    /// The model's folder or name.
    model: Utf8PathBuf,
    /// The run directory.
    run: Utf8PathBuf,
    /// Whether it is a run already.
    exists: bool,
    /// The folder of the pack.
    pack: Utf8PathBuf,
    /// The finished pack that the run would replace, which needs `--force`; none if it replaces none.
    replaces: Option<String>,
    /// Files of the texts.
    texts: Vec<Utf8PathBuf>,
    /// Jobs to do.
    to_do: usize,
    /// All jobs.
    jobs: usize,
    /// Why jobs would run.
    reasons: Vec<String>,
    /// Size of the pack, memory, disk and time; none if the settings do not determine them.
    forecast: Option<Forecast>,
    /// Why there is no forecast.
    no_forecast: Option<String>,
}

/// Runs the verb without its effects.
pub fn run(args: &CompressArgs, programs: &Programs, display: &Display) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("cannot create a temporary folder")?;
    let folder =
        Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let find = |_, programs: &Programs| Model::peek(&args.model, folder, programs, display);
    let prepared = prepare(args, programs, display, find)?;
    let dry_run = examine(args, &prepared, programs)?;
    match args.json {
        true => print_json(&dry_run)?,
        false => print_report(&text(&dry_run)),
    }
    Ok(())
}

fn examine(
    args: &CompressArgs,
    prepared: &Prepared,
    programs: &Programs,
) -> anyhow::Result<DryRun> {
    let Prepared {
        pipeline,
        root,
        plan,
        copies,
    } = prepared;
    let run = RunDir::at(root);
    // An unreadable plan is written again; what it says is lost.
    let before = RunDir::open(root).ok().map(|(_, plan)| plan);
    let work = freshness::plan_work(plan, &run)?;
    let to_do = work.to_run(plan).len();
    let limits = limits(args)?;
    let machine = Machine {
        probe: kept_probe::load(),
        threads: Some(limits.budget.cpus),
        gflops: None,
        memory: Some((limits.budget.memory, limits.origin)),
    };
    // A source that is evicted is not in the run directory yet.
    let origin = |name: &str| {
        let path = plan.model.path.join(name);
        let copied = copies.iter().find(|(_, to)| *to == path);
        copied.map_or(path, |(from, _)| from.clone())
    };
    let index = origin("model.safetensors.index.json");
    let index = index.exists().then_some(index);
    let model = Model::describe(&origin("config.json"), index.as_deref(), programs);
    let forecast =
        model.and_then(|model| forecast::forecast(model, pipeline, &plan.settings, machine));
    let (forecast, no_forecast) = match forecast {
        Ok(forecast) => (Some(forecast), None),
        Err(error) => (None, Some(uc_store::output::error_text(&error))),
    };
    let texts = plan.externals.iter().filter(|(name, _)| *name != "source");
    Ok(DryRun {
        model: args.model.clone(),
        run: root.clone(),
        exists: before.is_some(),
        pack: root.join(&plan.pack_dir),
        replaces: replacement::replaced_pack(&run, before.as_ref(), plan)?,
        texts: texts
            .flat_map(|(_, text)| text.files.iter().map(|file| file.path.clone()))
            .collect(),
        to_do,
        jobs: work.states.len(),
        reasons: match before.is_some() {
            true => stale_lines(plan, &work),
            false => pending_lines(plan, &work),
        },
        forecast,
        no_forecast,
    })
}

fn text(dry_run: &DryRun) -> String {
    let row = |name: &str, value: &str| format!("{name:<22}{value}");
    let exists = if dry_run.exists { "continued" } else { "new" };
    let mut lines = vec![
        row("model", dry_run.model.as_str()),
        row("run", &format!("{} ({exists})", dry_run.run)),
        row("pack", dry_run.pack.as_str()),
    ];
    lines.extend(dry_run.texts.iter().map(|text| row("text", text.as_str())));
    lines.push(row(
        "jobs",
        &format!("{} of {} to do", dry_run.to_do, dry_run.jobs),
    ));
    if dry_run.exists {
        lines.extend(dry_run.reasons.iter().map(|reason| format!("  {reason}")));
    }
    lines.push(String::new());
    let mut text = lines.join("\n") + "\n";
    match (&dry_run.forecast, &dry_run.no_forecast) {
        (Some(forecast), _) => text += &forecast.text(),
        (None, reason) => {
            let reason = reason.as_deref().unwrap_or_default();
            text += &format!("{}\n", row("forecast", &format!("none: {reason}")));
        }
    }
    if let Some(replaces) = &dry_run.replaces {
        text += &format!("\nwarning: {replaces}. It would be refused without --force\n");
    }
    text + "\nnothing was written; without --dry-run, the run starts\n"
}
