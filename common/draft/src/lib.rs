//! A layer between its weights and its file.
//!
//! Owns what `quantize`, `overlay-fit` and `pack-writer` share: what is known of a layer's inputs and outputs
//! ([`Given`]), and its coded linears while they are made ([`Shelf`]) and as a checkpoint ([`Codes`]). A layer with
//! experts may have more weights than memory: one linear is held at a time, the others lie on disk.

mod codes;
mod given;

pub use codes::{Codes, Shelf};
pub use given::{
    Given, KEPT_FACTORS, classify, exact_decl, exact_tensors, input_factor, output_factor,
};
