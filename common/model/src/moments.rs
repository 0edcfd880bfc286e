//! Second moments `XᵀX` of the inputs of a layer and of the gradients at its outputs, accumulated in a fixed
//! order.
//!
//! [`Moments::add`] makes one matrix product per few columns of a block and adds the products to the sums in
//! the order of the calls. Only the upper triangle is computed, and a little of the lower one. On the CPU the vectors are rounded to
//! bfloat16 first, whose products take half the time where the processor has an instruction for them; sums are in f32.
//! A product has the same bits for any number of threads, so the sums do too. Nothing is regularized here, and nothing
//! normalized except by the number of tokens.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use uc_simd::{
    Left, MatrixView, PANEL, Pairs, has_bf16_products, left_vectors, multiply_add, pack_columns,
    panel_len,
};

use crate::device::{Cpu, is};
use crate::forward::{Values, rounded_to_bf16};
use crate::matmul::matmul;
use crate::work::{self, Amount, Kind};

/// Columns per matrix product: few enough to skip most of the lower triangle, enough for the product to run at
/// full speed.
const COLUMN_CHUNK: usize = 256;
/// The same on the CPU, for blocks of at most [`NARROW_BLOCK`] columns.
const NARROW_BAND: usize = 96;
/// Widest block whose lower triangle costs more than shorter products do.
const NARROW_BLOCK: usize = 2048;

/// Why moments cannot be accumulated or finished.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MomentsError {
    /// The rows or moments to add have another width or block size.
    #[error("cannot add vectors of width {found} to moments of width {expected}")]
    Width {
        /// Width of the vectors.
        found: usize,
        /// Width of these moments.
        expected: usize,
    },
    /// No token was added.
    #[error("moments of width {n}: no tokens were added, expected at least one")]
    Empty {
        /// Width of these moments.
        n: usize,
    },
    /// An entry is infinite or not a number.
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

/// Sums of second moments over tokens, of the whole matrix or of its diagonal blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Dimension of one token's vector.
    pub n: usize,
    /// Size of a diagonal block; the last one may be smaller. If equal to `n`, the whole matrix is one block.
    pub block: usize,
    /// `[n, block]`: row `i` has the sums over tokens of `x_i x_k` for all `k` in the block of `i`. Entries to the left
    /// of the row's column chunk, and beyond the width, are zero.
    pub sum: Vec<f32>,
    /// Number of tokens.
    pub count: u64,
}

