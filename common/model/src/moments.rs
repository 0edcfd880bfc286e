//! Second moments `XᵀX` of the inputs of a layer and of the gradients at its outputs, accumulated in a fixed order.
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
    /// Number of tokens.
    pub count: u64,
}

/// Running sums over tokens of the products of a vector's entries with those of the same block: the diagonal blocks of a
/// second moment.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockMoments {
    /// Width of one token's vector.
    pub n: usize,
    /// Entries of a block; the last may have fewer.
    pub block: usize,
    /// `[n, block]`: in row i the sums over tokens of `x_i x_k`, k running over the block of i; 0 beyond the width.
    pub sum: Vec<f32>,
    /// Number of tokens.
    pub count: u64,
}

impl BlockMoments {
    /// Empty sums.
    pub fn new(n: usize, block: usize) -> Self {
        BlockMoments {
            n,
            block,
            sum: vec![0.0; n * block],
            count: 0,
        }
    }

    /// Adds the rows of `x: [tokens, n]`.
    ///
    /// # Errors
    /// [`MomentsError::Width`].
    pub fn add<B: Backend>(&mut self, x: Tensor<B, 2>) -> Result<(), MomentsError> {
        let [tokens, found] = x.dims();
        let expected = self.n;
        if found != expected {
            return Err(MomentsError::Width { found, expected });
        }
        for first in (0..self.n).step_by(self.block) {
            let last = (first + self.block).min(self.n);
            let part = x.clone().slice([0..tokens, first..last]);
            let products = values(part.clone().transpose().matmul(part).into_data());
            let rows = self.sum[first * self.block..].chunks_mut(self.block);
            for (sums, products) in rows.zip(products.chunks_exact(last - first)) {
                sums.iter_mut()
                    .zip(products)
                    .for_each(|(sum, product)| *sum += product);
            }
        }
        self.count += tokens as u64;
        Ok(())
    }

    /// Means over the tokens added, `[n, block]`, blocks exactly symmetric.
    ///
    /// # Errors
    /// [`MomentsError::Empty`], [`MomentsError::NonFinite`].
    pub fn finish(self) -> Result<Vec<f32>, MomentsError> {
        let (n, block) = (self.n, self.block);
        if self.count == 0 {
            return Err(MomentsError::Empty { n });
        }
        let scale = 1.0 / self.count as f64;
        let mut mean = vec![0.0; n * block];
        for row in 0..n {
            let first = row - row % block;
            for col in row..(first + block).min(n) {
                let sum = f64::from(self.sum[row * block + col - first]);
                let found = (sum * scale) as f32;
                if !found.is_finite() {
                    return Err(MomentsError::NonFinite { n, row, col, found });
                }
                mean[row * block + col - first] = found;
                mean[col * block + row - first] = found;
            }
        }
        Ok(mean)
    }
}

impl Moments {
    /// Empty sums of width `n`.
    pub fn new(n: usize) -> Self {
        Moments {
            n,
            sum: vec![0.0; n * n],
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
        self.count += tokens as u64;
        Ok(())
    }

    /// Means over the tokens added, `[n, n]`, exactly symmetric.
    ///
    /// # Errors
    /// [`MomentsError::Empty`], [`MomentsError::NonFinite`].
    pub fn finish(self) -> Result<Vec<f32>, MomentsError> {
        let Moments {
            n,
            sum: mut second,
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
        Ok(second)
    }
}

/// The values of an f32 tensor.
fn values(data: TensorData) -> Vec<f32> {
    data.into_vec()
        .expect("backends of this crate compute in f32")
}
