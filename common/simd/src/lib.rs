//! Run-time SIMD dispatch and single-threaded matrix products on slices: what every CPU kernel of the workspace needs.
//!
//! - [`Kernel`] and [`dispatch()`] compile a safe loop once per instruction set and select one at run time.
//! - [`exp_below_zero`] is an exponential for such loops, [`exponentials`] that of a softmax, [`LANES`] their width.
//! - [`add_panel_product`] multiplies operands rounded to bfloat16, at twice the speed where the processor can.
//! - [`MatrixView`], [`multiply`] and [`multiply_add`] are a checked, safe interface to the `gemm` crate.
//!
//! Results are bit-identical for any number of threads and, for kernels that follow the rules stated in `dispatch.rs`,
//! on any processor. This crate never starts a thread, uses no other crate of the workspace and knows nothing of models
//! or codecs.

mod bf16;
mod dispatch;
mod exponential;
mod product;

pub use bf16::{
    PANEL, ToBf16, add_panel_product, bf16_bits, expand_bf16, has_bf16_products, pack_columns,
    pack_rows, panel_products_uninit, round_to_bf16,
};
pub use dispatch::{Kernel, dispatch, prefetch};
#[cfg(target_arch = "x86_64")]
pub use dispatch::{has_avx2, has_avx512};
pub use exponential::{LANES, exp_below_zero, exponentials};
pub use product::{MatrixView, multiply, multiply_add, multiply_uninit};
