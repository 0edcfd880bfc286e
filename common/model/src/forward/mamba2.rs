//! The Mamba-2 block (Dao and Gu 2024, arXiv 2405.21060): one projection, a short convolution, a selective
//! scan with one decay and one time step per head, and a norm of the gated result.
//!
//! It uses the scan of Mamba, with the parameters of a head repeated for its channels, one group after the
//! other, since each group has its own B and C. This computes one exponential per state where one per head
//! would do. The blocked algorithm of the paper, which turns the scan into matrix products, is not used.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::linear::{ActivationObserver, Linear};
use super::math::{activated, gated};
use super::norm::Norm;
use super::short_conv::ShortConv;
use super::weights::Weights;
use crate::mamba::selective_scan;
use crate::spec::Mamba2Spec;

/// The weights of a Mamba-2 block.
#[derive(Debug, Clone)]
pub(super) struct Mamba2<B: Backend> {
    in_proj: Linear<B>,
    conv: ShortConv<B>,
    /// `[heads]`, added to the projected time steps.
    dt_bias: Tensor<B, 1>,
    /// `-exp(A_log)`, repeated to `[inner, state]`: the decay rates of the states.
    a: Tensor<B, 2>,
    /// `[inner]`: the skip connection around the states.
    d: Tensor<B, 1>,
    /// One per group.
    norms: Vec<Norm<B>>,
    out_proj: Linear<B>,
}

impl<B: Backend> Mamba2<B> {
    pub(super) fn new<W: Weights<B>>(spec: &Mamba2Spec, weights: &W) -> Result<Self, W::Error> {
        let heads = spec.heads;
        let head_tensor = |name: &str| weights.tensor(name, [heads]);
        let repeat_for_channels = |x: Tensor<B, 1>| {
            let channels = x.reshape([heads, 1]).repeat_dim(1, spec.head_dim);
            channels.reshape([spec.inner()])
        };
        let a_log = repeat_for_channels(head_tensor("mixer.A_log")?);
        let a = a_log.exp().neg().reshape([spec.inner(), 1]);
        Ok(Mamba2 {
            in_proj: Linear::new(&spec.in_proj, weights)?,
            conv: ShortConv::new(&spec.conv, weights)?,
            dt_bias: head_tensor("mixer.dt_bias")?,
            a: a.repeat_dim(1, spec.state),
            d: repeat_for_channels(head_tensor("mixer.D")?),
            norms: Norm::new(&spec.norm, weights)?.split(spec.groups),
            out_proj: Linear::new(&spec.out_proj, weights)?,
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &Mamba2Spec,
        x: Tensor<B, 2>,
        [windows, length]: [usize; 2],
        observer: &mut dyn ActivationObserver<B>,
    ) -> Tensor<B, 2> {
        let (inner, state) = (spec.inner(), spec.state);
        let tokens = windows * length;
        observer.observe_input("in_in", &x, None);
        let projected = self.in_proj.forward(x, observer);
        let part = |first: usize, width: usize| projected.clone().narrow(1, first, width);
        let channels = spec.conv.channels;
        let gate = part(0, inner);
        let xbc = self.conv.forward(part(inner, channels), [windows, length]);
        let xbc = activated(xbc, spec.activation);
        let delta = self.delta(spec, part(inner + channels, spec.heads));

        let width = inner / spec.groups;
        let groups = self.norms.iter().enumerate().map(|(group, norm)| {
            // The first channel of this group, and the first columns of its B and C.
            let (first, b) = (group * width, inner + group * state);
            let c = b + spec.groups * state;
            let by_window = |x: &Tensor<B, 2>, first: usize, width: usize| {
                let x = x.clone().narrow(1, first, width);
                x.reshape([windows, length, width])
            };
            let y = selective_scan(
                by_window(&xbc, first, width),
                by_window(&delta, first, width),
                self.a.clone().narrow(0, first, width),
                by_window(&xbc, b, state),
                by_window(&xbc, c, state),
                self.d.clone().narrow(0, first, width),
            );
            let y = y.reshape([tokens, width]);
            norm.forward(gated(
                gate.clone().narrow(1, first, width),
                y,
                spec.activation,
            ))
        });
        let y = Tensor::cat(groups.collect(), 1);
        observer.observe_input("out_in", &y, None);
        self.out_proj.forward(y, observer)
    }

    /// From the projected time steps `dt: [tokens, heads]` to those of every channel, `[tokens, inner]`.
    fn delta(&self, spec: &Mamba2Spec, dt: Tensor<B, 2>) -> Tensor<B, 2> {
        let tokens = dt.dims()[0];
        let delta = activation::softplus(dt + self.dt_bias.clone().unsqueeze(), 1.0);
        let delta = match spec.dt_limits {
            [low, high] if high.is_finite() => delta.clamp(low, high),
            [low, _] => delta.clamp_min(low),
        };
        let delta = delta.reshape([tokens, spec.heads, 1]);
        let delta: Tensor<B, 3> = delta.repeat_dim(2, spec.head_dim);
        delta.reshape([tokens, spec.inner()])
    }
}
