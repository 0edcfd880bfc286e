//! The mixture of experts: a router sends every token to a few of many MLPs. Only those that tokens reach are computed.

use rayon::prelude::*;
use uc_model::routing::{RENORMALIZE_EPS, group_limited_top_k, is_masked, top_k};
use uc_model::spec::{ExpertsSpec, Routing};

use crate::error::InferError;
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::source::Source;
use crate::vector::{sigmoid, softmax};

/// The router and the experts.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) router: Linear,
    routing: Routing,
    /// Experts of a token.
    pub(crate) top_k: usize,
    /// `[experts]`, added to the scores for the selection; empty if there is none.
    correction_bias: Vec<f32>,
    pub(crate) experts: Vec<Mlp>,
    pub(crate) shared: Option<Mlp>,
}

impl Experts {
    pub(crate) fn new(spec: &ExpertsSpec, source: &dyn Source) -> Result<Self, InferError> {
        let shared = spec.shared.as_ref().map(|shared| Mlp::new(shared, source));
        let experts = spec.experts.iter().map(|expert| Mlp::new(expert, source));
        let correction_bias = match &spec.routing {
            Routing::Sigmoid {
                correction_bias, ..
            } => source.values(correction_bias, &[spec.experts.len()])?,
            _ => Vec::new(),
        };
        Ok(Experts {
            router: Linear::new(&spec.router, source)?,
            routing: spec.routing.clone(),
            top_k: spec.top_k,
            correction_bias,
            experts: experts.collect::<Result<_, _>>()?,
            shared: shared.transpose()?,
        })
    }

    /// The linears of all routed experts.
    pub(crate) fn expert_linears(&self) -> Vec<&Linear> {
        self.experts.iter().flat_map(Mlp::linears).collect()
    }

    /// The linears of the expert that every token reaches.
    pub(crate) fn shared_linears(&self) -> Vec<&Linear> {
        self.shared.iter().flat_map(Mlp::linears).collect()
    }

    /// `x: [tokens, hidden]` to the same shape. The outputs of a token's experts are added in the order of the experts.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let logits = self.router.forward(x);
        let mut tokens_of = vec![Vec::new(); self.experts.len()];
        for (token, logits) in logits.chunks_exact(self.experts.len()).enumerate() {
            for (expert, weight) in self.route(logits) {
                tokens_of[expert].push((token, weight));
            }
        }
        let width = self.router.matrix.cols();
        let mut y = match &self.shared {
            Some(shared) => shared.forward(x),
            None => vec![0.0; x.len()],
        };
        let row = |token: usize| token * width..(token + 1) * width;
        let chosen = self.experts.iter().zip(tokens_of);
        let chosen: Vec<_> = chosen.filter(|(_, tokens)| !tokens.is_empty()).collect();
        let outputs = chosen.par_iter().with_max_len(1).map(|(expert, tokens)| {
            let rows = tokens.iter().flat_map(|&(token, _)| &x[row(token)]);
            expert.forward(&rows.copied().collect::<Vec<f32>>())
        });
        let outputs: Vec<Vec<f32>> = outputs.collect();
        for ((_, tokens), output) in chosen.iter().zip(outputs) {
            for (&(token, weight), output) in tokens.iter().zip(output.chunks_exact(width)) {
                let sums = y[row(token)].iter_mut().zip(output);
                sums.for_each(|(y, output)| *y += output * weight);
            }
        }
        y
    }

    /// The experts of a token and the weights of their outputs, from the router's logits `[experts]`.
    fn route(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        match self.routing {
            Routing::Softmax { renormalize } => {
                let scores = softmax(logits);
                let selected = with_scores(&top_k(logits, self.top_k), &scores);
                match renormalize {
                    true => renormalized(selected, 0.0),
                    false => selected,
                }
            }
            Routing::SparseMixer { jitter } => sparse_mixer(logits, jitter as f32),
            Routing::Sigmoid {
                groups,
                topk_group,
                renormalize,
                scale,
                ..
            } => {
                let scores: Vec<f32> = logits.iter().map(|&x| sigmoid(x)).collect();
                let biased = scores.iter().zip(&self.correction_bias);
                let biased = biased.map(|(score, bias)| score + bias).collect();
                let selected = group_limited_top_k(biased, [groups, topk_group], self.top_k);
                let mut selected = with_scores(&selected, &scores);
                if renormalize {
                    selected = renormalized(selected, RENORMALIZE_EPS);
                }
                for (_, weight) in &mut selected {
                    *weight *= scale as f32;
                }
                selected
            }
        }
    }
}

/// The selected experts with their scores.
fn with_scores(selected: &[usize], scores: &[f32]) -> Vec<(usize, f32)> {
    selected
        .iter()
        .map(|&expert| (expert, scores[expert]))
        .collect()
}

/// The weights divided by their sum plus `eps`.
fn renormalized(mut selected: Vec<(usize, f32)>, eps: f32) -> Vec<(usize, f32)> {
    let sum: f32 = selected.iter().map(|(_, weight)| weight).sum::<f32>() + eps;
    selected.iter_mut().for_each(|(_, weight)| *weight /= sum);
    selected
}

/// See [`Routing::SparseMixer`].
fn sparse_mixer(logits: &[f32], jitter: f32) -> Vec<(usize, f32)> {
    let pair = top_k(logits, 2);
    let weight = |rank: usize| {
        let peak = logits[pair[rank]];
        let scores = logits.iter().enumerate().map(|(expert, &score)| {
            let already_selected = rank == 1 && expert == pair[0];
            match already_selected || is_masked(score, peak, jitter) {
                true => f32::NEG_INFINITY,
                false => score,
            }
        });
        softmax(&scores.collect::<Vec<_>>())[pair[rank]]
    };
    vec![(pair[0], weight(0)), (pair[1], weight(1))]
}
