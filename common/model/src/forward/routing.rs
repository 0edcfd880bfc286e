//! Selection of the experts of each token, and their weights.
//!
//! The selection is made on the host from the router's scores. The weights of the selected experts are
//! functions of the scores on the device, so gradients flow through them.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::weights::Weights;
use crate::routing::{RENORMALIZE_EPS, group_limited_top_k, is_masked, top_k};
use crate::spec::{ExpertsSpec, Routing};

/// The selected experts of a batch of tokens, and their weights.
pub(super) struct Routed<B: Backend> {
    /// `[tokens · top_k]`: the experts of token 0, of token 1, …
    pub(super) experts: Vec<usize>,
    /// `[tokens, top_k]`: the factors of their outputs.
    pub(super) weights: Tensor<B, 2>,
}

/// The load-balancing bias `[experts]` of a routing that has one.
pub(super) fn correction_bias<B: Backend, W: Weights<B>>(
    spec: &ExpertsSpec,
    weights: &W,
) -> Result<Option<Vec<f32>>, W::Error> {
    let Routing::Sigmoid {
        correction_bias, ..
    } = &spec.routing
    else {
        return Ok(None);
    };
    let bias: Tensor<B, 1> = weights.tensor(correction_bias, [spec.experts.len()])?;
    Ok(Some(to_host(bias)))
}

/// Selects experts by the router's `logits: [tokens, experts]`.
pub(super) fn route<B: Backend>(
    logits: Tensor<B, 2>,
    spec: &ExpertsSpec,
    correction_bias: Option<&[f32]>,
) -> Routed<B> {
    match spec.routing {
        Routing::Softmax { renormalize } => softmax(logits, spec.top_k, renormalize),
        Routing::SparseMixer { jitter } => sparse_mixer(logits, jitter as f32),
        Routing::Sigmoid {
            groups,
            topk_group,
            renormalize,
            scale,
            ..
        } => {
            let bias = correction_bias.expect("this routing has a bias");
            let scores = activation::sigmoid(logits);
            let experts = select_per_token(&scores, |row| {
                let biased: Vec<f32> = row.iter().zip(bias).map(|(s, b)| s + b).collect();
                group_limited_top_k(biased, [groups, topk_group], spec.top_k)
            });
            let weights = gather(scores, &experts, spec.top_k);
            let weights = match renormalize {
                true => weights.clone() / (weights.sum_dim(1) + f64::from(RENORMALIZE_EPS)),
                false => weights,
            };
            Routed {
                experts,
                weights: weights * scale,
            }
        }
    }
}

fn softmax<B: Backend>(logits: Tensor<B, 2>, k: usize, renormalize: bool) -> Routed<B> {
    let experts = select_per_token(&logits, |row| top_k(row, k));
    let weights = gather(activation::softmax(logits, 1), &experts, k);
    let weights = match renormalize {
        true => weights.clone() / weights.sum_dim(1),
        false => weights,
    };
    Routed { experts, weights }
}

