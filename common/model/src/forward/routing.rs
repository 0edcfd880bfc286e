//! Which experts a token takes, and how much each of them counts.
//!
//! The choice is made on the host from the router's scores; the weights of the chosen are functions of the scores
//! on the device, through which gradients flow.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::weights::Weights;
use crate::spec::{ExpertsSpec, Routing};

/// Added to a sum of sigmoids before it divides.
const TINY: f64 = 1e-20;

/// Where the tokens of a batch go.
pub(super) struct Routed<B: Backend> {
    /// `[tokens · chosen]` experts of token 0, of token 1, …
    pub(super) experts: Vec<usize>,
    /// `[tokens, chosen]` factors of their outputs.
    pub(super) factors: Tensor<B, 2>,
}

/// The correction of the scores, of a routing that has one: `[experts]`.
pub(super) fn correction<B: Backend, W: Weights<B>>(
    spec: &ExpertsSpec,
    weights: &W,
) -> Result<Option<Vec<f32>>, W::Error> {
    let Routing::Sigmoid { correction, .. } = &spec.routing else {
        return Ok(None);
    };
    let correction: Tensor<B, 1> = weights.tensor(correction, [spec.experts.len()])?;
    Ok(Some(on_host(correction)))
}

/// Chooses experts by `scores: [tokens, experts]`.
pub(super) fn route<B: Backend>(
    scores: Tensor<B, 2>,
    spec: &ExpertsSpec,
    correction: Option<&[f32]>,
) -> Routed<B> {
    match spec.routing {
        Routing::Softmax { renormalised } => softmax(scores, spec.chosen, renormalised),
        Routing::SparseMixer { jitter } => sparse_mixer(scores, jitter as f32),
        Routing::Sigmoid {
            groups,
            kept,
            renormalised,
            scale,
            ..
        } => {
            let correction = correction.expect("this routing has a correction");
            let scores = activation::sigmoid(scores);
            let choose = |row: &[f32]| {
                let corrected: Vec<f32> = row.iter().zip(correction).map(|(s, c)| s + c).collect();
                in_groups(corrected, [groups, kept], spec.chosen)
            };
            let chosen = choose_all(&scores, choose);
            let factors = of_chosen(scores, &chosen, spec.chosen);
            let factors = match renormalised {
                true => factors.clone() / (factors.sum_dim(1) + TINY),
                false => factors,
            };
            Routed {
                experts: chosen,
                factors: factors * scale,
            }
        }
    }
}

fn softmax<B: Backend>(scores: Tensor<B, 2>, count: usize, renormalised: bool) -> Routed<B> {
    let chosen = choose_all(&scores, |row| largest(row, count));
    let factors = of_chosen(activation::softmax(scores, 1), &chosen, count);
    let factors = match renormalised {
        true => factors.clone() / factors.sum_dim(1),
        false => factors,
    };
    Routed {
        experts: chosen,
        factors,
    }
}

