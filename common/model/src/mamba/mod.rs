//! The two sequence operations of Mamba (Gu & Dao 2023, arXiv 2312.00752): the selective scan
//! and the short causal convolution before it, both differentiable on every backend.
//!
//! Owns their formulas and their gradients. It knows no model, no tensor name and no layer:
//! projections, softplus and gates are the caller's.
//!
//! The graph of a scan written as tensor operations would hold a state `[inner, state]` for every
//! token: 336 MB for each operation on it at 1024 tokens of Mamba-2.8B. So the scan is one
//! operation of the graph ([`scan`]) that keeps nothing but its six inputs. Its gradient runs the
//! recurrence once more, keeps the states between blocks of steps, and goes through the blocks
//! from the last to the first with only one block's states in memory. Keeping the states of the
//! forward pass would save a third of the exponentials and cost memory between the two sweeps.
//!
//! Code map:
//! - [`scan`]: the operation, by backend; [`kernel`]: forward and gradient on slices for the CPU;
//!   [`blocks`]: the same as tensor operations, which stay on the device of any other backend.
//! - [`conv`]: the convolution. - [`lanes`]: channels side by side.

mod blocks;
mod conv;
#[cfg(test)]
mod definition;
mod kernel;
mod lanes;
mod scan;

pub(crate) use {conv::causal_conv, scan::selective_scan};
