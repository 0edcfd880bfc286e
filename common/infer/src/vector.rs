//! Elementwise functions and softmax, with the same bits on every instruction set.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use uc_model::spec::Activation;
use uc_simd::{Kernel, dispatch, exp_below_zero, exponentials};

use crate::tasks::for_parts;

/// The integer nearest to a number of a magnitude below 2^22, ties to even.
#[inline(always)]
pub(crate) fn nearest_integer(x: f32) -> i32 {
    // 1.5 · 2^23: there the numbers are the integers.
    const ROUND: f32 = 12_582_912.0;
    // The difference of the bits is that of the numbers. A conversion, with its care for all numbers, would not be vectorized.
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// `sigmoid(x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp_below_zero(-x.abs());
    let top = if x >= 0.0 { 1.0 } else { e };
    top / (1.0 + e)
}

/// `ln(1 + e^x)`.
pub(crate) fn softplus(x: f32) -> f32 {
    x.max(0.0) + libm::log1pf(libm::expf(-x.abs()))
}

/// `cap · tanh(x / cap)` for every element.
pub(crate) fn cap(values: &mut [f32], cap: f64) {
    let cap = cap as f32;
    for_parts(values, 1, |_, values| {
        for value in values {
            *value = cap * libm::tanhf(*value / cap);
        }
    });
}

struct Silu<'a>(&'a mut [f32]);

impl Kernel for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.0 {
            *x *= sigmoid(*x);
        }
    }
}

/// `x <- f(x)` for every element.
pub(crate) fn activate(values: &mut [f32], function: Activation) {
    for_parts(values, 1, |_, values| activate_part(values, function));
}

fn activate_part(values: &mut [f32], function: Activation) {
    match function {
        Activation::Silu => dispatch(Silu(values)),
        Activation::Gelu => {
            for x in values {
                *x *= 0.5 * (libm::erff(*x * FRAC_1_SQRT_2 as f32) + 1.0);
            }
        }
        Activation::GeluTanh => {
            let factor = (2.0 / PI).sqrt() as f32;
            for x in values {
                let inner = (*x + *x * *x * *x * 0.044_715) * factor;
                *x *= 0.5 * (libm::tanhf(inner) + 1.0);
            }
        }
        Activation::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
    }
}

/// `gate <- f(gate) · up`.
pub(crate) fn gate(gate: &mut [f32], up: &[f32], function: Activation) {
    for_parts(gate, 1, |first, gate| {
        activate_part(gate, function);
        for (gate, up) in gate.iter_mut().zip(&up[first..]) {
            *gate *= up;
        }
    });
}

/// The softmax of `scores`; elements that are -inf get no weight.
pub(crate) fn softmax(scores: &[f32]) -> Vec<f32> {
    let mut weights = scores.to_vec();
    exponentials(&mut weights);
    for (weight, score) in weights.iter_mut().zip(scores) {
        if *score == f32::NEG_INFINITY {
            *weight = 0.0;
        }
    }
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_equal_their_definitions_in_double_precision() {
        let inputs: Vec<f32> = (-400..=400).map(|i| i as f32 / 20.0).collect();
        for (function, exact) in [
            (
                Activation::Silu,
                (|x: f64| x / (1.0 + (-x).exp())) as fn(f64) -> f64,
            ),
            (Activation::Gelu, |x| {
                x * 0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
            }),
            (Activation::GeluTanh, |x| {
                x * 0.5 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }),
            (Activation::Relu, |x| x.max(0.0)),
        ] {
            let mut found = inputs.clone();
            activate(&mut found, function);
            for (x, found) in inputs.iter().zip(found) {
                let expected = exact(f64::from(*x));
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= 1e-6 * expected.abs().max(1.0),
                    "{function:?}({x}): {found}"
                );
            }
        }
        for x in inputs {
            let expected = (1.0 + f64::from(x).exp()).ln();
            assert!((f64::from(softplus(x)) - expected).abs() <= 1e-6 * expected.max(1.0));
        }
    }

    #[test]
    fn a_softmax_sums_to_one_and_gives_nothing_to_masked_elements() {
        let found = softmax(&[1.0, f32::NEG_INFINITY, -1.0]);
        assert_eq!(found[1], 0.0);
        assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((found[0] / found[2] - 2.0_f32.exp()).abs() < 1e-4);
    }
}
