//! overlay-fit: codes and second moments → the low-rank corrections (overlays) that are worth their bits, if any.
//!
//! Overlays and indices share one budget. This stage therefore compares the layer as quantized with the layer quantized
//! again with fewer bits for the indices and an overlay, both at the same file size, and keeps the one with the smaller
//! output error. A fixed rank is kept regardless of its error; the metrics report both errors.

mod correction;
mod fit;

use clap::Parser;
use uc_layer_quantizer::QUANTIZER_VERSION;
use uc_store::stage::{self, Program, StageArgs};

#[derive(Parser)]
#[command(
    name = "overlay-fit",
    version,
    about = "Fits the correction that quantization left room for"
)]
struct Cli {
    #[command(flatten)]
    args: StageArgs,
}

fn main() -> std::process::ExitCode {
    let program = Program {
        name: "overlay-fit",
        task: "",
        version: QUANTIZER_VERSION,
    };
    stage::main(program, &Cli::parse().args, fit::OverlayFit).into()
}
