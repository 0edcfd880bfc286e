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
