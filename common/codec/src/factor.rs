//! Triangular factors of the second moments of a linear's inputs and of its output gradients.
//!
//! `H = Σ x·xᵀ` (or its mean) over the inputs of a linear layer is damped, `H' = H + d·I` with
//! `d = damping · mean(diag H)`, and factored as `H' = A·Aᵀ` with **A upper triangular** (the
//! Cholesky factor of `H'` with rows and columns in reverse order, in f64). Then the output error of
//! any weight error `E` [rows, n] is `tr(E H' Eᵀ) = ‖E·A‖²`, and
//! `(E·A)_ij = A_jj · (e_ij + Σ_{k<j} e_ik · a_kj)` with `a_kj = A_kj / A_jj`: column j can be
//! quantized so as to cancel the error of the columns before it, without forming an inverse. This is
//! the LDLQ form (Chee et al. 2023, QuIP) of GPTQ (Frantar et al. 2022): the upper Cholesky factor
//! `U` of the inverse `H'⁻¹` used there is `A⁻¹`, so `U_jj = 1 / A_jj`, which is [`Factor::inv_diag`].
//!
//! Corner cases are defined. An input that was never active (`H_jj = 0`) has the energy `d` that damping gives it, and neither
//! takes nor gives feedback. `H = 0` is factored as the identity and marked by [`Factor::is_zero`]: no weight error has an effect
//! under it. If the damped matrix is not numerically positive definite,
//! damping is raised tenfold, to at least 1e-8, up to six times; [`Factor::damping`] is the value used.
//!
//! # Outputs
//! Let `G = E[g·gᵀ]` be the second moments of the gradients g at the outputs. To second order, and with gradients taken as
//! independent of inputs, a weight error `E` changes the loss by `tr(G E H Eᵀ)` up to a constant factor (Kronecker-factored
//! Fisher information: Martens and Grosse 2015; for rounding: Tseng et al. 2025, arXiv 2505.22988). With `G' = B·Bᵀ`, as
//! `H' = A·Aᵀ`, this is `‖Bᵀ·E·A‖²`: row i can be quantized so as to cancel the error of the rows above it with
//! `b_ki = B_ki / B_ii`, as column j can with `a_kj`.
//!
//! # Blocks
//! A matrix may be stored as its diagonal blocks, [n, block]: row i holds its entries in the columns of its own block, which
//! begins at `i − i mod block`, and zeros where the last block is narrower. A block of n or more is the whole matrix. Entries
//! outside the blocks are taken as zero. `H` of very wide inputs and `G` of very many outputs come in blocks that fit in
//! memory; the blocks of `G` hold whole blocks of [`crate::trellis::BLOCK_ROWS`] rows or divide one.
//!
//! This module factors matrices and derives numbers from the factors. It keeps none of them: see [`crate::factor_cache`].

#[cfg(test)]
mod tests;

use crate::error::{CodecError, check_finite, check_matrix};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::solve_unit_upper_triangular_in_place;
use faer::{MatMut, MatRef};
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

/// Number of dampings that are tried before a matrix is refused.
const ATTEMPTS: usize = 7;

/// Side of the diagonal blocks whose entries [`shrink_off_diagonal`] shrinks less than the others. A divisor of
/// [`crate::trellis::BLOCK_ROWS`].
pub const SHRINKAGE_BLOCK: usize = 128;

/// Side of the square tiles in which matrices are transposed.
const TILE: usize = 64;

/// Rows of one parallel piece of a product with a factor.
const PIECE_ROWS: usize = 128;

/// Columns of a factor that are multiplied at a time.
const PANEL_COLUMNS: usize = 128;

/// Tokens in one triangular solve of the leverages.
const LEVERAGE_TOKENS: usize = 64;

/// `H' = A·Aᵀ`, with the columns of A divided by their diagonal.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// Rows and columns of the matrix.
    pub n: usize,
    /// Width of its diagonal blocks.
    pub block: usize,
    /// [n, block] unit upper triangular in each block: `a_kj = A_kj / A_jj` for k ≤ j, 0 below.
    pub a: Vec<f32>,
    /// `[n]` `1 / A_jj`, finite and positive: the best steps are proportional to it.
    pub inv_diag: Vec<f32>,
    /// Damping that was used, as a fraction of the mean diagonal: the largest of any block, and at least the one requested.
    pub damping: f64,
    /// Number of inputs that were never active (`H_jj = 0`).
    pub dead_inputs: usize,
    /// Whether the matrix is zero, so that no error has an effect under it. `a` and `inv_diag` are those of the identity.
    pub is_zero: bool,
}

