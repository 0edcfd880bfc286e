//! The triangular factors of a Hessian and of the gradients at a linear's outputs.
//!
//! `H = Σ x·xᵀ` (or its mean) over the inputs of a linear layer is damped, `H' = H + d·I` with
//! `d = damping · mean(diag H)`, and factored as `H' = A·Aᵀ` with **A upper triangular** (the
//! Cholesky factor of `H'` with rows and columns in reverse order, in f64). Then the output error of
//! any weight error `E` [rows, n] is `tr(E H' Eᵀ) = ‖E·A‖²`, and
//! `(E·A)_ij = A_jj · (e_ij + Σ_{k<j} e_ik · a_kj)` with `a_kj = A_kj / A_jj`: column j can be
//! quantized so as to cancel what the columns before it left, with no inverse ever formed. This is
//! the LDLQ form (Chee et al. 2023, QuIP) of GPTQ (Frantar et al. 2022): the upper Cholesky factor
//! `U` of the inverse `H'⁻¹` used there is `A⁻¹`, so `U_jj = 1 / A_jj`, which is [`Factor::inv_diag`].
//!
//! Defined corner cases: an input that was never active (`H_jj = 0`) has the energy `d` that damping
//! gives it and the weights 0 in all feedback; `H = 0` counts as the identity; where the damped
//! matrix is not numerically positive definite, damping is raised tenfold, from at least 1e-8, up to
//! six times, and [`Factor::damping`] tells the value used.
//!
//! # Outputs
//! Where the loss minds the outputs' errors by `G = E[g·gᵀ]` over the gradients g at them, the error of the loss is, to
//! second order and with gradients taken as independent of inputs, `tr(G E H Eᵀ)` (Kronecker-factored Fisher information:
//! Martens and Grosse 2015; for rounding: Tseng et al. 2025, arXiv 2505.22988). `G` is kept, damped and factored in
//! diagonal blocks of [`BLOCK_ROWS`] rows, `G' = B·Bᵀ` with B upper triangular, and then
//! `tr(G' E H' Eᵀ) = ‖Bᵀ·E·A‖²`: row i of a block can be quantized so as to cancel what the rows above it left, with
//! `b_ki = B_ki / B_ii` as the columns are with `a_kj`. Larger blocks were no better (`docs/negative-results.md`).

use crate::failure::{CodecError, check_finite, check_matrix};
use crate::trellis::BLOCK_ROWS;
use faer::MatMut;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use rayon::prelude::*;

/// How often damping is raised before the Hessian is given up.
const ATTEMPTS: usize = 7;

/// Side of the square tiles in which matrices are transposed.
const TILE: usize = 64;

/// `H' = A·Aᵀ` in the form that error feedback reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// Width of the layer's input.
    pub n: usize,
    /// [n, n] unit upper triangular: `a[k * n + j] = A_kj / A_jj` for k ≤ j, 0 below.
    pub a: Vec<f32>,
    /// [n] `1 / A_jj`, finite and positive: the best column steps are proportional to it.
    pub inv_diag: Vec<f32>,
    /// Damping that was used, as a fraction of the mean diagonal; at least the one asked for.
    pub damping: f64,
    /// Number of inputs that were never active (`H_jj = 0`).
    pub dead: usize,
}

/// Factors the Hessian `h` [n, n] (row-major, symmetric; only the lower triangle is read) with
/// `damping` relative to its mean diagonal.
///
/// Takes one `n·n` f64 buffer beside the result. The bits do not depend on the number of threads.
///
/// # Errors
/// [`CodecError::Shape`]; [`CodecError::NotFinite`]; [`CodecError::Range`] for a negative diagonal
/// entry or a damping that is negative or not finite; [`CodecError::NotPositiveDefinite`].
pub fn factorize(h: &[f32], n: usize, damping: f64) -> Result<Factor, CodecError> {
    check_matrix("Hessian", h.len(), n, n)?;
    check_damping(damping)?;
    let mean = mean_diagonal("Hessian", h, (0..n).map(|j| j * n + j))?;
    factorize_about(h, n, damping, mean)
}

/// [`factorize`] with damping relative to `mean` instead of the matrix's own.
fn factorize_about(h: &[f32], n: usize, damping: f64, mean: f64) -> Result<Factor, CodecError> {
    let dead = (0..n).filter(|&j| h[j * n + j] == 0.0).count();
    if n == 0 || mean == 0.0 {
        return Ok(identity(n, damping, dead));
    }
    let mut buffer = vec![0.0f64; n * n];
    let mut used = damping;
    for _ in 0..ATTEMPTS {
        fill_reversed(&mut buffer, h, n, used * mean);
        if cholesky(&mut buffer, n) {
            return Ok(unit_factor(&buffer, n, used, dead));
        }
        used = (used * 10.0).max(1e-8);
    }
    Err(CodecError::NotPositiveDefinite {
        n,
        damping: used / 10.0,
    })
}

