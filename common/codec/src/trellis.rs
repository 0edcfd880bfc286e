//! Trellis-coded quantization down the rows of a column.
//!
//! The levels of a column are the integers, `weight ≈ level · step`. An index q stands for the level `2q + b`, and the bit b
//! follows from the indices above it in the same column, so that neighbouring levels are half as far apart as the entropy of
//! the indices suggests: at equal entropy the mean square error is 1.2 dB lower than that of rounding, of 1.53 dB that any
//! quantizer can gain at high rate (entropy-coded trellis quantization: Fischer and Wang 1992; Marcellin 1994; the same idea
//! is dependent quantization in VVC, Schwarz et al. 2019).
//!
//! # The code
//! Rows are cut into blocks of 256. Every column has a history h of 6 bits, 0 before the first row of a block. In each row, with
//! `h[k]` for bit k of h and p for the lowest bit of q:
//! ```text
//! level = 2q + (h[0] ^ h[4])
//! u     = p ^ h[1] ^ h[3] ^ h[4] ^ h[5]
//! h     = (2h + u) mod 64
//! ```
//! A row whose row logarithm is 0 has level 0 everywhere and leaves the histories as they are. (This is a convolutional code of
//! 64 states in the form in which the state is the last six input bits: of all such codes the one of least mean square error in
//! blocks of 256, but for its mirror image, see `examples/examples/trellis_codes.rs`. Its parity check polynomials are 165 and 42 in
//! octal, where Ungerboeck (1982) has 103 and 024 for amplitude modulation.)
//!
//! # Choosing the indices
//! [`Path::quantize`] finds the indices of least squared error in a block of one column with Viterbi's algorithm: a metric
//! for each of the 64 histories, two candidates each, one decision bit per row and history.
//!
//! [`Path::quantize_coupled`] does so where the errors of a row enter the targets of the rows below it
//! ([`crate::factor`]): the module `coupled`.
//!
//! Safety: each vector form runs behind the check that the processor has its instruction set; loads and stores go to arrays
//! or slices of the vectors' lengths.
#![allow(unsafe_code)]

mod coupled;

pub(crate) use coupled::Coupling;

use coupled::Survivors;
#[cfg(target_arch = "x86_64")]
use uc_simd::has_avx2;

/// Rows of a block.
pub const BLOCK_ROWS: usize = 256;
/// Histories of a column.
const STATES: usize = 64;
/// Histories that differ from a later one in the oldest bit only.
const HALF: usize = STATES / 2;
/// Cost of a history that no row leads to.
const UNREACHED: f32 = 1e30;
/// By the history with oldest bit 0: residues of the levels that lead on to newest bit 0 and 1. With oldest bit 1 they are
/// exchanged.
const RESIDUES: [[usize; 2]; HALF] = {
    let mut residues = [[0; 2]; HALF];
    let mut history = 0;
    while history < HALF as u16 {
        residues[history as usize] = [residue(history, 0) as usize, residue(history, 1) as usize];
        history += 1;
    }
    residues
};
/// Largest magnitude of a value in units of the step: its level's index is within an `i16`.
const LARGEST_VALUE: f32 = 65_530.0;

/// The lowest bit of all levels after a history.
#[inline(always)]
const fn offset(history: u16) -> u16 {
    (history ^ history >> 4) & 1
}

/// Whether the lowest bit of an index enters a history turned round: only the lowest bit has this meaning.
#[inline(always)]
const fn turn(history: u16) -> u16 {
    history >> 1 ^ history >> 3 ^ history >> 4 ^ history >> 5
}

/// Residue modulo 4 of the levels that lead on from a history to one with the newest bit `u`.
const fn residue(history: u16, u: u16) -> u16 {
    2 * ((u ^ turn(history)) & 1) + offset(history)
}

/// The level of an index after a history.
#[inline(always)]
pub(crate) fn level(history: u16, q: i16) -> i32 {
    2 * i32::from(q) + i32::from(offset(history))
}

/// The history after an index.
#[inline(always)]
pub(crate) fn advance(history: u16, q: i16) -> u16 {
    (history << 1 | (q as u16 ^ turn(history)) & 1) & (STATES as u16 - 1)
}

