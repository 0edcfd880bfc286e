//! The low-rank correction of what quantization left.
//!
//! Given the residual `E = W − Ŵ` [m, n] and the factor of the layer's Hessian, `H' = A·Aᵀ`, the
//! correction of rank r that leaves the least output error `‖(E − U·V)·A‖²` is the truncated singular
//! value decomposition of `E·A`, mapped back: `U·V = U_r·S_r·V_rᵀ·A⁻¹` (QERA, Zhang et al. 2024, arXiv
//! 2410.06040). Both factors carry `√S` and are rounded to bfloat16; what a rank captures is measured
//! after that rounding. Errors of a row count in units of the row's step, as they do in quantization.
//!
//! Wide matrices are decomposed by subspace iteration (Halko, Martinsson, Tropp 2011) from a fixed
//! matrix of signs; small dense steps run sequentially in f64, large products in fixed pieces. So the
//! bits do not depend on the number of threads.

use crate::bf16;
use crate::code::LowRank;
use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::Factor;
use crate::product::parallel_product;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

/// Columns beyond the wanted rank that the subspace carries.
const OVERSAMPLE: usize = 16;
/// Subspace iterations. What feedback leaves has a flat spectrum, which converges slowly.
const ITERATIONS: usize = 6;
/// Columns of a block in products with the triangular factor.
const BLOCK: usize = 128;
/// Rows of a parallel piece.
const PIECE: usize = 128;

/// A low-rank correction for every rank up to a largest one.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    m: usize,
    n: usize,
    /// bfloat16 [rank, m], the largest singular value first.
    u: Vec<u16>,
    /// bfloat16 [rank, n]
    v: Vec<u16>,
    /// [rank + 1]
    captured: Vec<f64>,
}

impl Fit {
    /// Largest rank that there is: at most the one asked for, less for a residual of lower rank.
    pub fn max_rank(&self) -> usize {
        self.captured.len() - 1
    }

    /// Fraction of the residual's output error `‖E·A‖²` that the correction of a rank removes, with
    /// its factors as stored; 0 at rank 0. Beyond the largest rank: that of the largest.
    pub fn captured(&self, rank: usize) -> f64 {
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

    /// The rank that leaves the least output error when its bits are taken from the indices, see
    /// [`best_rank`].
    pub fn best_rank(&self) -> usize {
        best_rank(&self.captured, self.m, self.n)
    }
}

/// Bits per weight of an overlay of a rank on a matrix [m, n].
pub fn bits_per_weight(rank: usize, m: usize, n: usize) -> f64 {
    if rank == 0 {
        0.0
    } else {
        16.0 * rank as f64 * (m + n) as f64 / (m as f64 * n as f64)
    }
}

/// The rank r that minimises `(1 − captured[r]) · 2^(2·bits_per_weight(r))`: at high rate, taking d
/// bits from every index multiplies its error by `2^(2d)`. The smallest such rank, often 0.
pub fn best_rank(captured: &[f64], m: usize, n: usize) -> usize {
    let left = |rank: usize| (1.0 - captured[rank]) * (2.0 * bits_per_weight(rank, m, n)).exp2();
    (1..captured.len()).fold(
        0,
        |best, rank| if left(rank) < left(best) { rank } else { best },
    )
}

/// Fits corrections of every rank up to `max_rank` to the residual `W − Ŵ` [m, n] of rows with the step factors `rows` [m].
///
/// # Errors
/// [`CodecError::Shape`], [`CodecError::NotFinite`], [`CodecError::NoConvergence`].
pub fn fit(
    residual: &[f32],
    m: usize,
    n: usize,
    factor: &Factor,
    rows: &[f32],
    max_rank: usize,
) -> Result<Fit, CodecError> {
    check_matrix("residual", residual.len(), m, n)?;
    check_len("factor", factor.n, n)?;
    check_len("row steps", rows.len(), m)?;
    check_finite("residual", residual)?;
    let rank = max_rank.min(m).min(n);
    let nothing = Fit {
        m,
        n,
        u: vec![],
        v: vec![],
        captured: vec![0.0],
    };
    if rank == 0 {
        return Ok(nothing);
    }
    let mut whitened = times_factor(residual, n, factor);
    for (row, step) in whitened.chunks_mut(n).zip(rows) {
        row.iter_mut().for_each(|x| *x /= step);
    }
    check_finite("whitened residual", &whitened)?;
    let energy = dot(&whitened, &whitened);
    if energy == 0.0 {
        return Ok(nothing);
    }
    let (mut u, s, mut x) = leading_triples(&whitened, m, n, rank)?;
    for (r, s) in s.iter().enumerate() {
        let root = s.sqrt() as f32;
        let column = u[r * m..(r + 1) * m].iter_mut().zip(rows);
        column.for_each(|(u, step)| *u *= root * step);
        x[r * n..(r + 1) * n].iter_mut().for_each(|x| *x *= root);
    }
    let v = over_factor(&x, n, factor);
    let round = |values: &[f32]| {
        values
            .iter()
            .map(|&x| bf16::round_nearest_even(x))
            .collect()
    };
    let (u, v): (Vec<u16>, Vec<u16>) = (round(&u), round(&v));
    let captured = captured(&whitened, m, n, factor, rows, &u, &v, energy);
    Ok(Fit {
        m,
        n,
        u,
        v,
        captured,
    })
}

/// `X·A` for `x` [rows, n], in parallel over fixed pieces of rows.
fn times_factor(x: &[f32], n: usize, factor: &Factor) -> Vec<f32> {
    let mut out = vec![0.0f32; x.len()];
    out.par_chunks_mut(PIECE * n)
        .zip(x.par_chunks(PIECE * n))
        .for_each(|(out, x)| {
            let rows = x.len() / n;
            for (start, size) in factor.blocks() {
                let a = &factor.a[start * factor.block..];
                for done in (0..size).step_by(BLOCK) {
                    let width = BLOCK.min(size - done);
                    let depth = done + width; // nothing below the diagonal
                    let x = MatrixView::new(&x[start..], rows, depth, n);
                    let a = MatrixView::new(&a[done..], depth, width, factor.block);
                    multiply(&mut out[start + done..], n, x, a);
                }
            }
            for row in out.chunks_mut(n) {
                row.iter_mut()
                    .zip(&factor.inv_diag)
                    .for_each(|(x, inverse)| *x /= inverse);
            }
        });
    out
}

/// `X·A⁻¹` for `x` [rows, n]: `y_j = x_j / A_jj − Σ_{k<j} y_k·a_kj`, blocked.
fn over_factor(x: &[f32], n: usize, factor: &Factor) -> Vec<f32> {
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
                let before = MatrixView::new(&y[start..], rows, done, n);
                let onto = MatrixView::new(&a[done..], done, width, stride);
                multiply(sums, width, before, onto);
            }
            for row in 0..rows {
                let at = row * n + start;
                for j in done..done + width {
                    let mut sum = f64::from(sums[row * width + j - done]);
                    for k in done..j {
                        sum += f64::from(y[at + k]) * f64::from(a[k * stride + j]);
                    }
                    let own = f64::from(x[at + j]) * f64::from(factor.inv_diag[start + j]);
                    y[at + j] = (own - sum) as f32;
                }
            }
        }
    }
    y
}

