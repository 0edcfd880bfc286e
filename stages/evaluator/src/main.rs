//! evaluator: runs teacher and pack over the same windows, layer by layer, and compares their predictions.
//!
//! `windows` draws and embeds the evaluation windows. `layer` runs one layer of both models; the pack's layer is read from
//! disk through `uc_pack`, as any reader of the pack would; an export may stand in its place (`candidate`). `report` applies the final norm and head, and compares all
//! next-token distributions. Each layer of each model is read once, however many windows there are, and only one layer is in
//! memory.

mod candidate;
mod layer;
mod report;
mod windows;

use uc_export::ExportError;
use uc_store::ExitCode;
use uc_store::stage::{self, Program, Task};

const PROGRAM: Program = Program {
    name: "evaluator",
    about: "Compares a pack with its teacher",
    version: 6,
    classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new(
                "windows",
                "Draw and embed the evaluation windows",
                windows::run,
            ),
            Task::new("layer", "Run one layer of teacher and pack", layer::run),
            Task::new(
                "report",
                "Compute perplexities, divergences and agreement",
                report::run,
            ),
        ],
    )
}

/// A pack that cannot be read is damaged; errors of the model crate are errors in the user's input.
fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    let is_damage = |cause: &(dyn std::error::Error + 'static)| {
        let export = cause.downcast_ref::<ExportError>();
        let is_damaged_export = export.is_some_and(|error| !matches!(error, ExportError::Store(_)));
        cause.is::<uc_pack::PackError>() || is_damaged_export
    };
    if error.chain().any(is_damage) {
        return Some(ExitCode::Damaged);
    }
    uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
}
