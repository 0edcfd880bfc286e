//! The low-rank correction of the quantization residual.
//!
//! Given the residual `E = W − Ŵ` [m, n] and the factor of the input's second moments, `H' = A·Aᵀ`, the correction of rank r
//! with the least output error `‖(E − U·V)·A‖²` is the truncated singular value decomposition of `E·A`, mapped back:
//! `U·V = U_r·S_r·V_rᵀ·A⁻¹` (QERA, Zhang et al. 2024, arXiv 2410.06040). Each factor is scaled by `√S` and rounded to
//! bfloat16; the energy that a rank captures is measured after that rounding. Errors of a row are in units of the row's
//! step, as in quantization.
//!
//! Wide matrices are decomposed by subspace iteration (Halko, Martinsson, Tropp 2011) from a fixed matrix of signs. Small dense
//! steps run sequentially in f64, large products in fixed pieces, so the bits do not depend on the number of threads.
//!
//! All of this can be spared where [`capture_bound`] shows that no rank is worth its bits.

mod bound;

pub use bound::{CaptureBound, capture_bound};

use crate::bf16;
use crate::code::LowRank;
use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::Factor;
use crate::product::parallel_product;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{MatMut, MatRef, Par};
use uc_simd::{MatrixView, multiply};

/// Columns of the subspace beyond the requested rank.
const OVERSAMPLE: usize = 16;
/// Subspace iterations. The residual of error feedback has a flat spectrum, which converges slowly.
const ITERATIONS: usize = 6;
/// Columns of a block in products with the triangular factor and in its inversion.
const BLOCK: usize = 128;

/// Low-rank corrections of every rank up to a largest one.
#[derive(Debug, Clone, PartialEq)]
pub struct OverlayFit {
    m: usize,
    n: usize,
    /// bfloat16 [rank, m], the largest singular value first.
    u: Vec<u16>,
    /// bfloat16 [rank, n]
    v: Vec<u16>,
    /// `[rank + 1]` captured energy by rank.
    captured: Vec<f64>,
}

impl OverlayFit {
    /// Largest rank: the one requested, or less for a small matrix or a residual of zeros.
    pub fn max_rank(&self) -> usize {
        self.captured.len() - 1
    }

    /// Fraction of the residual's output error `‖E·A‖²` that the correction of a rank removes, with its factors as stored; 0
    /// at rank 0. For a rank beyond the largest, the fraction at the largest.
    pub fn captured_energy(&self, rank: usize) -> f64 {
        self.captured[rank.min(self.max_rank())]
    }

    /// The correction of a rank (at most the largest); None at rank 0.
    pub fn low_rank(&self, rank: usize) -> Option<LowRank> {
        let rank = rank.min(self.max_rank());
        if rank == 0 {
            return None;
        }
        let u = (0..self.m * rank)
            .map(|i| self.u[(i % rank) * self.m + i / rank])
            .collect();
        Some(LowRank {
            rank,
            u,
            v: self.v[..rank * self.n].to_vec(),
        })
    }

    /// The rank with the least output error when its bits are taken from the indices, see [`best_rank`].
    pub fn best_rank(&self) -> usize {
        best_rank(&self.captured, self.m, self.n)
    }
}

/// Bits per weight of a correction of a rank to a matrix [m, n].
pub fn bits_per_weight(rank: usize, m: usize, n: usize) -> f64 {
    if rank == 0 {
        0.0
    } else {
        16.0 * rank as f64 * (m + n) as f64 / (m as f64 * n as f64)
    }
}

/// The smallest rank r that minimises `(1 − captured[r]) · 2^(2·bits_per_weight(r))`, often 0: at high rate, taking d bits from
/// every index multiplies its squared error by `2^(2d)`.
pub fn best_rank(captured: &[f64], m: usize, n: usize) -> usize {
    let error = |rank: usize| (1.0 - captured[rank]) * (2.0 * bits_per_weight(rank, m, n)).exp2();
    (1..captured.len()).fold(0, |best, rank| {
        if error(rank) < error(best) {
            rank
        } else {
            best
        }
    })
}

