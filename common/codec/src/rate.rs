//! Finds the step that meets a budget of bits per weight.
//!
//! A probe quantizes a fixed sample of rows with error feedback along their columns (feedback between rows hardly changes the
//! rate) and computes the entropy of the indices in the contexts of the entropy coder. The entropy of a sample is below
//! that of the whole tensor by about `(support − 1) / (2 ln 2)` bits per context (Miller and Madow 1955); the probe
//! adds this difference. It counts indices only. Tables, logarithms and headers are counted by [`crate::layer`], which
//! scales all steps of a layer by the same power of two if the file misses the budget (at high rate, a factor of `2^x`
//! saves x bits per weight).

use crate::contexts::{Histogram, row_log2_eighths};
use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::Factor;
use crate::feedback;
use crate::steps::{Steps, check_step};

/// Granularity of the contexts in a probe: a quarter of an octave.
const GRANULARITY: u32 = 1;
/// A step is accepted when the rate of the sample is this close to the target, bits per weight.
pub const TOLERANCE: f64 = 0.002;
/// Largest number of probes of one search.
const MAX_PROBES: u32 = 12;
/// Allowed targets, bits per weight.
const TARGETS: std::ops::RangeInclusive<f64> = 0.05..=12.0;
/// Range of base-2 logarithms of steps that a search visits.
const STEP_LOG2_RANGE: std::ops::RangeInclusive<f64> = -125.0..=90.0;

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

/// A tensor whose rate is to be determined.
#[derive(Clone, Copy)]
pub struct RateProbe<'a> {
    /// [m, n]
    pub w: &'a [f32],
    /// Outputs.
    pub m: usize,
    /// Inputs.
    pub n: usize,
    /// Factor of the second moments of its input.
    pub factor: &'a Factor,
    /// `[n]`, see [`crate::steps`].
    pub column_log2_eighths: &'a [u8],
    /// `[m]`
    pub row_step_log2_eighths: &'a [u8],
}

/// A fixed sample of rows of a tensor.
struct Sample<'a> {
    /// [rows, n]
    w: Vec<f32>,
    rows: usize,
    n: usize,
    factor: &'a Factor,
    column_log2_eighths: &'a [u8],
    /// `[rows]`
    row_step_log2_eighths: Vec<u8>,
}

impl<'a> Sample<'a> {
    /// Row `floor((i + 1/2) · m / rows)` for i = 0..rows, with `rows = min(probe_rows, m)`.
    fn new(rate_probe: RateProbe<'a>, probe_rows: usize) -> Result<Self, CodecError> {
        let RateProbe { w, m, n, .. } = rate_probe;
        check_matrix("weights", w.len(), m, n)?;
        check_len(
            "column_log2_eighths",
            rate_probe.column_log2_eighths.len(),
            n,
        )?;
        check_len(
            "row_step_log2_eighths",
            rate_probe.row_step_log2_eighths.len(),
            m,
        )?;
        if probe_rows == 0 {
            let expected = "at least 1";
            return Err(CodecError::Range {
                what: "probe rows",
                found: 0.0,
                expected,
            });
        }
        let rows = probe_rows.min(m);
        let mut sample = Vec::with_capacity(rows * n);
        let mut row_step_log2_eighths = Vec::with_capacity(rows);
        for i in 0..rows {
            let row = (2 * i + 1) * m / (2 * rows);
            sample.extend_from_slice(&w[row * n..(row + 1) * n]);
            row_step_log2_eighths.push(rate_probe.row_step_log2_eighths[row]);
        }
        check_finite("weights", &sample)?;
        Ok(Sample {
            w: sample,
            rows,
            n,
            factor: rate_probe.factor,
            column_log2_eighths: rate_probe.column_log2_eighths,
            row_step_log2_eighths,
        })
    }

    /// Bits per weight at a step.
    fn bits(&self, step: f32) -> Result<f64, CodecError> {
        check_step(step)?;
        let steps = Steps::new(step, self.column_log2_eighths, &self.row_step_log2_eighths);
        let q = feedback::quantize(&self.w, self.rows, self.n, self.factor, None, &steps)?;
        if q.is_empty() {
            return Ok(0.0);
        }
        let row_log2_eighths = row_log2_eighths(&q, self.rows, self.column_log2_eighths)?;
        let mut histogram = Histogram::default();
        histogram.count(&q, &row_log2_eighths, self.column_log2_eighths)?;
        let bits: f64 = histogram
            .contexts(GRANULARITY)
            .iter()
            .flatten()
            .map(|context| {
                let unseen = context.support().saturating_sub(1) as f64;
                context.entropy() + unseen / (2.0 * std::f64::consts::LN_2)
            })
            .sum();
        Ok(bits / q.len() as f64)
    }

