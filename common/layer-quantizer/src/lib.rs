//! A layer between its weights and its file.
//!
//! Owns what `quantize`, `overlay-fit` and `pack-writer` share: what is known of a layer's inputs and outputs
//! ([`LayerInputs`]), and its coded linears while they are made ([`SpilledCodes`]) and as a checkpoint ([`Codes`]). A layer with
//! experts may have more weights than memory: one linear is held at a time, the others lie on disk.

mod codes;
mod inputs;

pub use codes::{Codes, SpilledCodes};
pub use inputs::{
    KEPT_FACTORS, LayerInputs, classify, exact_decl, exact_tensors, input_factor, output_factor,
};
