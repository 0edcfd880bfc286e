//! pack-writer: codes and overlay → the files of the pack.
//!
//! `layer` writes `layer_NNN.uc` and the record of what a reader gets from it; `manifest` writes the scaffold, the
//! model's own description and, last, the manifest that covers every other byte with a hash.

mod manifest;

use std::collections::BTreeMap;

use clap::{Parser, Subcommand};
use uc_codec::layer::CodedLinear;
use uc_model::ModelConfig;
use uc_pack::{Digest, LayerDraft, LayerEntry, LayerFile};
use uc_store::ExitCode;
use uc_store::framed::{CODES, OVERLAY};
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
    let mut draft: LayerDraft = CODES.read(&job.input("codes")?)?;
    let replaced: Vec<CodedLinear> = OVERLAY.read(&job.input("overlay")?)?;
    let mut replaced: BTreeMap<String, CodedLinear> = replaced
        .into_iter()
        .map(|linear| (linear.name.clone(), linear))
        .collect();
    for linear in &mut draft.linears {
        if let Some(other) = replaced.remove(&linear.name) {
            *linear = other;
        }
    }
    anyhow::ensure!(
        replaced.is_empty(),
        "the overlay has linears that the codes lack: {:?}",
        replaced.keys()
    );

    let bytes = draft.encode()?;
    let mut file = job.output("pack-layer")?;
    let origin = file.target().to_string();
    file.append(&bytes)?;
    let bits = bytes.len() as f64 * 8.0;
    job.figure("bpw", bits / plan.linear_parameters() as f64);

    // The record is measured on the bytes as a reader parses them, not on what was in memory before.
    let weights = TensorFile::open(&job.input("weights")?)?;
    let mut source = BTreeMap::new();
    for linear in &plan.linears {
        source.insert(
            linear.name.clone(),
            Digest::of(&weights.read(&linear.name)?),
        );
    }
    let parsed = LayerFile::from_bytes(bytes, &origin)?;
    let entry = LayerEntry::measure(&parsed, &plan.prefix, |name| source.get(name).copied())?;
    job.commit("pack-layer", file)?;

    let mut record = job.output("layer-record")?;
    record.append(&serde_json::to_vec_pretty(&entry)?)?;
    job.commit("layer-record", record)?;
    Ok(())
}