fn sparse_mixer<B: Backend>(scores: Tensor<B, 2>, jitter: f32) -> Routed<B> {
    let device = scores.device();
    let [tokens, experts] = scores.dims();
    let mut hidden = [Vec::new(), Vec::new()];
    let chosen = choose_all(&scores, |row| {
        let pair = largest(row, 2);
        for (turn, hidden) in hidden.iter_mut().enumerate() {
            let peak = row[pair[turn]];
            hidden.extend(row.iter().enumerate().map(|(expert, &score)| {
                let gone = turn == 1 && expert == pair[0];
                let far = (peak - score) / score.abs().max(peak) > 2.0 * jitter;
                if gone || far { f32::NEG_INFINITY } else { 0.0 }
            }));
        }
        pair
    });
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

/// The experts that `choose` picks for every row of `scores: [tokens, experts]`.
fn choose_all<B: Backend>(
    scores: &Tensor<B, 2>,
    choose: impl FnMut(&[f32]) -> Vec<usize>,
) -> Vec<usize> {
    let experts = scores.dims()[1];
    let values = on_host(scores.clone());
    values.chunks_exact(experts).flat_map(choose).collect()
}

/// The `count` chosen values of every row of `scores: [tokens, experts]`, `[tokens, count]`.
fn of_chosen<B: Backend>(scores: Tensor<B, 2>, chosen: &[usize], count: usize) -> Tensor<B, 2> {
    let tokens = scores.dims()[0];
    let at = indices(chosen, &scores.device()).reshape([tokens, count]);
    scores.gather(1, at)
}

/// The `count` largest of `scores` in the `kept` of `groups` equal groups whose two largest have the largest sum.
fn in_groups(mut scores: Vec<f32>, [groups, kept]: [usize; 2], count: usize) -> Vec<usize> {
    let size = scores.len() / groups;
    let of_group = |group: &[f32]| largest(group, 2).into_iter().map(|i| group[i]).sum();
    let sums: Vec<f32> = scores.chunks_exact(size).map(of_group).collect();
    for group in &largest(&sums, groups)[kept..] {
        scores[group * size..][..size].fill(f32::NEG_INFINITY);
    }
    largest(&scores, count)
}

/// The places of the `count` largest values, largest first, earlier ones first among equals.
fn largest(row: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    places.truncate(count);
    places
}

fn on_host<B: Backend, const D: usize>(values: Tensor<B, D>) -> Vec<f32> {
    let values = values.into_data().into_vec();
    values.expect("backends of this crate compute in f32")
}

/// Places as an index tensor.
pub(super) fn indices<B: Backend>(places: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

    use super::*;
    use crate::device::Cpu;
    use crate::spec::Projection;

    /// Two tokens, clear of any tie.
    const SCORES: [[f32; 4]; 2] = [[0.3, -0.9, 1.1, 0.1], [-1.4, 0.2, -0.3, 0.7]];

    fn routings() -> [Routing; 5] {
        let sigmoid = |renormalised| Routing::Sigmoid {
            correction: "correction".into(),
            groups: 2,
            kept: 1,
            renormalised,
            scale: 2.5,
        };
        [
            Routing::Softmax { renormalised: true },
            Routing::Softmax {
                renormalised: false,
            },
            Routing::SparseMixer { jitter: 0.6 },
            sigmoid(true),
            sigmoid(false),
        ]
    }

    fn routed<B: Backend>(scores: Tensor<B, 2>, routing: &Routing) -> Routed<B> {
        let spec = ExpertsSpec {
            router: Projection::new("router", 4, 1, false),
            chosen: 2,
            routing: routing.clone(),
            experts: Vec::new(),
            shared: None,
        };
        route(scores, &spec, Some(&[0.0, 1.5, 0.0, 0.1]))
    }

    #[test]
    fn gradients_flow_through_the_weights_of_the_chosen() {
        const STEP: f32 = 1e-2;
        // By how much each of the four weights counts.
        let above = [0.7, -0.4, 1.3, 0.9];
        let device = Default::default();
        for routing in routings() {
            let loss = |place: [usize; 2], step: f32| -> f32 {
                let mut scores = SCORES;
                scores[place[0]][place[1]] += step;
                let factors = routed::<Cpu>(Tensor::from_data(scores, &device), &routing).factors;
                let factors = on_host(factors);
                factors.iter().zip(above).map(|(f, a)| f * a).sum()
            };
            let scores: Tensor<Autodiff<Cpu>, 2> = Tensor::from_data(SCORES, &Default::default());
            let scores = scores.require_grad();
            let factors = routed(scores.clone(), &routing).factors;
            let above = Tensor::<_, 1>::from_data(above, &scores.device()).reshape([2, 2]);
            let found = (factors * above).sum().backward();
            let found = on_host(scores.grad(&found).expect("the weights depend on scores"));
            assert!(
                found.iter().any(|g| g.abs() > 0.01),
                "{routing:?} {found:?}"
            );
            for (place, found) in found.iter().enumerate() {
                let place = [place / 4, place % 4];
                let expected = (loss(place, STEP) - loss(place, -STEP)) / (2.0 * STEP);
                let error = (found - expected).abs();
                assert!(error < 1e-3, "{routing:?} {place:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn experts_are_chosen_with_the_correction_and_weighed_without_it() {
        let [.., corrected] = routings();
        let scores: Tensor<Cpu, 2> = Tensor::from_data(SCORES, &Default::default());
        let found = routed(scores, &corrected);
        // Without it, the second group would be that of both tokens.
        assert_eq!(found.experts, [1, 0, 1, 0]);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        for (found, score) in on_host(found.factors).iter().zip([-0.9, 0.3, 0.2, -1.4]) {
            assert!((found - 2.5 * sigmoid(score)).abs() < 1e-6);
        }
    }

    #[test]
    fn the_largest_are_chosen_within_the_groups_with_the_largest_pairs() {
        // Sums of pairs: 0.9, 1.1, -0.3; the largest single expert is in a group that is left out.
        let scores = vec![0.95, -0.05, -1.0, 0.5, 0.6, 0.0, -0.1, -0.2, -0.3];
        assert_eq!(in_groups(scores.clone(), [3, 1], 2), [4, 3]);
        assert_eq!(in_groups(scores.clone(), [3, 2], 3), [0, 4, 3]);
        assert_eq!(in_groups(scores, [1, 1], 4), [0, 4, 3, 5]);
    }

    #[test]
    fn negative_scores_of_a_kept_group_come_before_those_of_others() {
        assert_eq!(in_groups(vec![-1.0, -2.0, -3.0, -4.0], [2, 1], 2), [0, 1]);
    }
}
