//! The Mamba block: projections around a short convolution and a selective scan.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::linear::{Linear, Tap};
use super::math::{activated, gated};
use super::short_conv::ShortConv;
use super::weights::Weights;
use crate::mamba::selective_scan;
use crate::spec::MambaSpec;

/// The weights of a Mamba block.
#[derive(Debug, Clone)]
pub(super) struct StateSpace<B: Backend> {
    input: Linear<B>,
    conv: ShortConv<B>,
    selection: Linear<B>,
    step: Linear<B>,
    /// `[inner, state]`, negative: how fast a state fades.
    decay: Tensor<B, 2>,
    /// `[inner]`: how much of the input passes by the state.
    skip: Tensor<B, 1>,
    output: Linear<B>,
}

impl<B: Backend> StateSpace<B> {
    pub(super) fn new<W: Weights<B>>(spec: &MambaSpec, weights: &W) -> Result<Self, W::Error> {
        let log: Tensor<B, 2> = weights.tensor("mixer.A_log", [spec.inner, spec.state])?;
        Ok(StateSpace {
            input: Linear::new(&spec.input, weights)?,
            conv: ShortConv::new(&spec.conv, weights)?,
            selection: Linear::new(&spec.selection, weights)?,
            step: Linear::new(&spec.step, weights)?,
            decay: log.exp().neg(),
            skip: weights.tensor("mixer.D", [spec.inner])?,
            output: Linear::new(&spec.output, weights)?,
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &MambaSpec,
        x: Tensor<B, 2>,
        [windows, length]: [usize; 2],
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 2> {
        let &MambaSpec {
            inner, state, rank, ..
        } = spec;
        let tokens = windows * length;
        let part = |x: &Tensor<B, 2>, first: usize, width: usize| {
            x.clone().slice([0..tokens, first..first + width])
        };
        tap.input("in_in", &x, None);
        let both = self.input.forward(x, tap);
        let (u, gate) = (part(&both, 0, inner), part(&both, inner, inner));
        let u = activated(self.conv.forward(u, [windows, length]), spec.activation);
        tap.input("x_in", &u, None);
        let selected = self.selection.forward(u.clone(), tap);
        let step = part(&selected, 0, rank);
        tap.input("dt_in", &step, None);
        let delta = activation::softplus(self.step.forward(step, tap), 1.0);
        let steps = |x: Tensor<B, 2>| {
            let width = x.dims()[1];
            x.reshape([windows, length, width])
        };
        let y = selective_scan(
            steps(u),
            steps(delta),
            self.decay.clone(),
            steps(part(&selected, rank, state)),
            steps(part(&selected, rank + state, state)),
            self.skip.clone(),
        );
        let y = gated(gate, y.reshape([tokens, inner]), spec.activation);
        tap.input("out_in", &y, None);
        self.output.forward(y, tap)
    }
}
