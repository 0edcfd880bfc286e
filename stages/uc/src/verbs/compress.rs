//! `uc compress MODEL`: from a model folder to a verified and evaluated pack.

use std::collections::BTreeMap;

use anyhow::Context;
use camino::Utf8PathBuf;
use uc_settings::{Settings, SourceRetention};
use uc_store::ExitCode;
use uc_store::plan::External;

use crate::artifacts::{MANIFEST, REMOTE_PACK};
use crate::cli::CompressArgs;
use crate::plan::model::{DownloadScope, Model, TextUse};
use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::planning;
use crate::plan::sources;
use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::schedule::source::check_budget;
use crate::session::{self, Session};
use crate::verbs::work_and_summarize;

/// Goals of a run without evaluation; the upload only if the pipeline has one.
const GOALS_WITHOUT_EVALUATION: [&str; 2] = [MANIFEST, REMOTE_PACK];

/// Runs the verb.
pub fn run(args: &CompressArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env();
    let threads = session::threads(args.planning.threads);
    let pipeline = Pipeline::load(args.planning.pipeline.as_deref())?;
    pipeline.check_programs(&programs)?;
    let settings = settings(&pipeline, args)?;
    let versions = programs.versions(pipeline.commands())?;
    let evicts = settings.retention.source == SourceRetention::Evict;
    let model = find_model(args, evicts, &programs, display)?;
    let texts = texts(args, &model, display)?;
    let goals = GOALS_WITHOUT_EVALUATION.into_iter();
    let goals: Vec<&str> = goals
        .filter(|goal| *goal != REMOTE_PACK || pipeline.has_producer(goal))
        .collect();

    let mut request = Request {
        model: model.source.clone(),
        source_files: model.file_names().collect(),
        pack_dir: pack_dir(args)?,
        settings,
        externals: texts
            .keys()
            .map(|name| (name.clone(), sources::unknown()))
            .collect(),
        goals: match args.no_eval {
            true => Goals::Only(&goals),
            false => Goals::Everything,
        },
        cpus: threads,
        versions,
    };
    request
        .externals
        .insert("source".into(), sources::unknown());
    // Assembled once without hashes, so that an invalid plan is rejected before the model is read.
    pipeline.assemble(&request)?;

    let prefix = planning::run_prefix("", &model.source.name);
    let known = planning::known_files(&prefix, args.run.as_deref());
    let source = sources::describe_model(&model, &known, threads, display)?;
    request.externals.insert("source".into(), source.clone());
    for (name, files) in texts {
        let external = sources::describe(&name, &files, &known, threads, display)?;
        request.externals.insert(name, external);
    }
    warn_about_shared_texts(&request.externals, display);
    let default = || planning::default_run(&prefix, &[&source], &request.settings);
    let root = args.run.clone().unwrap_or_else(default);
    let copies = match evicts {
        true => planning::relocate_source(&root, &mut request)?,
        false => Vec::new(),
    };
    let mut plan = pipeline.assemble(&request)?;
    if let Some(repository) = &args.repository {
        planning::add_upload(&mut plan, repository, &args.upload)?;
    }
    check_budget(&plan)?;
    let session = Session::enter(&root, plan, display)?;
    if args.repository.is_some() {
        planning::reset_upload(&session.plan, &session.run)?;
    }
    for (from, to) in copies {
        let bytes = std::fs::read(&from).with_context(|| format!("cannot read {from}"))?;
        uc_store::atomic::write_bytes(&to, &bytes)?;
    }
    work_and_summarize(&session, &programs, threads, args.json, display, signals)
}

/// The model to compress; with eviction, only the headers of its weight files are downloaded in advance.
fn find_model(
    args: &CompressArgs,
    evicts: bool,
    programs: &Programs,
    display: &Display,
) -> anyhow::Result<Model> {
    let scope = match evicts {
        true => DownloadScope::Headers,
        false => DownloadScope::Everything,
    };
    let model = Model::find(&args.model, scope, programs, display)?;
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

/// The texts by the name of their external input.
fn texts(
    args: &CompressArgs,
    model: &Model,
    display: &Display,
) -> anyhow::Result<BTreeMap<String, Vec<Utf8PathBuf>>> {
    let mut texts = BTreeMap::new();
    let mut required = vec![("calibration-text", &args.calibration, TextUse::Calibration)];
    if !args.no_eval {
        required.push(("evaluation-text", &args.evaluation, TextUse::Evaluation));
    }
    for (name, given, text_use) in required {
        let chosen = model.texts(given, text_use)?;
        if chosen.is_fallback {
            display.warn(&format!(
                "{name}: using the generated stories of the embedded tiny model ({}). A real model needs real text: \
                 give --calibration FILE and --evaluation FILE",
                chosen.files[0]
            ));
        }
        texts.insert(name.to_owned(), chosen.files);
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
        if files("calibration-text")
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
