//! Small differentiable pieces of the forward pass, each one formula.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::cpu;

/// `x / sqrt(mean(x²) + eps) * gain` over the last dimension; `x: [tokens, d]`, `gain: [d]`.
pub(super) fn rms_norm<B: Backend>(x: Tensor<B, 2>, gain: Tensor<B, 1>, eps: f64) -> Tensor<B, 2> {
    let mean_square = (x.clone() * x.clone()).mean_dim(1);
    let scale = (mean_square + eps).sqrt().recip();
    x * scale * gain.unsqueeze()
}

/// `silu(gate) * up`, all `[tokens, ffn]`.
pub(super) fn silu_gate<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    if cpu::is_cpu::<B>() {
        return cpu::silu_gate(gate, up);
    }
    silu_gate_reference(gate, up)
}

/// The gate as tensor operations.
fn silu_gate_reference<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    activation::silu(gate) * up
}
