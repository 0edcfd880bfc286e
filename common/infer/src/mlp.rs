//! The MLP: input projections, activation, down projection.

use uc_model::spec::{Activation, MlpInput, MlpSpec};

use crate::attention::columns;
use crate::error::InferError;
use crate::linear::{Linear, forward_all};
use crate::source::Source;
use crate::vector::{activate, gate};

/// How the input projections combine.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Gated,
    FusedGated,
    Ungated,
}

/// The weights of an MLP.
#[derive(Debug)]
pub(crate) struct Mlp {
    kind: Kind,
    pub(crate) input: Vec<Linear>,
    pub(crate) down: Linear,
    ffn: usize,
    activation: Activation,
}

impl Mlp {
    pub(crate) fn new(spec: &MlpSpec, source: &dyn Source) -> Result<Self, InferError> {
        let projections = spec.input.projections().into_iter();
        Ok(Mlp {
            kind: match spec.input {
                MlpInput::Gated { .. } => Kind::Gated,
                MlpInput::FusedGated(_) => Kind::FusedGated,
                MlpInput::Ungated(_) => Kind::Ungated,
            },
            input: projections
                .map(|projection| Linear::new(projection, source))
                .collect::<Result<_, _>>()?,
            down: Linear::new(&spec.down, source)?,
            ffn: spec.ffn,
            activation: spec.activation,
        })
    }

    /// Its linears.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.input.iter().chain([&self.down])
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut projected = forward_all(&self.input, x);
        let mut inner = projected.swap_remove(0);
        match self.kind {
            Kind::Gated => gate(&mut inner, &projected[0], self.activation),
            Kind::FusedGated => {
                let part = |first| columns(&inner, 2 * self.ffn, first, self.ffn);
                let (mut first, up) = (part(0), part(self.ffn));
                gate(&mut first, &up, self.activation);
                inner = first;
            }
            Kind::Ungated => activate(&mut inner, self.activation),
        }
        self.down.forward(&inner)
    }
}
