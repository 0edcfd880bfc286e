//! The MLP: input projections, activation, down projection.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::linear::{ActivationObserver, Linear};
use super::math::{activated, gated};
use super::weights::Weights;
use crate::spec::{MlpInput, MlpSpec};

/// The weights of an MLP.
#[derive(Debug, Clone)]
pub(super) struct Mlp<B: Backend> {
    /// In the order of [`MlpInput::projections`].
    input: Vec<Linear<B>>,
    down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub(super) fn new<W: Weights<B>>(spec: &MlpSpec, weights: &W) -> Result<Self, W::Error> {
        let projections = spec.input.projections();
        let input = projections
            .into_iter()
            .map(|projection| Linear::new(projection, weights))
            .collect::<Result<_, _>>()?;
        let down = Linear::new(&spec.down, weights)?;
        Ok(Mlp { input, down })
    }

    /// `x: [tokens, hidden]` to the same shape. `tokens` gives the indices of the rows' tokens if only some
    /// tokens of the batch are computed here.
    pub(super) fn forward(
        &self,
        spec: &MlpSpec,
        x: Tensor<B, 2>,
        tokens: Option<&[usize]>,
        observer: &mut dyn ActivationObserver<B>,
    ) -> Tensor<B, 2> {
        observer.observe_input(&spec.input_name, &x, tokens);
        let count = x.dims()[0];
        let mut projected = self
            .input
            .iter()
            .map(|linear| linear.forward(x.clone(), observer));
        let mut next = || projected.next().expect("one per projection");
        let inner = match spec.input {
            MlpInput::Gated { .. } => {
                let gate = next();
                gated(gate, next(), spec.activation)
            }
            MlpInput::FusedGated(_) => {
                let gate_up = next();
                let part = |first| gate_up.clone().slice([0..count, first..first + spec.ffn]);
                gated(part(0), part(spec.ffn), spec.activation)
            }
            MlpInput::Ungated(_) => activated(next(), spec.activation),
        };
        observer.observe_input(&spec.down_input_name, &inner, tokens);
        self.down.forward(inner, observer)
    }
}
