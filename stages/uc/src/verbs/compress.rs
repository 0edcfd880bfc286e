//! `uc compress MODEL`: from a model folder to a verified and evaluated pack.

use std::collections::BTreeMap;

use anyhow::Context;
use camino::Utf8PathBuf;
use uc_settings::{Settings, SourceRetention};
use uc_store::ExitCode;
use uc_store::plan::{External, Plan, SOURCE, StagePlan};

use crate::artifacts::{CALIBRATION_TEXT, MANIFEST, REMOTE_PACK};
use crate::cli::CompressArgs;
use crate::plan::embedded_texts;
use crate::plan::model::{DownloadScope, Model, TextUse, Texts};
use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::planning;
use crate::plan::sources;
use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::schedule::limits::Limits;
use crate::schedule::source::check_budget;
use crate::session::{self, Session};
use crate::verbs::work_and_summarize;

mod dry_run;

/// Goals of a run without evaluation; the upload only if the pipeline has one.
const GOALS_WITHOUT_EVALUATION: [&str; 2] = [MANIFEST, REMOTE_PACK];

/// A run that is planned and not written yet.
struct Prepared {
    pipeline: Pipeline,
    root: Utf8PathBuf,
    plan: Plan,
    /// Files to copy into the run directory, as (from, to).
    copies: Vec<(Utf8PathBuf, Utf8PathBuf)>,
}

/// Runs the verb.
pub fn run(args: &CompressArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env().allowing(&args.planning.allow_program);
    if args.dry_run {
        return dry_run::run(args, &programs, display);
    }
    let find = |scope, programs: &Programs| Model::find(&args.model, scope, programs, display);
    let limits = limits(args)?;
    let Prepared {
        root, plan, copies, ..
    } = prepare(args, &programs, display, find)?;
    let session = Session::enter_or_replace(&root, plan, args.force, display)?;
    if args.repository.is_some() {
        planning::reset_upload(&session.plan, &session.run)?;
    }
    if !copies.is_empty() {
        // Refuses a link in the place of the folder: what is copied there may be deleted.
        uc_store::atomic::create_dir_below(&root, &root.join(SOURCE))?;
    }
    for (from, to) in copies {
        let bytes = uc_input::read(&from, uc_input::LARGE_JSON)
            .with_context(|| format!("cannot read {from}"))?;
        uc_store::atomic::write_bytes(&to, &bytes)?;
    }
    work_and_summarize(&session, &programs, limits, args.json, display, signals)
}

/// What the jobs may use together.
fn limits(args: &CompressArgs) -> anyhow::Result<Limits> {
    let threads = session::threads(args.planning.threads);
    Limits::new(threads, args.planning.memory.as_deref())
}

/// Checks everything that the user asked for and plans the run. `find` finds the model.
fn prepare(
    args: &CompressArgs,
    programs: &Programs,
    display: &Display,
    find: impl FnOnce(DownloadScope, &Programs) -> anyhow::Result<Model>,
) -> anyhow::Result<Prepared> {
    let threads = session::threads(args.planning.threads);
    let pipeline = Pipeline::load(args.planning.pipeline.as_deref())?;
    pipeline.check_programs(programs)?;
    let settings = settings(&pipeline, args)?;
    let versions = programs.versions(pipeline.commands())?;
    let evicts = settings.retention.source == SourceRetention::Evict;
    let model = find_model(evicts, programs, find)?;
    model.overhead.check(&settings)?;
    let texts = texts(args, &model, display)?;
    let goals = GOALS_WITHOUT_EVALUATION.into_iter();
    let goals: Vec<&str> = goals
        .filter(|goal| *goal != REMOTE_PACK || pipeline.has_producer(goal))
        .collect();
    let inputs = texts.iter().map(|(name, _)| *name).chain(["source"]);

    let mut request = Request {
        model: model.source.clone(),
        summary: Some(model.summary(programs)?),
        source_files: model.file_names().collect(),
        pack_dir: pack_dir(args)?,
        settings,
        externals: inputs
            .map(|name| (name.to_owned(), sources::unknown()))
            .collect(),
        goals: match args.no_eval {
            true => Goals::Only(&goals),
            false => Goals::Everything,
        },
        cpus: threads,
        versions,
    };
    // Assembled once without hashes, so that an invalid plan, or one with jobs that are too large for this machine, is rejected
    // before the model is read.
    check_memory(args, &pipeline.assemble(&request)?, &request)?;

    let prefix = planning::run_prefix("", &model.source.name);
    let known = planning::known_files(&prefix, args.run.as_deref());
    let mut source = sources::describe_model(&model, &known, threads, display)?;
    if !evicts {
        // A dry run knows shards that the run itself would download first; no job fetches them.
        source.files.iter_mut().for_each(|file| file.shard = None);
    }
    request.externals.insert("source".into(), source.clone());
    for (name, texts) in &texts {
        let label = format!("the {}", name.replace('-', " "));
        let external = texts.describe(&label, &known, threads, display)?;
        request.externals.insert((*name).to_owned(), external);
    }
    warn_about_shared_texts(&request.externals, display);
    // Other calibration texts give another pack, so they belong to the name; evaluation texts do not.
    let identity = [&source, &request.externals[CALIBRATION_TEXT]];
    let default = || planning::default_run(&prefix, &identity, &request.settings);
    let root = args.run.clone().unwrap_or_else(default);
    let copies = match evicts {
        true => planning::relocate_source(&root, &mut request)?,
        false => Vec::new(),
    };
    embedded_texts::place(&root, &mut request.externals)?;
    let mut plan = pipeline.assemble(&request)?;
    if let Some(repository) = &args.repository {
        planning::add_upload(&mut plan, repository, &args.upload)?;
    }
    check_budget(&plan)?;
    Ok(Prepared {
        pipeline,
        root,
        plan,
        copies,
    })
}

