//! A sample of the rows of a tensor, on which rate and error are measured.

use super::RateProbe;
use crate::bf16;
use crate::code::TensorCode;
use crate::contexts::{Histogram, row_log2_eighths};
use crate::error::{CodecError, check_len};
use crate::factor::Factor;
use crate::feedback;
use crate::reconstruct::reconstruct;
use crate::steps::{ColumnStatistics, Steps, bound_levels, check_step, factor};
use crate::weights::{Matrix, Weights, nonzero_rows};

/// Granularity of the contexts in a probe: a quarter of an octave.
const GRANULARITY: u32 = 1;

/// A fixed sample of the rows of a tensor that are not zero.
#[derive(Debug, Clone)]
pub struct SampledRows {
    /// [rows, cols]
    w: Vec<f32>,
    cols: usize,
    /// `[rows]` their indices in the tensor.
    selected: Vec<usize>,
    /// Rows of the tensor that are not zero, and all rows.
    nonzero_rows: usize,
    all_rows: usize,
}

impl SampledRows {
    /// Of the M rows that are not zero, row `floor((i + 1/2) · M / rows)` for i = 0..rows, with `rows = min(probe_rows, M)`.
    ///
    /// # Errors
    /// [`CodecError::Range`] for `probe_rows == 0`, [`CodecError::NotFinite`], and those of `weights`.
    pub fn new<W: Weights>(weights: &W, probe_rows: usize) -> Result<Self, W::Error> {
        if probe_rows == 0 {
            let expected = "at least 1";
            return Err(CodecError::Range {
                what: "probe rows",
                found: 0.0,
                expected,
            }
            .into());
        }
        let (all_rows, cols) = weights.shape();
        let nonzero = nonzero_rows(weights)?;
        let rows = probe_rows.min(nonzero.len());
        let selected: Vec<usize> = (0..rows)
            .map(|i| nonzero[(2 * i + 1) * nonzero.len() / (2 * rows)])
            .collect();
        let mut w = Vec::with_capacity(rows * cols);
        for &row in &selected {
            w.extend_from_slice(&weights.rows(row..row + 1)?);
        }
        Ok(SampledRows {
            w,
            cols,
            selected,
            nonzero_rows: nonzero.len(),
            all_rows,
        })
    }
}

/// Sampled rows with their steps.
pub(super) struct Sample<'a> {
    sampled: &'a SampledRows,
    factor: &'a Factor,
    column_log2_eighths: &'a [u8],
    /// `[rows]`
    row_step_log2_eighths: Vec<u8>,
    /// `[n]` largest weight of each column, in units of its row's factor.
    column_peaks: Vec<f32>,
    /// The smallest step that is of use; smaller ones are replaced by it.
    pub(super) finest: f32,
    progress: &'a dyn Fn(),
}

impl<'a> Sample<'a> {
    /// The rows with the steps of a probe.
    pub(super) fn new(rate_probe: RateProbe<'a>) -> Result<Self, CodecError> {
        let RateProbe { sampled, .. } = rate_probe;
        let (columns, rows) = (
            rate_probe.column_log2_eighths,
            rate_probe.row_step_log2_eighths,
        );
        check_len("column_log2_eighths", columns.len(), sampled.cols)?;
        check_len("row_step_log2_eighths", rows.len(), sampled.all_rows)?;
        let row_step_log2_eighths = sampled.selected.iter().map(|&row| rows[row]).collect();
        Ok(Sample::with_rows(rate_probe, row_step_log2_eighths))
    }

    /// The rows with the column steps of a probe and other row steps.
    fn with_rows(rate_probe: RateProbe<'a>, row_step_log2_eighths: Vec<u8>) -> Self {
        let RateProbe { sampled, .. } = rate_probe;
        let mut columns = ColumnStatistics::new(sampled.cols);
        columns.add(&sampled.w, &row_step_log2_eighths);
        Sample {
            sampled,
            finest: columns.finest_step(rate_probe.column_log2_eighths),
            column_peaks: columns.peaks(),
            factor: rate_probe.factor,
            column_log2_eighths: rate_probe.column_log2_eighths,
            row_step_log2_eighths,
            progress: rate_probe.progress,
        }
    }