impl Moments {
    /// Empty sums of dimension `n` in blocks of size `block`.
    pub fn new(n: usize, block: usize) -> Self {
        Moments {
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
        let (n, block) = (self.n, self.block);
        let amount = Amount {
            operations: (tokens * n * block) as u64,
            bytes: 4 * (tokens * n + n * block) as u64,
        };
        work::counted(Kind::Moments, amount, || {
            if is::<B, Cpu>() {
                self.add_values(&Values::new(&x), tokens);
            } else {
                self.add_products(x);
            }
        });
        self.count += tokens as u64;
        Ok(())
    }

    /// As [`Moments::add`], by products of tensors.
    fn add_products<B: Backend>(&mut self, x: Tensor<B, 2>) {
        let tokens = x.dims()[0];
        for start in (0..self.n).step_by(self.block) {
            let end = (start + self.block).min(self.n);
            for first in (start..end).step_by(COLUMN_CHUNK) {
                let last = (first + COLUMN_CHUNK).min(end);
                let left = x.clone().slice([0..tokens, first..last]).transpose();
                let right = x.clone().slice([0..tokens, first..end]);
                let products = values(matmul(left, right).into_data());
                let width = end - first;
                for (row, products) in products.chunks_exact(width).enumerate() {
                    let at = (first + row) * self.block + first - start;
                    let sums = &mut self.sum[at..at + width];
                    sums.iter_mut()
                        .zip(products)
                        .for_each(|(sum, product)| *sum += product);
                }
            }
        }
    }

    /// As [`Moments::add`], for the CPU: bands of rows are added to the sums directly, each by one thread.
    fn add_values(&mut self, x: &[f32], tokens: usize) {
        if has_bf16_products() {
            return self.add_panels(x, tokens);
        }
        self.add_bands(&rounded_to_bf16(x), tokens);
    }

    /// Adds products in f32.
    fn add_bands(&mut self, x: &[f32], tokens: usize) {
        let (n, block) = (self.n, self.block);
        let band = if block <= NARROW_BLOCK {
            NARROW_BAND
        } else {
            COLUMN_CHUNK
        };
        for (index, sums) in self.sum.chunks_mut(block * block).enumerate() {
            let start = index * block;
            let end = (start + block).min(n);
            let bands = sums.par_chunks_mut(band * block).enumerate();
            bands.for_each(|(index, sums)| {
                let first = start + index * band;
                let columns = |last: usize| MatrixView::new(&x[first..], tokens, last - first, n);
                let left = columns((first + band).min(end)).transposed();
                multiply_add(&mut sums[first - start..], block, left, columns(end));
            });
        }
    }

    /// Adds products of panels.
    fn add_panels(&mut self, x: &[f32], tokens: usize) {
        let (n, block) = (self.n, self.block);
        let length = panel_len(tokens);
        for (index, sums) in self.sum.chunks_mut(block * block).enumerate() {
            let start = index * block;
            let end = (start + block).min(n);
            let mut panels = vec![Pairs::ZERO; (end - start).div_ceil(PANEL) * length];
            let packed = panels.par_chunks_mut(length.max(1)).enumerate();
            packed.for_each(|(panel, out)| pack_columns(x, tokens, n, start + panel * PANEL, out));
            let band = left_vectors();
            let bands = sums.par_chunks_mut(band * block).enumerate();
            bands.for_each(|(index, sums)| {
                let first = index * band;
                let size = [band, usize::MAX].map(|rows| rows.min(end - start - first));
                let right = &panels[first / PANEL * length..];
                let left = Left::from_panels(&right[..size[0].div_ceil(PANEL) * length], length);
                left.add_products(&mut sums[first..], block, size, right);
            });
        }
    }

    /// Adds the sums of other moments of the same shape.
    ///
    /// # Errors
    /// [`MomentsError::Width`].
    pub fn merge(&mut self, other: &Moments) -> Result<(), MomentsError> {
        let (expected, found) = (self.n, other.n);
        if found != expected || self.block != other.block {
            return Err(MomentsError::Width { found, expected });
        }
        let pairs = self.sum.iter_mut().zip(&other.sum);
        pairs.for_each(|(sum, other)| *sum += other);
        self.count += other.count;
        Ok(())
    }

    /// Adds `count` pseudo-tokens, each with the mean second moment of `others`.
    ///
    /// # Errors
    /// [`MomentsError::Width`]; [`MomentsError::Empty`] if `others` has no tokens.
    pub fn add_pseudo_tokens(&mut self, count: u64, others: &Moments) -> Result<(), MomentsError> {
        if others.count == 0 {
            return Err(MomentsError::Empty { n: self.n });
        }
        let mut pseudo = others.clone();
        let scale = (count as f64 / others.count as f64) as f32;
        pseudo.sum.iter_mut().for_each(|sum| *sum *= scale);
        pseudo.count = count;
        self.merge(&pseudo)
    }

    /// The means over the added tokens, `[n, block]`, every block exactly symmetric.
    ///
    /// # Errors
    /// [`MomentsError::Empty`], [`MomentsError::NonFinite`].
    pub fn finish(self) -> Result<Vec<f32>, MomentsError> {
        let count = self.count;
        self.finish_with_count(count)
    }

    /// As [`Moments::finish`], but the means are over `count` tokens: tokens that were not added count as zeros.
    ///
    /// # Errors
    /// As [`Moments::finish`].
    pub fn finish_with_count(self, count: u64) -> Result<Vec<f32>, MomentsError> {
        let Moments {
            n,
            block,
            sum: mut sums,
            ..
        } = self;
        if count == 0 {
            return Err(MomentsError::Empty { n });
        }
        let scale = 1.0 / count as f64;
        for row in 0..n {
            let start = row - row % block;
            for col in row..(start + block).min(n) {
                let at = row * block + col - start;
                let mean = (f64::from(sums[at]) * scale) as f32;
                if !mean.is_finite() {
                    return Err(MomentsError::NonFinite {
                        n,
                        row,
                        col,
                        found: mean,
                    });
                }
                sums[at] = mean;
                sums[col * block + row - start] = mean;
            }
        }
        Ok(sums)
    }
}

/// The values of an f32 tensor.
fn values(data: TensorData) -> Vec<f32> {
    data.into_vec()
        .expect("backends of this crate compute in f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;

    /// Token vectors of fixed small integers.
    fn tokens(count: usize, n: usize) -> Tensor<Cpu, 2> {
        let values: Vec<f32> = (0..count * n)
            .map(|i| ((i * 7919) % 13) as f32 - 6.0)
            .collect();
        Tensor::from_data(TensorData::new(values, [count, n]), &Default::default())
    }

    #[test]
    fn diagonal_blocks_equal_those_of_the_whole_matrix() {
        let (n, block) = (700, 300);
        let (mut whole, mut parts) = (Moments::new(n, n), Moments::new(n, block));
        for count in [5, 9] {
            whole.add(tokens(count, n)).unwrap();
            parts.add(tokens(count, n)).unwrap();
        }
        let (whole, parts) = (whole.finish().unwrap(), parts.finish().unwrap());
        for row in 0..n {
            let start = row - row % block;
            for col in 0..block {
                let expected = if start + col < n {
                    whole[row * n + start + col]
                } else {
                    0.0
                };
                assert_eq!(parts[row * block + col], expected, "[{row}, {col}]");
            }
        }
        assert_eq!(whole[3 * n + 650], whole[650 * n + 3]);
    }

    #[test]
    fn sums_equal_those_of_products_of_tensors_whatever_the_number_of_threads() {
        for (n, block) in [(700, 700), (700, 300), (2500, 2500)] {
            let mut products = Moments::new(n, block);
            products.add_products(tokens(40, n));
            products.count = 40;
            let sums = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let mut moments = Moments::new(n, block);
                pool.unwrap()
                    .install(|| moments.add(tokens(40, n)))
                    .unwrap();
                moments.finish().unwrap()
            };
            let found = sums(1);
            // The sums are small integers, exact in any order.
            assert_eq!(found, products.finish().unwrap());
            assert_eq!(found, sums(3));
        }
    }

    #[test]
    fn a_wrong_width_no_tokens_and_infinite_moments_are_refused() {
        let mut moments = Moments::new(3, 3);
        let width = moments.add(tokens(2, 4)).unwrap_err();
        assert_eq!(
            width,
            MomentsError::Width {
                found: 4,
                expected: 3
            }
        );
        assert_eq!(moments.finish().unwrap_err(), MomentsError::Empty { n: 3 });
        let mut moments = Moments::new(3, 3);
        moments.add(tokens(2, 3) * 1e30).unwrap();
        assert!(matches!(
            moments.finish(),
            Err(MomentsError::NonFinite { n: 3, .. })
        ));
    }
}
