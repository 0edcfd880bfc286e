//! The one error type of this crate.
//!
//! The codec works on plain slices, so its errors say what was found and what was expected. Callers add the file, the layer and
//! the name of the tensor. This crate never prints an error.

use thiserror::Error;

/// An error of the codec.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CodecError {
    /// A slice does not have the length that its shape requires.
    #[error("{what}: found {found} values, expected {expected}")]
    Shape {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that the shape requires.
        expected: usize,
    },
    /// A value of an input is NaN or infinite.
    #[error("{what}: value {index} is not finite (found {found})")]
    NotFinite {
        /// Which slice.
        what: &'static str,
        /// Index of the first such value.
        index: usize,
        /// The value.
        found: f32,
    },
    /// A number is outside its valid range.
    #[error("{what}: found {found}, expected {expected}")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        found: f64,
        /// The allowed range in words.
        expected: &'static str,
    },
    /// The matrix is not positive definite at any damping that was tried.
    #[error(
        "Hessian of width {n} is not positive definite at damping {damping:e} of its mean diagonal"
    )]
    NotPositiveDefinite {
        /// Width of the matrix.
        n: usize,
        /// The last damping tried.
        damping: f64,
    },
    /// A decomposition did not converge.
    #[error("singular value decomposition of a [{rows}, {cols}] matrix did not converge")]
    NoConvergence {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// The tables were not built from this tensor: they lack the context of an element or have no code for an index.
    #[error("context {context} has no code for index {value}: the tables belong to other tensors")]
    NoCode {
        /// Context of the element.
        context: usize,
        /// The quantization index.
        value: i16,
    },
    /// A layer exceeds its budget at all steps that were tried.
    #[error(
        "the layer takes {found} bits at the coarsest steps tried, expected at most {expected}"
    )]
    Budget {
        /// The smallest size reached, bits.
        found: u64,
        /// The budget, bits.
        expected: u64,
    },
    /// Bytes that no encoder can have written.
    #[error("damaged {what}: found {found}, expected {expected}")]
    Damaged {
        /// Which part of the encoding.
        what: &'static str,
        /// The value found.
        found: u64,
        /// What the format requires, in words.
        expected: &'static str,
    },
}

/// Refuses a slice of the wrong length.
pub(crate) fn check_len(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), CodecError> {
    if found == expected {
        Ok(())
    } else {
        Err(CodecError::Shape {
            what,
            found,
            expected,
        })
    }
}

/// Refuses a slice that does not have `rows · cols` values, also if the product overflows.
pub(crate) fn check_matrix(
    what: &'static str,
    found: usize,
    rows: usize,
    cols: usize,
) -> Result<(), CodecError> {
    check_len(what, found, rows.saturating_mul(cols))
}

/// Refuses NaN and infinities.
pub(crate) fn check_finite(what: &'static str, values: &[f32]) -> Result<(), CodecError> {
    // The sum of x * 0 is NaN if any value is not finite. This form vectorizes.
    let finite = values.chunks(4096).all(|chunk| {
        let mut lanes = [0.0f32; 16];
        for group in chunk.chunks(16) {
            for (lane, x) in lanes.iter_mut().zip(group) {
                *lane += x * 0.0;
            }
        }
        lanes.iter().all(|x| x.is_finite())
    });
    match if finite {
        None
    } else {
        values.iter().position(|x| !x.is_finite())
    } {
        None => Ok(()),
        Some(index) => Err(CodecError::NotFinite {
            what,
            index,
            found: values[index],
        }),
    }
}
