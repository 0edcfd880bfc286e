//! pack-writer: codes and overlay → the files of the pack.
//!
//! `layer` writes `layer_NNN.uc` and the record of what a reader gets from it; `manifest` writes the scaffold, the
//! model's own description and, last, the manifest that covers every other byte with a hash.

mod manifest;

use std::collections::BTreeMap;

use anyhow::Context;
use uc_layer_quantizer::Codes;
use uc_model::ModelConfig;
use uc_pack::{Digest, LayerCoder, LayerEntry, LayerFile, Linears};
use uc_store::ExitCode;
use uc_store::stage::{self, Job, Program, Task};
use uc_store::tensors::TensorFile;

const PROGRAM: Program = Program {
    name: "pack-writer",
    about: "Writes the files of a pack",
    version: 3,
    classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new("layer", "Write one layer's file and its record", layer),
            Task::new(
                "manifest",
                "Write the non-layer tensors, the model's description and the manifest",
                manifest::run,
            ),
        ],
    )
}

/// Errors of the model crate are errors in the user's input.
fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
}

/// Writes `pack-layer` and `layer-record`.
fn layer(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let plan = config.layer_plan(job.layer()? as usize);
    let codes = Codes::open(&job.input("codes")?)?;
    let overlay = Codes::open(&job.input("overlay")?)?;
    let linears = if overlay.count() > 0 { overlay } else { codes };
    let weights = TensorFile::open(&job.input("weights")?)?;
    let exact = uc_layer_quantizer::exact_tensors(&weights, &plan)?;

    let coder = LayerCoder::new(plan.index as u32, &linears, &exact)?;
    let mut file = job.output("pack-layer")?;
    let target = file.target().to_owned();
    coder
        .write(&linears, &mut file)
        .with_context(|| format!("cannot write {target}"))?;
    job.commit("pack-layer", file)?;
    let bits = 8.0 * coder.length() as f64;
    job.metric("bpw", bits / plan.linear_parameters() as f64);

    // The record is measured on the file as a reader finds it, not on what was in memory before.
    let mut source = BTreeMap::new();
    for linear in &plan.linears {
        let digest = Digest::of(&weights.read(&linear.name)?);
        source.insert(linear.name.clone(), digest);
    }
    let written = LayerFile::open(&target)?;
    let entry = LayerEntry::measure(&written, &plan.prefix, |name| source.get(name).copied())?;
    let mut record = job.output("layer-record")?;
    record.append(&serde_json::to_vec_pretty(&entry)?)?;
    job.commit("layer-record", record)?;
    Ok(())
}
