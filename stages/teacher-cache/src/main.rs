//! teacher-cache: runs the calibration text through the teacher, layer by layer.
//!
//! `windows` draws and embeds the calibration windows. `layer` reads the hidden states before a layer and writes those after
//! it, together with the second moments of every distinct input of the layer's linears.
//!
//! The sensitivity pass runs before anything is quantized, over some of the windows: `sensitivity-windows` and
//! `sensitivity-forward` correspond to `windows` and `layer`; `sensitivity-loss` and `sensitivity-backward` carry the gradient
//! of the loss back through the layers and accumulate its second moments at the outputs of every linear, and the weight of
//! every token. Windows are processed in batches of fixed size and order, so the sums are the same bits for any number of
//! threads.

mod backward;
mod forward;
mod input_moments;
mod leverage;
mod loss;
mod sensitivity;
mod states;
mod token_weights;
mod windows;

use clap::{Parser, Subcommand};
use uc_model::DeviceKind;
use uc_store::ExitCode;
use uc_store::settings::Device;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

use crate::forward::Pass;

/// Raised whenever the same input gives other output.
const VERSION: u32 = 6;

#[derive(Parser)]
#[command(
    name = "teacher-cache",
    version,
    about = "Pushes calibration text through the teacher"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Draw and embed the calibration windows
    Windows(StageArgs),
    /// Hidden states after one layer, and the second moments of its inputs
    Layer(StageArgs),
    /// Embed the calibration windows of the sensitivity pass
    SensitivityWindows(StageArgs),
    /// As `layer`, over the windows of the sensitivity pass
    SensitivityForward(StageArgs),
    /// Gradient of the loss at the output of the last layer
    SensitivityLoss(StageArgs),
    /// Sensitivities of one layer's linears, and the gradient before it
    SensitivityBackward(StageArgs),
}

fn main() -> std::process::ExitCode {
    let run = |task, args: &StageArgs, work| {
        let program = Program {
            name: "teacher-cache",
            task,
            version: VERSION,
        };
        stage::main(program, args, Work(work)).into()
    };
    match Cli::parse().task {
        Task::Windows(args) => run("windows", &args, windows::draw),
        Task::Layer(args) => run("layer", &args, |job| forward::run(job, Pass::Calibration)),
        Task::SensitivityWindows(args) => {
            run("sensitivity-windows", &args, windows::embed_sensitivity)
        }
        Task::SensitivityForward(args) => run("sensitivity-forward", &args, |job| {
            forward::run(job, Pass::Sensitivity)
        }),
        Task::SensitivityLoss(args) => run("sensitivity-loss", &args, loss::run),
        Task::SensitivityBackward(args) => run("sensitivity-backward", &args, backward::run),
    }
}

/// The work of a task; all tasks classify their errors alike.
struct Work(fn(&mut Job<'_>) -> anyhow::Result<()>);

impl StageProgram for Work {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        (self.0)(job)
    }

    /// Errors of the model crate are errors in the user's input.
    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
    }
}

/// The device of the forward and backward passes.
fn device(job: &Job<'_>) -> DeviceKind {
    match job.settings().model.device {
        Device::Cpu => DeviceKind::Cpu,
        Device::Cuda => DeviceKind::Cuda,
    }
}
