//! overlay-fit: codes and second moments → the low-rank corrections (overlays) that are worth their bits, if any.
//!
//! Overlays and indices share one budget. This stage therefore compares the layer as quantized with the layer quantized
//! again with fewer bits for the indices and an overlay, both at the same file size, and keeps the one with the smaller
//! output error. A fixed rank is kept regardless of its error; the metrics report both errors. Where a bound shows that no
//! rank is worth its bits, nothing is fitted.

mod correction;
mod fit;

use uc_layer_quantizer::QUANTIZER_VERSION;
use uc_store::stage::{self, Program, Task};

const PROGRAM: Program = Program {
    name: "overlay-fit",
    about: "Fits low-rank corrections to the linears of a layer",
    version: QUANTIZER_VERSION,
    classify: uc_layer_quantizer::classify,
};

fn main() -> std::process::ExitCode {
    // The only task has no name.
    stage::run(PROGRAM, [Task::new("", "", fit::run)])
}
