//! The forward pass on burn, generic over the backend, in f32, built from a model's description.
//!
//! One layer at a time: [`Layer`] maps hidden states to hidden states and shows the inputs and outputs of
//! its linears to a [`Tap`], and maps gradients back ([`Layer::gradient`]); [`Embedding`] and [`Head`] are the two ends. Weights come from a [`Weights`],
//! which may read them from a file or hand out the parameters of a trainer; those of an expert are asked
//! for when tokens come to it and dropped again, so that a few experts are in memory and not all.
//!
//! There is no key-value cache and no sampling here: the pipeline scores whole windows.

mod attention;
mod cpu;
mod ends;
mod experts;
mod gradient;
mod latent_attention;
mod layer;
mod linear;
mod mamba2;
mod math;
mod mlp;
mod norm;
mod routing;
mod self_attention;
mod short_conv;
mod state_space;
mod vector;
mod weights;
mod windows;

pub use ends::{Embedding, Head};
pub use gradient::{OnTraced, Passed, Traced};
pub use layer::Layer;
pub use linear::{NoTap, Tap};
pub use weights::{Values, Weights};
pub use windows::windows_per_batch;
