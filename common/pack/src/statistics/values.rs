//! The distribution of a tensor's values: moments, zeros, outliers, quantiles.
//!
//! Values of at most 16 bits are counted by their bit pattern, so that everything about them is exact and needs 512 KiB,
//! however large the tensor is. Of wider types, minimum, maximum and moments are exact, and quantiles and outliers are those
//! of the values rounded to bfloat16. The result does not depend on the order of the values.

use serde::Serialize;
use uc_codec::bf16;

use crate::error::{PackError, invalid};
use crate::exact::ExactDtype;

/// The shares of the values that the quantiles leave below them.
pub const PROBABILITIES: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];
/// Distance from the mean in standard deviations from which on a value is an outlier.
pub const OUTLIER_DEVIATIONS: f64 = 6.0;
/// Number of bit patterns of 16 bits.
const PATTERNS: usize = 1 << 16;

/// The distribution of the values of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueStatistics {
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the values as a whole population.
    pub standard_deviation: f64,
    /// Fourth standardized moment minus 3: 0 for a normal distribution. None if all values are equal.
    pub excess_kurtosis: Option<f64>,
    /// Number of zeros.
    pub zeros: u64,
    /// Number of values more than [`OUTLIER_DEVIATIONS`] standard deviations from the mean.
    pub outliers: u64,
    /// The values at [`PROBABILITIES`].
    pub quantiles: Vec<Quantile>,
}

/// The smallest value such that at least this share of all values is not above it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantile {
    /// The share.
    pub probability: f64,
    /// The value.
    pub value: f64,
}

/// Counts the values of a tensor.
pub(crate) struct ValueCounter {
    dtype: ExactDtype,
    /// `[PATTERNS]` how often each bit pattern occurs; of wider types, that of the value rounded to bfloat16.
    counts: Vec<u64>,
    /// What a wider type needs besides.
    wide: Option<WideSums>,
    is_finite: bool,
}

impl ValueCounter {
    pub(crate) fn new(dtype: ExactDtype) -> Self {
        ValueCounter {
            dtype,
            counts: vec![0; PATTERNS],
            wide: None,
            is_finite: true,
        }
    }

    /// Adds bfloat16 values.
    pub(crate) fn words(&mut self, words: &[u16]) {
        debug_assert_eq!(self.dtype, ExactDtype::BF16);
        words
            .iter()
            .for_each(|&word| self.counts[usize::from(word)] += 1);
    }

    /// Adds whole values as bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        match self.dtype.width() {
            1 => bytes
                .iter()
                .for_each(|&byte| self.counts[usize::from(byte)] += 1),
            2 => {
                let pairs = bytes.as_chunks::<2>().0.iter();
                pairs.for_each(|pair| self.counts[usize::from(u16::from_le_bytes(*pair))] += 1);
            }
            _ => {
                self.is_finite &= self.dtype.all_finite(bytes);
                for value in values(self.dtype, bytes) {
                    let rounded = bf16::round_nearest_even(value as f32);
                    self.counts[usize::from(rounded)] += 1;
                    self.wide
                        .get_or_insert_with(|| WideSums::new(value))
                        .add(value);
                }
            }
        }
    }

    /// The distribution. `origin` and `tensor` name the tensor in errors.
    ///
    /// # Errors
    /// `Invalid` if a value is not finite or there is none.
    pub(crate) fn finish(self, origin: &str, tensor: &str) -> Result<ValueStatistics, PackError> {
        let found = |found| invalid(origin, tensor, found, "finite values");
        let counted = match self.dtype.width() {
            width @ (1 | 2) => sorted(&self.counts, |bits| {
                decoded(self.dtype, bits, width as u32 * 8)
            }),
            _ => sorted(&self.counts, |bits| decoded(ExactDtype::BF16, bits, 16)),
        };
        let (Some(first), Some(last)) = (counted.first(), counted.last()) else {
            return Err(found("no value"));
        };
        let are_finite = first.0.is_finite() && last.0.is_finite() || self.wide.is_some();
        if !self.is_finite || !are_finite {
            return Err(found("infinities or NaN"));
        }
        let (min, max) = match &self.wide {
            Some(wide) => (wide.min, wide.max),
            None => (first.0, last.0),
        };
        let moments = match self.wide {
            Some(wide) => wide.sums.moments(),
            None => {
                let mut about_zero = ShiftedSums::about(0.0);
                counted.iter().for_each(|(x, n)| about_zero.add(*x, *n));
                let mut sums = ShiftedSums::about(about_zero.moments().mean);
                counted.iter().for_each(|(x, n)| sums.add(*x, *n));
                sums.moments()
            }
        };
        let deviation = moments.variance.sqrt();
        let limit = OUTLIER_DEVIATIONS * deviation;
        let count = |is_such: &dyn Fn(f64) -> bool| {
            let such = counted.iter().filter(|(x, _)| is_such(*x));
            such.map(|(_, n)| n).sum()
        };
        Ok(ValueStatistics {
            min,
            max,
            mean: moments.mean,
            standard_deviation: deviation,
            excess_kurtosis: (deviation > 0.0 && min < max)
                .then(|| moments.fourth / moments.variance.powi(2) - 3.0),
            zeros: count(&|x| x == 0.0),
            outliers: count(&|x| (x - moments.mean).abs() > limit && min < max),
            quantiles: PROBABILITIES
                .iter()
                .map(|&probability| Quantile {
                    probability,
                    value: quantile(&counted, probability).clamp(min, max),
                })
                .collect(),
        })
    }
}

