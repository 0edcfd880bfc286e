//! The loss of a label sampled from the model's own distribution, and its gradient with respect to the logits.
//!
//! One pass over the logits of a token: exponentials, the sampled label, `softmax − 1[label]`. Sums over the vocabulary have a fixed
//! order, so the result does not depend on the number of threads.

use rayon::prelude::*;
use uc_simd::{Kernel, LANES, dispatch, exponentials};

/// Probabilities whose sum is taken in f32, which vectorizes; the sums themselves are added in f64.
const BLOCK: usize = 256;

/// Samples the label of every token from its `logits: [tokens, vocab]`, by inversion with a number of `uniforms: [tokens]`, each within
/// [0, 1). The logits become the gradient of the negative log-likelihood of the labels, summed over tokens.
///
/// # Errors
/// The index of the first token whose logits are not finite.
pub fn sample_gradients(logits: &mut [f32], uniforms: &[f64]) -> Result<Vec<usize>, usize> {
    let vocab = logits.len() / uniforms.len().max(1);
    let rows = logits.par_chunks_exact_mut(vocab.max(1)).zip(uniforms);
    let labels = rows.map(|(row, &uniform)| dispatch(TokenGradient { row, uniform }));
    let labels: Vec<Option<usize>> = labels.collect();
    match labels.iter().position(Option::is_none) {
        Some(token) => Err(token),
        None => Ok(labels.into_iter().flatten().collect()),
    }
}

struct TokenGradient<'a> {
    row: &'a mut [f32],
    uniform: f64,
}

impl Kernel for TokenGradient<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run(self) -> Option<usize> {
        if !self
            .row
            .iter()
            .fold(true, |finite, logit| finite & logit.is_finite())
        {
            return None;
        }
        exponentials(self.row);
        let sums = self.row.chunks(BLOCK).map(block_sum);
        let total: f64 = sums.sum();
        let label = label(self.row, self.uniform * total);
        let inverse = (1.0 / total) as f32;
        self.row.iter_mut().for_each(|weight| *weight *= inverse);
        self.row[label] -= 1.0;
        Some(label)
    }
}

#[inline(always)]
fn block_sum(block: &[f32]) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let (blocks, rest) = block.as_chunks::<LANES>();
    for values in blocks {
        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
    }
    sums.iter_mut().zip(rest).for_each(|(sum, x)| *sum += x);
    f64::from(sums.iter().sum::<f32>())
}

/// The first index at which the sum of `weights` exceeds `target`; the last if rounding keeps all sums below it.
#[inline(always)]
fn label(weights: &[f32], target: f64) -> usize {
    let mut before = 0.0;
    for (block, weights) in weights.chunks(BLOCK).enumerate() {
        let sum = block_sum(weights);
        if before + sum > target {
            let mut cumulative = before;
            let exceeds = |weight: &f32| {
                cumulative += f64::from(*weight);
                cumulative > target
            };
            let index = weights.iter().position(exceeds);
            return block * BLOCK + index.unwrap_or(weights.len() - 1);
        }
        before += sum;
    }
    weights.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of three tokens over 600 labels, more than two blocks.
    fn logits() -> Vec<f32> {
        (0..3 * 600)
            .map(|i| ((i * 7919 % 997) as f32) / 200.0)
            .collect()
    }

    fn probabilities(row: &[f32]) -> Vec<f64> {
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x).exp() / total).collect()
    }

    #[test]
    fn labels_follow_the_distribution_and_the_gradient_is_the_probability_less_the_label() {
        for uniform in [0.0, 0.2, 0.777, 0.999_999_999] {
            let mut found = logits();
            let labels = sample_gradients(&mut found, &[uniform; 3]).unwrap();
            for (token, row) in logits().chunks(600).enumerate() {
                let expected = probabilities(row);
                let below: f64 = expected[..labels[token]].iter().sum();
                let above = below + expected[labels[token]];
                assert!(
                    (below - 1e-7..=above + 1e-7).contains(&uniform),
                    "{uniform}"
                );
                for (index, p) in expected.iter().enumerate() {
                    let p = p - f64::from(u8::from(index == labels[token]));
                    let error = (f64::from(found[token * 600 + index]) - p).abs();
                    assert!(error < 1e-7, "{token}, {index}: {error:.1e}");
                }
            }
        }
    }

    #[test]
    fn a_token_with_a_logit_that_is_not_finite_is_named() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = logits();
            logits[700] = wrong;
            assert_eq!(sample_gradients(&mut logits, &[0.5; 3]), Err(1));
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut logits = logits();
            let labels = pool
                .unwrap()
                .install(|| sample_gradients(&mut logits, &[0.4; 3]));
            (labels, logits)
        };
        assert_eq!(run(1), run(3));
    }
}
