//! The mixture of experts: a router sends every token to a few of many MLPs.
//!
//! An expert's weights are asked for when the tokens that come to it are known, and dropped when they have
//! passed; those of the MLP that all tokens pass, if there is one, stay.

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Tensor};

use super::linear::{Linear, Tap};
use super::mlp::Mlp;
use super::routing::{correction, indices, route};
use super::weights::Weights;
use crate::spec::ExpertsSpec;

/// The router and what all tokens pass; the experts are asked for as tokens come to them.
#[derive(Debug, Clone)]
pub(super) struct Experts<B: Backend> {
    router: Linear<B>,
    /// `[experts]`, added to the scores for the choice.
    correction: Option<Vec<f32>>,
    pub(super) shared: Option<Mlp<B>>,
}

impl<B: Backend> Experts<B> {
    pub(super) fn new<W: Weights<B>>(spec: &ExpertsSpec, weights: &W) -> Result<Self, W::Error> {
        let shared = spec.shared.as_ref();
        let shared = shared.map(|shared| Mlp::new(shared, weights));
        Ok(Experts {
            router: Linear::new(&spec.router, weights)?,
            correction: correction(spec, weights)?,
            shared: shared.transpose()?,
        })
    }

    /// For every expert the places `token · chosen + choice` at which it was chosen, and `[tokens · chosen, 1]` by how
    /// much each choice counts.
    pub(super) fn route(
        &self,
        spec: &ExpertsSpec,
        x: Tensor<B, 2>,
    ) -> (Vec<Vec<usize>>, Tensor<B, 2>) {
        let [tokens, _] = x.dims();
        let routed = route(self.router.apply(x), spec, self.correction.as_deref());
        let mut places = vec![Vec::new(); spec.experts.len()];
        for (place, &expert) in routed.experts.iter().enumerate() {
            places[expert].push(place);
        }
        (places, routed.factors.reshape([tokens * spec.chosen, 1]))
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(super) fn forward<W: Weights<B>>(
        &self,
        spec: &ExpertsSpec,
        x: Tensor<B, 2>,
        weights: &W,
        tap: &mut dyn Tap<B>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let device = x.device();
        let (places, factors) = self.route(spec, x.clone());
        let mut y = match (&self.shared, &spec.shared) {
            (Some(own), Some(spec)) => own.forward(spec, x.clone(), None, tap),
            _ => x.zeros_like(),
        };
        for (expert, places) in spec.experts.iter().zip(places) {
            if places.is_empty() {
                continue;
            }
            let own: Vec<usize> = places.iter().map(|place| place / spec.chosen).collect();
            let rows = indices(&own, &device);
            let mlp = Mlp::new(expert, weights)?;
            let out = mlp.forward(expert, x.clone().select(0, rows.clone()), Some(&own), tap);
            let factor = factors.clone().select(0, indices(&places, &device));
            y = y.select_assign(0, rows, out * factor, IndexingUpdateOp::Add);
        }
        Ok(y)
    }
}
