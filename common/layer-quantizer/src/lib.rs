//! The quantizer of a layer: from its weights and statistics to coded linears that fit its byte budget.
//!
//! Owns what the stages `quantize`, `overlay-fit` and `pack-writer` share: the inputs of a layer ([`LayerInputs`]), the
//! passes over it within the budget ([`LayerInputs::quantize`]), its coded linears while they are made ([`SpilledCodes`])
//! and as a checkpoint ([`CodesCheckpoint`]), and its exact tensors ([`exact_tensors`]). The mathematics is in `uc_codec`,
//! the file format in `uc_pack`. A layer with experts may hold more weights than fit in memory: one linear is in memory at
//! a time, the others stay on disk.
//!
//! # How one linear travels
//!
//! ```text
//!   weights          statistics              sensitivity           allocation         files, inputs of the job
//!      |                 |                       |                     |
//!      |           input_factor(input)   output_factor(linear)         |              LayerInputs::open: closures that
//!      |                 |                       |                     |              make a factor when it is asked for
//!      |                 +-----------+-----------+                     |
//!      |                             |                                 |
//!      |               factor cache (uc_codec::factors)                |              keeps the input factors used last,
//!      |                             |                                 |              up to FACTOR_CACHE_BYTES
//!      +--------------+--------------+----------------+----------------+
//!                     |                               |
//!                     |                          LinearShape                          name, shape, bits per weight
//!                     v                               v
//!      +---> uc_codec::layer::quantize: one pass over the linears, all steps scaled by one factor
//!      |              |
//!      |              |  each linear in turn; overlay-fit adds the overlay here
//!      |              v
//!      |       SpilledCodes: unnamed temporary file                                  one linear in memory at a time
//!      |              |
//!      |              v
//!      |       uc_pack::LayerCoder: size of the layer file
//!      |              |
//!      +-- no -- within the budget and close to it?                                  the best pass so far is kept
//!                     |
//!                    yes
//!                     v
//!       codes checkpoint (quantize) or overlay checkpoint (overlay-fit)              one frame per linear
//!                     |
//!                     +---> overlay-fit: compares the codes with another quantization that has overlays
//!                     |
//!                     v
//!       pack-writer: the overlay checkpoint if it holds linears, else the codes; uc_pack::LayerCoder
//!                     |
//!                     v
//!               layer_NNN.uc
//! ```
//!
//! Every pass reads the weights and the factors again, so that nothing but the spilled codes grows with the layer. Output
//! factors are not cached: a linear's output factor is used once per pass.

mod exact;
mod factors;
mod inputs;
mod quantization;
mod spilled_codes;

pub use exact::{exact_decl, exact_tensors};
pub use factors::{FACTOR_CACHE_BYTES, input_factor, output_factor};
pub use inputs::LayerInputs;
pub use quantization::classify;
pub use spilled_codes::{CodesCheckpoint, SpilledCodes};

/// Version of the stages `quantize` and `overlay-fit`. Raised whenever the same inputs give other codes.
pub const QUANTIZER_VERSION: u32 = 9;
