//! The error of values against reference values, in the usual measures.

use serde::Serialize;

/// How far values `y` are from reference values `x`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorStatistics {
    /// Number of values.
    pub values: u64,
    /// Number of values that differ.
    pub differing: u64,
    /// `‖x − y‖² / ‖x‖²`. None if all reference values are 0 and others are not.
    pub relative_squared_error: Option<f64>,
    /// Signal-to-noise ratio in decibels, `−10·log10` of the relative squared error. None if that is none or 0.
    pub signal_to_noise_db: Option<f64>,
    /// Root of the mean squared error.
    pub root_mean_square_error: f64,
    /// Largest absolute error.
    pub max_absolute_error: f64,
    /// Cosine of the angle between the two. None if one of them is 0.
    pub cosine: Option<f64>,
}

/// Sums over pairs of values.
#[derive(Debug, Clone, Default)]
pub(crate) struct ErrorSums {
    values: u64,
    differing: u64,
    reference_square: f64,
    other_square: f64,
    product: f64,
    error_square: f64,
    max: f64,
}

impl ErrorSums {
    /// Adds pairs of a reference value and the other value.
    pub(crate) fn add(&mut self, pairs: impl Iterator<Item = (f64, f64)>) {
        // Sums of a piece first: they are local, and adding them loses less.
        let mut piece = ErrorSums::default();
        for (x, y) in pairs {
            let error = x - y;
            piece.values += 1;
            piece.differing += u64::from(x != y);
            piece.reference_square += x * x;
            piece.other_square += y * y;
            piece.product += x * y;
            piece.error_square += error * error;
            piece.max = piece.max.max(error.abs());
        }
        self.merge(&piece);
    }

    /// Adds the sums over other pairs.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.values += other.values;
        self.differing += other.differing;
        self.reference_square += other.reference_square;
        self.other_square += other.other_square;
        self.product += other.product;
        self.error_square += other.error_square;
        self.max = self.max.max(other.max);
    }

    pub(crate) fn finish(&self) -> ErrorStatistics {
        let relative = match (self.error_square, self.reference_square) {
            (0.0, _) => Some(0.0),
            (_, 0.0) => None,
            (error, reference) => Some(error / reference),
        };
        let lengths = (self.reference_square * self.other_square).sqrt();
        ErrorStatistics {
            values: self.values,
            differing: self.differing,
            relative_squared_error: relative,
            signal_to_noise_db: relative.filter(|r| *r > 0.0).map(|r| -10.0 * r.log10()),
            root_mean_square_error: (self.error_square / self.values.max(1) as f64).sqrt(),
            max_absolute_error: self.max,
            cosine: (lengths > 0.0).then(|| (self.product / lengths).clamp(-1.0, 1.0)),
        }
    }
}
