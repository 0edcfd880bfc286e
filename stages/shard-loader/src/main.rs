//! shard-loader: splits the safetensors shards of a source model into one tensor file per layer, and one for the non-layer
//! tensors.
//!
//! Owns the path from a Hugging Face folder to the pipeline's own files. Names, shapes, types and finiteness are checked here,
//! once, so that later stages need not check them. Nothing is converted: the bytes of a tensor stay as they are in the
//! source. Models of the Hub are downloaded here too: before the run, or shard by shard during it.

mod copy;
mod describe;
mod descriptions;
mod error;
mod fetch;
mod inspect;
mod model_store;
mod remote;
mod shard;

use std::path::PathBuf;

use clap::Subcommand;
use uc_store::ExitCode;
use uc_store::output;
use uc_store::stage::{self, Job, Program, Task};

use crate::copy::{Part, TensorCopier};
use crate::inspect::Shards;
use crate::shard::ShardDownloader;

const PROGRAM: Program = Program {
    name: "shard-loader",
    about: "Splits a source model into one file per layer",
    version: 1,
    classify: error::exit_code,
};

/// The subcommands whose arguments are not those of a stage.
#[derive(Subcommand)]
enum Verb {
    /// Check a model folder and print a summary as JSON
    Inspect {
        /// The model folder
        model: PathBuf,
        /// Accept headers in place of shards: the folder was downloaded with `fetch --headers`
        #[arg(long)]
        headers: bool,
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
    /// Download a model of the Hub into a folder, verified, or resume; prints a summary as JSON
    Fetch(fetch::FetchArgs),
    /// Download one shard of a run whose shards are fetched on demand
    Shard(shard::ShardArgs),
}

fn main() -> std::process::ExitCode {
    let copy = |part| {
        let mut copier = TensorCopier::new(part);
        move |job: &mut Job<'_>| copier.run(job)
    };
    let tasks = [
        Task::new(
            "non-layer",
            "Copy embeddings, final norm and head",
            copy(Part::NonLayer),
        ),
        Task::new("layer", "Copy the tensors of one layer", copy(Part::Layer)),
    ];
    stage::run_with_verbs(PROGRAM, tasks, |verb| match verb {
        Verb::Inspect { model, headers } => {
            let shards = match headers {
                true => Shards::Headers,
                false => Shards::Present,
            };
            say(inspect::inspect(&model, shards))
        }
        Verb::Describe {
            config,
            index,
            tensors,
        } => {
            let description = describe::describe(&config, index.as_deref(), tensors);
            say(description.and_then(|description| Ok(serde_json::to_value(description)?)))
        }
        Verb::Fetch(args) => say(fetch::fetch(&args)),
        Verb::Shard(args) => {
            let mut downloader = ShardDownloader::new(args.retry);
            let task = Task::new("shard", "", move |job| downloader.run(job));
            stage::run_task(PROGRAM, task, &args.stage)
        }
    })
}

/// Prints a result as JSON on standard output, or an error on standard error.
fn say(facts: anyhow::Result<serde_json::Value>) -> ExitCode {
    match facts {
        Ok(facts) => {
            output::print_line(facts);
            stage::end(PROGRAM, Ok(()))
        }
        Err(error) => {
            output::print_error(&error);
            stage::exit_code(PROGRAM, &error).unwrap_or(ExitCode::BadInput)
        }
    }
}
