//! The Mamba block (Gu and Dao 2023, arXiv 2312.00752): projections around a short convolution and a
//! selective scan.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::linear::{ActivationObserver, Linear};
use super::math::{activated, gated};
use super::short_conv::ShortConv;
use super::weights::Weights;
use crate::mamba::selective_scan;
use crate::spec::MambaSpec;

/// The weights of a Mamba block.
#[derive(Debug, Clone)]
pub(super) struct Mamba<B: Backend> {
    in_proj: Linear<B>,
    conv: ShortConv<B>,
    x_proj: Linear<B>,
    dt_proj: Linear<B>,
    /// `-exp(A_log)`, `[inner, state]`: the decay rates of the states.
    a: Tensor<B, 2>,
    /// `[inner]`: the skip connection around the states.
    d: Tensor<B, 1>,
    out_proj: Linear<B>,
}

impl<B: Backend> Mamba<B> {
    pub(super) fn new<W: Weights<B>>(spec: &MambaSpec, weights: &W) -> Result<Self, W::Error> {
        let a_log: Tensor<B, 2> = weights.tensor("mixer.A_log", [spec.inner, spec.state])?;
        Ok(Mamba {
            in_proj: Linear::new(&spec.in_proj, weights)?,
            conv: ShortConv::new(&spec.conv, weights)?,
            x_proj: Linear::new(&spec.x_proj, weights)?,
            dt_proj: Linear::new(&spec.dt_proj, weights)?,
            a: a_log.exp().neg(),
            d: weights.tensor("mixer.D", [spec.inner])?,
            out_proj: Linear::new(&spec.out_proj, weights)?,
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &MambaSpec,
        x: Tensor<B, 2>,
        [windows, length]: [usize; 2],
        observer: &mut dyn ActivationObserver<B>,
    ) -> Tensor<B, 2> {
        let &MambaSpec {
            inner,
            state,
            dt_rank,
            ..
        } = spec;
        let tokens = windows * length;
        let part = |x: &Tensor<B, 2>, first: usize, width: usize| {
            x.clone().slice([0..tokens, first..first + width])
        };
        observer.observe_input("in_in", &x, None);
        let projected = self.in_proj.forward(x, observer);
        let (u, gate) = (part(&projected, 0, inner), part(&projected, inner, inner));
        let u = activated(self.conv.forward(u, [windows, length]), spec.activation);
        observer.observe_input("x_in", &u, None);
        let dt_b_c = self.x_proj.forward(u.clone(), observer);
        let dt = part(&dt_b_c, 0, dt_rank);
        observer.observe_input("dt_in", &dt, None);
        let delta = activation::softplus(self.dt_proj.forward(dt, observer), 1.0);
        let by_window = |x: Tensor<B, 2>| {
            let width = x.dims()[1];
            x.reshape([windows, length, width])
        };
        let y = selective_scan(
            by_window(u),
            by_window(delta),
            self.a.clone(),
            by_window(part(&dt_b_c, dt_rank, state)),
            by_window(part(&dt_b_c, dt_rank + state, state)),
            self.d.clone(),
        );
        let y = gated(gate, y.reshape([tokens, inner]), spec.activation);
        observer.observe_input("out_in", &y, None);
        self.out_proj.forward(y, observer)
    }
}