fn check_damping(damping: f64) -> Result<(), CodecError> {
    if (0.0..=1e6).contains(&damping) {
        return Ok(());
    }
    let expected = "0 to 1e6";
    Err(CodecError::Range {
        what: "damping",
        found: damping,
        expected,
    })
}

/// Mean of the entries of a finite matrix at the places of its diagonal, none of which may be negative; 0 of nothing.
fn mean_diagonal(
    what: &'static str,
    matrix: &[f32],
    places: impl ExactSizeIterator<Item = usize>,
) -> Result<f64, CodecError> {
    check_finite(what, matrix)?;
    let (count, mut sum) = (places.len(), 0.0);
    for place in places {
        let found = f64::from(matrix[place]);
        if found < 0.0 {
            let expected = "no negative entry on the diagonal";
            return Err(CodecError::Range {
                what,
                found,
                expected,
            });
        }
        sum += found;
    }
    Ok(sum / count.max(1) as f64)
}

/// `G' = B·Bᵀ` of every block of rows, in the form that error feedback reads.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFactor {
    /// [rows, BLOCK_ROWS]: entry `k * BLOCK_ROWS + i` is `b = B / B_ii` from row k to row i of the same block (counted from the
    /// block's first), 1 for row k itself, 0 before it.
    pub b: Vec<f32>,
    /// [rows] `1 / B_ii`, finite and positive: the best row steps are proportional to it.
    pub inv_diag: Vec<f32>,
}

impl OutputFactor {
    /// The mean square gradient that counts for the rate: `2^(−2 · mean log2 inv_diag)`, the geometric mean of `B_ii²`.
    /// With row steps proportional to `inv_diag` a linear behaves as one of that sensitivity in every output.
    pub fn sensitivity(&self) -> f64 {
        let logs = self.inv_diag.iter().map(|&x| f64::from(x).log2());
        (-2.0 * logs.sum::<f64>() / self.inv_diag.len().max(1) as f64).exp2()
    }
}

/// Factors the second moments of a linear's output gradients: `moments` [rows, BLOCK_ROWS] holds in row i the moments
/// of output i with the outputs of its block (0 beyond the last row); `damping` is relative to the mean over all rows.
/// Where no gradient ever came, every output counts the same.
///
/// # Errors
/// As [`factorize`].
pub fn factorize_outputs(
    moments: &[f32],
    rows: usize,
    damping: f64,
) -> Result<OutputFactor, CodecError> {
    let what = "second moments of output gradients";
    check_matrix(what, moments.len(), rows, BLOCK_ROWS)?;
    check_damping(damping)?;
    let place = |row: usize| row * BLOCK_ROWS + row % BLOCK_ROWS;
    let mean = mean_diagonal(what, moments, (0..rows).map(place))?;
    let mut found = OutputFactor {
        b: vec![0.0; moments.len()],
        inv_diag: Vec::with_capacity(rows),
    };
    let blocks = moments.chunks(BLOCK_ROWS * BLOCK_ROWS);
    for (g, b) in blocks.zip(found.b.chunks_mut(BLOCK_ROWS * BLOCK_ROWS)) {
        let n = g.len() / BLOCK_ROWS;
        let square: Vec<f32> = g
            .chunks(BLOCK_ROWS)
            .flat_map(|row| &row[..n])
            .copied()
            .collect();
        let factor = factorize_about(&square, n, damping, mean)?;
        for (b, a) in b.chunks_mut(BLOCK_ROWS).zip(factor.a.chunks(n)) {
            b[..n].copy_from_slice(a);
        }
        found.inv_diag.extend(factor.inv_diag);
    }
    Ok(found)
}

/// The factor of a layer whose input carries no information: every column counts the same.
fn identity(n: usize, damping: f64, dead: usize) -> Factor {
    let mut a = vec![0.0; n * n];
    (0..n).for_each(|j| a[j * n + j] = 1.0);
    Factor {
        n,
        a,
        inv_diag: vec![1.0; n],
        damping,
        dead,
    }
}

