//! pack-writer: codes and overlay → the files of the pack.
//!
//! `layer` writes `layer_NNN.uc` and the record of what a reader gets from it. `manifest` writes the non-layer tensors
//! (`scaffold.uc`), copies the model's configuration and tokenizer, and writes the manifest last, with the digests of all
//! other files.

mod layer;
mod manifest;

use clap::{Parser, Subcommand};
use uc_store::ExitCode;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

/// Raised whenever the same inputs give other outputs.
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
        Task::Layer(args) => stage::main(program("layer"), &args, Writer(layer::run)).into(),
        Task::Manifest(args) => {
            stage::main(program("manifest"), &args, Writer(manifest::run)).into()
        }
    }
}

/// A task of this program.
struct Writer(fn(&mut Job<'_>) -> anyhow::Result<()>);

impl StageProgram for Writer {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        self.0(job)
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
    }
}
