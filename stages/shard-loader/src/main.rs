//! shard-loader: splits the safetensors shards of a source model into one tensor file per layer, and one for the non-layer
//! tensors.
//!
//! Owns the path from a Hugging Face folder to the pipeline's own files. Names, shapes, types and finiteness are checked here,
//! once, so that no later stage has to. It converts nothing: the bytes of a tensor stay as they are in the source. Models of
//! the Hub are downloaded here too: before the run, or shard by shard during it.

mod copy;
mod describe;
mod error;
mod fetch;
mod inspect;
mod remote;
mod shard;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use uc_store::ExitCode;
use uc_store::stage::{self, Program, StageArgs};

use crate::copy::{Part, TensorCopier};

/// Raised whenever the same source gives other files.
const VERSION: u32 = 1;

#[derive(Parser)]
#[command(
    name = "shard-loader",
    version,
    about = "Splits a source model into one file per layer"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check a model folder and print its facts as JSON
    Inspect {
        /// The model folder
        model: PathBuf,
    },
    /// Describe a model from its config.json, without weights, as JSON
    Describe {
        /// The config.json
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The model.safetensors.index.json
        #[arg(long, value_name = "FILE")]
        index: Option<PathBuf>,
        /// List every tensor with its shape
        #[arg(long)]
        tensors: bool,
    },
    /// Download a model of the Hub into a folder, verified; a rerun goes on. Prints what it is as JSON
    Fetch(fetch::FetchArgs),
    /// Download one shard of a run whose shards come and go
    Shard(shard::ShardArgs),
    /// Embeddings, final norm and head → scaffold
    NonLayer(StageArgs),
    /// One layer's tensors → weights
    Layer(StageArgs),
}

fn main() -> std::process::ExitCode {
    match Cli::parse().task {
        Task::Inspect { model } => say(inspect::inspect(&model)).into(),
        Task::Describe {
            config,
            index,
            tensors,
        } => {
            let found = describe::describe(&config, index.as_deref(), tensors);
            say(found.and_then(|found| Ok(serde_json::to_value(found)?))).into()
        }
        Task::Fetch(args) => say(fetch::fetch(&args)).into(),
        Task::Shard(args) => shard::shard(&args).into(),
        Task::NonLayer(args) => run("non-layer", &args, Part::NonLayer),
        Task::Layer(args) => run("layer", &args, Part::Layer),
    }
}

fn run(task: &'static str, args: &StageArgs, part: Part) -> std::process::ExitCode {
    let program = Program {
        name: "shard-loader",
        task,
        version: VERSION,
    };
    stage::main(program, args, TensorCopier::new(part)).into()
}

/// Prints a result as JSON on standard output, or an error on standard error.
fn say(facts: anyhow::Result<serde_json::Value>) -> ExitCode {
    match facts {
        Ok(facts) => {
            println!("{facts}");
            ExitCode::Ok
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            let by_store = ExitCode::of_error(&error);
            let vague = |code: &ExitCode| code.is_vague();
            by_store
                .filter(|code| !vague(code))
                .or_else(|| error::exit_code(&error))
                .or(by_store)
                .unwrap_or(ExitCode::BadInput)
        }
    }
}