    /// The rows quantized with error feedback along their columns at a tensor step.
    pub(super) fn quantize(&self, step: f32) -> Result<TensorCode, CodecError> {
        check_step(step)?;
        let step = step.max(self.finest);
        let mut columns = self.column_log2_eighths.to_vec();
        bound_levels(&self.column_peaks, step, &mut columns);
        let steps = Steps::new(step, &columns, &self.row_step_log2_eighths);
        let (rows, cols) = (self.sampled.selected.len(), self.sampled.cols);
        let weights = Matrix::new(&self.sampled.w, rows, cols)?;
        let progress = &mut |_| (self.progress)();
        let q = feedback::quantize_weights(&weights, self.factor, None, &steps, progress)?.q;
        Ok(TensorCode {
            rows,
            cols,
            step,
            row_log2_eighths: row_log2_eighths(&q, rows, &columns)?,
            column_log2_eighths: columns,
            row_step_log2_eighths: self.row_step_log2_eighths.clone(),
            q,
            overlay: None,
        })
    }

    /// Bits per weight of the indices of the whole tensor, as the sample predicts them.
    pub(super) fn bits(&self, code: &TensorCode) -> Result<f64, CodecError> {
        if code.q.is_empty() {
            return Ok(0.0);
        }
        let mut histogram = Histogram::default();
        histogram.count(&code.q, &code.row_log2_eighths, &code.column_log2_eighths)?;
        let bits: f64 = histogram
            .contexts(GRANULARITY)
            .iter()
            .flatten()
            .map(|context| {
                let unseen = context.support().saturating_sub(1) as f64;
                context.entropy() + unseen / (2.0 * std::f64::consts::LN_2)
            })
            .sum();
        let nonzero = self.sampled.nonzero_rows as f64 / self.sampled.all_rows as f64;
        Ok(bits / code.q.len() as f64 * nonzero)
    }

    /// Error of the whole tensor at its outputs in the metric of the factor, as the sample predicts it. `code` None is the error of a
    /// tensor of zeros.
    pub(super) fn error(&self, code: Option<&TensorCode>) -> Result<f64, CodecError> {
        Ok(self.row_errors(code)?.iter().sum::<f64>() * self.scale())
    }

    /// As [`Sample::error`] for rows of different sensitivity: each is divided by the square of the factor of its logarithm in
    /// `row_log2_eighths`, those of all rows of the tensor.
    pub(super) fn weighted_error(
        &self,
        code: &TensorCode,
        row_log2_eighths: &[u8],
    ) -> Result<f64, CodecError> {
        let errors = self.row_errors(Some(code))?.into_iter();
        let errors = errors
            .zip(&self.sampled.selected)
            .map(|(error, &row)| error / f64::from(factor(row_log2_eighths[row])).powi(2));
        Ok(errors.sum::<f64>() * self.scale())
    }

    /// Error of each row.
    fn row_errors(&self, code: Option<&TensorCode>) -> Result<Vec<f64>, CodecError> {
        let mut errors = self.sampled.w.clone();
        if let Some(code) = code {
            let reconstructed = reconstruct(code)?;
            let pairs = errors.iter_mut().zip(reconstructed);
            pairs.for_each(|(error, value)| *error -= bf16::to_f32(value));
        }
        self.factor.row_errors(&errors)
    }

    /// Rows of the tensor that are not zero by row of the sample.
    fn scale(&self) -> f64 {
        self.sampled.nonzero_rows as f64 / self.sampled.selected.len().max(1) as f64
    }

    /// The rows of a probe with equal steps.
    pub(super) fn with_equal_rows(rate_probe: RateProbe<'a>) -> Self {
        Sample::with_rows(rate_probe, vec![0; rate_probe.sampled.selected.len()])
    }

    /// Base-2 logarithm of the step according to high-rate theory: the differential entropy of the rows, taken as Gaussian, in
    /// units of their steps, minus the target, minus the mean logarithm of the columns. None if all weights are zero.
    pub(super) fn initial_log2(&self, target: f64) -> Option<f64> {
        let energies = self.sampled.w.chunks(self.sampled.cols.max(1)).map(|row| {
            row.iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                / self.sampled.cols as f64
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
        Some(row_log + 2.047 - 1.0 - column_logs / self.sampled.cols as f64 - target)
    }
}
