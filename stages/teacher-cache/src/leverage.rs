//! Leverage scores: how strongly the outputs of a token respond to the quantization error of a linear.
//!
//! To second order the loss increases with `E[(gᵀ E x)²]` over tokens, where E is the error of the weights, x the input and
//! g the gradient at the outputs. Error feedback (LDLQ) whitens E in the metric of H, the second moment of the inputs, so a
//! token contributes in proportion to its leverage score `xᵀ H⁻¹ x`, and the output moments are `E[xᵀH⁻¹x / n · g·gᵀ]`.
//! Plain `E[g·gᵀ]` would assume that gradients are independent of inputs. They are not: the tokens that attention
//! concentrates on have by far the largest gradients at the value projection, and their inputs are among those that error
//! feedback preserves best. (In the maximum-likelihood Kronecker factors of a matrix normal distribution, each factor weights
//! tokens by their leverage in the other: Dutilleul 1999.)
//!
//! H is estimated from the reference windows, which the backward pass visits first. Only the tokens of the remaining
//! windows are scored.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use uc_codec::factor::{Factor, factorize_in_place};
use uc_model::moments::Moments;
use uc_model::work::{self, Amount, Kind};
use uc_model::{InputSpec, ModelError};
use uc_store::StoreError;
use uc_store::framed::Snapshot;

use crate::kept::{pass_factor, pass_moments};

/// Damping of H, relative to its mean diagonal. It is a constant, so that one sensitivity pass serves every setting of the
/// quantizer, and larger than the default of `quantize.damping` (0.0001): H comes from a quarter of the sensitivity windows and
/// its off-diagonal entries are not shrunk as the quantizer's are, so damping alone bounds the score of a token in a direction
/// that the reference windows barely contain. Mean KL with 0.003 and with 0.0001: tiny-stories 9.90e-6 and 9.94e-6, tiny-mamba
/// 7.4e-5 and 8.2e-5, tiny-experts 2.1e-5 and 1.4e-5 (a few tokens dominate it); all confidence intervals overlap.
const DAMPING: f64 = 0.003;

/// The metrics of a layer's inputs, and the leverage scores computed with them. Corresponding inputs of all experts
/// share a metric.
pub struct LeverageScores(BTreeMap<InputGroup, Metric>);

/// Inputs that share a metric: their name without the number of the expert, and their width.
type InputGroup = (String, usize);

/// The second moment H of an input.
enum Metric {
    /// Collects reference tokens.
    Collecting(Moments),
    /// Scores tokens.
    Complete(InputMetric),
}

/// The factored second moment H of an input.
struct InputMetric {
    factor: Factor,
    /// Sum of token weight times leverage score over the scored tokens.
    weighted_sum: f64,
    /// Number of scored tokens.
    count: u64,
}

impl LeverageScores {
    /// No reference tokens yet. Inputs wider than `max_input_block` have a block-diagonal metric.
    pub fn new(inputs: &[InputSpec], max_input_block: usize) -> Self {
        let mut metrics = BTreeMap::new();
        for input in inputs {
            // One at a time: those of all experts together would take many times the memory of the layer.
            metrics.entry(group(input)).or_insert_with(|| {
                let block = input.width.min(max_input_block);
                Metric::Collecting(Moments::new(input.width, block))
            });
        }
        LeverageScores(metrics)
    }

    /// Adds reference tokens `x: [tokens, width]`, already weighted as in the calibration, to the metric of an input.
    ///
    /// # Errors
    /// Those of [`Moments::add`].
    pub fn add_reference<B: Backend>(
        &mut self,
        input: &InputSpec,
        x: Tensor<B, 2>,
    ) -> Result<(), ModelError> {
        match self.0.get_mut(&group(input)) {
            Some(Metric::Collecting(moments)) => Ok(moments.add(x)?),
            _ => Ok(()),
        }
    }

    /// The leverage scores of the rows of `x: [tokens, width]`, or none if no reference token reached the input. The first
    /// call completes the metric. `weights: [tokens]` are those of the calibration.
    ///
    /// # Errors
    /// If the metric cannot be factored.
    pub fn score(
        &mut self,
        input: &InputSpec,
        x: &[f32],
        weights: &[f32],
    ) -> anyhow::Result<Option<Vec<f32>>> {
        let Some(metric) = self.0.get_mut(&group(input)) else {
            return Ok(None);
        };
        let Some(metric) = metric.complete()? else {
            return Ok(None);
        };
        let tokens = weights.len();
        let amount = Amount {
            operations: (tokens * input.width * metric.factor.block) as u64,
            bytes: 4 * (x.len() + metric.factor.a.len()) as u64,
        };
        let scores = work::counted(Kind::Leverages, amount, || metric.factor.leverages(x))?;
        let pairs = scores.iter().zip(weights);
        let weighted = pairs.map(|(&score, &weight)| f64::from(score) * f64::from(weight));
        metric.weighted_sum += weighted.sum::<f64>();
        metric.count += scores.len() as u64;
        Ok(Some(scores))
    }

