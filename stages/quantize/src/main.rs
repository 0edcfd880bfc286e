//! quantize: a layer's weights and the second moments of its inputs → codes that fit the byte budget.
//!
//! `rates` finds at which steps the linears of a layer take the wanted bits, `allocate` deals out the model's bits by
//! these and by the linears' sensitivities, `layer` quantizes. The budget is `bpw` bits for every weight of the linears, from
//! which everything in the layer files is paid. The mathematics is `uc_codec`'s, the size is that of the file as `uc_pack`
//! writes it, and a layer on its way to that file is `uc_layer_quantizer`'s.

mod survey;

use clap::{Parser, Subcommand};
use uc_layer_quantizer::LayerInputs;
use uc_store::ExitCode;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

/// Raised whenever the same input gives other output.
const VERSION: u32 = 9;

#[derive(Parser)]
#[command(
    name = "quantize",
    version,
    about = "Quantizes the linears of a layer to a byte budget"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Quantize the linears of a layer
    Layer(StageArgs),
    /// The steps at which the linears of a layer take the wanted bits
    Rates(StageArgs),
    /// Deal out the model's bits among its linears
    Allocate(StageArgs),
}

fn main() -> std::process::ExitCode {
    let program = |task| Program {
        name: "quantize",
        task,
        version: VERSION,
    };
    match Cli::parse().task {
        Task::Layer(args) => stage::main(program("layer"), &args, Quantize).into(),
        Task::Rates(args) => stage::main(program("rates"), &args, survey::Rates).into(),
        Task::Allocate(args) => stage::main(program("allocate"), &args, survey::Allocate).into(),
    }
}

struct Quantize;

impl StageProgram for Quantize {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let inputs = LayerInputs::open(job)?;
        let (linears, bits) = inputs.quantize(job, |_, _, _| Ok(()))?;
        inputs.report(job);
        job.metric("bpw", bits as f64 / inputs.plan.linear_parameters() as f64);
        let mut file = job.output("codes")?;
        linears.write(&mut file)?;
        job.commit("codes", file)?;
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        uc_layer_quantizer::classify(error)
    }
}
