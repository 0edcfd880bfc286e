//! An upper bound on what overlays of any rank can capture, from products with a few vectors and without a factorization.
//!
//! With the residual `E` [m, n], the row steps `D` and the damped second moments `H'` [n, n], overlays capture the eigenvalues
//! λ₁ ≥ λ₂ ≥ … of `M = D⁻¹·E·H'·Eᵀ·D⁻¹`: a correction of rank r captures at most `Σ_{i≤r} λ_i / tr M`, whatever its factors
//! (Eckart and Young 1936). Neither `M` nor a factor of `H'` is needed for the moments
//! `Q_k = Σ_s x_sᵀ·M^k·x_s = Σ_i λ_i^k·χ²_i` with [`SAMPLES`] vectors x of independent standard normal numbers, in which the χ²
//! are independent and have [`SAMPLES`] degrees of freedom: power iterations (Kuczyński and Woźniakowski 1992; Halko, Martinsson
//! and Tropp 2011) give them.
//!
//! # The bound
//! Let `P_k = tr M^k` and `a ≥ λ₁^k`. By Chernoff's inequality, `Q_k / (SAMPLES·P_k)` is
//! below ε < 1, or above ε > 1, with a probability of at most `(ε·e^(1−ε))^(SAMPLES·P_k / 2a)`: as `ln(1 + x)/x` decreases,
//! the Laplace transform of `Q_k` is at most that of a scaled χ² of `SAMPLES·P_k/a` degrees of freedom. Hence, each but with
//! the probability [`FAILURE`]:
//!
//! - `λ₁^k ≤ P_k ≤ Q_k / (SAMPLES·ε)` with `(ε·e^(1−ε))^(SAMPLES/2) = FAILURE`, from `P_k ≥ λ₁^k`, for every k;
//! - a lower bound of `P_1` and an upper bound of `P_2`, from the bound of λ₁.
//!
//! Of eigenvalues of at most λ₁ whose squares sum to at most `P_2`, r sum to at most `min(r·λ₁, √(r·P_2))`.
//!
//! Where that is not enough, as for narrow matrices with a few larger eigenvalues, `P_1` and `P_2` are computed themselves.
//!
//! The vectors are fixed. For all but a share of 2·10⁻⁹ of the choices of their seed the bound holds, whatever the residual.

use rayon::prelude::*;
use uc_simd::{Kernel, MatrixView, dispatch, multiply};

use super::{bits_per_weight, check_arguments, splitmix64};
use crate::error::CodecError;
use crate::factor::{block_width, mean_diagonal};
use crate::product::parallel_product;

/// Vectors that are iterated side by side.
const SAMPLES: usize = 16;
/// A number for each of the vectors.
type Row = [f32; SAMPLES];
/// Probability with which each of the inequalities fails. There are at most `2·SWEEPS + 2`.
const FAILURE: f64 = 1e-10;
/// Most products with `M`.
const SWEEPS: usize = 8;
/// Factor that covers the rounding of the products in f32 and of the captured energy that [`super::fit`] finds.
const ROUNDING: f64 = 1.01;
/// Most pieces of rows; the sums over the rows are formed piece by piece. Fixed: pieces must not depend on the machine.
const PIECES: usize = 16;
/// Rows that are read together.
const PANEL: usize = 8;
/// Rows of the residual of which products are in memory at a time. A multiple of the pieces of the products, so that it does not
/// change their bits.
const EXACT_ROWS: usize = 1024;
/// Rows of the second moments in one parallel piece.
const MOMENT_ROWS: usize = 64;
/// Magnitudes that are far from the limits of f32.
const REASONABLE: std::ops::Range<f64> = 1e-30..1e30;

/// What overlays of a residual capture at most, see [`super::bound`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CaptureBound {
    /// Bound of `λ₁ / tr M`.
    largest: f64,
    /// Bound of `tr M² / (tr M)²`.
    squares: f64,
}

impl CaptureBound {
    /// Nothing is known.
    const NONE: Self = CaptureBound {
        largest: 1.0,
        squares: 1.0,
    };