/// The values that occur, in order, and how often; NaN last.
fn sorted(counts: &[u64], value: impl Fn(u64) -> f64) -> Vec<(f64, u64)> {
    let occurring = counts.iter().enumerate().filter(|(_, n)| **n > 0);
    let mut occurring: Vec<_> = occurring
        .map(|(bits, &n)| (value(bits as u64), n))
        .collect();
    occurring.sort_by(|a, b| match (a.0.is_nan(), b.0.is_nan()) {
        (false, false) => a.0.total_cmp(&b.0),
        (a, b) => a.cmp(&b),
    });
    occurring
}

/// The smallest of the sorted values such that at least this share is not above it.
fn quantile(counted: &[(f64, u64)], probability: f64) -> f64 {
    let total: u64 = counted.iter().map(|(_, n)| n).sum();
    let wanted = ((probability * total as f64).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    let reached = counted.iter().find(|(_, n)| {
        seen += n;
        seen >= wanted
    });
    reached.map_or(f64::NAN, |(value, _)| *value)
}

/// What is gathered of types of more than 16 bits.
struct WideSums {
    min: f64,
    max: f64,
    sums: ShiftedSums,
}

impl WideSums {
    fn new(first: f64) -> Self {
        WideSums {
            min: first,
            max: first,
            sums: ShiftedSums::about(first),
        }
    }

    fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sums.add(value, 1);
    }
}

/// Sums of powers of the distances from a value. If it is near the mean, little is lost when the central moments are computed.
struct ShiftedSums {
    shift: f64,
    count: f64,
    powers: [f64; 4],
}

/// Mean and central moments.
struct Moments {
    mean: f64,
    variance: f64,
    fourth: f64,
}

impl ShiftedSums {
    fn about(shift: f64) -> Self {
        ShiftedSums {
            shift,
            count: 0.0,
            powers: [0.0; 4],
        }
    }

    fn add(&mut self, value: f64, count: u64) {
        let distance = value - self.shift;
        let mut term = count as f64;
        self.count += term;
        for power in &mut self.powers {
            term *= distance;
            *power += term;
        }
    }

    fn moments(&self) -> Moments {
        let [m1, m2, m3, m4] = self.powers.map(|sum| sum / self.count);
        Moments {
            mean: self.shift + m1,
            variance: (m2 - m1 * m1).max(0.0),
            fourth: m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4),
        }
    }
}

/// The values in bytes of whole values.
pub(crate) fn values(dtype: ExactDtype, bytes: &[u8]) -> impl Iterator<Item = f64> {
    let width = dtype.width() as usize;
    bytes.chunks_exact(width).map(move |value| {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(value);
        decoded(dtype, u64::from_le_bytes(wide), 8 * width as u32)
    })
}

/// The value of a bit pattern. Integers beyond 2^53 are rounded.
fn decoded(dtype: ExactDtype, bits: u64, width: u32) -> f64 {
    let signed = || ((bits << (64 - width)) as i64 >> (64 - width)) as f64;
    match dtype {
        ExactDtype::F64 => f64::from_bits(bits),
        ExactDtype::F32 => f64::from(f32::from_bits(bits as u32)),
        ExactDtype::BF16 => f64::from(bf16::to_f32(bits as u16)),
        ExactDtype::F16 => small_float(bits, 5, 10),
        ExactDtype::F8_E5M2 => small_float(bits, 5, 2),
        // This format has no infinity: all bits but the sign are set in NaN, and other values use the largest exponent.
        ExactDtype::F8_E4M3 if bits & 0x7f == 0x7f => f64::NAN,
        ExactDtype::F8_E4M3 => finite_float(bits, 4, 3),
        ExactDtype::I8 | ExactDtype::I16 | ExactDtype::I32 | ExactDtype::I64 => signed(),
        ExactDtype::U8 | ExactDtype::U16 | ExactDtype::U32 | ExactDtype::U64 | ExactDtype::BOOL => {
            bits as f64
        }
    }
}

/// The value of a float of the IEEE kind with these numbers of exponent and mantissa bits.
fn small_float(bits: u64, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let full = (1 << exponent_bits) - 1;
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    match (bits >> mantissa_bits & full == full, mantissa) {
        (false, _) => finite_float(bits, exponent_bits, mantissa_bits),
        (true, 0) if bits >> (exponent_bits + mantissa_bits) & 1 == 1 => f64::NEG_INFINITY,
        (true, 0) => f64::INFINITY,
        (true, _) => f64::NAN,
    }
}

/// The value of a float whose largest exponent has no special meaning.
fn finite_float(bits: u64, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let hidden = u64::from(exponent > 0) << mantissa_bits;
    // A power of two within the normal range of f64, exact.
    let power = exponent.max(1) as i64 - bias - i64::from(mantissa_bits);
    let scale = f64::from_bits(((power + 1023) as u64) << 52);
    let magnitude = (hidden | mantissa) as f64 * scale;
    match bits >> (exponent_bits + mantissa_bits) & 1 {
        0 => magnitude,
        _ => -magnitude,
    }
}
