//! Elementwise loops of the CPU kernels.

use uc_simd::{Kernel, LANES, dispatch, exp_below_zero, exponentials};

struct SiluGate<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            let x = *gate;
            let e = exp_below_zero(-x.abs());
            let top = if x >= 0.0 { 1.0 } else { e };
            *gate = x * (top / (1.0 + e)) * up;
        }
    }
}

/// `gate <- silu(gate) * up`.
pub(super) fn silu_gate(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    dispatch(SiluGate { gate, up });
}

/// Which keys the rows of a matrix of scores attend to.
#[derive(Clone, Copy)]
pub(super) struct KeyMask {
    /// Number of queries. Row `i` of the scores belongs to the query `i % queries`.
    pub(super) queries: usize,
    /// Index of the first query, counted from the first key.
    pub(super) first: usize,
    /// Number of keys that a query attends to, the last of which is its own.
    pub(super) window: usize,
}

struct AttentionWeights<'a> {
    scores: &'a mut [f32],
    keys: usize,
    mask: KeyMask,
    sums: &'a mut [f32],
}

impl Kernel for AttentionWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.scores.chunks_exact_mut(self.keys);
        for (index, (row, sum)) in rows.zip(self.sums).enumerate() {
            let end = self.mask.first + index % self.mask.queries + 1;
            let (visible, future) = row.split_at_mut(end);
            future.fill(0.0);
            let (past, visible) = visible.split_at_mut(end.saturating_sub(self.mask.window));
            past.fill(0.0);
            *sum = exponentials(visible);
        }
    }
}

/// Attention weights before normalization. In every row of `scores: [heads * queries, keys]`, the keys that
/// its query attends to become `exp(score - largest)` and the others 0; `sums[i]` becomes the sum of row `i`.
pub(super) fn attention_weights(scores: &mut [f32], keys: usize, mask: KeyMask, sums: &mut [f32]) {
    assert_eq!(scores.len(), sums.len() * keys, "scores and sums differ");
    assert!(mask.first + mask.queries <= keys, "queries beyond the keys");
    dispatch(AttentionWeights {
        scores,
        keys,
        mask,
        sums,
    });
}

struct SiluGateGradient<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    grad: &'a [f32],
    by_gate: &'a mut [f32],
    by_up: &'a mut [f32],
}

impl Kernel for SiluGateGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let inputs = self.gate.iter().zip(self.up).zip(self.grad);
        let outputs = self.by_gate.iter_mut().zip(self.by_up);
        for (((&x, &up), &grad), (by_gate, by_up)) in inputs.zip(outputs) {
            let e = exp_below_zero(-x.abs());
            let top = if x >= 0.0 { 1.0 } else { e };
            let sigmoid = top / (1.0 + e);
            *by_up = grad * x * sigmoid;
            *by_gate = grad * up * sigmoid * (1.0 + x * (1.0 - sigmoid));
        }
    }
}

/// The gradients of `silu(gate) * up` with respect to both, given the one at the output. All have the same length.
pub(super) fn silu_gate_gradient(
    gate: &[f32],
    up: &[f32],
    grad: &[f32],
    by_gate: &mut [f32],
    by_up: &mut [f32],
) {
    dispatch(SiluGateGradient {
        gate,
        up,
        grad,
        by_gate,
        by_up,
    });
}

struct AttentionWeightsGradient<'a> {
    weights: &'a mut [f32],
    sums: &'a [f32],
    grads: &'a mut [f32],
}

impl Kernel for AttentionWeightsGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let keys = self.weights.len() / self.sums.len().max(1);
        let rows = self.weights.chunks_exact_mut(keys.max(1));
        let rows = rows.zip(self.grads.chunks_exact_mut(keys.max(1)));
        for ((weights, grads), sum) in rows.zip(self.sums) {
            let inverse = 1.0 / sum;
            weights.iter_mut().for_each(|weight| *weight *= inverse);
            let mean = dot(weights, grads);
            for (grad, weight) in grads.iter_mut().zip(weights) {
                *grad = *weight * (*grad - mean);
            }
        }
    }
}

/// `weights: [rows, keys]` before normalization by `sums: [rows]` are normalized; `grads`, the gradients with respect to them, become
/// those with respect to the scores.
pub(super) fn attention_weights_gradient(weights: &mut [f32], sums: &[f32], grads: &mut [f32]) {
    assert_eq!(weights.len(), grads.len(), "weights and gradients differ");
    dispatch(AttentionWeightsGradient {
        weights,
        sums,
        grads,
    });
}

/// `Σ a · b`, in [`LANES`] partial sums.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] = a[lane].mul_add(b[lane], sums[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

struct SquaredNorm<'a>(&'a [f32]);

impl Kernel for SquaredNorm<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        dot(self.0, self.0)
    }
}

/// The sum of the squares of a row.
pub(crate) fn squared_norm(row: &[f32]) -> f32 {
    dispatch(SquaredNorm(row))
}

/// The sum of all values, in [`LANES`] partial sums.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += block[lane];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// A norm of rows: an RMSNorm, or with a bias a LayerNorm.
#[derive(Clone, Copy)]
pub(super) struct NormOfRows<'a> {
    /// `[width]`
    pub(super) weight: &'a [f32],
    /// `[width]`
    pub(super) bias: Option<&'a [f32]>,
    /// Added to the mean square.
    pub(super) eps: f32,
}