    /// With the traces of `M` and `M²` themselves, from products of about twice the smaller dimension and twice n operations for every
    /// weight.
    fn exact(sweep: &Sweep<'_>, moments: &Moments<'_>, log_largest: f64) -> Self {
        let (m, n) = (sweep.row_steps.len(), sweep.n);
        let mut scaled = sweep.residual.to_vec();
        for (row, step) in scaled.chunks_mut(n).zip(sweep.row_steps) {
            row.iter_mut().for_each(|x| *x /= step);
        }
        let view = MatrixView::new(&scaled, m, n, n);
        let (trace, squares) = if m <= n {
            let (mut trace, mut squares) = (0.0, 0.0);
            for rows in scaled.chunks(EXACT_ROWS * n) {
                let weighted = moments.multiply_rows(rows, n);
                let weighted_rows = MatrixView::new(&weighted, rows.len() / n, n, n);
                let product = parallel_product(weighted_rows, view.transposed());
                add_products(&mut trace, &weighted, rows);
                add_products(&mut squares, &product, &product);
            }
            (trace, squares)
        } else {
            // The eigenvalues other than 0 are those of `Eᵀ·D⁻²·E·H'`.
            let gram = parallel_product(view.transposed(), view);
            let product = moments.multiply_rows(&gram, n);
            let at = |row: usize, col: usize| f64::from(product[row * n + col]);
            let row = |row: usize| (0..n).map(|col| at(row, col) * at(col, row)).sum::<f64>();
            ((0..n).map(|i| at(i, i)).sum(), (0..n).map(row).sum())
        };
        CaptureBound {
            largest: (log_largest - trace.ln()).exp(),
            squares: squares / (trace * trace),
        }
        .if_finite()
    }

    /// Itself if it is a bound.
    fn if_finite(self) -> Self {
        match self.largest.is_finite() && self.squares.is_finite() {
            true => self,
            false => CaptureBound::NONE,
        }
    }

    /// Fraction of the residual's output error that a correction of this rank captures at most.
    pub fn captured(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        let sum = (rank * self.largest).min((rank * self.squares).sqrt());
        (ROUNDING * sum).min(1.0)
    }

    /// Whether no correction of a rank up to `max_rank` to a matrix [m, n] is worth its bits, so that
    /// [`super::OverlayFit::best_rank`] is 0.
    pub fn excludes(&self, m: usize, n: usize, max_rank: usize) -> bool {
        (1..=max_rank.min(m).min(n)).all(|rank| {
            let growth = (2.0 * bits_per_weight(rank, m, n)).exp2();
            (1.0 - self.captured(rank)) * growth >= 1.0
        })
    }
}

/// Bounds what overlays of the residual `W − Ŵ` [m, n] capture, as precisely as is needed to decide
/// [`CaptureBound::excludes`], or as eight products with the residual and its transpose and the two traces allow. `moments` [n, block] are the
/// shrunk second moments that [`crate::factor::factorize`] takes, `damping` its damping; should it have to raise the damping,
/// because rounding made the moments indefinite, then the bound is for other moments than the factor. `row_steps` `[m]` are
/// the row factors of the steps.
///
/// The bits do not depend on the number of threads.
///
/// # Errors
/// [`CodecError::Shape`], [`CodecError::NotFinite`]; [`CodecError::Range`] for a negative diagonal entry.
pub fn capture_bound(
    residual: &[f32],
    (m, n): (usize, usize),
    moments: &[f32],
    damping: f64,
    row_steps: &[f32],
    max_rank: usize,
) -> Result<CaptureBound, CodecError> {
    check_arguments(residual, m, n, row_steps)?;
    let moments = Moments::new(moments, n, damping)?;
    if residual.is_empty() {
        return Ok(CaptureBound::NONE);
    }
    let sweep = Sweep {
        residual,
        n,
        row_steps,
    };
    let mut powers = Powers::default();
    let mut bound = CaptureBound::NONE;
    let (_, mut z) = sweep.run(Vectors::Normal);
    let mut scale = 1.0;
    for _ in 0..SWEEPS {
        let mut products = moments.multiply(&z);
        powers.push(inner_product(&z, &products), scale);
        // Only ratios matter, so the vectors are scaled to keep f32 from overflowing.
        let magnitude = (inner_product(&products, &products) / n as f64).sqrt();
        if !REASONABLE.contains(&magnitude) {
            break;
        }
        let inverse = 1.0 / magnitude;
        products
            .as_flattened_mut()
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) * inverse) as f32);
        scale *= inverse;
        let energy;
        (energy, z) = sweep.run(Vectors::Product(&products));
        if !REASONABLE.contains(&energy) {
            break;
        }
        powers.push(energy, scale);
        bound = powers.bound();
        if bound.excludes(m, n, max_rank) {
            return Ok(bound);
        }
    }
    match powers.log_largest() {
        Some(log_largest) => Ok(CaptureBound::exact(&sweep, &moments, log_largest)),
        None => Ok(bound),
    }
}

