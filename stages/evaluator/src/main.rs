//! evaluator: runs teacher and pack over the same windows, layer by layer, and compares their predictions.
//!
//! `windows` draws and embeds the evaluation windows. `layer` runs one layer of both models; the pack's layer is read from
//! disk through `uc_pack`, as any reader of the pack would. `report` applies the final norm and head, and compares all
//! next-token distributions. Each layer of each model is read once, however many windows there are, and only one layer is in
//! memory.

mod layer;
mod metrics;
mod report;
mod windows;

use clap::{Parser, Subcommand};
use uc_model::DeviceKind;
use uc_store::ExitCode;
use uc_store::settings::Device;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

/// Raised whenever the same input gives other output.
const VERSION: u32 = 2;

#[derive(Parser)]
#[command(
    name = "evaluator",
    version,
    about = "Compares a pack with its teacher"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Draw and embed the evaluation windows
    Windows(StageArgs),
    /// States of teacher and pack after one layer
    Layer(StageArgs),
    /// Perplexities, divergences and agreement
    Report(StageArgs),
}

fn main() -> std::process::ExitCode {
    let program = |task| Program {
        name: "evaluator",
        task,
        version: VERSION,
    };
    match Cli::parse().task {
        Task::Windows(args) => {
            stage::main(program("windows"), &args, Evaluator(windows::run)).into()
        }
        Task::Layer(args) => stage::main(program("layer"), &args, Evaluator(layer::run)).into(),
        Task::Report(args) => stage::main(program("report"), &args, Evaluator(report::run)).into(),
    }
}

/// One of the three tasks.
struct Evaluator(fn(&mut Job<'_>) -> anyhow::Result<()>);

impl StageProgram for Evaluator {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        self.0(job)
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        if error.chain().any(|cause| cause.is::<uc_pack::PackError>()) {
            return Some(ExitCode::Damaged);
        }
        uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
    }
}

/// The device of the forward passes.
fn device(job: &Job<'_>) -> DeviceKind {
    match job.settings().model.device {
        Device::Cpu => DeviceKind::Cpu,
        Device::Cuda => DeviceKind::Cuda,
    }
}
