//! How far an error in a linear reaches the outputs of a token.
//!
//! What the loss minds is `E[(gᵀ E x)²]` over tokens, with the error E of a linear, its input x and the gradient g at its outputs.
//! Feedback leaves an error that is white in the metric H of the inputs, and then a token counts by its leverage `xᵀ H⁻¹ x`:
//! the moments of the outputs are `E[xᵀH⁻¹x / n · g·gᵀ]`. With `E[g·gᵀ]` in their place gradients count as independent of
//! inputs, which they are not: the tokens on which attention rests have the largest gradients of all at the values, and inputs
//! that feedback serves well. (Of the Kronecker product that fits best each factor has tokens weighted by the leverage in the
//! other: the matrix normal distribution of greatest likelihood, Dutilleul 1999.)
//!
//! The metric is taken from the first windows of the survey and weighs the tokens of the others.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use uc_codec::factor::{Factor, factorize};
use uc_model::moments::Moments;
use uc_model::{InputSpec, ModelError};

/// Damping, as the default of the quantization. A constant, so that one survey serves all settings of it.
const DAMPING: f64 = 0.003;

/// The metrics of a layer's inputs; experts that do the same have one in common.
pub struct Metrics {
    /// To which tokens are still added.
    open: BTreeMap<Role, Moments>,
    /// By which tokens are weighed.
    set: BTreeMap<Role, Metric>,
    /// Wider inputs have it in blocks.
    max_input_block: usize,
}

/// Name without the number of an expert, and width.
type Role = (String, usize);

struct Metric {
    factor: Factor,
    /// Sum of weight and leverage over the tokens weighed.
    reach: f64,
    /// Their number.
    count: u64,
}

impl Metrics {
    /// None yet.
    pub fn new(max_input_block: usize) -> Self {
        Metrics {
            open: BTreeMap::new(),
            set: BTreeMap::new(),
            max_input_block,
        }
    }

    /// Has `x: [tokens, width]`, weighted as in the calibration, take part in the metric of an input.
    ///
    /// # Errors
    /// Those of the moments.
    pub fn add<B: Backend>(
        &mut self,
        input: &InputSpec,
        x: Tensor<B, 2>,
    ) -> Result<(), ModelError> {
        let block = input.width.min(self.max_input_block);
        let moments = self.open.entry(role(input));
        let moments = moments.or_insert_with(|| Moments::new(input.width, block));
        Ok(moments.add(x)?)
    }

    /// The leverages of the rows of `x` [tokens, width] in the metric of an input, which then stands; none if no token took
    /// part in it. `weights` are those of the calibration.
    ///
    /// # Errors
    /// Where the metric cannot be factored.
    pub fn leverages(
        &mut self,
        input: &InputSpec,
        x: &[f32],
        weights: &[f32],
    ) -> anyhow::Result<Option<Vec<f32>>> {
        let role = role(input);
        if let Some(moments) = self.open.remove(&role) {
            let second = moments.finish().map_err(ModelError::from)?;
            let metric = Metric {
                factor: factorize(&second, input.width, DAMPING)?,
                reach: 0.0,
                count: 0,
            };
            self.set.insert(role.clone(), metric);
        }
        let Some(metric) = self.set.get_mut(&role) else {
            return Ok(None);
        };
        let leverages = metric.factor.leverages(x)?;
        let pairs = leverages.iter().zip(weights);
        let weighted = pairs.map(|(&l, &w)| f64::from(l) * f64::from(w));
        metric.reach += weighted.sum::<f64>();
        metric.count += leverages.len() as u64;
        Ok(Some(leverages))
    }

    /// What moments weighted by leverages are to be multiplied with, so that a gradient that does not depend on the input has
    /// the moments that it has without them.
    pub fn scale(&self, input: &InputSpec) -> f32 {
        match self.set.get(&role(input)) {
            Some(metric) if metric.reach > 0.0 => (metric.count as f64 / metric.reach) as f32,
            _ => 1.0,
        }
    }
}

fn role(input: &InputSpec) -> Role {
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

    fn opened(name: &str) -> Metrics {
        let rows = TensorData::new(ROWS.concat(), [ROWS.len(), 2]);
        let rows = Tensor::<Cpu, 2>::from_data(rows, &Default::default());
        let mut metrics = Metrics::new(2);
        metrics.add(&input(name), rows).unwrap();
        metrics
    }

    #[test]
    fn a_direction_has_the_leverage_of_its_rarity_and_the_mean_in_the_metric_is_the_width() {
        let mut metrics = opened("in");
        let found = metrics.leverages(&input("in"), &ROWS.concat(), &[1.0; 4]);
        for (found, expected) in found.unwrap().unwrap().into_iter().zip([4.0, 4.0 / 3.0]) {
            assert!((found / expected - 1.0).abs() < 0.01, "{found}, {expected}");
        }
        assert!((metrics.scale(&input("in")) - 0.5).abs() < 0.005);
    }

    #[test]
    fn experts_share_a_metric_and_an_input_without_one_weighs_nothing() {
        let mut metrics = opened("experts.3.in");
        let mut ask = |name| {
            let found = metrics.leverages(&input(name), &ROWS.concat(), &[1.0; 4]);
            found.unwrap()
        };
        assert!(ask("experts.7.in").is_some());
        assert_eq!(ask("other"), None);
        assert_eq!(metrics.scale(&input("other")), 1.0);
    }
}
