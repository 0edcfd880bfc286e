//! The mixture of experts: a router sends every token to a few of many MLPs.
//!
//! An expert's weights are requested when the tokens routed to it are known, and dropped after it has run.
//! The weights of the shared experts, if there are any, stay in memory.

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Tensor};

use super::linear::{ActivationObserver, Linear};
use super::mlp::Mlp;
use super::routing::{correction_bias, index_tensor, route};
use super::weights::Weights;
use crate::spec::ExpertsSpec;

/// The router and the shared experts. The routed experts are built when tokens reach them.
#[derive(Debug, Clone)]
pub(super) struct Experts<B: Backend> {
    router: Linear<B>,
    /// `[experts]`, added to the scores for the selection.
    correction_bias: Option<Vec<f32>>,
    pub(super) shared: Option<Mlp<B>>,
}

impl<B: Backend> Experts<B> {
    pub(super) fn new<W: Weights<B>>(spec: &ExpertsSpec, weights: &W) -> Result<Self, W::Error> {
        let shared = spec.shared.as_ref();
        let shared = shared.map(|shared| Mlp::new(shared, weights));
        Ok(Experts {
            router: Linear::in_f32(&spec.router, weights)?,
            correction_bias: correction_bias(spec, weights)?,
            shared: shared.transpose()?,
        })
    }

    /// For every expert, the slots `token · top_k + rank` that selected it; and the factor of each slot's
    /// output, `[tokens · top_k, 1]`.
    pub(super) fn route(
        &self,
        spec: &ExpertsSpec,
        x: Tensor<B, 2>,
    ) -> (Vec<Vec<usize>>, Tensor<B, 2>) {
        let [tokens, _] = x.dims();
        let routed = route(self.router.apply(x), spec, self.correction_bias.as_deref());
        let mut slots = vec![Vec::new(); spec.experts.len()];
        for (slot, &expert) in routed.experts.iter().enumerate() {
            slots[expert].push(slot);
        }
        (slots, routed.weights.reshape([tokens * spec.top_k, 1]))
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(super) fn forward<W: Weights<B>>(
        &self,
        spec: &ExpertsSpec,
        x: Tensor<B, 2>,
        weights: &W,
        observer: &mut dyn ActivationObserver<B>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let device = x.device();
        let (slots, factors) = self.route(spec, x.clone());
        let mut y = match (&self.shared, &spec.shared) {
            (Some(shared), Some(spec)) => shared.forward(spec, x.clone(), None, observer),
            _ => x.zeros_like(),
        };
        for (expert, slots) in spec.experts.iter().zip(slots) {
            if slots.is_empty() {
                continue;
            }
            let tokens: Vec<usize> = slots.iter().map(|slot| slot / spec.top_k).collect();
            let rows = index_tensor(&tokens, &device);
            let mlp = Mlp::new(expert, weights)?;
            let input = x.clone().select(0, rows.clone());
            let out = mlp.forward(expert, input, Some(&tokens), observer);
            let factor = factors.clone().select(0, index_tensor(&slots, &device));
            y = y.select_assign(0, rows, out * factor, IndexingUpdateOp::Add);
        }
        Ok(y)
    }
}
