//! The MLP block.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::linear::{Linear, Tap};
use super::math::{activated, gated};
use super::weights::Weights;
use crate::spec::{MlpSpec, Widening};

/// The weights of an MLP.
#[derive(Debug, Clone)]
pub(super) struct Mlp<B: Backend> {
    widening: Vec<Linear<B>>,
    down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub(super) fn new<W: Weights<B>>(spec: &MlpSpec, weights: &W) -> Result<Self, W::Error> {
        let projections = spec.widening.projections();
        let widening = projections
            .into_iter()
            .map(|projection| Linear::new(projection, weights))
            .collect::<Result<_, _>>()?;
        let down = Linear::new(&spec.down, weights)?;
        Ok(Mlp { widening, down })
    }

    /// `x: [tokens, hidden]` to the same shape. `tokens` says which tokens these are where not all of them
    /// pass here.
    pub(super) fn forward(
        &self,
        spec: &MlpSpec,
        x: Tensor<B, 2>,
        tokens: Option<&[usize]>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 2> {
        tap.input(&spec.input, &x, tokens);
        let count = x.dims()[0];
        let mut wide = self
            .widening
            .iter()
            .map(|linear| linear.forward(x.clone(), tap));
        let mut next = || wide.next().expect("the widening has this matrix");
        let inner = match spec.widening {
            Widening::Gated { .. } => {
                let gate = next();
                gated(gate, next(), spec.activation)
            }
            Widening::GatedStacked(_) => {
                let both = next();
                let part = |first| both.clone().slice([0..count, first..first + spec.ffn]);
                gated(part(0), part(spec.ffn), spec.activation)
            }
            Widening::Plain(_) => activated(next(), spec.activation),
        };
        tap.input(&spec.inner, &inner, tokens);
        self.down.forward(inner, tap)
    }
}
