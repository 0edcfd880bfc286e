//! Second moments `XᵀX` of the inputs of a layer, accumulated in a fixed order.
//!
//! One call of [`Moments::add`] makes one product per 256 columns and adds it to the sums, in the
//! order of the calls; only the upper triangle is computed. The products give the same bits for any
//! number of threads, so the sums do too. Nothing is regularised or normalised beyond the mean over
//! tokens.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// Columns of one product. Small enough to skip most of the lower triangle, large enough that the
/// product runs at full speed.
const PANEL: usize = 256;

/// Why moments cannot be accumulated or finished.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MomentsError {
    /// The rows given have another width.
    #[error("rows of {found} values given to moments of width {expected}")]
    Width {
        /// Width given.
        found: usize,
        /// Width of these moments.
        expected: usize,
    },
    /// No token was added.
    #[error("moments of width {n} finished without a single token")]
    Empty {
        /// Width of these moments.
        n: usize,
    },
    /// A sum is infinite or not a number.
    #[error("moments of width {n}: entry [{row}, {col}] is {found}, expected a finite number")]
    NonFinite {
        /// Width of these moments.
        n: usize,
        /// Row of the entry.
        row: usize,
        /// Column of the entry.
        col: usize,
        /// Its value.
        found: f32,
    },
}

/// Running sums over tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Width of one token's vector.
    pub n: usize,
    /// `[n, n]` row-major, sum over tokens of `x xᵀ`; below the diagonal blocks it stays zero.
    pub sum: Vec<f32>,
    /// `[n]` sum over tokens of `x`.
    pub total: Vec<f64>,
    /// Number of tokens.
    pub count: u64,
}

/// Means over tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct MeanMoments {
    /// Width of one token's vector.
    pub n: usize,
    /// `[n, n]` mean of `x xᵀ`, exactly symmetric.
    pub second: Vec<f32>,
    /// `[n]` mean of `x`.
    pub mean: Vec<f32>,
    /// Number of tokens.
    pub count: u64,
}

impl Moments {
    /// Empty sums of width `n`.
    pub fn new(n: usize) -> Self {
        Moments {
            n,
            sum: vec![0.0; n * n],
            total: vec![0.0; n],
            count: 0,
        }
    }

    /// Adds the rows of `x: [tokens, n]`.
    ///
    /// # Errors
    /// [`MomentsError::Width`].
    pub fn add<B: Backend>(&mut self, x: Tensor<B, 2>) -> Result<(), MomentsError> {
        let [tokens, found] = x.dims();
        if found != self.n {
            return Err(MomentsError::Width {
                found,
                expected: self.n,
            });
        }
        let n = self.n;
        for first in (0..n).step_by(PANEL) {
            let last = (first + PANEL).min(n);
            let left = x.clone().slice([0..tokens, first..last]).transpose();
            let panel = values(
                left.matmul(x.clone().slice([0..tokens, first..n]))
                    .into_data(),
            );
            let width = n - first;
            for (row, products) in panel.chunks_exact(width).enumerate() {
                let start = (first + row) * n + first;
                let sums = &mut self.sum[start..start + width];
                sums.iter_mut()
                    .zip(products)
                    .for_each(|(sum, product)| *sum += product);
            }
        }
        let columns = values(x.sum_dim(0).into_data());
        self.total
            .iter_mut()
            .zip(columns)
            .for_each(|(total, column)| *total += f64::from(column));
        self.count += tokens as u64;
        Ok(())
    }

    /// Means over the tokens added.
    ///
    /// # Errors
    /// [`MomentsError::Empty`], [`MomentsError::NonFinite`].
    pub fn finish(self) -> Result<MeanMoments, MomentsError> {
        let Moments {
            n,
            sum: mut second,
            total,
            count,
        } = self;
        if count == 0 {
            return Err(MomentsError::Empty { n });
        }
        let scale = 1.0 / count as f64;
        for row in 0..n {
            for col in row..n {
                let found = (f64::from(second[row * n + col]) * scale) as f32;
                if !found.is_finite() {
                    return Err(MomentsError::NonFinite { n, row, col, found });
                }
                second[row * n + col] = found;
                second[col * n + row] = found;
            }
        }
        let mean = total.iter().map(|total| (total * scale) as f32).collect();
        Ok(MeanMoments {
            n,
            second,
            mean,
            count,
        })
    }
}

/// The values of an f32 tensor.
fn values(data: TensorData) -> Vec<f32> {
    data.into_vec()
        .expect("backends of this crate compute in f32")
}