impl Factor {
    /// First entry and width of every block.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let starts = (0..self.n).step_by(self.block.max(1));
        starts.map(|first| (first, self.block.min(self.n - first)))
    }

    /// For a factor of output gradients: the effective mean square gradient `2^(−2 · mean log2 inv_diag)`, which is the geometric
    /// mean of `B_ii²`. With row steps proportional to `inv_diag`, a linear has the same rate and loss as one with this
    /// sensitivity in every output. 0 if the gradients are zero.
    pub fn sensitivity(&self) -> f64 {
        if self.is_zero {
            return 0.0;
        }
        let logs = self.inv_diag.iter().map(|&x| f64::from(x).log2());
        (-2.0 * logs.sum::<f64>() / self.n.max(1) as f64).exp2()
    }

    /// The error in the metric of the factor, `‖e·A‖²` of every row e of `errors` [rows, n]: what the weight error e changes at the
    /// output, as a mean square over the inputs. 0 if the moments are zero. Allocates a copy of `errors`.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn row_errors(&self, errors: &[f32]) -> Result<Vec<f64>, CodecError> {
        let rows = errors.len() / self.n.max(1);
        check_matrix("errors", errors.len(), rows, self.n)?;
        if self.is_zero {
            return Ok(vec![0.0; rows]);
        }
        let square = |&x: &f32| f64::from(x) * f64::from(x);
        let product = self.multiply(errors);
        let rows = product.chunks(self.n.max(1));
        Ok(rows.map(|row| row.iter().map(square).sum()).collect())
    }

    /// `X·A` for `x` [rows, n], in parallel over fixed pieces of rows.
    pub(crate) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        self.multiply_in_place(&mut out);
        out
    }

    /// Replaces `x` [rows, n] by `X·A`, in parallel over fixed pieces of rows.
    pub(crate) fn multiply_in_place(&self, x: &mut [f32]) {
        let n = self.n;
        x.par_chunks_mut(PIECE_ROWS * n.max(1)).for_each(|out| {
            let x = out.to_vec();
            let rows = x.len() / n;
            for (start, size) in self.blocks() {
                let a = &self.a[start * self.block..];
                for done in (0..size).step_by(PANEL_COLUMNS) {
                    let width = PANEL_COLUMNS.min(size - done);
                    let depth = done + width; // entries below the diagonal are zero
                    let x = MatrixView::new(&x[start..], rows, depth, n);
                    let a = MatrixView::new(&a[done..], depth, width, self.block);
                    multiply(&mut out[start + done..], n, x, a);
                }
            }
            for row in out.chunks_mut(n) {
                row.iter_mut()
                    .zip(&self.inv_diag)
                    .for_each(|(x, inverse)| *x /= inverse);
            }
        });
    }

    /// The leverage `xᵀ·H'⁻¹·x` of every row x of `rows` [t, n]: how strongly an error that is white in the metric of `H'`
    /// affects the outputs of this token. Its mean over the tokens of an undamped `H' = E[x·xᵀ]` is n. Allocates a copy of
    /// `rows`. The bits do not depend on the number of threads.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn leverages(&self, rows: &[f32]) -> Result<Vec<f32>, CodecError> {
        let tokens = rows.len() / self.n.max(1);
        check_matrix("tokens", rows.len(), tokens, self.n)?;
        let mut leverages = vec![0.0; tokens];
        leverages
            .par_chunks_mut(LEVERAGE_TOKENS)
            .zip(rows.par_chunks(LEVERAGE_TOKENS * self.n.max(1)))
            .for_each(|(leverages, rows)| self.add_leverages(leverages, rows));
        Ok(leverages)
    }

    /// Adds the leverages of `rows` [t, n] to `leverages` `[t]`, block by block.
    fn add_leverages(&self, leverages: &mut [f32], rows: &[f32]) {
        for (first, size) in self.blocks() {
            let rows = rows.chunks_exact(self.n);
            let mut whitened: Vec<f32> = rows
                .flat_map(|row| &row[first..first + size])
                .copied()
                .collect();
            let a = &self.a[first * self.block..];
            let a = MatRef::from_row_major_slice_with_stride(a, size, size, self.block);
            let x = MatMut::from_column_major_slice_mut(&mut whitened, size, leverages.len());
            solve_unit_upper_triangular_in_place(a, x, faer::Par::Seq);
            let inv_diag = &self.inv_diag[first..first + size];
            for (sum, row) in leverages.iter_mut().zip(whitened.chunks_exact(size)) {
                let parts = row.iter().zip(inv_diag).map(|(x, inverse)| x * inverse);
                *sum += parts.map(|z| z * z).sum::<f32>();
            }
        }
    }
}

