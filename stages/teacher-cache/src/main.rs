//! teacher-cache: pushes the calibration windows through the teacher, layer by layer.
//!
//! `windows` draws the windows and embeds them; `layer` reads the hidden states before a layer, writes those after it
//! and, for every distinct input of the layer's linears, the second moments over all tokens. Windows go through in
//! batches of fixed size and order, so the sums are the same bits for any number of threads.

mod statistics;

use clap::{Parser, Subcommand};
use uc_model::text::{WindowChoice, WindowSet};
use uc_model::{DeviceKind, ModelConfig};
use uc_store::ExitCode;
use uc_store::settings::Device;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};
use uc_store::tensors::{Dtype, TensorDecl, TensorFile, f32_bytes, to_f32};

/// Raised whenever the same input gives other output.
const VERSION: u32 = 1;

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
}

fn main() -> std::process::ExitCode {
    let program = |task| Program {
        name: "teacher-cache",
        task,
        version: VERSION,
    };
    match Cli::parse().task {
        Task::Windows(args) => stage::main(program("windows"), &args, Windows).into(),
        Task::Layer(args) => stage::main(program("layer"), &args, Layer).into(),
    }
}

struct Windows;

impl StageProgram for Windows {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let settings = &job.settings().calibration;
        let choice = WindowChoice {
            count: settings.windows as usize,
            length: settings.length as usize,
            seed: settings.seed,
        };
        let dir = job.plan().model.path.as_std_path();
        let config = ModelConfig::load(dir)?;
        let texts: Vec<_> = job
            .external("calibration-text")?
            .files
            .iter()
            .map(|f| &f.path)
            .collect();
        let set = WindowSet::draw(dir, &config, &texts, choice)?;
        job.figure("calibration windows", set.windows.len());
        job.figure("calibration tokens", set.tokens());

        let mut file = job.output("calibration-windows")?;
        file.append(&serde_json::to_vec(&set)?)?;
        job.commit("calibration-windows", file)?;

        let scaffold = TensorFile::open(&job.input("scaffold")?)?;
        let shape = [set.windows.len(), set.length, config.hidden];
        let mut hidden =
            job.output_tensors("hidden", &[TensorDecl::new("hidden", Dtype::F32, &shape)])?;
        for window in &set.windows {
            for &id in &window.ids {
                let row = scaffold.read_rows("model.embed_tokens.weight", id as usize, 1)?;
                let dtype = scaffold.tensor("model.embed_tokens.weight")?.dtype;
                let values = to_f32(dtype, &row).expect("shard-loader admits floats only");
                hidden.append(&f32_bytes(&values))?;
            }
        }
        job.commit_tensors("hidden", hidden)?;
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        classify(error)
    }
}

struct Layer;

impl StageProgram for Layer {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let kind = match job.settings().model.device {
            Device::Cpu => DeviceKind::Cpu,
            Device::Cuda => DeviceKind::Cuda,
        };
        uc_model::device::dispatch(kind, statistics::LayerPass { job })?
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        classify(error)
    }
}

/// Whatever the model crate refuses lies in the user's input.
fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
}
