//! The forward pass of the Llama family on burn, generic over the backend, in f32.
//!
//! One layer at a time: [`LlamaLayer`] maps hidden states to hidden states and shows the inputs of
//! its linears on request; [`Embedding`] and [`Head`] are the two ends. All weights are public burn
//! tensors, so that a trainer can own and update them on an autodiff backend.
//!
//! There is no key-value cache and no sampling here: the pipeline scores whole windows.

mod attention;
mod cpu;
mod ends;
mod layer;
mod math;
mod product;
mod vector;

pub use ends::{Embedding, Head};
pub use layer::{Linear, LlamaLayer, Observer, Tap};
