//! Quantization steps as logarithms: one f32 per tensor, one byte per column, one byte per row.
//!
//! A logarithm stands for the f32 `F(log) = M[log & 7] · 2^(log >> 3)`, which is exact because the second factor is a power of
//! two; `M[k]` is the f32 nearest to `2^(k/8)`. Column j has the step `s_j = step · F(column_log2_eighths[j])`, and its weight
//! in row i has the step `s_j · F(row_step_log2_eighths[i])`. Each is one f32 multiplication, so that the steps are the same
//! bits on every machine. Logarithms range from 0 to 255, almost 32 octaves.
//!
//! Ratios are rounded to eighths of an octave by comparison with a table instead of a library's logarithm, whose last bit
//! depends on the platform.

use crate::bf16;
use crate::error::{CodecError, check_finite};
use rayon::prelude::*;

/// Bit patterns of the f32 nearest to `2^(k/8)`, k = 0..8.
pub const MANTISSA_BITS: [u32; 8] = [
    0x3f80_0000,
    0x3f8b_95c2,
    0x3f98_37f0,
    0x3fa5_fed7,
    0x3fb5_04f3,
    0x3fc5_672a,
    0x3fd7_44fd,
    0x3fea_c0c7,
];

/// `2^((2k+1)/16)`: a mantissa above the k-th rounds to `2^((k+1)/8)`, one below it to `2^(k/8)`.
const MIDPOINTS: [f64; 8] = [
    1.0442737824274138,
    1.1387886347566916,
    1.241857812073484,
    1.3542555469368927,
    1.4768261459394993,
    1.6104903319492543,
    1.7562521603732995,
    1.9152065613971474,
];

/// No column has a step below this fraction of the median column's, so that 8 bits cover all columns that matter.
const FINEST: f32 = 1.0 / 4096.0;

/// Levels beyond this resolve a column more finely than bfloat16 represents its largest weight and most of the others.
const LARGEST_USEFUL: f32 = 16_384.0;

/// The finest step that is of use, as a fraction of the distance of adjacent bfloat16 values.
const FINEST_SPACING: f64 = 1.0 / 2.0;

/// Smallest and largest tensor step: within them no step is subnormal or infinite.
pub(crate) const STEP_RANGE: std::ops::RangeInclusive<f32> = f32::MIN_POSITIVE..=1e19;

/// `M[log & 7] · 2^(log >> 3)`, exact.
#[inline(always)]
pub const fn factor(log: u8) -> f32 {
    let log = log as u32;
    f32::from_bits(MANTISSA_BITS[(log & 7) as usize] + ((log >> 3) << 23))
}

/// Step of a column: one f32 multiplication.
#[inline(always)]
pub fn column_step(step: f32, log: u8) -> f32 {
    step * factor(log)
}

/// Steps of all weights of a tensor: the weight of row i and column j has the step `columns[j] · rows[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// `[cols]` steps in a row whose factor is 1.
    pub columns: Vec<f32>,
    /// `[rows]` factors of the rows.
    pub rows: Vec<f32>,
}

impl Steps {
    /// Computes the steps from the tensor step and the logarithms of columns and rows.
    pub fn new(step: f32, column_log2_eighths: &[u8], row_step_log2_eighths: &[u8]) -> Self {
        Steps {
            columns: column_log2_eighths
                .iter()
                .map(|&log| column_step(step, log))
                .collect(),
            rows: row_step_log2_eighths
                .iter()
                .map(|&log| factor(log))
                .collect(),
        }
    }
}

/// `round(8 · log2(ratio))` of a normal positive number; a tie cannot occur.
pub(crate) fn eighths(ratio: f64) -> i32 {
    debug_assert!(ratio.is_normal() && ratio > 0.0);
    let bits = ratio.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    8 * exponent
        + MIDPOINTS
            .iter()
            .filter(|&&midpoint| mantissa >= midpoint)
            .count() as i32
}

/// Logarithms of steps proportional to `inv_diag` (positive and finite): for columns, that of the input's
/// [`crate::factor::Factor`]; for rows, that of the output gradients'.
///
/// Returns `(logs, base)`. `base` is the smallest entry, but at least 1/4096 of the median, and
/// `logs[j] = clamp(round(8 · log2(inv_diag[j] / base)), 0, 255)`. With the tensor step `lambda · base`, column j then has the
/// step `lambda · inv_diag[j]` to within 1/16 octave.
///
/// # Errors
/// [`CodecError::NotFinite`], or [`CodecError::Range`] for an entry that is not positive.
pub fn step_log2_eighths(inv_diag: &[f32]) -> Result<(Vec<u8>, f32), CodecError> {
    check_finite("inverse diagonal", inv_diag)?;
    let base = inv_diag.iter().copied().fold(f32::INFINITY, f32::min);
    if inv_diag.is_empty() {
        return Ok((Vec::new(), 1.0));
    }
    if !base.is_normal() || base < 0.0 {
        let expected = "positive, normal numbers";
        return Err(CodecError::Range {
            what: "inverse diagonal",
            found: f64::from(base),
            expected,
        });
    }
    let mut sorted = inv_diag.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let base = base.max(sorted[sorted.len() / 2] * FINEST);
    let log = |x: f32| eighths(f64::from(x.max(base)) / f64::from(base)).min(255) as u8;
    Ok((inv_diag.iter().map(|&x| log(x)).collect(), base))
}