    /// The factor that normalizes output moments weighted by leverage scores: with it, a gradient that is independent of the
    /// input has the same moments as without weights.
    pub fn normalization(&self, input: &InputSpec) -> f32 {
        match self.0.get(&group(input)) {
            Some(Metric::Complete(metric)) if metric.weighted_sum > 0.0 => {
                (metric.count as f64 / metric.weighted_sum) as f32
            }
            _ => 1.0,
        }
    }

    /// Passes the metrics through a snapshot.
    pub fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        let mut metrics = self.0.values_mut();
        metrics.try_for_each(|metric| metric.pass_through(snapshot))
    }
}

impl Metric {
    /// The complete metric; none if it has no reference tokens.
    fn complete(&mut self) -> anyhow::Result<Option<&mut InputMetric>> {
        if let Metric::Collecting(moments) = self {
            if moments.count == 0 {
                return Ok(None);
            }
            let n = moments.n;
            let moments = std::mem::replace(moments, Moments::new(0, 0)); // the factor takes its memory
            let second_moment = moments.finish().map_err(ModelError::from)?;
            *self = Metric::Complete(InputMetric {
                factor: factorize_in_place(second_moment, n, DAMPING)?,
                weighted_sum: 0.0,
                count: 0,
            });
        }
        match self {
            Metric::Complete(metric) => Ok(Some(metric)),
            Metric::Collecting(_) => Ok(None),
        }
    }

    fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        let mut is_complete = matches!(self, Metric::Complete(_));
        snapshot.value(&mut is_complete)?;
        if let (true, Metric::Collecting(moments)) = (is_complete, &self) {
            let factor = Factor {
                n: moments.n,
                block: moments.block,
                a: vec![0.0; moments.sum.len()],
                inv_diag: vec![0.0; moments.n],
                damping: 0.0,
                dead_inputs: 0,
                is_zero: false,
            };
            *self = Metric::Complete(InputMetric {
                factor,
                weighted_sum: 0.0,
                count: 0,
            });
        }
        match self {
            Metric::Collecting(moments) => pass_moments(moments, snapshot),
            Metric::Complete(metric) => {
                snapshot.value(&mut metric.weighted_sum)?;
                snapshot.value(&mut metric.count)?;
                pass_factor(&mut metric.factor, snapshot)
            }
        }
    }
}

fn group(input: &InputSpec) -> InputGroup {
    (input.role().to_owned(), input.width)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use uc_model::Cpu;

    use super::*;

    const ROWS: [[f32; 2]; 4] = [[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]];

    fn input(name: &str) -> InputSpec {
        InputSpec {
            name: name.into(),
            width: 2,
            routed: false,
        }
    }

    fn with_reference(name: &str) -> LeverageScores {
        let rows = TensorData::new(ROWS.concat(), [ROWS.len(), 2]);
        let rows = Tensor::<Cpu, 2>::from_data(rows, &Default::default());
        let mut leverage = LeverageScores::new(&[input(name)], 2);
        leverage.add_reference(&input(name), rows).unwrap();
        leverage
    }

    #[test]
    fn rare_directions_have_high_leverage_and_the_mean_score_is_the_width() {
        let mut leverage = with_reference("in");
        let scores = leverage.score(&input("in"), &ROWS.concat(), &[1.0; 4]);
        for (score, expected) in scores.unwrap().unwrap().into_iter().zip([4.0, 4.0 / 3.0]) {
            assert!((score / expected - 1.0).abs() < 0.01, "{score}, {expected}");
        }
        assert!((leverage.normalization(&input("in")) - 0.5).abs() < 0.005);
    }

    #[test]
    fn experts_share_a_metric_and_an_input_without_one_has_no_scores() {
        let mut leverage = with_reference("experts.3.in");
        let mut score = |name| {
            let scores = leverage.score(&input(name), &ROWS.concat(), &[1.0; 4]);
            scores.unwrap()
        };
        assert!(score("experts.7.in").is_some());
        assert_eq!(score("other"), None);
        assert_eq!(leverage.normalization(&input("other")), 1.0);
    }
}