impl NormOfRows<'_> {
    /// `out <- x`, less its mean for a LayerNorm; returns the factor that normalizes it. NaN if the squares overflow, where the formula
    /// would give 0 and hide it.
    #[inline(always)]
    fn center(&self, x: &[f32], out: &mut [f32]) -> f32 {
        let width = x.len() as f32;
        match self.bias {
            None => out.copy_from_slice(x),
            Some(_) => {
                let mean = sum(x) / width;
                out.iter_mut().zip(x).for_each(|(out, x)| *out = x - mean);
            }
        }
        let mean_square = dot(out, out) / width;
        match mean_square.is_finite() {
            true => 1.0 / (mean_square + self.eps).sqrt(),
            false => f32::NAN,
        }
    }
}

struct NormKernel<'a>(NormOfRows<'a>, &'a [f32], &'a mut [f32]);

impl Kernel for NormKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let NormKernel(norm, x, out) = self;
        let width = norm.weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let scale = norm.center(x, out);
            for (out, weight) in out.iter_mut().zip(norm.weight) {
                *out = *out * scale * weight;
            }
            if let Some(bias) = norm.bias {
                out.iter_mut()
                    .zip(bias)
                    .for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// The norm of every row of `x`.
pub(super) fn norm(norm: NormOfRows<'_>, x: &[f32], out: &mut [f32]) {
    dispatch(NormKernel(norm, x, out));
}

struct NormGradient<'a> {
    norm: NormOfRows<'a>,
    x: &'a [f32],
    grad: &'a [f32],
    by_x: &'a mut [f32],
    /// `[width]`
    centered: &'a mut [f32],
}

impl Kernel for NormGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.norm.weight.len();
        let rows = self
            .x
            .chunks_exact(width)
            .zip(self.grad.chunks_exact(width));
        for ((x, grad), by_x) in rows.zip(self.by_x.chunks_exact_mut(width)) {
            let scale = self.norm.center(x, self.centered);
            let grads = by_x.iter_mut().zip(grad).zip(self.norm.weight);
            grads.for_each(|((out, grad), weight)| *out = grad * weight);
            let share = dot(by_x, self.centered) * scale * scale / width as f32;
            for (out, x) in by_x.iter_mut().zip(&*self.centered) {
                *out = scale * (*out - x * share);
            }
            if self.norm.bias.is_some() {
                let mean = sum(by_x) / width as f32;
                by_x.iter_mut().for_each(|out| *out -= mean);
            }
        }
    }
}

/// The gradient of [`norm`] with respect to `x`, given the one at its output.
pub(super) fn norm_gradient(norm: NormOfRows<'_>, x: &[f32], grad: &[f32], by_x: &mut [f32]) {
    let mut centered = vec![0.0; norm.weight.len()];
    dispatch(NormGradient {
        norm,
        x,
        grad,
        by_x,
        centered: &mut centered,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        let scores: Vec<f32> = (0..6 * 77)
            .map(|i| ((i * 131 % 997) as f32 - 500.0) / 30.0)
            .collect();
        let (mut dispatched, mut baseline) = (scores.clone(), scores);
        let (mut dispatched_sums, mut baseline_sums) = ([0.0; 6], [0.0; 6]);
        let mask = KeyMask {
            queries: 3,
            first: 70,
            window: 41,
        };
        attention_weights(&mut dispatched, 77, mask, &mut dispatched_sums);
        AttentionWeights {
            scores: &mut baseline,
            keys: 77,
            mask,
            sums: &mut baseline_sums,
        }
        .run();
        assert_eq!(dispatched, baseline);
        assert_eq!(dispatched_sums, baseline_sums);
        let up = vec![0.7; dispatched.len()];
        silu_gate(&mut dispatched, &up);
        SiluGate {
            gate: &mut baseline,
            up: &up,
        }
        .run();
        assert_eq!(dispatched, baseline);
    }

    #[test]
    fn keys_after_the_query_and_before_the_window_get_no_weight() {
        let mut sums = [0.0; 4];
        let weights = |window, sums: &mut [f32]| {
            let mut scores = vec![1.0; 2 * 2 * 5];
            let mask = KeyMask {
                queries: 2,
                first: 3,
                window,
            };
            attention_weights(&mut scores, 5, mask, sums);
            scores
        };
        assert_eq!(weights(usize::MAX, &mut sums)[4], 0.0);
        assert_eq!(sums, [4.0, 5.0, 4.0, 5.0]);
        let scores = weights(2, &mut sums);
        assert_eq!(scores[..10], [0., 0., 1., 1., 0., 0., 0., 0., 1., 1.]);
        assert_eq!(sums, [2.0; 4]);
    }

    #[test]
    fn silu_is_exact_for_large_positive_and_negative_inputs() {
        let mut gate = [-200.0, -1.0, 0.0, 1.0, 200.0];
        silu_gate(&mut gate, &[1.0; 5]);
        let exact = [0.0, -0.268_941_43, 0.0, 0.731_058_6, 200.0];
        for (found, expected) in gate.iter().zip(exact) {
            assert!((found - expected).abs() <= 1e-7, "{found} {expected}");
        }
    }
}