/// Fits corrections of every rank up to `max_rank` to the residual `W − Ŵ` [m, n]. `row_steps` `[m]` are the row
/// factors of the steps. Takes `8·(max_rank + 16)·(m + n)` bytes besides its arguments.
///
/// # Errors
/// [`CodecError::Shape`], [`CodecError::NotFinite`], [`CodecError::NoConvergence`].
pub fn fit(
    residual: Vec<f32>,
    m: usize,
    n: usize,
    factor: &Factor,
    row_steps: &[f32],
    max_rank: usize,
) -> Result<OverlayFit, CodecError> {
    check_arguments(&residual, m, n, row_steps)?;
    check_len("factor", factor.n, n)?;
    let rank = max_rank.min(m).min(n);
    let no_correction = OverlayFit {
        m,
        n,
        u: vec![],
        v: vec![],
        captured: vec![0.0],
    };
    if rank == 0 {
        return Ok(no_correction);
    }
    let mut whitened = residual;
    factor.multiply_in_place(&mut whitened);
    for (row, step) in whitened.chunks_mut(n).zip(row_steps) {
        row.iter_mut().for_each(|x| *x /= step);
    }
    check_finite("whitened residual", &whitened)?;
    let energy = dot(&whitened, &whitened);
    if energy == 0.0 {
        return Ok(no_correction);
    }
    let (mut u, s, mut x) = leading_triples(&whitened, m, n, rank)?;
    for (r, s) in s.iter().enumerate() {
        let root = s.sqrt() as f32;
        let column = u[r * m..(r + 1) * m].iter_mut().zip(row_steps);
        column.for_each(|(u, step)| *u *= root * step);
        x[r * n..(r + 1) * n].iter_mut().for_each(|x| *x *= root);
    }
    let v = solve_factor(&x, n, factor);
    let round = |values: &[f32]| {
        values
            .iter()
            .map(|&x| bf16::round_nearest_even(x))
            .collect()
    };
    let (u, v): (Vec<u16>, Vec<u16>) = (round(&u), round(&v));
    let captured = captured_energy(&whitened, m, n, factor, row_steps, &u, &v, energy);
    Ok(OverlayFit {
        m,
        n,
        u,
        v,
        captured,
    })
}

/// Checks the lengths of the residual [m, n] and of the row steps `[m]`, and that the residual is finite.
fn check_arguments(
    residual: &[f32],
    m: usize,
    n: usize,
    row_steps: &[f32],
) -> Result<(), CodecError> {
    check_matrix("residual", residual.len(), m, n)?;
    check_len("row steps", row_steps.len(), m)?;
    check_finite("residual", residual)
}

/// `X·A⁻¹` for `x` [rows, n]: `y_j = x_j / A_jj − Σ_{k<j} y_k·a_kj`, blocked.
fn solve_factor(x: &[f32], n: usize, factor: &Factor) -> Vec<f32> {
    let rows = x.len() / n;
    let mut y = vec![0.0f32; x.len()];
    let mut sums = vec![0.0f32; rows * BLOCK];
    for (start, size) in factor.blocks() {
        let (a, stride) = (&factor.a[start * factor.block..], factor.block);
        for done in (0..size).step_by(BLOCK) {
            let width = BLOCK.min(size - done);
            let sums = &mut sums[..rows * width];
            sums.fill(0.0);
            if done > 0 {
                let known = MatrixView::new(&y[start..], rows, done, n);
                let columns = MatrixView::new(&a[done..], done, width, stride);
                multiply(sums, width, known, columns);
            }
            for row in 0..rows {
                let at = row * n + start;
                for j in done..done + width {
                    let mut sum = f64::from(sums[row * width + j - done]);
                    for k in done..j {
                        sum += f64::from(y[at + k]) * f64::from(a[k * stride + j]);
                    }
                    let scaled = f64::from(x[at + j]) * f64::from(factor.inv_diag[start + j]);
                    y[at + j] = (scaled - sum) as f32;
                }
            }
        }
    }
    y
}

