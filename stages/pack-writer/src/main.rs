//! pack-writer: codes and overlay → the files of the pack.
//!
//! `layer` writes `layer_NNN.uc` and the record of what a reader reconstructs from it. `manifest` writes the non-layer
//! tensors (`scaffold.uc`), copies the model's configuration and tokenizer, and writes the manifest last, with the
//! digests of all other files.

mod layer;
mod manifest;

use uc_store::ExitCode;
use uc_store::stage::{self, Program, Task};

const PROGRAM: Program = Program {
    name: "pack-writer",
    about: "Writes the files of a pack",
    version: 4,
    classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new("layer", "Write one layer's file and its record", layer::run),
            Task::new(
                "manifest",
                "Write the non-layer tensors, the model's description and the manifest",
                manifest::run,
            ),
        ],
    )
}

/// Errors of the model crate are errors in the user's input.
fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
}