/// As [`factorize_in_place`], for moments that the caller keeps.
///
/// # Errors
/// Those of [`factorize_in_place`].
pub fn factorize(h: &[f32], n: usize, damping: f64) -> Result<Factor, CodecError> {
    factorize_in_place(h.to_vec(), n, damping)
}

/// Factors the symmetric matrix `h` [n, block] with `damping` relative to its mean diagonal. The length of `h`
/// determines whether it is the whole matrix or its diagonal blocks. Only the lower triangles are read. A matrix of
/// zeros is factored as the identity and marked by [`Factor::is_zero`].
///
/// The factor takes the memory of `h`, and one `block·block` f64 buffer is allocated besides it: 5.6 GB in all at 53248 inputs in
/// blocks of 16384. The bits do not depend on the number of threads.
///
/// # Errors
/// [`CodecError::Shape`]; [`CodecError::NotFinite`]; [`CodecError::Range`] for a negative diagonal
/// entry or a damping that is negative or not finite; [`CodecError::NotPositiveDefinite`].
pub fn factorize_in_place(h: Vec<f32>, n: usize, damping: f64) -> Result<Factor, CodecError> {
    let block = block_width("second moments", h.len(), n)?;
    if !(0.0..=1e6).contains(&damping) {
        let expected = "0 to 1e6";
        return Err(CodecError::Range {
            what: "damping",
            found: damping,
            expected,
        });
    }
    let mean = mean_diagonal(&h, n, block)?;
    let mut factor = Factor {
        n,
        block,
        inv_diag: vec![1.0; n],
        damping,
        dead_inputs: (0..n).filter(|&j| h[j * block + j % block] == 0.0).count(),
        is_zero: mean == 0.0,
        a: h,
    };
    if factor.is_zero {
        factor.a.fill(0.0);
        (0..n).for_each(|j| factor.a[j * block + j % block] = 1.0);
        return Ok(factor);
    }
    let side = block.min(n);
    let mut buffer = vec![0.0f64; side * side];
    for first in (0..n).step_by(block) {
        let size = block.min(n - first);
        let (a, buffer) = (
            &mut factor.a[first * block..(first + size) * block],
            &mut buffer[..size * size],
        );
        let used = cholesky_damped(buffer, a, size, block, damping, mean)?;
        factor.damping = factor.damping.max(used);
        let inv_diag = &mut factor.inv_diag[first..first + size];
        unit_factor(buffer, size, block, a, inv_diag);
    }
    Ok(factor)
}

/// The damping to use at `bits_per_weight`, derived from `damping`, which is chosen for 5 bits per weight.
///
/// Below 5 bits it grows like the squared errors of the weights, and thus like those that the previous layers leave in the
/// inputs: by a factor of 4 per missing bit. At 5 bits and above, damping guards against sampling noise in the second
/// moments, which is the same at any rate.
pub fn damping_at_rate(damping: f64, bits_per_weight: f64) -> f64 {
    damping * (2.0 * (5.0 - bits_per_weight).max(0.0)).exp2()
}

/// Shrinks the off-diagonal entries of the second moments `h` [n, block] by the factor `1 − near` within the diagonal blocks
/// of [`SHRINKAGE_BLOCK`], and by `1 − far` outside them: estimates from few tokens mistake chance for correlation (shrinkage,
/// Ledoit and Wolf 2004). `near` and `far` are within 0..=1.
///
/// # Errors
/// [`CodecError::Shape`].
pub fn shrink_off_diagonal(h: &mut [f32], n: usize, near: f32, far: f32) -> Result<(), CodecError> {
    let block = block_width("second moments", h.len(), n)?;
    h.par_chunks_exact_mut(block)
        .enumerate()
        .for_each(|(i, row)| {
            let diagonal = i % block;
            let kept = row[diagonal];
            for (piece, values) in row.chunks_mut(SHRINKAGE_BLOCK).enumerate() {
                let shrinkage = match piece == diagonal / SHRINKAGE_BLOCK {
                    true => near,
                    false => far,
                };
                values.iter_mut().for_each(|x| *x *= 1.0 - shrinkage);
            }
            row[diagonal] = kept;
        });
    Ok(())
}

