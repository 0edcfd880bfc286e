//! Exports in an evaluation: in the place of the pack, and as the teacher where a pack stands in the place of the model.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use uc_export::report::REPORT_FILE;
use uc_export::{Format, Plan, Report, Request};
use uc_store::ExitCode;
use uc_store::plan::{ArtifactId, External};

use crate::artifacts::{MANIFEST, PACK_LAYER};
use crate::plan::sources;
use crate::report::failure::failure;
use crate::report::packs;
use crate::report::progress::Display;
use crate::verbs::export::{classify, write};

/// Whether a folder is that of an export.
pub fn is_export(dir: &Utf8Path) -> bool {
    dir.join(REPORT_FILE).is_file()
}

/// The files of an export in the places of those of a pack: the evaluator reads every layer from the same files.
///
/// # Errors
/// If a file differs from the report.
pub fn inputs(
    dir: &Utf8Path,
    layers: u32,
    known: &External,
    threads: u32,
    display: &Display,
) -> anyhow::Result<BTreeMap<String, External>> {
    let path = dir.join(REPORT_FILE);
    let report = Report::read(dir).map_err(classify)?;
    let is_index = |name: &str| name.ends_with(".safetensors.index.json");
    let holds_weights =
        |name: &str| name.ends_with(".gguf") || name.ends_with(".safetensors") || is_index(name);
    let mut files = report.files;
    files.retain(|file| holds_weights(&file.name));
    // The first one stands for all: the index, if there is one.
    files.sort_by_key(|file| !is_index(&file.name));
    let paths: Vec<Utf8PathBuf> = files.iter().map(|file| dir.join(&file.name)).collect();
    let weights = sources::describe("the export", &paths, known, threads, display)?;
    for (file, recorded) in weights.files.iter().zip(&files) {
        let (found, expected) = (file.sha256.to_string(), recorded.sha256.to_string());
        if found != expected {
            let message = format!(
                "{}: SHA-256 found {found}, expected {expected} as in {path}",
                file.path
            );
            return Err(failure(ExitCode::Damaged, message));
        }
    }
    let report = sources::describe(REPORT_FILE, &[path], known, threads, display)?;
    let mut inputs = BTreeMap::from([
        (MANIFEST.to_owned(), report),
        ("pack-non-layer".to_owned(), weights.clone()),
    ]);
    for layer in 0..layers {
        let name = ArtifactId::at(PACK_LAYER, layer).to_string();
        inputs.insert(name, weights.clone());
    }
    Ok(inputs)
}

/// Adds the metrics of a finished evaluation to the export, if it was compared with the pack that it was made from.
///
/// # Errors
/// If the export cannot be written.
pub fn record(
    export: &Utf8Path,
    model: &Utf8Path,
    metrics: &Value,
    display: &Display,
) -> anyhow::Result<()> {
    if !model.join(uc_pack::MANIFEST_FILE).is_file() {
        return Ok(());
    }
    let pack = packs::open(model)?;
    let report = Report::read(export).map_err(classify)?;
    if report.pack_fingerprint != pack.fingerprint() {
        return Ok(());
    }
    match uc_export::record_evaluation(&pack, export, metrics).map_err(classify)? {
        true => display.info(&format!("{export} states the result in its model card")),
        false => display.info(&format!(
            "{export} states the result in evaluation.json; its README.md was edited and stays"
        )),
    }
    Ok(())
}

/// The folder of the teacher. In the place of a pack it is a safetensors export of it, which is written once to
/// `runs/teacher-FINGERPRINT`.
///
/// # Errors
/// Those of the export.
pub fn teacher(model: &Utf8Path, threads: u32, display: &Display) -> anyhow::Result<Utf8PathBuf> {
    if !model.join(uc_pack::MANIFEST_FILE).is_file() {
        return Ok(model.to_owned());
    }
    let pack = packs::open(model)?;
    let out = Utf8PathBuf::from(format!(
        "runs/teacher-{:.16}",
        pack.fingerprint().to_string()
    ));
    if is_export(&out) {
        return Ok(out);
    }
    let plan = Plan::new(Request {
        pack: &pack,
        format: Format::Safetensors,
        out: &out,
        force: false,
        threads: threads as usize,
    });
    let plan = plan.map_err(classify)?;
    packs::require_verified(model, threads, Some(pack.fingerprint()), display)?;
    write(&plan, "reconstructing the teacher", display)?;
    display.info(&format!(
        "the weights of the pack are in {out}, which may be deleted afterwards"
    ));
    Ok(out)
}
