//! Run-time SIMD dispatch and single-threaded matrix products on slices: what every CPU kernel of the workspace needs.
//!
//! - [`Kernel`] and [`dispatch()`] compile a safe loop once per instruction set and select one at run time.
//! - [`exp_below_zero`] is an exponential for such loops, [`exponentials`] that of a softmax, [`LANES`] their width.
//! - [`Left`] multiplies operands rounded to bfloat16, at twice the speed of f32 and more where the processor can.
//! - [`expand_f16`] and [`expand_bf16`] give values of 16 bits in f32.
//! - [`has_amx`] asks for the tiles of AMX.
//! - [`MatrixView`], [`multiply`] and [`multiply_add`] are a checked, safe interface to the `gemm` crate.
//!
//! Results are bit-identical for any number of threads and, for kernels that follow the rules stated in `dispatch.rs`,
//! on any processor. This crate never starts a thread, uses no other crate of the workspace and knows nothing of models
//! or codecs.

mod amx;
mod bf16;
mod dispatch;
mod exponential;
mod f16;
mod product;

pub use amx::{FULL_TILES, TILE_ROW_BYTES, TILE_ROWS, TileConfig, has_amx};
pub use bf16::{
    Left, PANEL, Pairs, ToBf16, bf16_bits, bf16_value, expand_bf16, has_bf16_products,
    left_vectors, pack_columns, pack_rows, panel_len, round_to_bf16,
};
pub use dispatch::{Kernel, dispatch, prefetch, prefetch_l2};
#[cfg(target_arch = "x86_64")]
pub use dispatch::{has_avx2, has_avx512};
pub use exponential::{LANES, exp_below_zero, exponentials};
pub use f16::expand_f16;
pub use product::{MatrixView, multiply, multiply_add, multiply_uninit};