/// The second moments with their damping.
struct Moments<'a> {
    /// [n, block]
    h: &'a [f32],
    block: usize,
    /// What is added to the diagonal.
    added: f32,
}

impl<'a> Moments<'a> {
    fn new(h: &'a [f32], n: usize, damping: f64) -> Result<Self, CodecError> {
        let block = block_width("second moments", h.len(), n)?;
        let mean = mean_diagonal(h, n, block)?;
        // The factor of zero moments is the identity.
        let added = if mean == 0.0 { 1.0 } else { damping * mean };
        Ok(Moments {
            h,
            block,
            added: added as f32,
        })
    }

    /// `X·H'` for `x` [rows, n].
    fn multiply_rows(&self, x: &[f32], n: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(MOMENT_ROWS * n)
            .zip(x.par_chunks(MOMENT_ROWS * n))
            .for_each(|(out, x)| {
                for first in (0..n).step_by(self.block) {
                    let (rows, width) = (x.len() / n, self.block.min(n - first));
                    let columns = MatrixView::new(&x[first..], rows, width, n);
                    let h = &self.h[first * self.block..];
                    let h = MatrixView::new(h, width, width, self.block);
                    multiply(&mut out[first..], n, columns, h);
                }
                for (out, x) in out.iter_mut().zip(x) {
                    *out = self.added.mul_add(*x, *out);
                }
            });
        out
    }

    /// `H'·z`.
    fn multiply(&self, z: &[Row]) -> Vec<Row> {
        let mut out = vec![[0.0; SAMPLES]; z.len()];
        let blocks = out.chunks_mut(self.block).zip(z.chunks(self.block));
        for (index, (out, z)) in blocks.enumerate() {
            let h = &self.h[index * self.block * self.block..];
            out.par_chunks_mut(MOMENT_ROWS)
                .zip(h.par_chunks(MOMENT_ROWS * self.block))
                .zip(z.par_chunks(MOMENT_ROWS))
                .for_each(|((out, rows), own)| {
                    dispatch(Product {
                        rows,
                        stride: self.block,
                        x: z,
                        out,
                    });
                    let (out, own) = (out.as_flattened_mut(), own.as_flattened());
                    for (out, z) in out.iter_mut().zip(own) {
                        *out = self.added.mul_add(*z, *out);
                    }
                });
        }
        out
    }
}

/// What the rows of the residual are combined with.
#[derive(Clone, Copy)]
enum Vectors<'a> {
    /// Standard normal numbers, [m].
    Normal,
    /// `D⁻¹·E·v` for v [n].
    Product(&'a [Row]),
}

/// One pass over the residual.
struct Sweep<'a> {
    /// [m, n]
    residual: &'a [f32],
    n: usize,
    /// `[m]`
    row_steps: &'a [f32],
}

impl Sweep<'_> {
    /// The sum of the squares of y [m] and `Eᵀ·D⁻¹·y` [n], where y is what `vectors` says.
    fn run(&self, vectors: Vectors<'_>) -> (f64, Vec<Row>) {
        let rows = self.row_steps.len().div_ceil(PIECES);
        let rows = rows.next_multiple_of(PANEL);
        let pieces: Vec<(f64, Vec<Row>)> = self
            .row_steps
            .par_chunks(rows)
            .zip(self.residual.par_chunks(rows * self.n))
            .enumerate()
            .map(|(piece, (row_steps, residual))| {
                let mut sums = vec![[0.0; SAMPLES]; self.n];
                let energy = dispatch(Piece {
                    first: piece * rows,
                    residual,
                    row_steps,
                    vectors,
                    sums: &mut sums,
                });
                (energy, sums)
            })
            .collect();
        let mut pieces = pieces.into_iter();
        let (mut energy, mut sums) = pieces.next().unwrap_or_default();
        for (other, others) in pieces {
            energy += other;
            let others = others.as_flattened();
            for (sum, other) in sums.as_flattened_mut().iter_mut().zip(others) {
                *sum += other;
            }
        }
        (energy, sums)
    }
}

