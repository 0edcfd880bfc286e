//! How many bits per weight each linear is due from a common budget.
//!
//! At high rate a linear whose column steps are `lambda · U_jj` has the output error `n · lambda² / 12` in each of its m
//! outputs, and its rate falls by one bit when lambda doubles. With the loss weighing an output's error by `g`, the
//! least `Σ m n g lambda²` under a given total of bits has the same `g lambda²` everywhere (reverse water-filling; Cover
//! and Thomas 2006, ch. 10): a linear is due the bits that it takes at a common lambda, plus `log2 √g`.

use serde::{Deserialize, Serialize};

/// How far the bits per weight of a linear may lie below and above the budget's.
const BELOW: f64 = 1.25;
const ABOVE: f64 = 4.0;
/// Bits are whole multiples of this, rounded down, so that a last bit of a logarithm does not matter.
const GRAIN: f64 = 1.0 / 4096.0;

/// What the survey found of one linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearSensitivity {
    /// Name within the layer.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// `lambda` at which it takes the bits per weight that the budget gives on average.
    pub lambda: f64,
    /// The mean square gradient by its outputs that counts, [`crate::factor::Factor::sensitivity`].
    pub sensitivity: f64,
}

/// Bits per weight of every linear, by layer and in the layer's order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// One entry per layer.
    pub layers: Vec<Vec<BitAllocation>>,
}

/// Bits that a linear is due.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitAllocation {
    /// Name within the layer.
    pub name: String,
    /// Bits per weight, every byte of the layer file counted.
    pub bits: f64,
}

/// An allocation that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// Not such a document.
    #[error("the allocation cannot be parsed: {0}")]
    Parse(#[from] serde_json::Error),
    /// It says nothing of a linear.
    #[error("the allocation has no bits for {name} of layer {layer}")]
    Missing {
        /// Layer index.
        layer: usize,
        /// Name within the layer.
        name: String,
    },
}

impl Allocation {
    /// Parses a document.
    ///
    /// # Errors
    /// [`AllocationError::Parse`].
    pub fn read(bytes: &[u8]) -> Result<Self, AllocationError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Bits per weight of the linears of a layer, in the order of `names`.
    ///
    /// # Errors
    /// [`AllocationError::Missing`].
    pub fn of<'a>(
        &self,
        layer: usize,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<f64>, AllocationError> {
        let allocations = self.layers.get(layer).map_or(&[][..], Vec::as_slice);
        names
            .map(|name| {
                let due = allocations.iter().find(|due| due.name == name);
                due.map(|due| due.bits)
                    .ok_or_else(|| AllocationError::Missing {
                        layer,
                        name: name.into(),
                    })
            })
            .collect()
    }
}

/// Bits per weight of `linears` that together take at most `bits_per_weight` on average and leave the least weighted
/// error. A linear without any weight in the loss, or all zero, is due the fewest bits.
pub fn allocate(linears: &[&LinearSensitivity], bits_per_weight: f64) -> Vec<f64> {
    let scores: Vec<f64> = linears
        .iter()
        .map(|linear| {
            let worth = linear.lambda * linear.sensitivity.sqrt();
            if worth.is_finite() && worth > 0.0 {
                worth.log2()
            } else {
                f64::NEG_INFINITY
            }
        })
        .collect();
    let total: f64 = linears.iter().map(|linear| linear.weights as f64).sum();
    let (fewest, most) = (bits_per_weight - BELOW, bits_per_weight + ABOVE);
    let bits = |score: f64, shift: f64| (score + shift).clamp(fewest, most);
    let mean = |shift: f64| {
        let terms = linears.iter().zip(&scores);
        let sum: f64 = terms
            .map(|(linear, &score)| linear.weights as f64 * bits(score, shift))
            .sum();
        sum / total
    };
    // The mean rises with the shift; the lower end of the bracket never exceeds the budget.
    let (mut low, mut high) = (-2000.0, 2000.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if mean(middle) <= bits_per_weight {
            low = middle
        } else {
            high = middle
        }
    }
    scores
        .iter()
        .map(|&score| (bits(score, low) / GRAIN).floor() * GRAIN)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(weights: u64, lambda: f64, sensitivity: f64) -> LinearSensitivity {
        LinearSensitivity {
            name: String::new(),
            weights,
            lambda,
            sensitivity,
        }
    }

    fn bits(linears: &[LinearSensitivity], mean: f64) -> Vec<f64> {
        allocate(&linears.iter().collect::<Vec<_>>(), mean)
    }

    #[test]
    fn equal_linears_share_equally_and_a_sensitive_one_gets_half_the_logarithm_more() {
        assert_eq!(
            bits(&[linear(8, 1.0, 1.0), linear(8, 1.0, 1.0)], 5.0),
            [5.0, 5.0]
        );
        let found = bits(&[linear(8, 1.0, 4.0), linear(8, 1.0, 1.0)], 5.0);
        assert!(
            (found[0] - 5.5).abs() <= GRAIN && (found[1] - 4.5).abs() <= GRAIN,
            "{found:?}"
        );
    }

    #[test]
    fn the_budget_is_kept_whatever_the_values() {
        let linears: Vec<LinearSensitivity> = (1..40u64)
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
            let found = bits(&linears, mean);
            let sum: f64 = found
                .iter()
                .zip(&linears)
                .map(|(b, l)| b * l.weights as f64)
                .sum();
            assert!(sum <= mean * total as f64 && sum >= (mean - 0.001) * total as f64);
        }
    }

    #[test]
    fn the_weighted_error_is_least_at_the_allocation() {
        let linears = [
            linear(64, 1.0, 9.0),
            linear(32, 3.0, 1.0),
            linear(16, 1.5, 0.8),
        ];
        let error = |bits: &[f64]| -> f64 {
            let terms = bits.iter().zip(&linears);
            terms
                .map(|(b, l)| {
                    l.weights as f64 * l.sensitivity * (l.lambda * (5.0 - b).exp2()).powi(2)
                })
                .sum()
        };
        let found = bits(&linears, 5.0);
        let best = error(&found);
        for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
            let mut other = found.clone();
            other[from] -= 1.0 / linears[from].weights as f64;
            other[to] += 1.0 / linears[to].weights as f64;
            assert!(error(&other) > best, "{from} to {to}");
        }
    }

    #[test]
    fn linears_without_weight_in_the_loss_get_the_fewest_bits() {
        let found = bits(
            &[
                linear(8, 1.0, 0.0),
                linear(8, 1.0, 1.0),
                linear(8, 1.0, f64::NAN),
            ],
            4.0,
        );
        assert_eq!((found[0], found[2]), (2.75, 2.75));
        assert!((found[1] - 6.5).abs() <= GRAIN, "{found:?}");
    }
}
