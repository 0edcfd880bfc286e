//! quantize: a layer's weights and the second moments of its inputs → codes that fit the byte budget.
//!
//! `rates` finds the step at which each linear takes the average bits per weight. `allocate` divides the model's bits among
//! the linears by these rates and by the linears' sensitivities. `layer` quantizes. The budget is `quantize.bpw` bits for
//! every weight of the linears, and pays for every byte of the layer files. The mathematics is in `uc_codec`, the file
//! format in `uc_pack`, the quantizer of a layer in `uc_layer_quantizer`.

mod allocate;
mod layer;
mod rates;

use clap::{Parser, Subcommand};
use uc_layer_quantizer::QUANTIZER_VERSION;
use uc_store::stage::{self, Program, StageArgs};

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
        version: QUANTIZER_VERSION,
    };
    match Cli::parse().task {
        Task::Layer(args) => stage::main(program("layer"), &args, layer::Quantize).into(),
        Task::Rates(args) => stage::main(program("rates"), &args, rates::Rates).into(),
        Task::Allocate(args) => stage::main(program("allocate"), &args, allocate::Allocate).into(),
    }
}
