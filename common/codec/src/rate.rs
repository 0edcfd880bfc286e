//! Finds the step that meets a budget of bits per weight.
//!
//! A probe quantizes a fixed sample of rows with error feedback along their columns (feedback between rows hardly changes the
//! rate) and computes the entropy of the indices in the contexts of the entropy coder. The entropy of a sample is below
//! that of the whole tensor by about `(support − 1) / (2 ln 2)` bits per context (Miller and Madow 1955); the probe
//! adds this difference. It counts indices only. Tables, logarithms and headers are counted by [`crate::layer`], which
//! scales all steps of a layer by the same power of two if the file misses the budget (at high rate, a factor of `2^x`
//! saves x bits per weight).
//!
//! [`curve`] measures rate and error at several steps for the bit allocation.

pub mod curve;
pub mod row_steps;
mod sample;

use crate::error::CodecError;
use crate::factor::Factor;
use crate::steps::{STEP_RANGE, check_step};
use sample::Sample;
pub use sample::SampledRows;

/// A step is accepted when the rate of the sample is this close to the target, bits per weight.
pub const TOLERANCE: f64 = 0.002;
/// Largest number of probes of one search.
const MAX_PROBES: u32 = 12;
/// Allowed targets, bits per weight.
const TARGETS: std::ops::RangeInclusive<f64> = 0.05..=12.0;
/// As [`TOLERANCE`], for a step that was expected: where the rate hardly depends on the step, a search for the last hundredth of a
/// bit would leave the step whose error was measured.
const TOLERANCE_AT_START: f64 = 0.03;
/// A search that begins at a given step returns it if the rate falls by less than this, in bits per octave.
const FLATTEST: f64 = -0.4;
/// A search that begins at a given step goes no farther from it than this, in octaves: where the rate hardly depends on the
/// step, a step far away may have the same rate and a much larger error.
const MAX_DISTANCE: f64 = 2.0;

/// The step found by a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepChoice {
    /// Tensor step, for [`crate::steps::column_step`].
    pub step: f32,
    /// Bits per weight that the probe at this step predicts for the indices.
    pub bits: f64,
    /// Number of probes made.
    pub probes: u32,
}

impl StepChoice {
    /// Of two choices below the target, the finer step is better; otherwise, the one with the closer rate.
    fn is_better_than(&self, other: StepChoice, target_bits: f64) -> bool {
        if self.bits <= target_bits && other.bits <= target_bits {
            return self.step < other.step;
        }
        (self.bits - target_bits).abs() < (other.bits - target_bits).abs()
    }
}

/// A tensor whose rate is to be determined.
#[derive(Clone, Copy)]
pub struct RateProbe<'a> {
    /// Its rows that are probed.
    pub sampled: &'a SampledRows,
    /// Factor of the second moments of its input.
    pub factor: &'a Factor,
    /// `[n]`, see [`crate::steps`].
    pub column_log2_eighths: &'a [u8],
    /// `[m]`
    pub row_step_log2_eighths: &'a [u8],
    /// Called several times a second while rows are quantized.
    pub progress: &'a dyn Fn(),
}

/// Bits per weight of the indices of a tensor at a tensor step, predicted from its sampled rows.
///
/// # Errors
/// Those of [`crate::feedback::quantize`]; [`CodecError::Range`] for an invalid step.
pub fn probe(rate_probe: RateProbe<'_>, step: f32) -> Result<f64, CodecError> {
    let sample = Sample::new(rate_probe)?;
    sample.bits(&sample.quantize(step)?)
}

/// The tensor step at which the indices of a tensor take `target_bits` per weight, to within [`TOLERANCE`] on the
/// sampled rows. If there is no such step (few weights, or few different ones), the step whose rate came closest. `base` is returned
/// for a tensor of zeros, where any step will do.
///
/// With `start`, the search begins at that step, stays within two octaves of it and ends within 0.03 bits of the target, or at
/// once if the rate hardly depends on the step; otherwise, it begins at the step that high-rate theory predicts.
///
/// # Errors
/// Those of [`probe`]; [`CodecError::Range`] for a target outside 0.05..=12.
pub fn choose_step(
    rate_probe: RateProbe<'_>,
    base: f32,
    start: Option<f32>,
    target_bits: f64,
) -> Result<StepChoice, CodecError> {
    let sample = Sample::new(rate_probe)?;
    choose_in_sample(&sample, base, start, target_bits)
}