/// Left vectors [rank, m], singular values [rank] and right vectors [rank, n] of `g` [m, n].
type Triples = (Vec<f32>, Vec<f64>, Vec<f32>);

/// The leading `rank` singular triples of `g`.
fn leading_triples(g: &[f32], m: usize, n: usize, rank: usize) -> Result<Triples, CodecError> {
    let width = rank + OVERSAMPLE;
    let smaller = m.min(n);
    let view = MatrixView::new(g, m, n, n);
    if 2 * width >= smaller {
        let wide: Vec<f64> = g.iter().map(|&x| f64::from(x)).collect();
        // Row-major [m, n] is column-major [n, m]: its left vectors are our right ones.
        let (v, s, u) = thin_svd(&wide, n, m)?;
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
        orthonormalise(&mut left, m, width);
        if iteration < ITERATIONS {
            right = parallel_product(view.transposed(), MatrixView::new(&left, m, width, width));
            orthonormalise(&mut right, n, width);
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

/// Left vectors, singular values, right vectors; vectors are columns, column-major.
type Decomposition = (Vec<f64>, Vec<f64>, Vec<f64>);

/// Singular value decomposition of a column-major matrix: left vectors, values, right vectors, each
/// vector a column of its result. Sequential: the bits are those of one thread.
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

/// Fixed pseudo-random signs (splitmix64).
fn signs(count: usize) -> Vec<f32> {
    let sign = |i: usize| {
        let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
    };
    (0..count).map(sign).collect()
}

/// Replaces the columns of `x` [rows, cols] by an orthonormal basis of their span (Gram-Schmidt in
/// f64, every projection twice); columns that depend on earlier ones become 0.
fn orthonormalise(x: &mut [f32], rows: usize, cols: usize) {
    let mut columns: Vec<Vec<f64>> = (0..cols)
        .map(|j| (0..rows).map(|i| f64::from(x[i * cols + j])).collect())
        .collect();
    for j in 0..cols {
        let (done, rest) = columns.split_at_mut(j);
        let own = &mut rest[0];
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let before = norm(own);
        for _ in 0..2 {
            for other in done.iter() {
                let along: f64 = own.iter().zip(other).map(|(a, b)| a * b).sum();
                own.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let after = norm(own);
        let scale = if after > 1e-7 * before {
            1.0 / after
        } else {
            0.0
        };
        own.iter_mut().for_each(|x| *x *= scale);
    }
    for (j, column) in columns.iter().enumerate() {
        column
            .iter()
            .enumerate()
            .for_each(|(i, &value)| x[i * cols + j] = value as f32);
    }
}

/// `1 − ‖G − U·V·A‖² / ‖G‖²` for every rank, with the factors as stored (U in units of the row steps):
/// `‖G‖² − ‖G − U·V·A‖² = Σ_r 2·(u_rᵀG)·(v_rA) − Σ_rs (u_r·u_s)(v_rA·v_sA)`.
fn captured(
    g: &[f32],
    m: usize,
    n: usize,
    factor: &Factor,
    rows: &[f32],
    u: &[u16],
    v: &[u16],
    energy: f64,
) -> Vec<f64> {
    let rank = u.len() / m;
    let values = |bits: &[u16]| -> Vec<f32> { bits.iter().map(|&x| bf16::to_f32(x)).collect() };
    let (mut u, v) = (values(u), times_factor(&values(v), n, factor));
    for column in u.chunks_mut(m) {
        column.iter_mut().zip(rows).for_each(|(u, step)| *u /= step);
    }
    let projected = parallel_product(MatrixView::new(&u, rank, m, m), MatrixView::new(g, m, n, n));
    let row = |x: &'_ [f32], r: usize, width: usize| x[r * width..(r + 1) * width].to_vec();
    let mut captured = vec![0.0];
    let mut sum = 0.0;
    for r in 0..rank {
        let (own_u, own_v) = (row(&u, r, m), row(&v, r, n));
        sum += 2.0 * dot(&row(&projected, r, n), &own_v);
        for s in 0..=r {
            let twice = if s < r { 2.0 } else { 1.0 };
            sum -= twice * dot(&own_u, &row(&u, s, m)) * dot(&own_v, &row(&v, s, n));
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

    /// A matrix with singular values 1, 1/2, 1/4, … and noise far below them.
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
        let wide: Vec<f64> = g.iter().map(|&x| f64::from(x)).collect();
        let (_, exact, _) = thin_svd(&wide, n, m).unwrap();
        for (found, exact) in iterated.iter().zip(&exact) {
            assert!(
                (found / exact - 1.0).abs() < 1e-4,
                "{found} against {exact}"
            );
        }
    }

    #[test]
    fn what_a_rank_captures_is_what_its_stored_factors_take_away() {
        let (m, n) = (90, 70);
        let h: Vec<f32> = (0..n * n)
            .map(|i: usize| 0.8f32.powi((i / n).abs_diff(i % n) as i32))
            .collect();
        let factor = factorize(&h, n, 0.01).unwrap();
        let residual = decaying(m, n);
        let fit = fit(&residual, m, n, &factor, &vec![1.0; m], 5).unwrap();
        let energy = |e: &[f32]| {
            let whitened = times_factor(e, n, &factor);
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
                (fit.captured(rank) - exact).abs() < 1e-4,
                "rank {rank}: {exact}"
            );
            assert!(fit.captured(rank) > fit.captured(rank - 1));
        }
    }

    #[test]
    fn the_inverse_of_the_factor_undoes_the_factor_across_blocks() {
        let n = 300;
        let h: Vec<f32> = (0..n * n)
            .map(|i: usize| 0.7f32.powi((i / n).abs_diff(i % n) as i32))
            .collect();
        let factor = factorize(&h, n, 0.01).unwrap();
        let x = decaying(5, n);
        let back = over_factor(&times_factor(&x, n, &factor), n, &factor);
        for (found, x) in back.iter().zip(&x) {
            assert!((found - x).abs() < 1e-4, "{found} against {x}");
        }
    }

    #[test]
    fn the_best_rank_weighs_error_against_bits() {
        // A rank of a [64, 64] matrix costs half a bit: it must take away more than half.
        assert_eq!(best_rank(&[0.0, 0.49], 64, 64), 0);
        assert_eq!(best_rank(&[0.0, 0.51], 64, 64), 1);
        assert_eq!(best_rank(&[0.0, 0.1, 0.9, 0.91], 64, 64), 2);
        assert_eq!(best_rank(&[0.0], 64, 64), 0);
        assert_eq!(bits_per_weight(4, 4096, 4096), 1.0 / 32.0);
    }

    #[test]
    fn nothing_to_correct_and_nothing_allowed_give_rank_zero() {
        let zero = fit(&[0.0; 12], 3, 4, &identity(4), &[1.0; 3], 2).unwrap();
        assert_eq!(
            (zero.max_rank(), zero.best_rank(), zero.captured(1)),
            (0, 0, 0.0)
        );
        let none = fit(&[1.0; 12], 3, 4, &identity(4), &[1.0; 3], 0).unwrap();
        assert_eq!((none.max_rank(), none.low_rank(3)), (0, None));
    }

    #[test]
    fn wrong_lengths_and_nan_are_refused() {
        let short = fit(&[0.0; 11], 3, 4, &identity(4), &[1.0; 3], 1);
        assert!(matches!(
            short,
            Err(CodecError::Shape {
                what: "residual",
                ..
            })
        ));
        let other = fit(&[0.0; 12], 3, 4, &identity(3), &[1.0; 3], 1);
        assert!(matches!(
            other,
            Err(CodecError::Shape { what: "factor", .. })
        ));
        let nan = fit(&[f32::NAN; 12], 3, 4, &identity(4), &[1.0; 3], 1);
        assert!(matches!(nan, Err(CodecError::NotFinite { index: 0, .. })));
    }
}
