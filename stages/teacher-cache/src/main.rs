//! teacher-cache: pushes calibration text through the teacher, layer by layer.
//!
//! `windows` draws the windows and embeds them; `layer` reads the hidden states before a layer, writes those after it
//! and, for every distinct input of the layer's linears, the second moments over all tokens. `sensitivity-windows` and
//! `survey` do the same with some of the windows before anything is quantized; `loss` and `backward` then carry the
//! gradient of the loss back through the layers and keep its second moments at the output of every linear and the weight
//! that it gives to every token. Windows go through in batches of fixed size and order, so the sums are the same bits for
//! any number of threads.

mod gradient;
mod metric;
mod statistics;
mod windows;

use clap::{Parser, Subcommand};
use uc_model::DeviceKind;
use uc_model::device::dispatch;
use uc_store::ExitCode;
use uc_store::settings::Device;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

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
    /// Embed those of the calibration windows that the survey takes
    SurveyWindows(StageArgs),
    /// As `layer`, for the survey
    Survey(StageArgs),
    /// The gradient of the loss by the last layer's output
    Loss(StageArgs),
    /// Sensitivities of one layer's linears, and the gradient before it
    Backward(StageArgs),
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
        Task::Layer(args) => run("layer", &args, |job| layer(job, Pass::Main)),
        Task::SurveyWindows(args) => run("sensitivity-windows", &args, windows::draw_survey),
        Task::Survey(args) => run("sensitivity-forward", &args, |job| layer(job, Pass::Survey)),
        Task::Loss(args) => run("sensitivity-loss", &args, loss),
        Task::Backward(args) => run("sensitivity-backward", &args, backward),
    }
}

/// Which windows go through the teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The calibration windows.
    Main,
    /// The survey's windows; each weight is read from the source once more.
    Survey,
}

/// A task: its work, and what all tasks say of their errors.
struct Work(fn(&mut Job<'_>) -> anyhow::Result<()>);

impl StageProgram for Work {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        (self.0)(job)
    }

    /// Whatever the model crate refuses lies in the user's input.
    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
    }
}

fn layer(job: &mut Job<'_>, pass: Pass) -> anyhow::Result<()> {
    dispatch(device(job), statistics::LayerPass { job, pass })?
}

fn loss(job: &mut Job<'_>) -> anyhow::Result<()> {
    dispatch(device(job), gradient::LossPass { job })?
}

fn backward(job: &mut Job<'_>) -> anyhow::Result<()> {
    dispatch(device(job), gradient::BackwardPass { job })?
}

fn device(job: &Job<'_>) -> DeviceKind {
    match job.settings().model.device {
        Device::Cpu => DeviceKind::Cpu,
        Device::Cuda => DeviceKind::Cuda,
    }
}
