//! A sample of the rows of a tensor, on which rate and error are measured.

use super::RateProbe;
use crate::bf16;
use crate::code::TensorCode;
use crate::contexts::{Histogram, row_log2_eighths};
use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::Factor;
use crate::feedback;
use crate::reconstruct::reconstruct;
use crate::steps::{Steps, bound_levels, check_step, column_peaks, factor, finest_step};

/// Granularity of the contexts in a probe: a quarter of an octave.
const GRANULARITY: u32 = 1;

/// A fixed sample of the rows of a tensor that are not zero.
pub(super) struct Sample<'a> {
    /// [rows, n]
    w: Vec<f32>,
    rows: usize,
    n: usize,
    /// `[rows]` their indices in the tensor.
    selected: Vec<usize>,
    /// Rows of the tensor that are not zero, and all rows.
    nonzero_rows: usize,
    all_rows: usize,
    factor: &'a Factor,
    column_log2_eighths: &'a [u8],
    /// `[rows]`
    row_step_log2_eighths: Vec<u8>,
    /// `[n]` largest weight of each column, in units of its row's factor.
    column_peaks: Vec<f32>,
    /// The smallest step that is of use; smaller ones are replaced by it.
    pub(super) finest: f32,
}

impl<'a> Sample<'a> {
    /// Of the M rows that are not zero, row `floor((i + 1/2) · M / rows)` for i = 0..rows, with `rows = min(probe_rows, M)`.
    pub(super) fn new(rate_probe: RateProbe<'a>, probe_rows: usize) -> Result<Self, CodecError> {
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
        check_finite("weights", w)?;
        let nonzero = w.chunks(n.max(1)).enumerate();
        let nonzero = nonzero.filter(|(_, row)| !feedback::is_zero(row));
        let nonzero: Vec<usize> = nonzero.map(|(index, _)| index).collect();
        let rows = probe_rows.min(nonzero.len());
        let mut sample = Vec::with_capacity(rows * n);
        let mut row_step_log2_eighths = Vec::with_capacity(rows);
        let mut selected = Vec::with_capacity(rows);
        for i in 0..rows {
            let row = nonzero[(2 * i + 1) * nonzero.len() / (2 * rows)];
            sample.extend_from_slice(&w[row * n..(row + 1) * n]);
            row_step_log2_eighths.push(rate_probe.row_step_log2_eighths[row]);
            selected.push(row);
        }
        let column_peaks = column_peaks(&sample, n, &row_step_log2_eighths);
        Ok(Sample {
            finest: finest_step(
                &sample,
                rate_probe.column_log2_eighths,
                &row_step_log2_eighths,
            ),
            column_peaks,
            selected,
            w: sample,
            rows,
            n,
            nonzero_rows: nonzero.len(),
            all_rows: m,
            factor: rate_probe.factor,
            column_log2_eighths: rate_probe.column_log2_eighths,
            row_step_log2_eighths,
        })
    }

    /// The rows quantized with error feedback along their columns at a tensor step.
    pub(super) fn quantize(&self, step: f32) -> Result<TensorCode, CodecError> {
        check_step(step)?;
        let step = step.max(self.finest);
        let mut columns = self.column_log2_eighths.to_vec();
        bound_levels(&self.column_peaks, step, &mut columns);
        let steps = Steps::new(step, &columns, &self.row_step_log2_eighths);
        let q = feedback::quantize(&self.w, self.rows, self.n, self.factor, None, &steps)?;
        Ok(TensorCode {
            rows: self.rows,
            cols: self.n,
            step,
            row_log2_eighths: row_log2_eighths(&q, self.rows, &columns)?,
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
        let nonzero = self.nonzero_rows as f64 / self.all_rows as f64;
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
            .zip(&self.selected)
            .map(|(error, &row)| error / f64::from(factor(row_log2_eighths[row])).powi(2));
        Ok(errors.sum::<f64>() * self.scale())
    }

    /// Error of each row.
    fn row_errors(&self, code: Option<&TensorCode>) -> Result<Vec<f64>, CodecError> {
        let mut errors = self.w.clone();
        if let Some(code) = code {
            let reconstructed = reconstruct(code)?;
            let pairs = errors.iter_mut().zip(reconstructed);
            pairs.for_each(|(error, value)| *error -= bf16::to_f32(value));
        }
        self.factor.row_errors(&errors)
    }

    /// Rows of the tensor that are not zero by row of the sample.
    fn scale(&self) -> f64 {
        self.nonzero_rows as f64 / self.rows.max(1) as f64
    }

    /// The same rows with equal steps.
    pub(super) fn with_equal_rows(&self) -> Self {
        let equal = vec![0; self.rows];
        Sample {
            w: self.w.clone(),
            selected: self.selected.clone(),
            column_peaks: column_peaks(&self.w, self.n, &equal),
            finest: finest_step(&self.w, self.column_log2_eighths, &equal),
            row_step_log2_eighths: equal,
            ..*self
        }
    }

    /// Base-2 logarithm of the step according to high-rate theory: the differential entropy of the rows, taken as Gaussian, in
    /// units of their steps, minus the target, minus the mean logarithm of the columns. None if all weights are zero.
    pub(super) fn initial_log2(&self, target: f64) -> Option<f64> {
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
