//! The mathematics of compression on plain slices.
//!
//! A linear layer `W` [rows = outputs, cols = inputs] with input second moments `H` [cols, cols]
//! becomes integer indices `q`, one step per column, and perhaps a low-rank correction:
//!
//! 1. [`factor`] turns `H` into the triangular factor that error feedback needs; its diagonal gives
//!    the column steps ([`steps`]);
//! 2. [`rate`] finds the step at which the entropy-coded indices meet a budget;
//! 3. [`feedback`] quantizes, pushing the error of each column into the columns after it; within a column, [`trellis`]
//!    finds the indices;
//! 4. [`overlay`] fits what a low-rank correction can still win back;
//! 5. [`contexts`] builds the tables of the entropy coder, [`rans`] codes and decodes the indices,
//!    [`packed`] codes short rows of small integers;
//! 6. [`layer`] does 2 to 5 for all linears of a layer within one budget of bytes;
//! 7. [`reconstruct`] turns a [`TensorCode`] into bfloat16 weights by exactly specified arithmetic.
//!
//! This crate reads no file, starts no process, draws nothing and knows no tensor library. Every
//! result is the same bits for any number of threads: work is cut into pieces of fixed size, and
//! every product inside a piece is single-threaded. Decoding is integer-only and refuses whatever
//! no encoder wrote; reconstruction agrees bit for bit on every processor.

pub mod allocate;
pub mod bf16;
mod bits;
mod code;
pub mod contexts;
mod error;
pub mod factor;
pub mod factors;

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

pub use code::{LowRank, TensorCode};
pub use error::CodecError;
pub use packed::{pack_small, unpack_small};
