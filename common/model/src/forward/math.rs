//! Differentiable elementwise formulas of the forward pass.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::cpu;
use crate::device::{Cpu, cast, is};
use crate::spec::Activation;

/// `f(x)` elementwise.
pub(crate) fn activated<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    function: Activation,
) -> Tensor<B, D> {
    match function {
        Activation::Silu => activation::silu(x),
        // On CUDA, burn's own GELU has the derivative of the tanh approximation.
        Activation::Gelu => x.clone() * 0.5 * ((x * FRAC_1_SQRT_2).erf() + 1.0),
        Activation::GeluTanh => {
            let cube = x.clone() * x.clone() * x.clone();
            let inner = (x.clone() + cube * 0.044715) * (2.0 / PI).sqrt();
            x * 0.5 * (inner.tanh() + 1.0)
        }
        Activation::Relu => activation::relu(x),
    }
}

/// `f(gate) * up`, all `[tokens, ffn]`.
pub(super) fn gated<B: Backend>(
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    function: Activation,
) -> Tensor<B, 2> {
    if function == Activation::Silu && is::<B, Cpu>() {
        return cast(cpu::silu_gate(cast(gate), cast(up)));
    }
    if function == Activation::Silu && is::<B, Autodiff<Cpu>>() {
        return cast(cpu::tracked_silu_gate(cast(gate), cast(up)));
    }
    activated(gate, function) * up
}

/// `cap · tanh(x / cap)`; `x` without a cap.
pub(super) fn capped<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    cap: Option<f64>,
) -> Tensor<B, D> {
    match cap {
        Some(cap) => (x / cap).tanh() * cap,
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn the_kernel_of_the_gate_equals_the_tensor_formulation_and_its_gradient() {
        type Graph = Autodiff<Cpu>;
        let numbers = |step: usize| {
            let number = |i: usize| (i * step % 1009) as f32 / 50.0 - 10.0;
            let values: Vec<f32> = (0..300 * 70).map(number).collect();
            let data = TensorData::new(values, [300, 70]);
            Tensor::<Graph, 2>::from_data(data, &Default::default()).require_grad()
        };
        let (gate, up, weight) = (numbers(7919), numbers(6421), numbers(4099));
        let run = |y: Tensor<Graph, 2>| {
            let gradients = (y.clone() * weight.clone()).sum().backward();
            let [by_gate, by_up] = [&gate, &up].map(|x| x.grad(&gradients).unwrap());
            [y.inner(), by_gate, by_up]
        };
        let found = run(gated(gate.clone(), up.clone(), Activation::Silu));
        let expected = run(activated(gate.clone(), Activation::Silu) * up.clone());
        for (found, expected) in found.into_iter().zip(expected) {
            let largest = expected.clone().abs().max().into_scalar();
            let error = (found - expected).abs().max().into_scalar() / largest;
            assert!(error < 1e-6, "{error:.1e}");
        }
    }
}
