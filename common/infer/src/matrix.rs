//! Weight matrices in memory.

use half::slice::HalfFloatSliceExt;

use crate::coded::Coded;
use crate::kernel;
use crate::product::products;

/// Rows of a task are a multiple of this.
const GROUP: usize = 8;
/// Weights of a task, about.
const TASK_WEIGHTS: usize = 1 << 17;

/// A matrix `[rows, cols]`, `y = x Wᵀ`.
#[derive(Debug)]
pub enum Matrix {
    /// Stored exactly.
    Dense {
        /// The values, `[rows, cols]` row-major.
        values: Dense,
        /// Inputs.
        cols: usize,
    },
    /// A compressed linear.
    Coded(Coded),
}

/// Values as a checkpoint stores them.
#[derive(Debug)]
pub enum Dense {
    /// f32.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<half::f16>),
    /// bfloat16.
    Bf16(Vec<half::bf16>),
}

impl Dense {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Dense::F32(values) => values.len(),
            Dense::F16(values) => values.len(),
            Dense::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Dense::F32(values) => 4 * values.len(),
            _ => 2 * self.len(),
        }
    }

    /// The values from `first` on, as f32; exact.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match self {
            Dense::F32(values) => out.copy_from_slice(&values[range]),
            Dense::F16(values) => values[range].convert_to_f32_slice(out),
            Dense::Bf16(values) => values[range].convert_to_f32_slice(out),
        }
    }

    /// All values as f32; exact.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.read(0, &mut values);
        values
    }
}

impl Matrix {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Matrix::Dense { values, cols } => values.len() / cols,
            Matrix::Coded(coded) => coded.shape()[0],
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            Matrix::Dense { cols, .. } => *cols,
            Matrix::Coded(coded) => coded.shape()[1],
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Matrix::Dense { values, .. } => values.bytes(),
            Matrix::Coded(coded) => coded.bytes(),
        }
    }

    /// The weights of the rows from `first` on, `out: [rows, cols]`.
    pub(crate) fn rows_into(&self, first: usize, out: &mut [f32]) {
        match self {
            Matrix::Dense { values, cols } => values.read(first * cols, out),
            Matrix::Coded(coded) => coded.rows_into(first, out),
        }
    }

    /// `x Wᵀ` for `x: [tokens, cols]`; `[tokens, rows]`. The values of a token do not depend on the other tokens.
    ///
    /// # Panics
    /// If `x` has no whole number of rows.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        products(&[self], x).pop().expect("one matrix")
    }

    /// Rows of a task of a product with so many tokens, if it is to have no more than `largest`.
    pub(crate) fn task_rows(&self, tokens: usize, largest: usize) -> usize {
        match self {
            Matrix::Coded(coded) => coded.task_rows(tokens, largest),
            Matrix::Dense { cols, .. } => rows_of_task(*cols, largest, GROUP),
        }
    }
}

/// A multiple of `unit` rows of so many columns that have about [`TASK_WEIGHTS`], if possible no more than `largest`.
pub(crate) fn rows_of_task(cols: usize, largest: usize, unit: usize) -> usize {
    let rows = (TASK_WEIGHTS / cols).min(largest);
    (rows / unit).max(1) * unit
}

impl Dense {
    /// The rows of `x Wᵀ` from `first` on, for a matrix `[_, cols]` and `x: [tokens, cols]`; `out: [rows, tokens]`.
    pub(crate) fn rows_of_product(&self, first: usize, x: &[f32], cols: usize, out: &mut [f32]) {
        let (tokens, first) = (x.len() / cols, first * cols);
        let range = first..first + out.len() / tokens * cols;
        match self {
            Dense::F32(values) => kernel::products(&values[range], x, cols, out),
            Dense::Bf16(values) => kernel::products(&values[range], x, cols, out),
            Dense::F16(values) => {
                let mut weights = vec![0.0; range.len()];
                values[range].convert_to_f32_slice(&mut weights);
                kernel::products(&weights, x, cols, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
        let (rows, cols, tokens) = (301, 75, 11);
        let number = |i: usize| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3);
        let bf16 = (0..rows * cols).map(|i| half::bf16::from_f32(number(i)));
        let matrix = Matrix::Dense {
            values: Dense::Bf16(bf16.collect()),
            cols,
        };
        let x: Vec<f32> = (0..tokens * cols).map(|i| number(i + 17)).collect();
        let pool = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| matrix.product(&x))
        };
        let all = pool(1);
        assert_eq!(all, pool(3));
        for token in 0..tokens {
            let alone = matrix.product(&x[token * cols..(token + 1) * cols]);
            assert_eq!(alone, all[token * rows..(token + 1) * rows], "{token}");
        }
        let mut row = vec![0.0; cols];
        matrix.rows_into(200, &mut row);
        let expected: f64 = row
            .iter()
            .zip(&x)
            .map(|(w, x)| f64::from(*w) * f64::from(*x))
            .sum();
        assert!((f64::from(all[200]) - expected).abs() < 1e-4);
    }
}