    /// Base-2 logarithm of the step according to high-rate theory: the differential entropy of the rows, taken as Gaussian, in
    /// units of their steps, minus the target, minus the mean logarithm of the columns. None if all weights are zero.
    fn initial_log2(&self, target: f64) -> Option<f64> {
        let energies = self.w.chunks(self.n.max(1)).map(|row| {
            row.iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                / self.n as f64
        });
        let logs: Vec<f64> = energies
            .zip(&self.row_step_log2_eighths)
            .filter(|(e, _)| *e > 0.0)
            .map(|(e, &log)| 0.5 * e.log2() - f64::from(log) / 8.0)
            .collect();
        if logs.is_empty() {
            return None;
        }
        let column_logs: f64 = self
            .column_log2_eighths
            .iter()
            .map(|&log| f64::from(log) / 8.0)
            .sum();
        let row_log = logs.iter().sum::<f64>() / logs.len() as f64;
        // 2.047 is the differential entropy of a unit Gaussian, `log2(2πe)/2`. An index stands for two levels, which is one
        // bit less than the entropy of the levels.
        Some(row_log + 2.047 - 1.0 - column_logs / self.n as f64 - target)
    }
}

/// Bits per weight of the indices of a tensor at a tensor step, predicted from `probe_rows` rows.
///
/// # Errors
/// Those of [`feedback::quantize`]; [`CodecError::Range`] for an invalid step or `probe_rows == 0`.
pub fn probe(rate_probe: RateProbe<'_>, step: f32, probe_rows: usize) -> Result<f64, CodecError> {
    Sample::new(rate_probe, probe_rows)?.bits(step)
}

/// The tensor step at which the indices of a tensor take `target_bits` per weight, to within [`TOLERANCE`] on `probe_rows`
/// rows. If there is no such step (few weights, or all equal), the step whose rate came closest. `base` is returned for a
/// tensor of zeros, where any step will do.
///
/// # Errors
/// Those of [`probe`]; [`CodecError::Range`] for a target outside 0.05..=12.
pub fn choose_step(
    rate_probe: RateProbe<'_>,
    base: f32,
    target_bits: f64,
    probe_rows: usize,
) -> Result<StepChoice, CodecError> {
    if !TARGETS.contains(&target_bits) {
        let expected = "0.05 to 12 bits per weight";
        return Err(CodecError::Range {
            what: "target rate",
            found: target_bits,
            expected,
        });
    }
    let sample = Sample::new(rate_probe, probe_rows)?;
    let Some(start) = sample.initial_log2(target_bits) else {
        check_step(base)?;
        return Ok(StepChoice {
            step: base,
            bits: 0.0,
            probes: 0,
        });
    };
    let mut search = Search::new(start);
    let mut best: Option<StepChoice> = None;
    for probes in 1..=MAX_PROBES {
        let step = search.log.exp2() as f32;
        let bits = sample.bits(step)?;
        let excess = bits - target_bits;
        if best.is_none_or(|best| excess.abs() < (best.bits - target_bits).abs()) {
            best = Some(StepChoice { step, bits, probes });
        }
        best = best.map(|best| StepChoice { probes, ..best });
        if excess.abs() <= TOLERANCE || !search.advance(excess) {
            break;
        }
    }
    Ok(best.expect("at least one probe was made"))
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
    fn new(log: f64) -> Self {
        let (above, below) = (*STEP_LOG2_RANGE.start(), *STEP_LOG2_RANGE.end());
        Search {
            log: log.clamp(above, below),
            last: None,
            above,
            below,
        }
    }

    /// Takes the excess (bits over the target) at `self.log` and moves on; false if the next point is the same.
    fn advance(&mut self, excess: f64) -> bool {
        let current = self.log;
        if excess > 0.0 {
            self.above = current
        } else {
            self.below = current
        }
        let slope = match self.last {
            Some((log, old)) if log != current => {
                ((excess - old) / (current - log)).clamp(-1.5, -0.2)
            }
            _ => -1.0,
        };
        let mut next = current - excess / slope;
        if next <= self.above || next >= self.below {
            next = 0.5 * (self.above + self.below);
        }
        self.last = Some((current, excess));
        self.log = next;
        (next - current).abs() > 1e-6
    }
}
