//! Tests of the allocation on curves that are known.

use super::*;
use crate::rate::curve::RatePoint;

/// Points of a curve that follows the high-rate rule: `weights · (lambda at average bits)²` at `average`.
fn regular(weights: u64, lambda: f64, average: f64) -> RateCurve {
    let point = |bits: f64| {
        let step = lambda * (average - bits).exp2();
        RatePoint {
            lambda: step,
            bits,
            error: weights as f64 * step * step,
        }
    };
    RateCurve {
        signal: point(0.0).error,
        points: [average - 1.25, average, average + 2.0].map(point).to_vec(),
    }
}

fn linear(weights: u64, lambda: f64, sensitivity: f64) -> MeasuredLinear {
    MeasuredLinear {
        name: String::new(),
        weights,
        sensitivity,
        curve: regular(weights, lambda, 5.0),
    }
}

fn one_layer(linears: Vec<MeasuredLinear>) -> Vec<MeasuredLayer> {
    vec![MeasuredLayer {
        overhead_bits: 0,
        linears,
    }]
}

fn bits_of(plan: &Plan) -> Vec<f64> {
    let layers = plan.allocation.layers.iter();
    let linears = layers.flat_map(|layer| &layer.linears);
    linears.map(|linear| linear.bits).collect()
}

fn bits(linears: Vec<MeasuredLinear>, mean: f64) -> Vec<f64> {
    bits_of(&allocate(&one_layer(linears), mean, Scope::Model).expect("allocation"))
}

#[test]
fn equal_linears_share_equally_and_a_sensitive_one_gets_half_the_logarithm_more() {
    let equal = vec![linear(8, 1.0, 1.0), linear(8, 1.0, 1.0)];
    assert_eq!(bits(equal, 5.0), [5.0, 5.0]);
    let allocated = bits(vec![linear(8, 1.0, 4.0), linear(8, 1.0, 1.0)], 5.0);
    assert!(
        (allocated[0] - 5.5).abs() <= 1.0 / 32.0 && (allocated[1] - 4.5).abs() <= 1.0 / 32.0,
        "{allocated:?}"
    );
}

#[test]
fn the_budget_is_met_for_any_values() {
    let linears: Vec<MeasuredLinear> = (1..40u64)
        .map(|i| {
            linear(
                i * 1000,
                1.5f64.powi(i as i32 % 17),
                3f64.powi(i as i32 % 11 - 5),
            )
        })
        .collect();
    let total: u64 = linears.iter().map(|linear| linear.weights).sum();
    for mean in [2.0, 3.3, 5.0, 8.0] {
        let allocated = bits(linears.clone(), mean);
        let sum: f64 = allocated
            .iter()
            .zip(&linears)
            .map(|(b, l)| b * l.weights as f64)
            .sum();
        assert!(sum <= mean * total as f64 && sum >= (mean - 0.001) * total as f64);
    }
}

#[test]
fn the_weighted_error_is_least_at_the_allocation() {
    let linears = vec![
        linear(64, 1.0, 9.0),
        linear(32, 3.0, 1.0),
        linear(16, 1.5, 0.8),
    ];
    let lambdas = [1.0, 3.0, 1.5];
    let error = |bits: &[f64]| -> f64 {
        let terms = bits.iter().zip(&linears).zip(lambdas);
        terms
            .map(|((b, l), lambda)| {
                l.weights as f64 * l.sensitivity * (lambda * (5.0 - b).exp2()).powi(2)
            })
            .sum()
    };
    let allocated = bits(linears.clone(), 5.0);
    let best = error(&allocated);
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
        let mut other = allocated.clone();
        other[from] -= 4.0 / linears[from].weights as f64;
        other[to] += 4.0 / linears[to].weights as f64;
        assert!(error(&other) > best, "{from} to {to}");
    }
}

#[test]
fn linears_that_cannot_change_the_loss_get_next_to_no_bits() {
    let mut zero = linear(8, 1.0, 1.0);
    zero.curve = RateCurve {
        signal: 0.0,
        points: Vec::new(),
    };
    let linears = vec![linear(8, 1.0, 0.0), linear(8, 1.0, 1.0), zero];
    let allocated = bits(linears, 2.0);
    assert_eq!(
        (allocated[0], allocated[2]),
        (0.049_804_687_5, 0.049_804_687_5)
    );
    assert!((allocated[1] - 5.9).abs() < 0.002, "{allocated:?}");
}