/// [`choose_step`] for a sample.
fn choose_in_sample(
    sample: &Sample<'_>,
    base: f32,
    start: Option<f32>,
    target_bits: f64,
) -> Result<StepChoice, CodecError> {
    if !TARGETS.contains(&target_bits) {
        let expected = "0.05 to 12 bits per weight";
        return Err(CodecError::Range {
            what: "target rate",
            found: target_bits,
            expected,
        });
    }
    let Some(predicted) = sample.initial_log2(target_bits) else {
        check_step(base)?;
        return Ok(StepChoice {
            step: base,
            bits: 0.0,
            probes: 0,
        });
    };
    let (mut search, tolerance) = match start {
        Some(step) => (Search::around(f64::from(step).log2()), TOLERANCE_AT_START),
        None => (Search::new(predicted, sample.finest), TOLERANCE),
    };
    let mut first: Option<StepChoice> = None;
    let mut best: Option<StepChoice> = None;
    for probes in 1..=MAX_PROBES {
        let step = step_from_log2(search.log);
        let bits = sample.bits(&sample.quantize(step)?)?;
        let excess = bits - target_bits;
        let choice = StepChoice { step, bits, probes };
        first = first.or(Some(choice));
        if best.is_none_or(|best| choice.is_better_than(best, target_bits)) {
            best = Some(choice);
        }
        best = best.map(|best| StepChoice { probes, ..best });
        if start.is_some() && search.slope(excess).is_some_and(|slope| slope > FLATTEST) {
            best = first;
            break;
        }
        if excess.abs() <= tolerance || !search.advance(excess) {
            break;
        }
    }
    Ok(best.expect("at least one probe was made"))
}

/// The step with a base-2 logarithm, within the range of steps.
fn step_from_log2(log: f64) -> f32 {
    (log.exp2() as f32).clamp(*STEP_RANGE.start(), *STEP_RANGE.end())
}

/// A secant search, with bisection as a fallback, for the root of a decreasing function whose slope is about −1.
struct Search {
    /// The next point.
    log: f64,
    /// The last point and the excess there.
    last: Option<(f64, f64)>,
    /// The largest point known to exceed the target, and the smallest known to be below it.
    above: f64,
    below: f64,
}

impl Search {
    /// A search over all steps from `finest` on that begins at the step with the logarithm `log`.
    fn new(log: f64, finest: f32) -> Self {
        let range = (
            f64::from(finest).log2(),
            f64::from(*STEP_RANGE.end()).log2(),
        );
        Search::within(log, range)
    }

    /// A search that begins at `log` and stays near it.
    fn around(log: f64) -> Self {
        Search::within(log, (log - MAX_DISTANCE, log + MAX_DISTANCE))
    }

    fn within(log: f64, (above, below): (f64, f64)) -> Self {
        Search {
            log: log.clamp(above, below),
            last: None,
            above,
            below,
        }
    }

    /// The change of the excess per octave between the last point and the current one, where the excess is `excess`.
    fn slope(&self, excess: f64) -> Option<f64> {
        let (log, old) = self.last?;
        (log != self.log).then(|| (excess - old) / (self.log - log))
    }

    /// Takes the excess (bits over the target) at `self.log` and moves on; false if the next point is the same.
    fn advance(&mut self, excess: f64) -> bool {
        let current = self.log;
        if excess > 0.0 {
            self.above = current
        } else {
            self.below = current
        }
        let slope = self
            .slope(excess)
            .map_or(-1.0, |slope| slope.clamp(-1.5, -0.2));
        let mut next = current - excess / slope;
        if next <= self.above || next >= self.below {
            next = 0.5 * (self.above + self.below);
        }
        self.last = Some((current, excess));
        self.log = next;
        (next - current).abs() > 1e-6
    }
}