/// Levels of `q` [rows, cols], rows with the row logarithm 0 being zero: the definition, one element after another.
pub fn levels(q: &[i16], cols: usize, row_log2_eighths: &[u8]) -> Vec<i32> {
    let mut history = vec![0u16; cols];
    let mut out = Vec::with_capacity(q.len());
    for (row, (q, &log)) in q.chunks(cols.max(1)).zip(row_log2_eighths).enumerate() {
        if row % BLOCK_ROWS == 0 {
            history.fill(0);
        }
        for (history, &q) in history.iter_mut().zip(q) {
            if log == 0 {
                out.push(0);
            } else {
                out.push(level(*history, q));
                *history = advance(*history, q);
            }
        }
    }
    out
}

/// The search for the best indices of a block of a column: what it needs beside the values.
pub(crate) struct Path {
    /// [rows] bit `i + 32·u`: does the best way to the history 2i + u come from i + 32 (instead of i)?
    decisions: [u64; BLOCK_ROWS],
    /// [rows] index chosen.
    pub(crate) indices: [i16; BLOCK_ROWS],
    /// [rows] level chosen.
    pub(crate) levels: [f32; BLOCK_ROWS],
    survivors: Survivors,
}

impl Path {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Path {
            decisions: [0; BLOCK_ROWS],
            indices: [0; BLOCK_ROWS],
            levels: [0.0; BLOCK_ROWS],
            survivors: Survivors::new(),
        })
    }

    /// Indices and levels for the first `rows` of `values`, in units of the step; what the other rows get has no meaning.
    #[inline(always)]
    pub(crate) fn quantize(&mut self, values: &[f32; BLOCK_ROWS], rows: usize) {
        let values = values.map(|value| value.clamp(-LARGEST_VALUE, LARGEST_VALUE));
        let last = forward(&values[..rows], &mut self.decisions[..rows]);
        self.take(&values, rows, last);
    }

    /// As [`Path::quantize`], with the error `value − level` of a row entering the values of the rows below it.
    #[inline(always)]
    pub(crate) fn quantize_coupled(
        &mut self,
        values: &[f32; BLOCK_ROWS],
        rows: usize,
        coupling: &Coupling,
    ) {
        let quarters = values.map(|value| 0.25 * value);
        let (survivors, decisions) = (&mut self.survivors, &mut self.decisions[..rows]);
        let last = coupled::search(&quarters[..rows], coupling, survivors, decisions);
        let errors = survivors.along(rows, last);
        let reached = std::array::from_fn(|row| {
            let value: f32 = 4.0 * (quarters[row] - errors[row]);
            value.clamp(-LARGEST_VALUE, LARGEST_VALUE)
        });
        self.take(&reached, rows, last);
    }

    /// The levels that are nearest to `values` on the way to the history `last` after the last of `rows`, and their indices.
    #[inline(always)]
    fn take(&mut self, values: &[f32; BLOCK_ROWS], rows: usize, last: usize) {
        let mut residues = [0.0; BLOCK_ROWS];
        let mut history = last;
        for (found, &decisions) in residues.iter_mut().zip(&self.decisions).take(rows).rev() {
            let before = before(history, decisions);
            *found = f32::from(residue(before as u16, history as u16 & 1));
            history = before;
        }
        for (row, (value, residue)) in values.iter().zip(residues).enumerate() {
            let level = residue + 4.0 * (0.25 * (value - residue)).round_ties_even();
            self.levels[row] = level;
            self.indices[row] = (level as i32 >> 1) as i16;
        }
    }
}

/// The history before `history` on the best way there, by the decisions of the row between them.
#[inline(always)]
fn before(history: usize, decisions: u64) -> usize {
    let (i, u) = (history >> 1, history & 1);
    i + HALF * (decisions >> (i + HALF * u) & 1) as usize
}

