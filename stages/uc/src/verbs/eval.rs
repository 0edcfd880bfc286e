//! `uc eval PACK --model MODEL`: the evaluation stages in a run of their own, on any pack or export, against a model or a pack.

use std::collections::BTreeMap;

use camino::Utf8Path;
use uc_pack::Manifest;
use uc_store::ExitCode;
use uc_store::plan::{ArtifactId, External};
use uc_store::run::RunDir;

use crate::artifacts::{MANIFEST, METRICS, PACK_LAYER};
use crate::cli::EvalArgs;
use crate::plan::embedded_texts;
use crate::plan::model;
use crate::plan::model::{DownloadScope, Model, TextUse};
use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::planning;
use crate::plan::sources;
use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::packs;
use crate::report::progress::Display;
use crate::report::summary;
use crate::schedule::limits::Limits;
use crate::session::{self, Session};
use crate::verbs::work_and_summarize;

mod evaluated_export;

/// The goal of the run.
const GOAL: [&str; 1] = [METRICS];

/// The external input that is compared on.
const TEXT: &str = "evaluation-text";

/// Runs the verb.
pub fn run(args: &EvalArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    let programs = Programs::from_env().allowing(&args.planning.allow_program);
    let threads = session::threads(args.planning.threads);
    let limits = Limits::new(threads, args.planning.memory.as_deref())?;
    let pipeline = Pipeline::load(args.planning.pipeline.as_deref())?;
    pipeline.check_programs(&programs)?;
    let mut settings = pipeline.settings().clone();
    if let Some(field) = &args.field {
        settings.set("evaluation.field", field)?;
    }
    planning::apply_settings(&mut settings, &args.planning.set)?;
    let versions = programs.versions(pipeline.commands())?;
    let teacher = evaluated_export::teacher(&args.model, threads, display)?;
    let model = Model::find(&teacher, DownloadScope::Everything, &programs, display)?;
    let texts = model.texts(&args.text, TextUse::Evaluation)?;
    texts.warn_if_embedded("Evaluation text", "--text", display);

    let dir = model::absolute(&args.pack)?;
    let known = planning::known_files("eval-", args.run.as_deref());
    let source = sources::describe("the model", &model.files, &known, threads, display)?;
    let is_export = evaluated_export::is_export(&dir);
    let mut externals = match is_export {
        true => {
            let layers = model.source.layers;
            evaluated_export::inputs(&dir, layers, &known, threads, display)?
        }
        false => pack_inputs(&dir, &known, threads, display)?,
    };
    if !is_export {
        let manifest = packs::open(&dir)?.manifest().clone();
        check_pair(&manifest, &model, &source)?;
    }
    externals.insert("source".into(), source);
    let text = texts.describe("the evaluation text", &known, threads, display)?;
    externals.insert(TEXT.into(), text);

    let mut plan = pipeline.assemble(&Request {
        model: model.source.clone(),
        summary: Some(model.summary(&programs)?),
        source_files: model.file_names().collect(),
        pack_dir: dir.clone(),
        settings,
        externals,
        goals: Goals::Only(&GOAL),
        cpus: threads,
        versions,
    })?;
    let prefix = planning::run_prefix("eval-", &model.source.name);
    // The texts belong to it, so that results on different texts stand side by side.
    let identity = ["source", MANIFEST, TEXT].map(|name| &plan.externals[name]);
    let default = || planning::default_run(&prefix, &identity, &plan.settings);
    let root = args.run.clone().unwrap_or_else(default);
    embedded_texts::place(&root, &mut plan.externals)?;
    keep_other_results(&root, &plan.externals[TEXT])?;
    let session = Session::enter(&root, plan, display)?;
    work_and_summarize(&session, &programs, limits, args.json, display, signals)?;
    if is_export {
        let metrics = summary::document(&session.run, &session.plan, METRICS)?;
        evaluated_export::record(&dir, &args.model, &metrics, display)?;
    }
    Ok(())
}

/// Refuses a run directory with the results on other texts, which would be lost.
fn keep_other_results(root: &Utf8Path, texts: &External) -> anyhow::Result<()> {
    let Ok((_, plan)) = RunDir::open(root) else {
        return Ok(());
    };
    let Some(former) = plan
        .externals
        .get(TEXT)
        .filter(|former| former.digest != texts.digest)
    else {
        return Ok(());
    };
    let names: Vec<_> = former
        .files
        .iter()
        .filter_map(|file| file.path.file_name())
        .collect();
    let message = format!(
        "{root} holds the results on other texts ({}), expected a directory for these; without --run, the results on every \
         text have a directory of their own",
        names.join(", ")
    );
    Err(failure(ExitCode::Usage, message))
}

/// Verifies the pack and describes its files as external inputs of the run.
fn pack_inputs(
    dir: &Utf8Path,
    known: &External,
    threads: u32,
    display: &Display,
) -> anyhow::Result<BTreeMap<String, External>> {
    packs::require_verified(dir, threads, None, display)?;
    let pack = packs::open(dir)?;
    let manifest = pack.manifest();
    let mut files: Vec<(String, &str)> = manifest
        .layers
        .iter()
        .map(|layer| {
            (
                ArtifactId::at(PACK_LAYER, layer.index).to_string(),
                layer.file.as_str(),
            )
        })
        .collect();
    files.push(("pack-non-layer".into(), manifest.non_layer.file.as_str()));
    files.push((MANIFEST.into(), uc_pack::MANIFEST_FILE));
    let mut inputs = BTreeMap::new();
    for (name, file) in files {
        let external = sources::describe(file, &[dir.join(file)], known, threads, display)?;
        inputs.insert(name, external);
    }
    Ok(inputs)
}

/// Checks that the pack was made from this model; otherwise the metrics would be meaningless.
fn check_pair(manifest: &Manifest, model: &Model, source: &External) -> anyhow::Result<()> {
    let layers = manifest.layers.len();
    if layers != model.source.layers as usize {
        let message = format!(
            "the pack has {layers} layers, {} has {}",
            model.source.path, model.source.layers
        );
        return Err(failure(ExitCode::BadInput, message));
    }
    let determines_weights =
        |name: &str| name.ends_with(".safetensors") || name == uc_pack::CONFIG_FILE;
    for recorded in manifest
        .source
        .files
        .iter()
        .filter(|file| determines_weights(&file.name))
    {
        let same_name = |path: &Utf8Path| path.file_name() == Some(recorded.name.as_str());
        let file = source.files.iter().find(|file| same_name(&file.path));
        let found = file.map_or_else(|| "no such file".into(), |file| file.sha256.to_string());
        let expected = recorded.sha256.to_string();
        if found != expected {
            let message = format!(
                "{} is not the model that the pack was made from: {}: SHA-256 found {found}, expected {expected}",
                model.source.path, recorded.name
            );
            return Err(failure(ExitCode::BadInput, message));
        }
    }
    Ok(())
}