/// Left vectors [rank, m], singular values `[rank]` and right vectors [rank, n] of `g` [m, n].
type Triples = (Vec<f32>, Vec<f64>, Vec<f32>);

/// The leading `rank` singular triples of `g`.
fn leading_triples(g: &[f32], m: usize, n: usize, rank: usize) -> Result<Triples, CodecError> {
    let width = rank + OVERSAMPLE;
    let smaller = m.min(n);
    let view = MatrixView::new(g, m, n, n);
    if 2 * width >= smaller {
        let g: Vec<f64> = g.iter().map(|&x| f64::from(x)).collect();
        // Row-major [m, n] is column-major [n, m], whose left vectors are the right vectors of g.
        let (v, s, u) = thin_svd(&g, n, m)?;
        return Ok((
            leading(&u, m, rank),
            s[..rank].to_vec(),
            leading(&v, n, rank),
        ));
    }
    let mut right = signs(n * width);
    let mut left = Vec::new();
    for iteration in 0..=ITERATIONS {
        left = parallel_product(view, MatrixView::new(&right, n, width, width));
        orthonormalize(&mut left, m, width);
        if iteration < ITERATIONS {
            right = parallel_product(view.transposed(), MatrixView::new(&left, m, width, width));
            orthonormalize(&mut right, n, width);
        }
    }
    let projected = parallel_product(MatrixView::new(&left, m, width, width).transposed(), view);
    let projected: Vec<f64> = projected.iter().map(|&x| f64::from(x)).collect();
    // Row-major [width, n] is column-major [n, width].
    let (v, s, mixing) = thin_svd(&projected, n, width)?;
    let mixing = leading(&mixing, width, rank);
    let mut u = vec![0.0f32; rank * m];
    let left = MatrixView::new(&left, m, width, width);
    multiply(
        &mut u,
        m,
        MatrixView::new(&mixing, rank, width, width),
        left.transposed(),
    );
    Ok((u, s[..rank].to_vec(), leading(&v, n, rank)))
}

/// The first `rank` columns, of `length` values each, as rows of f32.
fn leading(columns: &[f64], length: usize, rank: usize) -> Vec<f32> {
    columns[..length * rank].iter().map(|&x| x as f32).collect()
}

/// Left vectors, singular values, right vectors. Vectors are the columns of column-major matrices.
type Decomposition = (Vec<f64>, Vec<f64>, Vec<f64>);

/// Singular value decomposition of a column-major matrix. Sequential, so that the bits do not depend on the number of
/// threads.
fn thin_svd(matrix: &[f64], rows: usize, cols: usize) -> Result<Decomposition, CodecError> {
    let size = rows.min(cols);
    let (mut u, mut v) = (vec![0.0; rows * size], vec![0.0; cols * size]);
    let mut s = vec![0.0; size];
    let thin = ComputeSvdVectors::Thin;
    let params = Default::default();
    let scratch = svd_scratch::<f64>(rows, cols, thin, thin, Par::Seq, params);
    let mut memory = MemBuffer::new(scratch);
    svd(
        MatRef::from_column_major_slice(matrix, rows, cols),
        faer::diag::DiagMut::from_slice_mut(&mut s),
        Some(MatMut::from_column_major_slice_mut(&mut u, rows, size)),
        Some(MatMut::from_column_major_slice_mut(&mut v, cols, size)),
        Par::Seq,
        MemStack::new(&mut memory),
        params,
    )
    .map_err(|_| CodecError::NoConvergence { rows, cols })?;
    Ok((u, s, v))
}

