//! The quantizer of a layer: from its weights and statistics to coded linears that fit its byte budget.
//!
//! Owns what the stages `quantize`, `overlay-fit` and `pack-writer` share: the inputs of a layer ([`LayerInputs`]), the
//! passes over it within the budget ([`LayerInputs::quantize`]), its coded linears during the passes ([`SpilledCodes`])
//! and in a checkpoint ([`CodesCheckpoint`]), and its exact tensors ([`exact_tensors`]). The mathematics is in
//! `uc_codec`, the file format in `uc_pack`. A layer with experts may hold more weights than fit in memory: one linear
//! is in memory at a time, the others stay on disk.
//!
//! # Data flow of one linear
//!
//! ```text
//!    weights           statistics            sensitivity         allocation       inputs of the job, on disk
//!       |                  |                      |                   |
//!       |          input_factor(name)    output_factor(name)          |           closures made by LayerInputs::open
//!       |                  |                      |                   |
//!       |                  +----------+-----------+                   |
//!       |                             |                               |
//!       |              factor cache (uc_codec::factor_cache)     LinearShape      the input factors used last stay in
//!       |                             |                               |           memory, up to FACTOR_CACHE_BYTES
//!       +-----------------------------+-------------------------------+
//!                                     |
//!                                     v
//!       +------->  uc_codec::layer::quantize: one pass over the linears           one linear in memory at a time;
//!       |                             |                                           overlay-fit adds its overlay here
//!       |                             v
//!       |                       SpilledCodes                                      unnamed temporary file, one frame
//!       |                             |                                           per linear
//!       |                             v
//!       |                    uc_pack::LayerCoder                                  size of the layer file
//!       |                             |
//!       +---- no: scale all steps ----+  is it within the budget and close to it?
//!                                     |
//!                                     | yes
//!                                     v
//!                      checkpoint `codes` or `overlay`                            the frames of the best pass
//!                                     |
//!                                     v
//!                 pack-writer: uc_pack::LayerCoder, layer_NNN.uc                  from `overlay` if it holds linears,
//!                                                                                 else from `codes`
//! ```
//!
//! `quantize` makes the passes without overlays and writes `codes`. `overlay-fit` reads `codes`, makes the passes again with
//! overlays, and writes `overlay`: the linears of its best pass if their output error is smaller or the rank is fixed
//! by the settings, otherwise nothing. Every pass rereads the weights and recomputes the factors that are not in the
//! cache. Output factors are never cached, since each is used once per pass.

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

/// Version of the stages `quantize` and `overlay-fit`. Raised whenever a change makes the same inputs give different
/// codes.
pub const QUANTIZER_VERSION: u32 = 9;
