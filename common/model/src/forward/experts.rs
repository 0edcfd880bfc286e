//! The mixture of experts: a router sends every token to a few of many MLPs.
//!
//! An expert's weights are asked for when the tokens that come to it are known, and dropped when they have
//! passed. Which experts a token takes is decided on the host from the router's scores; the weights of the
//! chosen are functions of the scores, through which gradients flow.

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, activation};

use super::linear::{Linear, Tap};
use super::mlp::Mlp;
use super::weights::Weights;
use crate::spec::{ExpertsSpec, Routing};

/// The router; the experts are asked for as tokens come to them.
#[derive(Debug, Clone)]
pub(super) struct Experts<B: Backend> {
    router: Linear<B>,
}

/// Where the tokens of a batch go.
struct Routed<B: Backend> {
    /// `[tokens · chosen]` experts of token 0, of token 1, …
    experts: Vec<usize>,
    /// `[tokens, chosen]` factors of their outputs.
    factors: Tensor<B, 2>,
}

impl<B: Backend> Experts<B> {
    pub(super) fn new<W: Weights<B>>(spec: &ExpertsSpec, weights: &W) -> Result<Self, W::Error> {
        let router = Linear::new(&spec.router, weights)?;
        Ok(Experts { router })
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
        let [tokens, _] = x.dims();
        let routed = route(self.router.apply(x.clone()), spec);
        let factors = routed.factors.reshape([tokens * spec.chosen, 1]);
        let mut y = x.zeros_like();
        for (number, expert) in spec.experts.iter().enumerate() {
            let places: Vec<usize> = (0..routed.experts.len())
                .filter(|&place| routed.experts[place] == number)
                .collect();
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

/// Chooses experts by `scores: [tokens, experts]`.
fn route<B: Backend>(scores: Tensor<B, 2>, spec: &ExpertsSpec) -> Routed<B> {
    let device = scores.device();
    let [tokens, experts] = scores.dims();
    let values: Vec<f32> = scores
        .clone()
        .into_data()
        .into_vec()
        .expect("backends of this crate compute in f32");
    let rows = values.chunks_exact(experts);
    match spec.routing {
        Routing::Softmax { renormalised } => {
            let chosen: Vec<usize> = rows.flat_map(|row| largest(row, spec.chosen)).collect();
            let at = indices(&chosen, &device).reshape([tokens, spec.chosen]);
            let factors = activation::softmax(scores, 1).gather(1, at);
            let factors = match renormalised {
                true => factors.clone() / factors.sum_dim(1),
                false => factors,
            };
            Routed {
                experts: chosen,
                factors,
            }
        }
        Routing::SparseMixer { jitter } => {
            let mut chosen = Vec::with_capacity(2 * tokens);
            let mut hidden = [Vec::new(), Vec::new()];
            for row in rows {
                let pair = largest(row, 2);
                for (turn, hidden) in hidden.iter_mut().enumerate() {
                    let peak = row[pair[turn]];
                    hidden.extend(row.iter().enumerate().map(|(expert, &score)| {
                        let gone = turn == 1 && expert == pair[0];
                        let far = (peak - score) / score.abs().max(peak) > 2.0 * jitter as f32;
                        if gone || far { f32::NEG_INFINITY } else { 0.0 }
                    }));
                }
                chosen.extend(pair);
            }
            let at = indices(&chosen, &device).reshape([tokens, 2]);
            let factors = hidden.into_iter().enumerate().map(|(turn, hidden)| {
                let hidden = TensorData::new(hidden, [tokens, experts]);
                let seen = scores.clone() + Tensor::from_data(hidden, &device);
                let at = at.clone().slice([0..tokens, turn..turn + 1]);
                activation::softmax(seen, 1).gather(1, at)
            });
            Routed {
                experts: chosen,
                factors: Tensor::cat(factors.collect(), 1),
            }
        }
    }
}

/// The places of the `count` largest values, largest first, earlier ones first among equals.
fn largest(row: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    places.truncate(count);
    places
}

fn indices<B: Backend>(places: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}
