//! The forward and backward pass on burn, generic over the backend, in f32, built from a model's description.
//!
//! It runs one layer at a time: [`Layer`] maps hidden states to hidden states, shows the inputs and outputs of
//! its linears to an [`ActivationObserver`], and propagates gradients back ([`Layer::gradient`]).
//! [`Embedding`] and [`Head`] are the input and the output end of the model. Weights come from a [`Weights`],
//! which may read them from files or return the parameters of a trainer. The weights of a routed expert are
//! requested when tokens reach it and dropped afterwards, so only a few experts are in memory at a time. On the CPU, matrices that a
//! file stores in 16 bits stay in them ([`Matrix`]).
//!
//! There is no key-value cache and no sampling here: the pipeline scores whole windows.

mod attention;
mod cpu;
mod embedding;
mod experts;
mod gradient;
mod head;
mod heads;
mod latent_attention;
mod layer;
mod linear;
mod mamba;
mod mamba2;
mod math;
mod matrix;
mod mlp;
mod norm;
mod overflow;
mod routing;
mod self_attention;
mod short_conv;
mod vector;
mod weights;
mod windows;

pub use cpu::Arithmetic;
pub(crate) use cpu::{Values, matrix, piece_rows, rounded_to_bf16};
pub use embedding::Embedding;
pub use gradient::{ObservedInput, OnPartTrace, PartTrace, surrogate_of_values};
pub use head::Head;
pub use layer::Layer;
pub use linear::{ActivationObserver, NoObserver};
pub use matrix::Matrix;
pub use overflow::check_states;
pub(crate) use vector::squared_norm;
pub use weights::{Weights, WeightsFromFn};
pub use windows::windows_per_batch;
