//! The gate of an MLP, `silu(gate) · up`, and its gradient.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::graph::{Recorded, record};
use super::{ELEMENTS, Values, matrix};
use crate::device::Cpu;
use crate::forward::vector;
use crate::work::{self, Amount, Kind};

/// `silu(gate) * up`, all `[tokens, ffn]`.
pub(in crate::forward) fn silu_gate(gate: Tensor<Cpu, 2>, up: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
    let (device, up) = (gate.device(), Values::new(&up));
    let mut gate = gate.into_data();
    let values: &mut [f32] = gate.as_mut_slice().expect("the CPU backend holds f32");
    let pieces = values.par_chunks_mut(ELEMENTS).zip(up.par_chunks(ELEMENTS));
    work::counted(Kind::Elementwise, Amount::values(3 * up.len()), || {
        pieces.for_each(|(gate, up)| vector::silu_gate(gate, up));
    });
    Tensor::from_data(gate, &device)
}

/// As [`silu_gate`], recorded in the graph.
pub(in crate::forward) fn tracked_silu_gate(
    gate: Tensor<Autodiff<Cpu>, 2>,
    up: Tensor<Autodiff<Cpu>, 2>,
) -> Tensor<Autodiff<Cpu>, 2> {
    record([gate, up], |[gate, up]| {
        let output = silu_gate(gate.clone(), up.clone());
        (output, SiluGate { gate, up })
    })
}

/// The inputs of a gate.
#[derive(Debug, Clone)]
struct SiluGate {
    gate: Tensor<Cpu, 2>,
    up: Tensor<Cpu, 2>,
}

impl Recorded<2> for SiluGate {
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; 2] {
        let shape = self.gate.dims();
        let [gate, up, grad] = [&self.gate, &self.up, &grad_output].map(Values::new);
        let mut by_gate = vec![0.0; gate.len()];
        let mut by_up = vec![0.0; gate.len()];
        let inputs = gate.par_chunks(ELEMENTS).zip(up.par_chunks(ELEMENTS));
        let pieces = by_gate
            .par_chunks_mut(ELEMENTS)
            .zip(by_up.par_chunks_mut(ELEMENTS))
            .zip(inputs.zip(grad.par_chunks(ELEMENTS)));
        work::counted(Kind::Elementwise, Amount::values(5 * gate.len()), || {
            pieces.for_each(|((by_gate, by_up), ((gate, up), grad))| {
                vector::silu_gate_gradient(gate, up, grad, by_gate, by_up);
            });
        });
        [matrix(by_gate, shape), matrix(by_up, shape)]
    }
}
