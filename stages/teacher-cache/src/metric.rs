//! How far an error in a linear reaches the outputs of a token.
//!
//! What the loss minds is `E[(gᵀ E x)²]` over tokens, with the error E of a linear, its input x and the gradient g at its outputs.
//! Feedback leaves an error that is white in the metric H of the inputs, and then a token counts by its leverage `xᵀ H⁻¹ x`:
//! the moments of the outputs are `E[xᵀH⁻¹x / n · g·gᵀ]`. With `E[g·gᵀ]` in their place gradients count as independent of
//! inputs, which they are not: the first token of a text, on which attention rests, has the largest gradients of all and an
//! input that feedback serves well (the factors of a Kronecker product that fit best have each other's weights so: Dutilleul
//! 1999). H is that of the calibration, its mixture of weights included, and comes from the first windows of the survey.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_codec::factor::{Factor, factorize};
use uc_model::moments::Moments;
use uc_model::{InputSpec, ModelError};

use crate::gradient::vector;

/// Of the survey's windows, the first of so many set the metric.
pub const PARTS: usize = 4;
/// As the default of the quantization. A constant, so that a survey serves all settings of it.
const DAMPING: f64 = 0.003;

/// The metrics of a layer's inputs, by their role: experts that do the same have one in common.
pub struct Metrics {
    /// To which tokens are still added.
    open: BTreeMap<Role, Moments>,
    /// By which tokens are weighed.
    set: BTreeMap<Role, Metric>,
    /// Inputs wider than this have it in blocks.
    widest: usize,
}

/// Name without the number of an expert, and width.
type Role = (String, usize);

struct Metric {
    factor: Factor,
    /// Sum of the leverages of tokens weighted as in the metric.
    leverage: f64,
    /// Their number.
    count: u64,
}

impl Metrics {
    /// None set yet.
    pub fn new(widest: usize) -> Self {
        Metrics {
            open: BTreeMap::new(),
            set: BTreeMap::new(),
            widest,
        }
    }

    /// Lets the tokens `x: [tokens, width]` of an input take part in its metric with these weights.
    ///
    /// # Errors
    /// Those of the moments.
    pub fn add<B: Backend>(
        &mut self,
        input: &InputSpec,
        x: Tensor<B, 2>,
        weights: &[f32],
    ) -> Result<(), ModelError> {
        let block = input.width.min(self.widest);
        let moments = self.open.entry(role(input));
        let moments = moments.or_insert_with(|| Moments::new(input.width, block));
        Ok(moments.add(scaled(x, weights))?)
    }

    /// The leverages of the tokens `x` of an input, up to a factor: see [`Metrics::scale`]. Sets its metric. None if no
    /// token took part in it.
    ///
    /// # Errors
    /// Where it cannot be factored.
    pub fn leverages<B: Backend>(
        &mut self,
        input: &InputSpec,
        x: Tensor<B, 2>,
        weights: &[f32],
    ) -> anyhow::Result<Option<Vec<f32>>> {
        let role = role(input);
        if let Some(moments) = self.open.remove(&role) {
            let second = moments.finish().map_err(ModelError::from)?;
            let metric = Metric {
                factor: factorize(&second, input.width, DAMPING)?,
                leverage: 0.0,
                count: 0,
            };
            self.set.insert(role.clone(), metric);
        }
        let Some(metric) = self.set.get_mut(&role) else {
            return Ok(None);
        };
        let leverages = metric.factor.leverages(&vector(x)?)?;
        let pairs = leverages.iter().zip(weights);
        let weighted = pairs.map(|(&l, &w)| f64::from(l) * f64::from(w));
        metric.leverage += weighted.sum::<f64>();
        metric.count += leverages.len() as u64;
        Ok(Some(leverages))
    }

    /// What moments weighted by the leverages of an input are to be multiplied with, so that a gradient that does not depend
    /// on it has the moments that it has without them.
    pub fn scale(&self, input: &InputSpec) -> f32 {
        match self.set.get(&role(input)) {
            Some(metric) if metric.leverage > 0.0 => (metric.count as f64 / metric.leverage) as f32,
            _ => 1.0,
        }
    }
}

fn role(input: &InputSpec) -> Role {
    (input.role().to_owned(), input.width)
}

/// The rows of `x`, multiplied with the roots of their weights.
pub fn scaled<B: Backend>(x: Tensor<B, 2>, weights: &[f32]) -> Tensor<B, 2> {
    let roots: Vec<f32> = weights.iter().map(|weight| weight.sqrt()).collect();
    let roots = TensorData::new(roots, [weights.len(), 1]);
    let device = x.device();
    x * Tensor::from_data(roots, &device)
}

#[cfg(test)]
mod tests {
    use uc_model::Cpu;

    use super::*;

    fn tokens(rows: &[[f32; 2]]) -> Tensor<Cpu, 2> {
        let data = TensorData::new(rows.concat(), [rows.len(), 2]);
        Tensor::from_data(data, &Default::default())
    }

    fn input(name: &str) -> InputSpec {
        InputSpec {
            name: name.into(),
            width: 2,
            routed: false,
        }
    }

    #[test]
    fn rare_directions_have_the_leverage_of_their_rarity_and_weights_lower_it() {
        let rows = [[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]];
        let close = |found: &[f32], expected: [f32; 4]| {
            let pairs = found.iter().zip(expected);
            assert!(
                pairs.into_iter().all(|(f, e)| (f / e - 1.0).abs() < 0.01),
                "{found:?}, expected {expected:?}"
            );
        };
        let third = 4.0 / 3.0;
        for (weights, expected) in [
            ([1.0; 4], [4.0, third, third, third]),
            ([4.0, 1.0, 1.0, 1.0], [1.0, third, third, third]),
        ] {
            let mut metrics = Metrics::new(2);
            metrics.add(&input("in"), tokens(&rows), &weights).unwrap();
            let found = metrics.leverages(&input("in"), tokens(&rows), &weights);
            close(&found.unwrap().unwrap(), expected);
            // The mean in the metric is the width.
            assert!((metrics.scale(&input("in")) - 0.5).abs() < 0.01);
        }
    }

    #[test]
    fn experts_share_a_metric_and_an_input_without_one_weighs_nothing() {
        let mut metrics = Metrics::new(2);
        let rows = tokens(&[[1.0, 0.0], [0.0, 1.0]]);
        let of = |expert: usize| input(&format!("experts.{expert}.in"));
        metrics.add(&of(3), rows.clone(), &[1.0; 2]).unwrap();
        let mut ask = |input| metrics.leverages(&input, rows.clone(), &[1.0; 2]).unwrap();
        assert!(ask(of(7)).is_some());
        assert_eq!(ask(input("other")), None);
        assert_eq!(metrics.scale(&input("other")), 1.0);
    }
}
