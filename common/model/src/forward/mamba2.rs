//! The Mamba-2 block (Dao and Gu 2024, arXiv 2405.21060): one projection, a short convolution, a selective scan
//! with one decay and one step per head, a norm of the gated result.
//!
//! The scan is that of Mamba with the numbers of a head repeated for its channels, group after group, since
//! each group has its own B and C. That spends an exponential per state where one per head would do; the
//! blocked form of the paper, which turns the scan into matrix products, is not used.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::linear::{Linear, Tap};
use super::math::{activated, gated};
use super::norm::Norm;
use super::short_conv::ShortConv;
use super::weights::Weights;
use crate::mamba::selective_scan;
use crate::spec::Mamba2Spec;

/// The weights of a Mamba-2 block.
#[derive(Debug, Clone)]
pub(super) struct Mamba2<B: Backend> {
    input: Linear<B>,
    conv: ShortConv<B>,
    /// `[heads]`, added to the steps.
    step_bias: Tensor<B, 1>,
    /// `[inner, state]`, negative: how fast a state fades.
    decay: Tensor<B, 2>,
    /// `[inner]`: how much of the input passes by the state.
    skip: Tensor<B, 1>,
    /// One per group.
    norms: Vec<Norm<B>>,
    output: Linear<B>,
}

impl<B: Backend> Mamba2<B> {
    pub(super) fn new<W: Weights<B>>(spec: &Mamba2Spec, weights: &W) -> Result<Self, W::Error> {
        let heads = spec.heads;
        let of_heads = |name: &str| weights.tensor(name, [heads]);
        let of_channels = |x: Tensor<B, 1>| {
            let channels = x.reshape([heads, 1]).repeat_dim(1, spec.head_dim);
            channels.reshape([spec.inner()])
        };
        let log = of_channels(of_heads("mixer.A_log")?);
        let decay = log.exp().neg().reshape([spec.inner(), 1]);
        Ok(Mamba2 {
            input: Linear::new(&spec.input, weights)?,
            conv: ShortConv::new(&spec.conv, weights)?,
            step_bias: of_heads("mixer.dt_bias")?,
            decay: decay.repeat_dim(1, spec.state),
            skip: of_channels(of_heads("mixer.D")?),
            norms: Norm::new(&spec.norm, weights)?.parts(spec.groups),
            output: Linear::new(&spec.output, weights)?,
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &Mamba2Spec,
        x: Tensor<B, 2>,
        [windows, length]: [usize; 2],
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 2> {
        let (inner, state) = (spec.inner(), spec.state);
        let tokens = windows * length;
        tap.input("in_in", &x, None);
        let all = self.input.forward(x, tap);
        let part = |first: usize, width: usize| all.clone().narrow(1, first, width);
        let channels = spec.conv.channels;
        let gate = part(0, inner);
        let mixed = self.conv.forward(part(inner, channels), [windows, length]);
        let mixed = activated(mixed, spec.activation);
        let delta = self.steps(spec, part(inner + channels, spec.heads));

        let width = inner / spec.groups;
        let groups = self.norms.iter().enumerate().map(|(group, norm)| {
            // Channels of this group, and where its B and C begin.
            let (first, b) = (group * width, inner + group * state);
            let c = b + spec.groups * state;
            let of_windows = |x: &Tensor<B, 2>, first: usize, width: usize| {
                let x = x.clone().narrow(1, first, width);
                x.reshape([windows, length, width])
            };
            let y = selective_scan(
                of_windows(&mixed, first, width),
                of_windows(&delta, first, width),
                self.decay.clone().narrow(0, first, width),
                of_windows(&mixed, b, state),
                of_windows(&mixed, c, state),
                self.skip.clone().narrow(0, first, width),
            );
            let y = y.reshape([tokens, width]);
            norm.forward(gated(
                gate.clone().narrow(1, first, width),
                y,
                spec.activation,
            ))
        });
        let y = Tensor::cat(groups.collect(), 1);
        tap.input("out_in", &y, None);
        self.output.forward(y, tap)
    }

    /// From `steps: [tokens, heads]` as projected to those of every channel, `[tokens, inner]`.
    fn steps(&self, spec: &Mamba2Spec, steps: Tensor<B, 2>) -> Tensor<B, 2> {
        let tokens = steps.dims()[0];
        let delta = activation::softplus(steps + self.step_bias.clone().unsqueeze(), 1.0);
        let delta = match spec.step_limits {
            [low, high] if high.is_finite() => delta.clamp(low, high),
            [low, _] => delta.clamp_min(low),
        };
        let delta = delta.reshape([tokens, spec.heads, 1]);
        let delta: Tensor<B, 3> = delta.repeat_dim(2, spec.head_dim);
        delta.reshape([tokens, spec.inner()])
    }
}
