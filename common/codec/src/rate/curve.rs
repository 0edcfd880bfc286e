//! Rate and error of a linear at several steps, measured on a sample of its rows.
//!
//! At high rate, halving the step costs one bit per weight and divides the error by four. Three probes show whether a linear
//! behaves like this between the rates that the allocation considers. Where it does not (at low rates; sparse, ternary,
//! binary or constant weights, whose indices take few values at any step), more probes are made: between two that differ from
//! the rule, and beyond the outermost ones. Owns no policy: [`crate::allocate`] decides what to do with the points.

use serde::{Deserialize, Serialize};

use super::sample::Sample;
use super::{RateProbe, step_from_log2};
use crate::error::CodecError;
use crate::steps::STEP_RANGE;

/// Most probes of one linear.
const MAX_PROBES: usize = 14;
/// Rates of the first three probes relative to the average, bits per weight, if the high-rate rule holds.
const FIRST_OFFSETS: [f64; 3] = [-1.25, 0.0, 2.0];
/// The rates of interest, relative to the average, bits per weight: those that the allocation may choose for a linear that can
/// change the loss.
pub(crate) const RATES: std::ops::RangeInclusive<f64> = -1.25..=4.0;
/// Largest relative deviation of the slopes of rate and error from the high-rate rule.
const TOLERANCE: f64 = 0.12;
/// Two probes closer than this, in octaves of the step, have no probe between them.
const CLOSEST: f64 = 0.6;
/// Below this fraction of the signal, the error is that of rounding to bfloat16.
const ROUNDING: f64 = 2e-6;

/// Rate and error of a linear at one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatePoint {
    /// The step as a multiple of the smallest entry of the input factor's inverse diagonal: the columns have the steps
    /// `lambda · U_jj`.
    pub lambda: f64,
    /// Bits per weight of the indices.
    pub bits: f64,
    /// Error at the outputs, `tr(E·H'·Eᵀ)`.
    pub error: f64,
}

/// Rate and error of a linear as far as they were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateCurve {
    /// Error of a linear whose weights are all reconstructed as zero: `tr(W·H'·Wᵀ)`. 0 for weights of zeros and for an input
    /// that was never active; such a linear has no points.
    pub signal: f64,
    /// The points, coarsest step first.
    pub points: Vec<RatePoint>,
}

/// Whether rate and error between two points, the coarser first, follow the high-rate rule.
pub(crate) fn follows_high_rate_rule(coarse: &RatePoint, fine: &RatePoint) -> bool {
    let octaves = (coarse.lambda / fine.lambda).log2();
    let bits = (fine.bits - coarse.bits) / octaves;
    let error = (coarse.error / fine.error).log2() / (2.0 * octaves);
    (bits - 1.0).abs() <= TOLERANCE && (error - 1.0).abs() <= TOLERANCE
}

/// Measures the curve of a linear around `average` bits per weight on its sampled rows. `base` is the step at lambda 1.
///
/// # Errors
/// Those of [`super::probe`].
pub fn measure(
    rate_probe: RateProbe<'_>,
    base: f32,
    average: f64,
) -> Result<RateCurve, CodecError> {
    let sample = Sample::new(rate_probe)?;
    let mut curve = RateCurve {
        signal: sample.error(None)?,
        points: Vec::new(),
    };
    let Some(center) = sample.initial_log2(average) else {
        return Ok(curve);
    };
    if curve.signal == 0.0 {
        return Ok(curve);
    }
    let mut waiting: Vec<f64> = FIRST_OFFSETS.map(|offset| center - offset).to_vec();
    let lambda_at = |step: f32| f64::from(step) / f64::from(base);
    let is_new = |curve: &RateCurve, log: f64| {
        let lambda = lambda_at(step_from_log2(log));
        curve.points.iter().all(|point| point.lambda != lambda)
    };
    while let Some(log) = waiting.pop() {
        if is_new(&curve, log) {
            let step = step_from_log2(log);
            let code = sample.quantize(step)?;
            let (bits, error) = (sample.bits(&code)?, sample.error(Some(&code))?);
            curve.points.push(RatePoint {
                lambda: lambda_at(step),
                bits,
                error,
            });
        }
        if waiting.is_empty() && curve.points.len() < MAX_PROBES {
            curve.points.sort_by(|a, b| b.lambda.total_cmp(&a.lambda));
            let next = next_log2(&curve, average, f64::from(base), sample.finest);
            // Several logarithms have one step at the end of the range: a step that was probed ends the search.
            waiting.extend(next.filter(|log| is_new(&curve, *log)));
        }
    }
    Ok(curve)
}

/// Base-2 logarithm of the step of the next probe; None if the points describe the rates of interest.
fn next_log2(curve: &RateCurve, average: f64, base: f64, finest: f32) -> Option<f64> {
    let log = |point: &RatePoint| (point.lambda * base).log2();
    let (first, last) = (curve.points.first()?, curve.points.last()?);
    let useful = finest..=*STEP_RANGE.end();
    let room = |log: f64| useful.contains(&step_from_log2(log));
    if first.bits > (average + RATES.start()).max(0.1) + 0.25 && room(log(first) + 1.0) {
        return Some(log(first) + 1.0);
    }
    let pairs = || curve.points.windows(2);
    let top_is_regular = pairs()
        .next_back()
        .is_some_and(|pair| follows_high_rate_rule(&pair[0], &pair[1]));
    let exact = last.error <= ROUNDING * curve.signal;
    if !top_is_regular && !exact && last.bits < average + RATES.end() && room(log(last) - 1.0) {
        return Some(log(last) - 1.0);
    }
    let irregular = pairs().filter(|pair| !follows_high_rate_rule(&pair[0], &pair[1]));
    let widths = irregular.map(|pair| (log(&pair[0]), log(&pair[1])));
    let widest = widths.max_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1)))?;
    (widest.0 - widest.1 > CLOSEST).then_some(0.5 * (widest.0 + widest.1))
}
