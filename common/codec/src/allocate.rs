//! Allocates bits per weight to the linears from a common budget.
//!
//! At high rate, a linear whose column steps are `lambda · U_jj` has the output error `n · lambda² / 12` in each of its m
//! outputs, and its rate falls by one bit when lambda doubles. If the loss weights an output's error by `g`, the minimum of
//! `Σ m n g lambda²` for a given total of bits has the same `g lambda²` everywhere (reverse water-filling; Cover and Thomas 2006,
//! ch. 10): a linear gets the bits that it takes at a lambda common to all linears, plus `log2 √g`.

use serde::{Deserialize, Serialize};

/// Largest number of bits per weight that a linear may get below the average of the budget.
const MAX_BELOW_AVERAGE: f64 = 1.25;
/// Largest number of bits per weight that a linear may get above the average of the budget.
const MAX_ABOVE_AVERAGE: f64 = 4.0;
/// Bits are rounded down to multiples of this, so that the last bit of a logarithm does not matter.
const RESOLUTION: f64 = 1.0 / 4096.0;

/// Result of the sensitivity pass for one linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearSensitivity {
    /// Name within the layer.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// `lambda` at which its rate is the average of the budget.
    pub lambda: f64,
    /// Effective mean square gradient at its outputs, [`crate::factor::Factor::sensitivity`].
    pub sensitivity: f64,
}

/// Bits per weight of every linear, by layer and in the order of the layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// One entry per layer.
    pub layers: Vec<Vec<BitAllocation>>,
}

/// Bits allocated to a linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitAllocation {
    /// Name within the layer.
    pub name: String,
    /// Bits per weight, including every byte of the layer file.
    pub bits: f64,
}

/// An allocation that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// The document is not a valid allocation.
    #[error("the allocation cannot be parsed: {0}")]
    Parse(#[from] serde_json::Error),
    /// The allocation lacks a linear.
    #[error("the allocation has no bits for {name} of layer {layer}")]
    Missing {
        /// Layer index.
        layer: usize,
        /// Name within the layer.
        name: String,
    },
}

impl Allocation {
    /// Parses an allocation from JSON.
    ///
    /// # Errors
    /// [`AllocationError::Parse`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, AllocationError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Bits per weight of the linears of a layer, in the order of `names`.
    ///
    /// # Errors
    /// [`AllocationError::Missing`].
    pub fn layer_bits<'a>(
        &self,
        layer: usize,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<f64>, AllocationError> {
        let allocations = self.layers.get(layer).map_or(&[][..], Vec::as_slice);
        names
            .map(|name| {
                let allocation = allocations.iter().find(|linear| linear.name == name);
                allocation
                    .map(|linear| linear.bits)
                    .ok_or_else(|| AllocationError::Missing {
                        layer,
                        name: name.into(),
                    })
            })
            .collect()
    }
}

/// Allocates bits per weight to `linears`: of all allocations whose average is at most `bits_per_weight`, the one with
/// the least weighted error. A linear that has no influence on the loss, or is all zero, gets the fewest bits.
pub fn allocate(linears: &[&LinearSensitivity], bits_per_weight: f64) -> Vec<f64> {
    let scores: Vec<f64> = linears
        .iter()
        .map(|linear| {
            let score = linear.lambda * linear.sensitivity.sqrt();
            if score.is_finite() && score > 0.0 {
                score.log2()
            } else {
                f64::NEG_INFINITY
            }
        })
        .collect();
    let total: f64 = linears.iter().map(|linear| linear.weights as f64).sum();
    let (fewest, most) = (
        bits_per_weight - MAX_BELOW_AVERAGE,
        bits_per_weight + MAX_ABOVE_AVERAGE,
    );
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
        .map(|&score| (bits(score, low) / RESOLUTION).floor() * RESOLUTION)
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
        let allocated = bits(&[linear(8, 1.0, 4.0), linear(8, 1.0, 1.0)], 5.0);
        assert!(
            (allocated[0] - 5.5).abs() <= RESOLUTION && (allocated[1] - 4.5).abs() <= RESOLUTION,
            "{allocated:?}"
        );
    }

    #[test]
    fn the_budget_is_met_for_any_values() {
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
            let allocated = bits(&linears, mean);
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
        let allocated = bits(&linears, 5.0);
        let best = error(&allocated);
        for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
            let mut other = allocated.clone();
            other[from] -= 1.0 / linears[from].weights as f64;
            other[to] += 1.0 / linears[to].weights as f64;
            assert!(error(&other) > best, "{from} to {to}");
        }
    }

    #[test]
    fn linears_without_influence_on_the_loss_get_the_fewest_bits() {
        let allocated = bits(
            &[
                linear(8, 1.0, 0.0),
                linear(8, 1.0, 1.0),
                linear(8, 1.0, f64::NAN),
            ],
            4.0,
        );
        assert_eq!((allocated[0], allocated[2]), (2.75, 2.75));
        assert!((allocated[1] - 6.5).abs() <= RESOLUTION, "{allocated:?}");
    }
}
