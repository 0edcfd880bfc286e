//! Chooses the steps of a linear whose outputs are of different sensitivity.
//!
//! At high rate, the best steps of the rows are proportional to the inverse diagonal of the output factor. Weights of few different
//! values contradict the theory: in equal steps they take few different indices, in steps that differ by row many, and so many
//! bits more. For a linear that does not follow the high-rate rule, both are measured at the same rate.

use super::sample::Sample;
use super::{RateProbe, StepChoice, choose_in_sample};
use crate::error::CodecError;

/// The rate that a linear is to have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Bits per weight of the indices.
    pub bits: f64,
    /// Where the curve that was measured with equal steps for all rows has these bits, see [`super::curve::RatePoint::lambda`].
    pub lambda: Option<f64>,
    /// Whether the curve follows the high-rate rule there.
    pub regular: bool,
}

/// The chosen steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSteps {
    /// Tensor step, for [`crate::steps::column_step`].
    pub step: f32,
    /// Whether all rows have the same steps; otherwise the given logarithms apply.
    pub equal_rows: bool,
}

/// Chooses the tensor step for the target, and equal row steps where they have the smaller error. The row step logarithms of
/// `rate_probe` are those of the output factor.
///
/// # Errors
/// Those of [`super::choose_step`].
pub fn choose(
    rate_probe: RateProbe<'_>,
    base: f32,
    target: Target,
) -> Result<RowSteps, CodecError> {
    let logs = rate_probe.row_step_log2_eighths;
    // The curve was measured with equal steps; the geometric mean of the steps stays the same.
    let octaves = logs.iter().map(|&log| f64::from(log)).sum::<f64>() / 8.0;
    let mean_octaves = octaves / logs.len().max(1) as f64;
    let at_lambda = |octaves: f64| {
        let lambda = target.lambda?;
        Some((lambda * f64::from(base) * (-octaves).exp2()) as f32)
    };
    let sample = Sample::new(rate_probe)?;
    if target.regular || target.lambda.is_none() || logs.iter().all(|&log| log == 0) {
        let choice = choose_in_sample(&sample, base, at_lambda(mean_octaves), target.bits)?;
        return Ok(RowSteps {
            step: choice.step,
            equal_rows: false,
        });
    }
    let by_output = choose_in_sample(&sample, base, None, target.bits)?;
    let equal = Sample::with_equal_rows(rate_probe);
    let by_column = choose_in_sample(&equal, base, at_lambda(0.0), target.bits)?;
    // Errors at the same rate, weighted alike.
    let weighted = |sample: &Sample<'_>, choice: StepChoice| {
        let error = sample.weighted_error(&sample.quantize(choice.step)?, logs)?;
        Ok::<f64, CodecError>(error * (2.0 * (choice.bits - target.bits).max(0.0)).exp2())
    };
    let equal_rows = weighted(&equal, by_column)? <= weighted(&sample, by_output)?;
    Ok(RowSteps {
        step: if equal_rows {
            by_column.step
        } else {
            by_output.step
        },
        equal_rows,
    })
}