/// Fixed pseudo-random bits (splitmix64).
fn splitmix64(i: usize) -> u64 {
    let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fixed pseudo-random signs.
fn signs(count: usize) -> Vec<f32> {
    let sign = |i: usize| match splitmix64(i) & 1 {
        0 => 1.0,
        _ => -1.0,
    };
    (0..count).map(sign).collect()
}

/// Replaces the columns of `x` [rows, cols] by an orthonormal basis of their span (Gram-Schmidt in
/// f64, every projection twice); columns that depend on earlier ones become 0.
fn orthonormalize(x: &mut [f32], rows: usize, cols: usize) {
    let mut columns: Vec<Vec<f64>> = (0..cols)
        .map(|j| (0..rows).map(|i| f64::from(x[i * cols + j])).collect())
        .collect();
    for j in 0..cols {
        let (done, rest) = columns.split_at_mut(j);
        let column = &mut rest[0];
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let before = norm(column);
        for _ in 0..2 {
            for other in done.iter() {
                let projection: f64 = column.iter().zip(other).map(|(a, b)| a * b).sum();
                let pairs = column.iter_mut().zip(other);
                pairs.for_each(|(a, b)| *a -= projection * b);
            }
        }
        let after = norm(column);
        let scale = if after > 1e-7 * before {
            1.0 / after
        } else {
            0.0
        };
        column.iter_mut().for_each(|x| *x *= scale);
    }
    for (j, column) in columns.iter().enumerate() {
        column
            .iter()
            .enumerate()
            .for_each(|(i, &value)| x[i * cols + j] = value as f32);
    }
}

/// `1 − ‖G − U·V·A‖² / ‖G‖²` for every rank, with U and V as stored (here U in units of the row steps):
/// `‖G‖² − ‖G − U·V·A‖² = Σ_r 2·(u_rᵀG)·(v_rA) − Σ_rs (u_r·u_s)(v_rA·v_sA)`.
fn captured_energy(
    g: &[f32],
    m: usize,
    n: usize,
    factor: &Factor,
    row_steps: &[f32],
    u: &[u16],
    v: &[u16],
    energy: f64,
) -> Vec<f64> {
    let rank = u.len() / m;
    let values = |bits: &[u16]| -> Vec<f32> { bits.iter().map(|&x| bf16::to_f32(x)).collect() };
    let (mut u, v) = (values(u), factor.multiply(&values(v)));
    for column in u.chunks_mut(m) {
        column
            .iter_mut()
            .zip(row_steps)
            .for_each(|(u, step)| *u /= step);
    }
    let projected = parallel_product(MatrixView::new(&u, rank, m, m), MatrixView::new(g, m, n, n));
    let row = |x: &'_ [f32], r: usize, width: usize| x[r * width..(r + 1) * width].to_vec();
    let mut captured = vec![0.0];
    let mut sum = 0.0;
    for r in 0..rank {
        let (u_r, v_r) = (row(&u, r, m), row(&v, r, n));
        sum += 2.0 * dot(&row(&projected, r, n), &v_r);
        for s in 0..=r {
            let twice = if s < r { 2.0 } else { 1.0 };
            sum -= twice * dot(&u_r, &row(&u, s, m)) * dot(&v_r, &row(&v, s, n));
        }
        captured.push(sum / energy);
    }
    captured
}

/// Inner product in f64, in order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::factorize;

    /// A matrix with six singular values that halve from one to the next, and much smaller noise.
    fn decaying(m: usize, n: usize) -> Vec<f32> {
        let (u, v) = (signs(m * 6), signs(n * 7));
        let low = |i: usize, j: usize| -> f32 {
            (0..6)
                .map(|r| u[i * 6 + r] * v[j * 7 + r] * 0.5f32.powi(r as i32))
                .sum()
        };
        let noise = signs(m * n);
        (0..m * n)
            .map(|e| low(e / n, e % n) + 0.01 * noise[e])
            .collect()
    }

    fn identity(n: usize) -> Factor {
        let h: Vec<f32> = (0..n * n)
            .map(|e| f32::from(u8::from(e / n == e % n)))
            .collect();
        factorize(&h, n, 0.0).unwrap()
    }

    #[test]
    fn subspace_iteration_captures_what_the_full_decomposition_captures() {
        let (m, n) = (150, 130);
        let g = decaying(m, n);
        let (_, iterated, _) = leading_triples(&g, m, n, 6).unwrap();
        let g: Vec<f64> = g.iter().map(|&x| f64::from(x)).collect();
        let (_, exact, _) = thin_svd(&g, n, m).unwrap();
        for (found, exact) in iterated.iter().zip(&exact) {
            assert!(
                (found / exact - 1.0).abs() < 1e-4,
                "{found} against {exact}"
            );
        }
    }

    #[test]
    fn the_captured_energy_is_what_the_stored_factors_remove() {
        let (m, n) = (90, 70);
        let h: Vec<f32> = (0..n * n)
            .map(|i: usize| 0.8f32.powi((i / n).abs_diff(i % n) as i32))
            .collect();
        let factor = factorize(&h, n, 0.01).unwrap();
        let residual = decaying(m, n);
        let fit = fit(residual.clone(), m, n, &factor, &vec![1.0; m], 5).unwrap();
        let energy = |e: &[f32]| {
            let whitened = factor.multiply(e);
            dot(&whitened, &whitened)
        };
        for rank in 1..=5 {
            let low = fit.low_rank(rank).unwrap();
            low.validate(m, n).unwrap();
            let rest: Vec<f32> = (0..m * n)
                .map(|e| {
                    let product = |r: usize| {
                        let u = bf16::to_f32(low.u[e / n * rank + r]);
                        u * bf16::to_f32(low.v[r * n + e % n])
                    };
                    residual[e] - (0..rank).map(product).sum::<f32>()
                })
                .collect();
            let exact = 1.0 - energy(&rest) / energy(&residual);
            assert!(
                (fit.captured_energy(rank) - exact).abs() < 1e-4,
                "rank {rank}: {exact}"
            );
            assert!(fit.captured_energy(rank) > fit.captured_energy(rank - 1));
        }
    }

    #[test]
    fn solving_undoes_the_multiplication_across_blocks() {
        let n = 300;
        let h: Vec<f32> = (0..n * n)
            .map(|i: usize| 0.7f32.powi((i / n).abs_diff(i % n) as i32))
            .collect();
        let factor = factorize(&h, n, 0.01).unwrap();
        let x = decaying(5, n);
        let back = solve_factor(&factor.multiply(&x), n, &factor);
        for (found, x) in back.iter().zip(&x) {
            assert!((found - x).abs() < 1e-4, "{found} against {x}");
        }
    }

    #[test]
    fn the_best_rank_weighs_error_against_bits() {
        // A rank of a [64, 64] matrix costs half a bit, so it must remove more than half of the error.
        assert_eq!(best_rank(&[0.0, 0.49], 64, 64), 0);
        assert_eq!(best_rank(&[0.0, 0.51], 64, 64), 1);
        assert_eq!(best_rank(&[0.0, 0.1, 0.9, 0.91], 64, 64), 2);
        assert_eq!(best_rank(&[0.0], 64, 64), 0);
        assert_eq!(bits_per_weight(4, 4096, 4096), 1.0 / 32.0);
    }

    #[test]
    fn a_residual_of_zeros_and_a_largest_rank_of_zero_give_rank_zero() {
        let zero = fit(vec![0.0; 12], 3, 4, &identity(4), &[1.0; 3], 2).unwrap();
        assert_eq!(
            (zero.max_rank(), zero.best_rank(), zero.captured_energy(1)),
            (0, 0, 0.0)
        );
        let none = fit(vec![1.0; 12], 3, 4, &identity(4), &[1.0; 3], 0).unwrap();
        assert_eq!((none.max_rank(), none.low_rank(3)), (0, None));
    }

    #[test]
    fn wrong_lengths_and_nan_are_refused() {
        let short = fit(vec![0.0; 11], 3, 4, &identity(4), &[1.0; 3], 1);
        assert!(matches!(
            short,
            Err(CodecError::Shape {
                what: "residual",
                ..
            })
        ));
        let other = fit(vec![0.0; 12], 3, 4, &identity(3), &[1.0; 3], 1);
        assert!(matches!(
            other,
            Err(CodecError::Shape { what: "factor", .. })
        ));
        let nan = fit(vec![f32::NAN; 12], 3, 4, &identity(4), &[1.0; 3], 1);
        assert!(matches!(nan, Err(CodecError::NotFinite { index: 0, .. })));
    }
}