/// Checks that every job of a new run fits into the memory. A run that continues may have done the largest ones.
fn check_memory(args: &CompressArgs, plan: &Plan, request: &Request<'_>) -> anyhow::Result<()> {
    let continues = |run: &Utf8PathBuf| run.join("run.json").exists();
    if args.dry_run || args.run.as_ref().is_some_and(continues) {
        return Ok(());
    }
    let has_work = |stage: &StagePlan| !stage.optional;
    limits(args)?.check(plan, request.summary.as_ref(), has_work)
}

/// The model to compress; with eviction, only the headers of its weight files are downloaded in advance.
fn find_model(
    evicts: bool,
    programs: &Programs,
    find: impl FnOnce(DownloadScope, &Programs) -> anyhow::Result<Model>,
) -> anyhow::Result<Model> {
    let scope = match evicts {
        true => DownloadScope::Headers,
        false => DownloadScope::Everything,
    };
    let model = find(scope, programs)?;
    if evicts && !model.is_download {
        let message = format!(
            "retention.source: found evict for the folder {}, from which nothing is ever deleted; expected keep, \
             or a model of the Hub",
            model.source.path
        );
        return Err(failure(ExitCode::BadPipeline, message));
    }
    Ok(model)
}

/// The settings of the pipeline with the overrides of the command line.
fn settings(pipeline: &Pipeline, args: &CompressArgs) -> anyhow::Result<Settings> {
    let mut settings = pipeline.settings().clone();
    if let Some(bpw) = &args.bpw {
        settings.set("quantize.bpw", bpw)?;
    }
    if let Some(rank) = &args.rank {
        settings.set("overlay.rank", rank)?;
    }
    if let Some(field) = &args.field {
        settings.set("calibration.field", field)?;
        settings.set("evaluation.field", field)?;
    }
    planning::apply_settings(&mut settings, &args.planning.set)?;
    Ok(settings)
}

/// The folder of the pack, as the plan names it.
fn pack_dir(args: &CompressArgs) -> anyhow::Result<Utf8PathBuf> {
    match &args.out {
        None => Ok("pack".into()),
        Some(out) => Ok(camino::absolute_utf8(out)?),
    }
}

/// The texts with the name of their external input.
fn texts(
    args: &CompressArgs,
    model: &Model,
    display: &Display,
) -> anyhow::Result<Vec<(&'static str, Texts)>> {
    let calibration = model.texts(&args.calibration, TextUse::Calibration)?;
    calibration.warn_if_embedded("Calibration text", "--calibration", display);
    let mut texts = vec![(CALIBRATION_TEXT, calibration)];
    if !args.no_eval {
        let evaluation = model.texts(&args.evaluation, TextUse::Evaluation)?;
        evaluation.warn_if_embedded("Evaluation text", "--evaluation", display);
        texts.push(("evaluation-text", evaluation));
    }
    Ok(texts)
}

/// Warns if a text is used for both calibration and evaluation.
fn warn_about_shared_texts(externals: &BTreeMap<String, External>, display: &Display) {
    let files = |name: &str| {
        externals
            .get(name)
            .map_or(&[][..], |external| &external.files)
    };
    for file in files("evaluation-text") {
        if files(CALIBRATION_TEXT)
            .iter()
            .any(|other| other.sha256 == file.sha256)
        {
            display.warn(&format!(
                "{} is used for calibration and for evaluation; the metrics will flatter the pack",
                file.path
            ));
        }
    }
}
