//! `uc compress MODEL`: from a model folder to a verified and evaluated pack.

use std::collections::BTreeMap;

use anyhow::Context;
use camino::Utf8PathBuf;
use uc_settings::{Settings, SourceRetention};
use uc_store::ExitCode;
use uc_store::plan::External;

use crate::cli::CompressArgs;
use crate::plan::model::{Extent, Model, TextUse};
use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::planning;
use crate::plan::sources;
use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::report::summary;
use crate::schedule::driver;
use crate::session;

/// What a run without evaluation is for; an upload only where the pipeline has one.
const WITHOUT_EVALUATION: [&str; 2] = ["manifest", planning::UPLOADED];

/// Runs the verb.
pub fn run(args: &CompressArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::of_this_process();
    let threads = session::threads(args.planning.threads);
    let pipeline = Pipeline::load(args.planning.pipeline.as_deref())?;
    programs.check(&pipeline)?;
    let settings = settings(&pipeline, args)?;
    let versions = programs.versions(pipeline.commands())?;
    let evicts = settings.retention.source == SourceRetention::Evict;
    let extent = match evicts {
        true => Extent::Headers,
        false => Extent::Everything,
    };
    let model = Model::find(&args.model, extent, &programs, display)?;
    if evicts && model.source.hub.is_none() {
        let message = format!(
            "retention.source: found evict for the folder {}, from which nothing is ever deleted; expected keep, \
             or a model of the Hub",
            model.source.path
        );
        return Err(failure(ExitCode::BadPipeline, message));
    }
    let texts = texts(args, &model, display)?;
    let goals = WITHOUT_EVALUATION.into_iter();
    let goals: Vec<&str> = goals
        .filter(|goal| *goal != planning::UPLOADED || pipeline.makes(goal))
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
    // A first time without hashes: a plan that cannot be is refused before the model is read.
    pipeline.assemble(&request)?;

    let prefix = planning::prefix("", &model.source.name);
    let known = planning::remembered(&prefix, args.run.as_deref());
    let source = sources::of_model(&model, &known, threads, display)?;
    request.externals.insert("source".into(), source.clone());
    for (name, files) in texts {
        let external = sources::describe(&name, &files, &known, threads, display)?;
        request.externals.insert(name, external);
    }
    warn_of_shared_texts(&request.externals, display);
    let default = || planning::default_run(&prefix, &[&source], &request.settings);
    let root = args.run.clone().unwrap_or_else(default);
    let copies = match evicts {
        true => planning::take_in(&root, &mut request)?,
        false => Vec::new(),
    };
    let mut plan = pipeline.assemble(&request)?;
    if let Some(repository) = &args.repository {
        planning::upload(&mut plan, repository, &args.upload)?;
    }
    driver::source::check(&plan)?;
    let session = planning::enter(&root, plan, display)?;
    if args.repository.is_some() {
        planning::forget_upload(&session.plan, &session.run)?;
    }
    for (from, to) in copies {
        let bytes = std::fs::read(&from).with_context(|| format!("cannot read {from}"))?;
        uc_store::atomic::write_bytes(&to, &bytes)?;
    }
    let outcome = session.work(&programs, threads, display, signals);
    summary::finish(&session, outcome, threads, args.json, display)
}

fn settings(pipeline: &Pipeline, args: &CompressArgs) -> anyhow::Result<Settings> {
    let mut settings = pipeline.settings().clone();
    if let Some(bpw) = &args.bpw {
        settings.set("quantize.bpw", bpw)?;
    }
    if let Some(rank) = &args.rank {
        settings.set("overlay.rank", rank)?;
    }
    planning::apply(&mut settings, &args.planning.set)?;
    Ok(settings)
}

/// The pack's folder as the plan names it.
fn pack_dir(args: &CompressArgs) -> anyhow::Result<Utf8PathBuf> {
    match &args.out {
        None => Ok("pack".into()),
        Some(out) => Ok(camino::absolute_utf8(out)?),
    }
}

/// The texts by the name of their outside input.
fn texts(
    args: &CompressArgs,
    model: &Model,
    display: &Display,
) -> anyhow::Result<BTreeMap<String, Vec<Utf8PathBuf>>> {
    let mut texts = BTreeMap::new();
    let mut wanted = vec![("calibration-text", &args.calibration, TextUse::Calibration)];
    if !args.no_eval {
        wanted.push(("evaluation-text", &args.evaluation, TextUse::Evaluation));
    }
    for (name, given, text_use) in wanted {
        let found = model.texts(given, text_use)?;
        if found.is_fallback {
            display.warn(&format!(
                "{name}: using the generated stories of the embedded tiny model ({}). A real model wants real text: \
                 give --calibration FILE and --evaluation FILE",
                found.files[0]
            ));
        }
        texts.insert(name.to_owned(), found.files);
    }
    Ok(texts)
}

/// A model that was calibrated on the text of its examination proves nothing.
fn warn_of_shared_texts(externals: &BTreeMap<String, External>, display: &Display) {
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
