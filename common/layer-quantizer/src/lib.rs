//! The quantizer of a layer: from its weights and statistics to coded linears that fit its byte budget.
//!
//! Owns what the stages `quantize`, `overlay-fit` and `pack-writer` share: the inputs of a layer ([`LayerInputs`]), the
//! passes over it within the budget ([`LayerInputs::quantize`]), its coded linears during the passes ([`PassCodes`])
//! and in a checkpoint ([`CodesCheckpoint`]), and its exact tensors ([`exact_tensors`]). The mathematics is in
//! `uc_codec`, the file format in `uc_pack`. A layer may hold more weights than fit in memory: of one linear at a
//! time some rows are in memory, the others stay on disk.
//!
//! # Data flow of one linear
//!
//! `docs/architecture.md` has a picture: "The path of one linear through the layer quantizer".
//!
//! `quantize` makes the passes without overlays and writes `codes`. `overlay-fit` reads `codes`, makes the passes again with
//! overlays, and writes `overlay`: the linears of its best pass if their output error is smaller or the rank is fixed
//! by the settings, otherwise nothing. Every pass rereads the weights and recomputes the factors that are not in the
//! cache. Output factors are never cached, since each is used once per pass.
//!
//! # Interruptions
//! The job's scratch folder holds the initial steps of the linears, the measured passes, and the linears of the best and of
//! the current pass. A job that is started again after its process died continues after the last complete linear, with
//! the same result. What a job with other inputs, settings or programs left is discarded.

mod coded_linears;
mod exact;
mod factors;
mod inputs;
mod overhead;
mod quantization;

pub use coded_linears::{CodesCheckpoint, PassCodes};
pub use exact::{exact_decl, exact_tensors};
pub use factors::{InputMoments, input_factor, output_factor};
pub use inputs::{LayerInputs, StoredWeights};
pub use overhead::overhead_bits;
pub use quantization::classify;

/// Version of the stages `quantize` and `overlay-fit`. Raised whenever a change makes the same inputs give different
/// codes, or writes them in another form.
pub const QUANTIZER_VERSION: u32 = 12;