/// What is known of the columns of a tensor after some of its rows, which are added in order.
#[derive(Debug, Clone)]
pub struct ColumnStatistics {
    columns: Vec<Column>,
}

/// What is known of a column.
#[derive(Debug, Clone, Copy, Default)]
struct Column {
    /// Largest magnitude, in units of the factor of its row.
    peak: f32,
    /// Sum of the squared distances of adjacent bfloat16 values at its weights, in units of the factor of the row.
    spacing: f64,
    /// Weights that are not zero.
    count: u32,
}

/// Columns whose statistics one parallel piece takes.
const STATISTICS_COLUMNS: usize = 512;

impl ColumnStatistics {
    /// Those of no rows of `cols` columns.
    pub fn new(cols: usize) -> Self {
        ColumnStatistics {
            columns: vec![Column::default(); cols],
        }
    }

    /// Adds the rows `w` [rows, cols].
    pub fn add(&mut self, w: &[f32], row_step_log2_eighths: &[u8]) {
        let cols = self.columns.len();
        let pieces = self.columns.par_chunks_mut(STATISTICS_COLUMNS).enumerate();
        pieces.for_each(|(piece, columns)| {
            let first = piece * STATISTICS_COLUMNS;
            for (row, &log) in w.chunks_exact(cols).zip(row_step_log2_eighths) {
                let (inverse, precise) = (factor(log).recip(), f64::from(factor(log)).recip());
                for (column, &x) in columns.iter_mut().zip(&row[first..]) {
                    column.peak = column.peak.max(x.abs() * inverse);
                    if x != 0.0 {
                        column.spacing += (bf16::spacing(x) * precise).powi(2);
                        column.count += 1;
                    }
                }
            }
        });
    }

    /// The largest magnitude of each column, in units of the factor of its row.
    pub fn peaks(&self) -> Vec<f32> {
        self.columns.iter().map(|column| column.peak).collect()
    }

    /// The smallest tensor step that is of use: half the one at which the step of the median column equals
    /// the root mean square distance of adjacent bfloat16 values at its weights. Below it, the error is that of rounding to
    /// bfloat16, and finer steps only resolve this rounding. Weights of few different values reach it, because nearly until there
    /// finer steps cost them no bits.
    pub fn finest_step(&self, column_log2_eighths: &[u8]) -> f32 {
        let columns = self.columns.iter().zip(column_log2_eighths);
        let nonzero = columns.filter(|(column, _)| column.count > 0);
        let mut steps: Vec<f64> = nonzero
            .map(|(column, &log)| {
                (column.spacing / f64::from(column.count)).sqrt() / f64::from(factor(log))
            })
            .collect();
        if steps.is_empty() {
            return *STEP_RANGE.start();
        }
        let middle = steps.len() / 2;
        let (_, median, _) = steps.select_nth_unstable_by(middle, f64::total_cmp);
        ((FINEST_SPACING * *median) as f32).clamp(*STEP_RANGE.start(), *STEP_RANGE.end())
    }
}

/// [`ColumnStatistics::peaks`] of `w` [rows, cols].
pub fn column_peaks(w: &[f32], cols: usize, row_step_log2_eighths: &[u8]) -> Vec<f32> {
    let mut columns = ColumnStatistics::new(cols);
    columns.add(w, row_step_log2_eighths);
    columns.peaks()
}

/// Raises the logarithms of columns whose largest weight `peaks` ([`column_peaks`]) would have a level beyond 16384 at the
/// tensor step `step`.
///
/// For channels with massive activations (Sun et al. 2024), the steps would be far finer than the precision of
/// bfloat16; without a bound their levels would saturate.
pub fn bound_levels(peaks: &[f32], step: f32, column_log2_eighths: &mut [u8]) {
    for (peak, log) in peaks.iter().zip(column_log2_eighths) {
        while *log < u8::MAX && *peak > LARGEST_USEFUL * column_step(step, *log) {
            *log += 1;
        }
    }
}

