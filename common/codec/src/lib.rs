//! The mathematics of compression, on plain slices.
//!
//! A linear layer `W` [rows = outputs, cols = inputs] with input second moments `H` [cols, cols]
//! becomes integer indices `q`, one step per column and row, and optionally a low-rank correction:
//!
//! 1. [`factor`] factors `H` (and the second moments of the output gradients) for error feedback; the diagonals of the factors
//!    give the steps ([`steps`]); [`factor_cache`] keeps factors in memory;
//! 2. [`rate`] finds the step at which the entropy-coded indices meet a budget; [`allocate`] divides a budget among linears;
//! 3. [`feedback`] quantizes and feeds the error of each column back into the columns after it; within a column, [`trellis`]
//!    finds the indices;
//! 4. [`overlay`] fits a low-rank correction to the residual;
//! 5. [`contexts`] builds the tables of the entropy coder, [`rans`] encodes and decodes the indices, [`packed`] encodes short
//!    rows of small integers;
//! 6. [`layer`] quantizes all linears of a layer within one budget of bytes;
//! 7. [`reconstruct`] turns a [`TensorCode`] into bfloat16 weights by exactly specified arithmetic; [`output_error`] measures
//!    the result.
//!
//! Weights are read row by row when they are needed ([`weights`]).
//!
//! This crate reads no file, starts no process, prints nothing and uses no tensor library. Every result has the same bits for
//! any number of threads: work is cut into pieces of fixed size, and every product inside a piece is single-threaded. Decoding
//! uses integers only and refuses anything that no encoder can have written. Reconstruction has the same bits on every
//! processor.

pub mod allocate;
pub mod bf16;
mod bits;
mod code;
pub mod contexts;
mod error;
pub mod factor;
pub mod factor_cache;
pub mod feedback;
pub mod layer;
pub mod output_error;
pub mod overlay;
pub mod packed;
mod product;
pub mod rans;
pub mod rate;
pub mod reconstruct;
pub mod steps;
pub mod trellis;
pub mod weights;

pub use code::{Code, IndexBytes, LowRank, TensorCode};
pub use error::CodecError;
pub use packed::{PackedReader, check_packed, largest_packed, pack_small, unpack_small};
pub use weights::{Matrix, Weights};