/// `buffer` [n, n] column-major, lower triangle (i ≥ j): element (i, j) becomes `H'[n-1-j, n-1-i]`,
/// so that column j is row `n-1-j` of `h`, read backwards from its diagonal.
fn fill_reversed(buffer: &mut [f64], h: &[f32], n: usize, added: f64) {
    buffer
        .par_chunks_mut(n)
        .enumerate()
        .for_each(|(j, column)| {
            let row = n - 1 - j;
            for i in j..n {
                column[i] = f64::from(h[row * n + (n - 1 - i)]);
            }
            column[j] += added;
        });
}

/// Cholesky in place (lower triangle, column-major); false where the matrix is not positive
/// definite or the factor has an entry on its diagonal that is not a positive, normal f32.
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

/// Turns the lower factor L of the reversed matrix into `a` and `inv_diag`:
/// `A_kj = L[n-1-k, n-1-j]`, which lies at `(n-1-j)·n + (n-1-k)`.
fn unit_factor(lower: &[f64], n: usize, damping: f64, dead: usize) -> Factor {
    let inv_diag: Vec<f32> = (0..n)
        .map(|j| (1.0 / lower[(n - 1 - j) * n + (n - 1 - j)]) as f32)
        .collect();
    let mut a = vec![0.0f32; n * n];
    a.par_chunks_mut(TILE * n)
        .enumerate()
        .for_each(|(strip, rows)| {
            let first = strip * TILE;
            for left in (first..n).step_by(TILE) {
                for j in left..n.min(left + TILE) {
                    let column = &lower[(n - 1 - j) * n..(n - j) * n];
                    let diagonal = column[n - 1 - j];
                    for k in first..(j + 1).min(first + rows.len() / n) {
                        rows[(k - first) * n + j] = (column[n - 1 - k] / diagonal) as f32;
                    }
                }
            }
        });
    Factor {
        n,
        a,
        inv_diag,
        damping,
        dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `X·Xᵀ/t` of a fixed pseudo-random `[n, t]`: positive definite for t > n.
    fn hessian(n: usize, t: usize) -> Vec<f32> {
        let x: Vec<f64> = (0..n * t)
            .map(|i| {
                ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / 8388608.0 - 1.0
            })
            .collect();
        let dot = |i: usize, j: usize| -> f64 {
            (0..t).map(|s| x[i * t + s] * x[j * t + s]).sum::<f64>() / t as f64
        };
        (0..n * n).map(|i| dot(i / n, i % n) as f32).collect()
    }

    /// Largest difference between `H' = A·Aᵀ` and the damped Hessian.
    fn distance(factor: &Factor, h: &[f32]) -> f64 {
        let n = factor.n;
        let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
        let at =
            |k: usize, j: usize| f64::from(factor.a[k * n + j]) / f64::from(factor.inv_diag[j]);
        let mut worst = 0.0f64;
        for i in 0..n {
            for k in 0..n {
                let product: f64 = (0..n).map(|j| at(i, j) * at(k, j)).sum();
                let damped = f64::from(h[i.min(k) * n + i.max(k)])
                    + if i == k { factor.damping * mean } else { 0.0 };
                worst = worst.max((product - damped).abs());
            }
        }
        worst
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_damped_hessian() {
        for n in [1, 2, 63, 64, 65, 130] {
            let h = hessian(n, 2 * n + 3);
            let factor = factorize(&h, n, 0.01).unwrap();
            assert_eq!((factor.damping, factor.dead), (0.01, 0));
            assert!(
                distance(&factor, &h) < 1e-6,
                "width {n}: {}",
                distance(&factor, &h)
            );
            assert!((0..n).all(|j| factor.a[j * n + j] == 1.0));
            assert!((0..n).all(|k| (0..k).all(|j| factor.a[k * n + j] == 0.0)));
        }
    }

    #[test]
    fn a_dead_input_gets_the_energy_of_the_damping_and_no_feedback() {
        let n = 5;
        let mut h = hessian(n, 40);
        for i in 0..n {
            h[2 * n + i] = 0.0;
            h[i * n + 2] = 0.0;
        }
        let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
        let factor = factorize(&h, n, 0.01).unwrap();
        assert_eq!(factor.dead, 1);
        assert!((f64::from(factor.inv_diag[2]) - 1.0 / (0.01 * mean).sqrt()).abs() < 1e-3);
        assert!((0..n).all(|k| k == 2 || factor.a[k * n + 2] == 0.0));
        assert!((0..n).all(|j| j == 2 || factor.a[2 * n + j] == 0.0));
    }

    #[test]
    fn an_input_that_never_spoke_counts_as_the_identity() {
        let factor = factorize(&[0.0; 9], 3, 0.01).unwrap();
        assert_eq!(factor.a, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!((factor.inv_diag, factor.dead), (vec![1.0; 3], 3));
    }

    #[test]
    fn a_singular_hessian_without_damping_raises_the_damping_and_says_so() {
        let n = 8;
        let factor = factorize(&vec![1.0; n * n], n, 0.0).unwrap();
        assert!(
            factor.damping > 0.0 && factor.damping <= 1e-5,
            "{}",
            factor.damping
        );
    }

    #[test]
    fn a_hopeless_hessian_is_given_up_with_the_last_damping() {
        let h = [1.0, 1e9, 1e9, 1.0];
        let refused = factorize(&h, 2, 0.01).unwrap_err();
        let CodecError::NotPositiveDefinite { n, damping } = refused else {
            panic!("{refused}")
        };
        assert_eq!(n, 2);
        assert!((damping / 0.01 - 1e6).abs() < 1.0, "{damping}");
    }

    #[test]
    fn wrong_lengths_and_numbers_without_meaning_are_refused() {
        assert!(matches!(
            factorize(&[1.0; 3], 2, 0.1),
            Err(CodecError::Shape { .. })
        ));
        let nan = factorize(&[1.0, f32::NAN, 0.0, 1.0], 2, 0.1);
        assert!(matches!(nan, Err(CodecError::NotFinite { index: 1, .. })));
        assert!(matches!(
            factorize(&[-1.0], 1, 0.1),
            Err(CodecError::Range { .. })
        ));
        assert!(matches!(
            factorize(&[1.0], 1, f64::NAN),
            Err(CodecError::Range { .. })
        ));
        assert!(matches!(
            factorize(&[1.0], 1, -0.5),
            Err(CodecError::Range { .. })
        ));
    }

    #[test]
    fn outputs_are_factored_in_blocks_with_one_damping_for_all() {
        let (rows, last) = (BLOCK_ROWS + 5, 5);
        let (upper, lower) = (hessian(BLOCK_ROWS, 300), hessian(last, 40));
        let mut moments = upper.clone();
        for row in lower.chunks(last) {
            moments.extend(row);
            moments.extend([0.0; BLOCK_ROWS - 5]);
        }
        let found = factorize_outputs(&moments, rows, 0.1).unwrap();
        let trace = |h: &[f32], n: usize| (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>();
        let mean = (trace(&upper, BLOCK_ROWS) + trace(&lower, last)) / rows as f64;
        for (h, n, first) in [(upper, BLOCK_ROWS, 0), (lower, last, BLOCK_ROWS)] {
            let factor = factorize_about(&h, n, 0.1, mean).unwrap();
            assert_eq!(found.inv_diag[first..first + n], factor.inv_diag);
            for k in 0..n {
                let at = (first + k) * BLOCK_ROWS;
                assert_eq!(found.b[at..at + n], factor.a[k * n..(k + 1) * n]);
                assert!(found.b[at + n..at + BLOCK_ROWS].iter().all(|&b| b == 0.0));
            }
        }
        let product: f64 = found.inv_diag.iter().map(|&x| f64::from(x).ln()).sum();
        let sensitivity = (-2.0 * product / rows as f64).exp();
        assert!((found.sensitivity() / sensitivity - 1.0).abs() < 1e-9);
    }

    #[test]
    fn outputs_without_gradients_count_the_same_and_bad_moments_are_refused() {
        let silent = factorize_outputs(&[0.0; 2 * BLOCK_ROWS], 2, 0.1).unwrap();
        assert_eq!(silent.inv_diag, [1.0, 1.0]);
        assert_eq!(silent.sensitivity(), 1.0);
        let mut moments = [0.0; 2 * BLOCK_ROWS];
        moments[BLOCK_ROWS + 1] = -1.0;
        let refused =
            |moments: &[f32], damping| factorize_outputs(moments, 2, damping).unwrap_err();
        assert!(matches!(refused(&moments, 0.1), CodecError::Range { .. }));
        moments[BLOCK_ROWS + 1] = f32::NAN;
        assert!(matches!(
            refused(&moments, 0.1),
            CodecError::NotFinite { .. }
        ));
        assert!(matches!(refused(&[0.0; 3], 0.1), CodecError::Shape { .. }));
        assert!(matches!(
            refused(&[0.0; 2 * BLOCK_ROWS], -1.0),
            CodecError::Range { .. }
        ));
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let n = 700;
        let h = hessian(n, 16);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| factorize(&h, n, 0.01).unwrap())
        };
        let one = with(1);
        for threads in [2, 3, 5] {
            assert!(with(threads) == one, "{threads} threads");
        }
    }
}