/// Width (at least 1) of the diagonal blocks of a matrix of `n` rows that is stored in `len` values.
pub(crate) fn block_width(what: &'static str, len: usize, n: usize) -> Result<usize, CodecError> {
    let block = (len / n.max(1)).max(1);
    check_matrix(what, len, n, block)?;
    Ok(block)
}

/// Mean of the diagonal of a matrix [n, block], 0 for n = 0. Refuses values that are not finite and negative diagonal entries.
pub(crate) fn mean_diagonal(h: &[f32], n: usize, block: usize) -> Result<f64, CodecError> {
    check_finite("second moments", h)?;
    let mut sum = 0.0;
    for j in 0..n {
        let entry = f64::from(h[j * block + j % block]);
        if entry < 0.0 {
            let expected = "no negative entry";
            return Err(CodecError::Range {
                what: "diagonal of the second moments",
                found: entry,
                expected,
            });
        }
        sum += entry;
    }
    Ok(sum / n.max(1) as f64)
}

/// Leaves the factor of a block in `buffer` [size, size]; returns the smallest damping tried with which it exists.
fn cholesky_damped(
    buffer: &mut [f64],
    h: &[f32],
    size: usize,
    stride: usize,
    damping: f64,
    mean: f64,
) -> Result<f64, CodecError> {
    let mut used = damping;
    for _ in 0..ATTEMPTS {
        fill_reversed(buffer, h, size, stride, used * mean);
        if cholesky(buffer, size) {
            return Ok(used);
        }
        used = (used * 10.0).max(1e-8);
    }
    Err(CodecError::NotPositiveDefinite {
        n: size,
        damping: used / 10.0,
    })
}

/// `buffer` [n, n] column-major, lower triangle (i ≥ j): element (i, j) becomes `H'[n-1-j, n-1-i]`,
/// so that column j is row `n-1-j` of `h` (rows `stride` apart), read backwards from its diagonal. `added` is added to the
/// diagonal.
fn fill_reversed(buffer: &mut [f64], h: &[f32], n: usize, stride: usize, added: f64) {
    buffer
        .par_chunks_mut(n)
        .enumerate()
        .for_each(|(j, column)| {
            let row = n - 1 - j;
            for i in j..n {
                column[i] = f64::from(h[row * stride + (n - 1 - i)]);
            }
            column[j] += added;
        });
}

/// Cholesky factorization in place (lower triangle, column-major). False if the matrix is not positive definite, or if a
/// diagonal entry of the factor or its inverse is not a positive, normal f32.
fn cholesky(buffer: &mut [f64], n: usize) -> bool {
    let par = faer::Par::rayon(0);
    let params = Default::default();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, params));
    let matrix = MatMut::from_column_major_slice_mut(buffer, n, n);
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(matrix, Default::default(), par, stack, params).is_ok()
        && (0..n).all(|j| {
            let inverse = (1.0 / buffer[j * n + j]) as f32;
            inverse.is_normal() && inverse > 0.0 && (buffer[j * n + j] as f32).is_normal()
        })
        && buffer
            .par_chunks(n)
            .enumerate()
            .all(|(j, c)| c[j..].iter().all(|x| x.is_finite()))
}

/// Turns the lower factor L [n, n] of the reversed matrix into `a` (rows `stride` apart, overwritten) and `inv_diag` `[n]`:
/// `A_kj = L[n-1-k, n-1-j]`, which lies at `(n-1-j)·n + (n-1-k)`.
fn unit_factor(lower: &[f64], n: usize, stride: usize, a: &mut [f32], inv_diag: &mut [f32]) {
    for (j, inverse) in inv_diag.iter_mut().enumerate() {
        *inverse = (1.0 / lower[(n - 1 - j) * n + (n - 1 - j)]) as f32;
    }
    a.par_chunks_mut(TILE * stride)
        .enumerate()
        .for_each(|(tile, rows)| {
            let first = tile * TILE;
            rows.fill(0.0);
            for first_column in (first..n).step_by(TILE) {
                for j in first_column..n.min(first_column + TILE) {
                    let column = &lower[(n - 1 - j) * n..(n - j) * n];
                    let diagonal = column[n - 1 - j];
                    for k in first..(j + 1).min(first + rows.len() / stride) {
                        rows[(k - first) * stride + j] = (column[n - 1 - k] / diagonal) as f32;
                    }
                }
            }
        });
}
