//! The two sequence operations of Mamba (Gu and Dao 2023, arXiv 2312.00752): the selective scan and the short
//! causal convolution before it, both differentiable on every backend.
//!
//! Owns their formulas and their gradients. It knows no model, no tensor name and no layer: projections,
//! softplus and gates are up to the caller.
//!
//! The graph of a scan written as tensor operations would hold a state `[inner, state]` for every token: 336 MB
//! per operation at 1024 tokens of Mamba-2.8B. So the scan is a single operation of the graph ([`scan`]) that
//! keeps only its six inputs. Its gradient runs the recurrence again, keeps the states between blocks of steps,
//! and goes through the blocks from the last to the first with the states of one block in memory. Keeping the
//! states of the forward pass would save a third of the exponentials and cost memory between the two passes.
//!
//! Code map:
//! - [`scan`]: the operation, dispatched by backend; [`kernel`]: forward and gradient on slices, for the CPU;
//!   [`blocks`]: the same as tensor operations, which stay on the device of any other backend.
//! - [`tensors`]: the six inputs; [`conv`]: the convolution; [`lanes`]: vectors of channels.

mod blocks;
mod conv;
#[cfg(test)]
mod definition;
mod kernel;
mod lanes;
mod scan;
mod tensors;

pub(crate) use {conv::causal_conv, scan::selective_scan};
