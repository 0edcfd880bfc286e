//! Elementwise loops of the CPU kernels.

use uc_simd::{Kernel, dispatch, exp_below_zero, exponentials};

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