/// Fills the decisions of rows with the given values; returns the history of least total cost after them. On ties the
/// history of the smaller number wins, here and in the decisions.
fn forward(values: &[f32], decisions: &mut [u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    let metrics = if has_avx2() {
        // SAFETY: the processor has AVX2.
        unsafe { avx2::forward(values, decisions) }
    } else {
        forward_portably(values, decisions)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let metrics = forward_portably(values, decisions);
    least(&metrics)
}

/// The history of least cost.
fn least(metrics: &[f32; STATES]) -> usize {
    (1..STATES).fold(0, |best, state| {
        if metrics[state] < metrics[best] {
            state
        } else {
            best
        }
    })
}

/// Total costs of the best ways to all histories; only the history 0 has a way of no rows.
fn forward_portably(values: &[f32], decisions: &mut [u64]) -> [f32; STATES] {
    let mut metrics = [UNREACHED; STATES];
    metrics[0] = 0.0;
    for (value, decisions) in values.iter().zip(decisions) {
        // Squared distance to the nearest level of each residue.
        let cost = [0.0, 1.0, 2.0, 3.0].map(|residue| {
            let beyond = value - residue;
            let miss = beyond - 4.0 * (0.25 * beyond).round_ties_even();
            miss * miss
        });
        let mut next = [0.0; STATES];
        *decisions = 0;
        for i in 0..HALF {
            let [same, other] = RESIDUES[i].map(|residue| cost[residue]);
            let (low, high) = (metrics[i], metrics[i + HALF]);
            for (u, low, high) in [(0, low + same, high + other), (1, low + other, high + same)] {
                next[2 * i + u] = if high < low { high } else { low };
                *decisions |= u64::from(high < low) << (i + HALF * u);
            }
        }
        metrics = next;
    }
    metrics
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{HALF, RESIDUES, STATES, UNREACHED};
    use std::arch::x86_64::*;

    /// Round half to even, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    /// Histories of a vector.
    const LANES: usize = 8;
    /// Vectors of histories with the same oldest bit.
    const VECTORS: usize = HALF / LANES;

    /// [`super::forward_portably`] with eight histories side by side.
    #[target_feature(enable = "avx2")]
    pub(super) fn forward(values: &[f32], decisions: &mut [u64]) -> [f32; STATES] {
        // Residues within each half of a vector.
        let index = |u: usize| -> [__m256i; VECTORS] {
            std::array::from_fn(|vector| {
                let of: [i32; LANES] =
                    std::array::from_fn(|lane| RESIDUES[LANES * vector + lane][u] as i32);
                // SAFETY: eight numbers.
                unsafe { _mm256_loadu_si256(of.as_ptr().cast()) }
            })
        };
        let (same, other) = (index(0), index(1));
        let residues = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0);
        let (four, quarter) = (_mm256_set1_ps(4.0), _mm256_set1_ps(0.25));
        let unreached = _mm256_set1_ps(UNREACHED);
        let mut metrics = [unreached; 2 * VECTORS];
        metrics[0] = _mm256_blend_ps::<1>(unreached, _mm256_setzero_ps());
        for (&value, decisions) in values.iter().zip(decisions) {
            let beyond = _mm256_sub_ps(_mm256_set1_ps(value), residues);
            let nearest = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(quarter, beyond));
            let miss = _mm256_sub_ps(beyond, _mm256_mul_ps(four, nearest));
            let cost = _mm256_mul_ps(miss, miss);
            let mut next = metrics;
            *decisions = 0;
            for vector in 0..VECTORS {
                let same = _mm256_permutevar_ps(cost, same[vector]);
                let other = _mm256_permutevar_ps(cost, other[vector]);
                let (low, high) = (metrics[vector], metrics[vector + VECTORS]);
                let (low_0, high_0) = (_mm256_add_ps(low, same), _mm256_add_ps(high, other));
                let (low_1, high_1) = (_mm256_add_ps(low, other), _mm256_add_ps(high, same));
                let (even, odd) = (_mm256_min_ps(high_0, low_0), _mm256_min_ps(high_1, low_1));
                let bits = |high, low| {
                    let better = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(high, low));
                    u64::from(better as u32) << (LANES * vector)
                };
                *decisions |= bits(high_0, low_0) | bits(high_1, low_1) << HALF;
                let (first, second) =
                    (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
                next[2 * vector] = _mm256_permute2f128_ps::<0x20>(first, second);
                next[2 * vector + 1] = _mm256_permute2f128_ps::<0x31>(first, second);
            }
            metrics = next;
        }
        let mut costs = [0.0; STATES];
        for (costs, vector) in costs.chunks_exact_mut(LANES).zip(metrics) {
            // SAFETY: the chunk has eight numbers.
            unsafe { _mm256_storeu_ps(costs.as_mut_ptr(), vector) };
        }
        costs
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use uc_simd::{Kernel, dispatch};

    /// The indices of least squared error for a column of `values` in units of the step, in blocks of [`BLOCK_ROWS`].
    pub(crate) fn column_indices(values: &[f32]) -> Vec<i16> {
        let blocks = values.chunks(BLOCK_ROWS);
        blocks
            .flat_map(|values| dispatch(Single { values }))
            .collect()
    }

    /// One block of a column.
    struct Single<'a> {
        values: &'a [f32],
    }

    impl Kernel for Single<'_> {
        type Output = Vec<i16>;

        #[inline(always)]
        fn run(self) -> Vec<i16> {
            let mut path = Path::new();
            let mut values = [0.0; BLOCK_ROWS];
            values[..self.values.len()].copy_from_slice(self.values);
            path.quantize(&values, self.values.len());
            path.indices[..self.values.len()].to_vec()
        }
    }

    /// About normal numbers of standard deviation `width`.
    pub(crate) fn normals(count: usize, width: f32) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count)
            .map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * width)
            .collect()
    }

    fn squared_error(values: &[f32], q: &[i16]) -> f64 {
        let levels = levels(q, 1, &vec![1; q.len()]);
        let miss = |(&level, &value): (&i32, &f32)| (f64::from(level) - f64::from(value)).powi(2);
        levels.iter().zip(values).map(miss).sum::<f64>() / q.len() as f64
    }

    fn entropy(q: &[i16]) -> f64 {
        let mut counts = std::collections::BTreeMap::new();
        q.iter()
            .for_each(|&q| *counts.entry(q).or_insert(0.0f64) += 1.0);
        let total = q.len() as f64;
        counts
            .values()
            .map(|count| -count / total * (count / total).log2())
            .sum()
    }

    #[test]
    fn at_equal_entropy_the_error_is_more_than_a_decibel_below_that_of_rounding() {
        let values = normals(BLOCK_ROWS * 400, 15.4);
        let q = column_indices(&values);
        let rounded: Vec<i16> = values
            .iter()
            .map(|value| (value / 2.0).round() as i16)
            .collect();
        let plain = |(&q, &value): (&i16, &f32)| (2.0 * f64::from(q) - f64::from(value)).powi(2);
        let plain = rounded.iter().zip(&values).map(plain).sum::<f64>() / q.len() as f64;
        let at_equal_entropy = plain * (2.0 * (entropy(&rounded) - entropy(&q))).exp2();
        let gain = 10.0 * (at_equal_entropy / squared_error(&values, &q)).log10();
        assert!((1.2..1.25).contains(&gain), "{gain} dB");
    }

    #[test]
    fn the_indices_are_the_best_of_all_for_a_few_rows() {
        let values = [3.3, -7.9, 0.4, 1.1];
        let found = squared_error(&values, &column_indices(&values));
        let mut least = f64::INFINITY;
        for code in 0..7usize.pow(4) {
            let at = |row: u32| {
                ((values[row as usize] / 2.0).round() as i16) + (code / 7usize.pow(row) % 7) as i16
                    - 3
            };
            least = least.min(squared_error(&values, &[at(0), at(1), at(2), at(3)]));
        }
        assert!((found - least).abs() < 1e-9, "{found} against {least}");
    }

    #[test]
    fn decisions_and_costs_are_the_same_bits_with_and_without_vectors() {
        for rows in [1, 2, 5, 255, 256] {
            let mut values = normals(rows, 900.0);
            values[rows / 2] = 0.5; // half-way: ties
            let (mut fast, mut plain) = ([0; BLOCK_ROWS], [0; BLOCK_ROWS]);
            assert_eq!(
                forward(&values, &mut fast[..rows]),
                least(&forward_portably(&values, &mut plain[..rows]))
            );
            assert_eq!(fast, plain);
        }
    }

    #[test]
    fn blocks_begin_anew_and_rows_of_zeros_do_not_move_the_histories() {
        let values = normals(600, 5.0);
        let q = column_indices(&values);
        let all = levels(&q, 1, &[1; 600]);
        assert_eq!(all[256..512], levels(&q[256..512], 1, &[1; 256]));
        let mut logs = [1; 6];
        logs[2] = 0;
        let (with, without) = (
            levels(&[1, 3, 0, 5, 7, 9], 1, &logs),
            levels(&[1, 3, 5, 7, 9], 1, &[1; 5]),
        );
        assert_eq!((with[2], [&with[..2], &with[3..]].concat()), (0, without));
    }
}
