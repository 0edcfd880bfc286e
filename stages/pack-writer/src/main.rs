//! pack-writer: codes and overlay → the files of the pack.
//!
//! `layer` writes `layer_NNN.uc` and the record of what a reader gets from it; `manifest` writes the scaffold, the
//! model's own description and, last, the manifest that covers every other byte with a hash.

mod manifest;

use std::collections::BTreeMap;

use anyhow::Context;
use clap::{Parser, Subcommand};
use uc_layer_quantizer::Codes;
use uc_model::ModelConfig;
use uc_pack::{Digest, LayerCoder, LayerEntry, LayerFile, Linears};
use uc_store::ExitCode;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};
use uc_store::tensors::TensorFile;

/// Raised whenever the same input gives other output.
const VERSION: u32 = 3;

#[derive(Parser)]
#[command(name = "pack-writer", version, about = "Writes the files of a pack")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// One layer's file and its record
    Layer(StageArgs),
    /// Scaffold, description and manifest
    Manifest(StageArgs),
}

fn main() -> std::process::ExitCode {
    let program = |task| Program {
        name: "pack-writer",
        task,
        version: VERSION,
    };
    match Cli::parse().task {
        Task::Layer(args) => stage::main(program("layer"), &args, Writer(layer)).into(),
        Task::Manifest(args) => {
            stage::main(program("manifest"), &args, Writer(manifest::run)).into()
        }
    }
}

/// One of the two tasks.
struct Writer(fn(&mut Job<'_>) -> anyhow::Result<()>);

impl StageProgram for Writer {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        self.0(job)
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
    }
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