#[test]
fn a_linear_with_little_influence_gets_at_most_one_and_a_quarter_bits_less_than_the_average() {
    let allocated = bits(vec![linear(8, 1.0, 1e-30), linear(8, 1.0, 1.0)], 4.0);
    assert!((allocated[0] - 2.75).abs() < 0.001 && (allocated[1] - 5.25).abs() < 0.001);
}

/// Weights of few values: from 3 bits on, finer steps cost nearly nothing and reduce the error.
fn few_values(weights: u64) -> MeasuredLinear {
    let point = |lambda: f64, bits: f64, error: f64| RatePoint {
        lambda,
        bits,
        error: error * weights as f64,
    };
    MeasuredLinear {
        curve: RateCurve {
            signal: 1000.0 * weights as f64,
            points: vec![
                point(4.0, 2.0, 10.0),
                point(2.0, 3.0, 3.0),
                point(1.0, 3.1, 0.5),
                point(0.5, 3.2, 0.01),
                point(0.25, 3.15, 0.02),
                point(0.125, 3.3, 1e-6),
            ],
        },
        ..linear(weights, 1.0, 1.0)
    }
}

#[test]
fn weights_of_few_values_take_the_bits_that_they_can_use_and_the_others_get_the_rest() {
    let plan = allocate(
        &one_layer(vec![few_values(8), linear(8, 1.0, 1.0)]),
        5.0,
        Scope::Model,
    )
    .expect("allocation");
    let allocated = bits_of(&plan);
    assert!((allocated[0] - 3.3).abs() < 0.001, "{allocated:?}");
    assert!((allocated[1] - 6.7).abs() < 0.001, "{allocated:?}");
    let lambda = plan.allocation.layers[0].linears[0]
        .lambda
        .expect("measured");
    assert!((lambda / 0.125 - 1.0).abs() < 0.01, "{lambda}");
    assert!(plan.unused < 0.001);

    let only = allocate(&one_layer(vec![few_values(8)]), 5.0, Scope::Model).expect("allocation");
    assert!((only.unused - 1.7).abs() < 0.001, "{}", only.unused);
}

#[test]
fn a_wider_scope_is_used_only_if_it_reduces_the_loss() {
    let layer = |linears: Vec<MeasuredLinear>| one_layer(linears).remove(0);
    let equal = || layer(vec![linear(8, 1.0, 1.0), linear(8, 1.0, 1.0)]);
    let uneven = || layer(vec![linear(8, 1.0, 9.0), linear(8, 1.0, 1.0)]);
    let sensitive = || layer(vec![linear(8, 1.0, 9.0), linear(8, 1.0, 9.0)]);
    let scope = |layers: &[MeasuredLayer]| allocate(layers, 5.0, Scope::Model).unwrap().scope;
    assert_eq!(scope(&[equal(), equal()]), Scope::Tensor);
    assert_eq!(scope(&[uneven(), uneven()]), Scope::Layer);
    assert_eq!(scope(&[equal(), sensitive()]), Scope::Model);
    let within = allocate(&[equal(), sensitive()], 5.0, Scope::Layer).unwrap();
    assert_eq!(within.scope, Scope::Tensor);
}

#[test]
fn what_the_file_holds_besides_indices_is_paid_first_and_a_budget_below_it_is_refused() {
    let layers = vec![MeasuredLayer {
        overhead_bits: 1000,
        linears: vec![linear(1000, 1.0, 1.0)],
    }];
    let plan = allocate(&layers, 5.0, Scope::Model).expect("allocation");
    assert_eq!(bits_of(&plan), [4.0]);
    assert_eq!(plan.allocation.layers[0].file_bits, 5000);
    let refused = allocate(&layers, 1.05, Scope::Model).expect_err("too few");
    assert!(
        matches!(refused, AllocationError::Budget { least, .. } if (1.1..1.12).contains(&least)),
        "{refused}"
    );
}