/// The rows of a piece of [`Sweep`].
struct Piece<'a> {
    /// Number of the first row.
    first: usize,
    /// [rows, n]
    residual: &'a [f32],
    /// `[rows]`
    row_steps: &'a [f32],
    vectors: Vectors<'a>,
    /// [n]
    sums: &'a mut [Row],
}

impl Kernel for Piece<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let n = self.sums.len();
        let panels = self.residual.chunks(PANEL * n);
        let mut energy = 0.0;
        for (panel, (rows, row_steps)) in panels.zip(self.row_steps.chunks(PANEL)).enumerate() {
            let mut y = [[0.0; SAMPLES]; PANEL];
            match self.vectors {
                Vectors::Normal => {
                    let first = self.first + panel * PANEL;
                    let y = y[..row_steps.len()].iter_mut().enumerate();
                    y.for_each(|(row, y)| *y = normals(first + row));
                }
                Vectors::Product(x) => {
                    let out = &mut y[..row_steps.len()];
                    Product {
                        rows,
                        stride: n,
                        x,
                        out: &mut *out,
                    }
                    .run();
                    for (y, step) in out.iter_mut().zip(row_steps) {
                        y.iter_mut().for_each(|y| *y /= step);
                    }
                }
            }
            for (y, step) in y.iter_mut().zip(row_steps) {
                for y in y {
                    energy += f64::from(*y) * f64::from(*y);
                    *y /= step;
                }
            }
            add_transposed(self.sums, rows, &y);
        }
        energy
    }
}

/// Adds `Σ_r rows[r][k]·y[r]` to `sums[k]`, for `rows` [at most PANEL, n].
#[inline(always)]
fn add_transposed(sums: &mut [Row], rows: &[f32], y: &[Row; PANEL]) {
    let n = sums.len();
    if rows.len() == PANEL * n {
        let rows: [&[f32]; PANEL] = std::array::from_fn(|row| &rows[row * n..][..n]);
        for (k, total) in sums.iter_mut().enumerate() {
            let mut sums = *total;
            for (row, y) in rows.iter().zip(y) {
                let value = row[k];
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum = value.mul_add(*y, *sum);
                }
            }
            *total = sums;
        }
        return;
    }
    for (row, y) in rows.chunks(n).zip(y) {
        for (value, total) in row.iter().zip(sums.iter_mut()) {
            let mut sums = *total;
            for (sum, y) in sums.iter_mut().zip(y) {
                *sum = value.mul_add(*y, *sum);
            }
            *total = sums;
        }
    }
}

/// `out = rows·x` for rows `stride` apart of which as many values count as `x` has.
struct Product<'a> {
    rows: &'a [f32],
    stride: usize,
    x: &'a [Row],
    out: &'a mut [Row],
}

impl Product<'_> {
    /// Rows whose sums are formed side by side.
    const GROUP: usize = 4;

    #[inline(always)]
    fn group<const ROWS: usize>(rows: &[f32], stride: usize, x: &[Row], out: &mut [Row]) {
        let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &rows[row * stride..][..x.len()]);
        let mut sums = [[0.0f32; SAMPLES]; ROWS];
        for (k, x) in x.iter().enumerate() {
            for (row, sums) in rows.iter().zip(&mut sums) {
                let value = row[k];
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = value.mul_add(*x, *sum);
                }
            }
        }
        out.copy_from_slice(&sums);
    }
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.rows.chunks(Self::GROUP * self.stride);
        for (out, rows) in self.out.chunks_mut(Self::GROUP).zip(rows) {
            if out.len() == Self::GROUP {
                Self::group::<4>(rows, self.stride, self.x, out);
                continue;
            }
            for (out, row) in out.chunks_mut(1).zip(rows.chunks(self.stride)) {
                Self::group::<1>(row, self.stride, self.x, out);
            }
        }
    }
}