fn sparse_mixer<B: Backend>(logits: Tensor<B, 2>, jitter: f32) -> Routed<B> {
    let device = logits.device();
    let [tokens, expert_count] = logits.dims();
    // For each of the two selections, -inf at the experts that its softmax leaves out.
    let mut masks = [Vec::new(), Vec::new()];
    let experts = select_per_token(&logits, |row| {
        let pair = top_k(row, 2);
        for (rank, mask) in masks.iter_mut().enumerate() {
            let peak = row[pair[rank]];
            mask.extend(row.iter().enumerate().map(|(expert, &score)| {
                let already_selected = rank == 1 && expert == pair[0];
                if already_selected || is_masked(score, peak, jitter) {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            }));
        }
        pair
    });
    let selected = index_tensor(&experts, &device).reshape([tokens, 2]);
    let weights = masks.into_iter().enumerate().map(|(rank, mask)| {
        let mask = TensorData::new(mask, [tokens, expert_count]);
        let masked = logits.clone() + Tensor::from_data(mask, &device);
        let selected = selected.clone().slice([0..tokens, rank..rank + 1]);
        activation::softmax(masked, 1).gather(1, selected)
    });
    Routed {
        experts,
        weights: Tensor::cat(weights.collect(), 1),
    }
}

/// The experts that `select` picks for every row of `scores: [tokens, experts]`.
fn select_per_token<B: Backend>(
    scores: &Tensor<B, 2>,
    select: impl FnMut(&[f32]) -> Vec<usize>,
) -> Vec<usize> {
    let experts = scores.dims()[1];
    let values = to_host(scores.clone());
    values.chunks_exact(experts).flat_map(select).collect()
}

/// The values of the `k` selected experts in every row of `scores: [tokens, experts]`; `[tokens, k]`.
fn gather<B: Backend>(scores: Tensor<B, 2>, experts: &[usize], k: usize) -> Tensor<B, 2> {
    let tokens = scores.dims()[0];
    let experts = index_tensor(experts, &scores.device()).reshape([tokens, k]);
    scores.gather(1, experts)
}

fn to_host<B: Backend, const D: usize>(values: Tensor<B, D>) -> Vec<f32> {
    let values = values.into_data().into_vec();
    values.expect("backends of this crate compute in f32")
}

/// Indices as a tensor.
pub(super) fn index_tensor<B: Backend>(indices: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let indices: Vec<i32> = indices.iter().map(|&index| index as i32).collect();
    let count = indices.len();
    Tensor::from_data(TensorData::new(indices, [count]), device)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

    use super::*;
    use crate::device::Cpu;
    use crate::spec::Projection;

    /// The logits of two tokens, without near ties.
    const SCORES: [[f32; 4]; 2] = [[0.3, -0.9, 1.1, 0.1], [-1.4, 0.2, -0.3, 0.7]];

    fn routings() -> [Routing; 5] {
        let sigmoid = |renormalize| Routing::Sigmoid {
            correction_bias: "correction".into(),
            groups: 2,
            topk_group: 1,
            renormalize,
            scale: 2.5,
        };
        [
            Routing::Softmax { renormalize: true },
            Routing::Softmax { renormalize: false },
            Routing::SparseMixer { jitter: 0.6 },
            sigmoid(true),
            sigmoid(false),
        ]
    }

    fn routed<B: Backend>(scores: Tensor<B, 2>, routing: &Routing) -> Routed<B> {
        let spec = ExpertsSpec {
            router: Projection::new("router", 4, 1, false),
            top_k: 2,
            routing: routing.clone(),
            experts: Vec::new(),
            shared: None,
        };
        route(scores, &spec, Some(&[0.0, 1.5, 0.0, 0.1]))
    }

    #[test]
    fn gradients_flow_through_the_weights_of_the_selected_experts() {
        const STEP: f32 = 1e-2;
        // The gradient of the loss with respect to each of the four weights.
        let grad_weights = [0.7, -0.4, 1.3, 0.9];
        let device = Default::default();
        for routing in routings() {
            let loss = |index: [usize; 2], step: f32| -> f32 {
                let mut scores = SCORES;
                scores[index[0]][index[1]] += step;
                let weights = routed::<Cpu>(Tensor::from_data(scores, &device), &routing).weights;
                let weights = to_host(weights);
                weights.iter().zip(grad_weights).map(|(f, a)| f * a).sum()
            };
            let scores: Tensor<Autodiff<Cpu>, 2> = Tensor::from_data(SCORES, &Default::default());
            let scores = scores.require_grad();
            let weights = routed(scores.clone(), &routing).weights;
            let grad_weights =
                Tensor::<_, 1>::from_data(grad_weights, &scores.device()).reshape([2, 2]);
            let found = (weights * grad_weights).sum().backward();
            let found = to_host(scores.grad(&found).expect("the weights depend on scores"));
            assert!(
                found.iter().any(|g| g.abs() > 0.01),
                "{routing:?} {found:?}"
            );
            for (index, found) in found.iter().enumerate() {
                let index = [index / 4, index % 4];
                let expected = (loss(index, STEP) - loss(index, -STEP)) / (2.0 * STEP);
                let error = (found - expected).abs();
                assert!(error < 1e-3, "{routing:?} {index:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn experts_are_selected_with_the_bias_and_weighted_without_it() {
        let [.., biased] = routings();
        let scores: Tensor<Cpu, 2> = Tensor::from_data(SCORES, &Default::default());
        let found = routed(scores, &biased);
        // Without the bias, both tokens would select the second group.
        assert_eq!(found.experts, [1, 0, 1, 0]);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        for (found, score) in to_host(found.weights).iter().zip([-0.9, 0.3, 0.2, -1.4]) {
            assert!((found - 2.5 * sigmoid(score)).abs() < 1e-6);
        }
    }
}
