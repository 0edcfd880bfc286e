//! teacher-cache: runs the calibration text through the teacher, layer by layer.
//!
//! `windows` draws and embeds the calibration windows. `layer` reads the hidden states before a layer and writes those after
//! it, together with the second moments of every distinct input of the layer's linears.
//!
//! The sensitivity pass runs before anything is quantized, over some of the windows: `sensitivity-windows` and
//! `sensitivity-forward` correspond to `windows` and `layer`; `sensitivity-loss` and `sensitivity-backward` carry the gradient
//! of the loss back through the layers and accumulate its second moments at the outputs of every linear, and the weight of
//! every token. Windows are processed in batches of fixed size and order, so the sums have the same bits for any
//! number of threads.

mod backward;
mod forward;
mod input_moments;
mod kept;
mod leverage;
mod loss;
mod packed_states;
mod sensitivity;
mod states;
#[cfg(test)]
mod tests;
mod token_weights;
mod windows;

use uc_store::ExitCode;
use uc_store::stage::{self, Program, Task};

use crate::forward::Pass;

const PROGRAM: Program = Program {
    name: "teacher-cache",
    about: "Runs the calibration text through the teacher",
    version: 9,
    classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new(
                "windows",
                "Draw and embed the calibration windows",
                windows::draw,
            ),
            Task::new(
                "layer",
                "Compute the hidden states after one layer, and the second moments of its inputs",
                |job| forward::run(job, Pass::Calibration),
            ),
            Task::new(
                "sensitivity-windows",
                "Embed the calibration windows of the sensitivity pass",
                windows::embed_sensitivity,
            ),
            Task::new(
                "sensitivity-forward",
                "As `layer`, over the windows of the sensitivity pass",
                |job| forward::run(job, Pass::Sensitivity),
            ),
            Task::new(
                "sensitivity-loss",
                "Compute the gradient of the loss at the output of the last layer",
                loss::run,
            ),
            Task::new(
                "sensitivity-backward",
                "Compute the sensitivities of one layer's linears, and the gradient before it",
                backward::run,
            ),
        ],
    )
}

/// Errors of the model crate are errors in the user's input.
fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
}