/// Refuses a tensor step outside [`STEP_RANGE`].
pub(crate) fn check_step(step: f32) -> Result<(), CodecError> {
    if STEP_RANGE.contains(&step) {
        return Ok(());
    }
    let expected = "1.2e-38 to 1e19";
    Err(CodecError::Range {
        what: "step",
        found: f64::from(step),
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mantissas_are_the_nearest_f32_of_the_eighths_of_an_octave() {
        for (k, &bits) in MANTISSA_BITS.iter().enumerate() {
            let exact = 2f64.powf(k as f64 / 8.0);
            let distance = |bits: u32| (f64::from(f32::from_bits(bits)) - exact).abs();
            assert!(distance(bits) <= distance(bits - 1) && distance(bits) <= distance(bits + 1));
        }
    }

    #[test]
    fn factors_rise_by_an_eighth_of_an_octave_over_the_whole_range() {
        for log in 0..=255u8 {
            let expected = 2f64.powf(f64::from(log) / 8.0);
            assert!((f64::from(factor(log)) / expected - 1.0).abs() < 1e-7);
        }
        assert_eq!(column_step(3.0, 16), 12.0);
        assert_eq!(
            column_step(1.0, 255),
            f32::from_bits(MANTISSA_BITS[7]) * 2f32.powi(31)
        );
        let coarsest = Steps::new(*STEP_RANGE.end(), &[255], &[255]);
        assert!((coarsest.columns[0] * coarsest.rows[0]).is_finite());
    }

    #[test]
    fn eighths_agree_with_the_logarithm_away_from_the_midpoints() {
        for i in 0..20_000 {
            let ratio = 1e-9 * 1.0021f64.powi(i);
            let exact = 8.0 * ratio.log2();
            if (exact.rem_euclid(1.0) - 0.5).abs() > 1e-6 {
                assert_eq!(eighths(ratio), exact.round() as i32, "{ratio}");
            }
        }
    }

    #[test]
    fn step_logs_are_relative_to_the_smallest_entry_and_saturate() {
        let (logs, base) = step_log2_eighths(&[0.5, 1.0, 0.25, 0.25 * 1.09, 1e30]).unwrap();
        assert_eq!((logs, base), (vec![8, 16, 0, 1, 255], 0.25));
        assert_eq!(step_log2_eighths(&[7.0]).unwrap(), (vec![0], 7.0));
        assert_eq!(step_log2_eighths(&[]).unwrap(), (vec![], 1.0));
    }

    #[test]
    fn a_step_far_below_the_others_is_raised_to_a_fraction_of_the_median() {
        let (logs, base) = step_log2_eighths(&[1.0, 1e-6, 1.0, 2.0]).unwrap();
        assert_eq!((logs, base), (vec![96, 0, 96, 104], FINEST));
    }

    #[test]
    fn columns_whose_levels_would_be_too_large_get_larger_steps() {
        let mut logs = vec![0, 8, 0];
        let w = [1.0, -0.1, 0.0, -4.0, 1.0, 0.0];
        let peaks = column_peaks(&w, 3, &[0, 0]);
        bound_levels(&peaks, 1.0 / 16_384.0, &mut logs);
        assert_eq!(logs, [16, 8, 0]);
        let peaks = column_peaks(&w, 3, &[0, 8]);
        bound_levels(&peaks, 1.0 / 65_536.0, &mut logs);
        assert_eq!(logs, [24, 8, 0]);
        let w = [4.0, 0.0, -1.0, 2.0, 4.0, 0.0, 0.0, 2.0];
        let finest = |w: &[f32], logs: &[u8], row_logs: &[u8]| {
            let mut columns = ColumnStatistics::new(logs.len());
            let rows = w.chunks(logs.len()).zip(row_logs.chunks(1));
            rows.for_each(|(row, log)| columns.add(row, log));
            columns.finest_step(logs)
        };
        assert_eq!(finest(&w, &[0, 0, 8, 0], &[0, 0]), 1.0 / 128.0);
        assert_eq!(finest(&w, &[0, 0, 8, 0], &[8, 8]), 1.0 / 256.0);
        assert_eq!(finest(&[0.0], &[0], &[0]), *STEP_RANGE.start());
    }

    #[test]
    fn step_logs_refuse_invalid_steps() {
        assert!(matches!(
            step_log2_eighths(&[1.0, f32::NAN]),
            Err(CodecError::NotFinite { .. })
        ));
        assert!(matches!(
            step_log2_eighths(&[1.0, 0.0]),
            Err(CodecError::Range { .. })
        ));
        assert!(matches!(
            step_log2_eighths(&[1.0, -1.0]),
            Err(CodecError::Range { .. })
        ));
    }
}