/// Standard normal numbers for a row (Box and Muller 1958).
fn normals(row: usize) -> Row {
    let mut out = [0.0; SAMPLES];
    // In 0..1, without 0.
    let uniform = |i: usize| ((splitmix64(i) >> 11) as f64 + 0.5) * 2f64.powi(-53);
    for (pair, out) in out.chunks_mut(2).enumerate() {
        let at = row * SAMPLES + 2 * pair;
        let radius = (-2.0 * uniform(at).ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform(at + 1);
        let (sin, cos) = angle.sin_cos();
        (out[0], out[1]) = ((radius * cos) as f32, (radius * sin) as f32);
    }
    out
}

/// Adds the products of all elements to `sum`, one after another.
fn add_products(sum: &mut f64, a: &[f32], b: &[f32]) {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.for_each(|product| *sum += product);
}

/// Sum of the products of all elements, in f64 and in order.
fn inner_product(a: &[Row], b: &[Row]) -> f64 {
    let pairs = a.as_flattened().iter().zip(b.as_flattened());
    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Logarithms of `Q_1`, `Q_2`, …
#[derive(Default)]
struct Powers(Vec<f64>);

impl Powers {
    /// Adds the next one, as computed from vectors that are scaled by `scale`.
    fn push(&mut self, scaled: f64, scale: f64) {
        self.0.push(scaled.ln() - 2.0 * scale.ln());
    }

    /// Logarithm of the bound of λ₁; None if there are no powers.
    fn log_largest(&self) -> Option<f64> {
        let samples = SAMPLES as f64;
        let quantile = tail_quantile(0.5 * samples);
        let bounds = self.0.iter().zip(1i32..);
        bounds
            .map(|(log, k)| (log - samples.ln() - quantile.ln()) / f64::from(k))
            .min_by(f64::total_cmp)
    }

    /// The bound that follows.
    fn bound(&self) -> CaptureBound {
        let (&[first, second, ..], Some(log_largest)) = (&self.0[..], self.log_largest()) else {
            return CaptureBound::NONE;
        };
        // In units in which Q_1 / SAMPLES, and so P_1 if the samples are typical, is 1.
        let unit = first - (SAMPLES as f64).ln();
        let largest = (log_largest - unit).exp();
        let mean_square = (second - (SAMPLES as f64).ln() - 2.0 * unit).exp();
        let trace = trace_below(1.0, largest);
        CaptureBound {
            largest: largest / trace,
            squares: trace_above(mean_square, largest * largest) / (trace * trace),
        }
        .if_finite()
    }
}

/// Logarithm of the bound of the probability that `Q_k / SAMPLES` is as far from the trace `P_k` as `mean`, where every eigenvalue
/// of `M^k` is at most `largest`.
fn log_tail(mean: f64, trace: f64, largest: f64) -> f64 {
    let ratio = mean / trace;
    0.5 * SAMPLES as f64 * trace / largest * (ratio.ln() + 1.0 - ratio)
}

/// The ε < 1 with `(ε·e^(1−ε))^exponent = FAILURE`.
fn tail_quantile(exponent: f64) -> f64 {
    bisect(0.0, 1.0, |ratio| {
        exponent * (ratio.ln() + 1.0 - ratio) < FAILURE.ln()
    })
}

/// The trace that is exceeded but with the probability [`FAILURE`]; 0 if none is known.
fn trace_below(mean: f64, largest: f64) -> f64 {
    bisect(0.0, mean, |trace| {
        log_tail(mean, trace, largest) < FAILURE.ln()
    })
}

/// The trace that is not reached but with the probability [`FAILURE`].
fn trace_above(mean: f64, largest: f64) -> f64 {
    // Beyond this, the exponent is at least that of the first quantile.
    let most = (mean / tail_quantile(0.5 * SAMPLES as f64)).max(largest);
    bisect(most, mean, |trace| {
        log_tail(mean, trace, largest) < FAILURE.ln()
    })
}

/// Where `improbable` changes from true to false between `improbable_end` and `probable_end`; the end of the interval that is found
/// on the improbable side, or `improbable_end` if it holds nowhere.
fn bisect(improbable_end: f64, probable_end: f64, improbable: impl Fn(f64) -> bool) -> f64 {
    let (mut outer, mut inner) = (improbable_end, probable_end);
    for _ in 0..60 {
        let middle = 0.5 * (outer + inner);
        match improbable(middle) {
            true => outer = middle,
            false => inner = middle,
        }
    }
    outer
}

#[cfg(test)]
mod tests;
