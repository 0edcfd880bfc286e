//! Trellis-coded quantization down the rows of a column.
//!
//! The levels of a column are integers: `weight ≈ level · step`. An index q stands for the level `2q + b`, where the bit b
//! follows from the indices above it in the same column. Adjacent levels are therefore half as far apart as the entropy of
//! the indices suggests: at equal entropy the mean square error is 1.2 dB lower than that of rounding; no quantizer can
//! gain more than 1.53 dB at high rate (entropy-coded trellis quantization: Fischer and Wang 1992; Marcellin 1994; the
//! same idea is dependent quantization in VVC, Schwarz et al. 2019).
//!
//! # The code
//! Rows are cut into blocks of 256. Every column has a state h of 6 bits, which is 0 before the first row of a block. In each
//! row, with `h[k]` for bit k of h and p for the lowest bit of q:
//! ```text
//! level = 2q + (h[0] ^ h[4])
//! u     = p ^ h[1] ^ h[3] ^ h[4] ^ h[5]
//! h     = (2h + u) mod 64
//! ```
//! A row whose row logarithm is 0 has level 0 everywhere and leaves the states unchanged. (This is a convolutional code
//! of 64 states, written so that the state is the last six input bits. Of all such codes it has the lowest mean square
//! error in blocks of 256, together with its mirror image; see `examples/examples/trellis_codes.rs`. Its parity check
//! polynomials are 165 and 42 in octal, where Ungerboeck (1982) has 103 and 024 for amplitude modulation.)
//!
//! # Choosing the indices
//! `BlockSearch::quantize` finds the indices of least squared error in a block of one column with Viterbi's algorithm: a
//! path cost for each of the 64 states, two candidates each, one decision bit per row and state.
//!
//! `BlockSearch::quantize_coupled` is the search for the case in which the errors of a row enter the targets of the
//! rows below it ([`crate::factor`]); see the module `coupled`.
//!
//! Safety: each vectorized implementation is guarded by a check that the processor has its instruction set. Loads and
//! stores access arrays or slices that have the length of a vector.
#![allow(unsafe_code)]

mod coupled;

pub(crate) use coupled::Coupling;

use coupled::Survivors;
#[cfg(target_arch = "x86_64")]
use uc_simd::has_avx2;
use uc_simd::{Kernel, dispatch};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 256;
/// States of a column.
const STATES: usize = 64;
/// States whose oldest bit is 0. Adding it to one of them gives the state that differs in the oldest bit only.
const HALF: usize = STATES / 2;
/// Path cost of a state that no path leads to.
const UNREACHABLE: f32 = 1e30;
/// For each state whose oldest bit is 0: residues modulo 4 of the levels that lead to a state with newest bit 0 and 1. For
/// the state with oldest bit 1 the two are exchanged.
const RESIDUES: [[usize; 2]; HALF] = {
    let mut residues = [[0; 2]; HALF];
    let mut state = 0;
    while state < HALF as u16 {
        residues[state as usize] = [residue(state, 0) as usize, residue(state, 1) as usize];
        state += 1;
    }
    residues
};
/// Largest magnitude of a value in units of the step: the index of its level fits into an `i16`.
const LARGEST_VALUE: f32 = 65_530.0;

/// The lowest bit of all levels that can follow a state.
#[inline(always)]
const fn level_parity(state: u16) -> u16 {
    (state ^ state >> 4) & 1
}

/// The term that is added to the lowest bit of an index to give the next input bit. Only the lowest bit of the result
/// is meaningful.
#[inline(always)]
const fn input_parity(state: u16) -> u16 {
    state >> 1 ^ state >> 3 ^ state >> 4 ^ state >> 5
}

/// Residue modulo 4 of the levels that lead from a state to one with the newest bit `u`.
const fn residue(state: u16, u: u16) -> u16 {
    2 * ((u ^ input_parity(state)) & 1) + level_parity(state)
}

/// The level of an index in a state.
#[inline(always)]
pub(crate) fn level(state: u16, q: i16) -> i32 {
    2 * i32::from(q) + i32::from(level_parity(state))
}

/// The state after an index.
#[inline(always)]
pub(crate) fn next_state(state: u16, q: i16) -> u16 {
    (state << 1 | (q as u16 ^ input_parity(state)) & 1) & (STATES as u16 - 1)
}

/// Levels of `q` [rows, cols] by the definition, one element after another. Rows with the row logarithm 0 are zero.
pub fn levels(q: &[i16], cols: usize, row_log2_eighths: &[u8]) -> Vec<i32> {
    let mut out = Vec::with_capacity(q.len());
    LevelReader::new(cols).rows(q, row_log2_eighths, &mut |level| out.push(level));
    out
}

/// For each state: what distinguishes the level of an element from twice its *feed-forward index*, see
/// [`LevelReader::feedforward`].
pub const FEEDFORWARD: [u8; STATES] = {
    let mut table = [0; STATES];
    let mut state = 0;
    while state < STATES as u16 {
        table[state as usize] = residue(state, 0) as u8;
        state += 1;
    }
    table
};

/// Turns the indices of a tensor into levels, in pieces of whole rows from the first row on.
#[derive(Debug)]
pub struct LevelReader {
    /// `[cols]`
    states: Vec<u16>,
    /// Number of the next row.
    row: usize,
}

impl LevelReader {
    /// Starts at the first row of a tensor with this number of columns.
    pub fn new(cols: usize) -> Self {
        LevelReader {
            states: vec![0; cols],
            row: 0,
        }
    }

    /// Passes the levels of the next rows to `sink` in row-major order. `q` [rows, cols] are their indices, with one logarithm for
    /// each row.
    pub fn rows(&mut self, q: &[i16], row_log2_eighths: &[u8], sink: &mut impl FnMut(i32)) {
        for (q, &log) in q.chunks(self.states.len().max(1)).zip(row_log2_eighths) {
            self.begin_row();
            for (state, &q) in self.states.iter_mut().zip(q) {
                if log == 0 {
                    sink(0);
                } else {
                    sink(level(*state, q));
                    *state = next_state(*state, q);
                }
            }
        }
    }

    /// Writes the feed-forward indices `v` of the next row to `out`: v is q with its lowest bit replaced by the input bit u of
    /// the trellis. So the six rows above suffice to find a level, whatever lies above them:
    /// `level = 2v ^ FEEDFORWARD[h]`, where the bits of the state h are the lowest bits of the last six v of the column, the
    /// latest in bit 0, and `h = (2h + (v & 1)) mod 64` after it. A row of zeros is passed over.
    ///
    /// # Panics
    /// If `q` and `out` do not have one element for each column.
    pub fn feedforward(&mut self, q: &[i16], row_log2_eighths: u8, out: &mut [i16]) {
        let index = |_, next: u16, q: i16| q & !1 | (next & 1) as i16;
        self.next_row(q, row_log2_eighths, out, index);
    }

    /// Writes the levels of the next row to `out`.
    ///
    /// # Panics
    /// If `q` and `out` do not have one element for each column.
    pub fn row(&mut self, q: &[i16], row_log2_eighths: u8, out: &mut [i32]) {
        self.next_row(q, row_log2_eighths, out, |state, _, q| level(state, q));
    }

    /// Writes `of` every element of the next row to `out`, or zeros for a row of zeros: see [`Row`].
    fn next_row<T: Clone + Default>(
        &mut self,
        q: &[i16],
        row_log2_eighths: u8,
        out: &mut [T],
        of: impl Fn(u16, u16, i16) -> T,
    ) {
        assert!(
            q.len() == self.states.len() && out.len() == q.len(),
            "whole rows"
        );
        self.begin_row();
        if row_log2_eighths == 0 {
            out.fill(T::default());
            return;
        }
        dispatch(Row {
            states: &mut self.states,
            q,
            out,
            of,
        });
    }

    /// Counts a row; the states are 0 before the first row of a block.
    fn begin_row(&mut self) {
        if self.row.is_multiple_of(BLOCK_ROWS) {
            self.states.fill(0);
        }
        self.row += 1;
    }
}

/// Something about every element of a row, from the states before and after it and its index.
struct Row<'a, T, F> {
    states: &'a mut [u16],
    q: &'a [i16],
    out: &'a mut [T],
    of: F,
}

impl<T, F: Fn(u16, u16, i16) -> T> Kernel for Row<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((state, &q), out) in self.states.iter_mut().zip(self.q).zip(self.out) {
            let next = next_state(*state, q);
            *out = (self.of)(*state, next, q);
            *state = next;
        }
    }
}

/// Searches for the best indices of a block of one column; holds the result and the scratch memory of the search.
pub(crate) struct BlockSearch {
    /// `[rows]` bit `i + 32·u` is set if the survivor path to the state 2i + u comes from i + 32 (instead of i).
    decisions: [u64; BLOCK_ROWS],
    /// `[rows]` chosen indices.
    pub(crate) indices: [i16; BLOCK_ROWS],
    /// `[rows]` chosen levels.
    pub(crate) levels: [f32; BLOCK_ROWS],
    survivors: Survivors,
}

impl BlockSearch {
    pub(crate) fn new() -> Box<Self> {
        Box::new(BlockSearch {
            decisions: [0; BLOCK_ROWS],
            indices: [0; BLOCK_ROWS],
            levels: [0.0; BLOCK_ROWS],
            survivors: Survivors::new(),
        })
    }

    /// Finds indices and levels for the first `rows` of `values`, in units of the step. The results of other rows are
    /// meaningless.
    #[inline(always)]
    pub(crate) fn quantize(&mut self, values: &[f32; BLOCK_ROWS], rows: usize) {
        let values = values.map(|value| value.clamp(-LARGEST_VALUE, LARGEST_VALUE));
        let last = forward_pass(&values[..rows], &mut self.decisions[..rows]);
        self.trace_back(&values, rows, last);
    }

    /// Like [`BlockSearch::quantize`], but the error `value − level` of a row enters the values of the rows below it.
    #[inline(always)]
    pub(crate) fn quantize_coupled(
        &mut self,
        values: &[f32; BLOCK_ROWS],
        rows: usize,
        coupling: &Coupling,
    ) {
        coupled::search(coupled::Search {
            values: &values[..rows],
            coupling,
            survivors: &mut self.survivors,
            levels: &mut self.levels,
        });
        let levels = self.levels.iter();
        for (index, level) in self.indices.iter_mut().zip(levels) {
            *index = (*level as i32 >> 1) as i16;
        }
    }

    /// Follows the decisions back from the state `last` after the last of `rows`, and sets the levels of that path that are
    /// nearest to `values`, and their indices.
    #[inline(always)]
    fn trace_back(&mut self, values: &[f32; BLOCK_ROWS], rows: usize, last: usize) {
        let mut residues = [0.0; BLOCK_ROWS];
        let mut state = last;
        let decisions = self.decisions.iter().take(rows);
        for (residue_of_row, &decisions) in residues.iter_mut().zip(decisions).rev() {
            let previous = predecessor(state, decisions);
            *residue_of_row = f32::from(residue(previous as u16, state as u16 & 1));
            state = previous;
        }
        for (row, (value, residue)) in values.iter().zip(residues).enumerate() {
            let level = nearest_level(*value, residue);
            self.levels[row] = level;
            self.indices[row] = (level as i32 >> 1) as i16;
        }
    }
}

/// The level of a residue modulo 4 that is nearest to a value.
#[inline(always)]
fn nearest_level(value: f32, residue: f32) -> f32 {
    residue + 4.0 * (0.25 * (value - residue)).round_ties_even()
}

/// The state before `state` on its survivor path, by the decisions of the row between them.
#[inline(always)]
fn predecessor(state: usize, decisions: u64) -> usize {
    let (i, u) = (state >> 1, state & 1);
    i + HALF * (decisions >> (i + HALF * u) & 1) as usize
}

/// Fills the decisions of rows with the given values; returns the state of least path cost after them. On ties the state of
/// the smaller number wins, here and in the decisions.
fn forward_pass(values: &[f32], decisions: &mut [u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    let costs = if has_avx2() {
        // SAFETY: the processor has AVX2.
        unsafe { avx2::forward_pass(values, decisions) }
    } else {
        forward_pass_portable(values, decisions)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let costs = forward_pass_portable(values, decisions);
    cheapest_state(&costs)
}

/// The state of least path cost.
fn cheapest_state(path_costs: &[f32; STATES]) -> usize {
    (1..STATES).fold(0, |best, state| {
        if path_costs[state] < path_costs[best] {
            state
        } else {
            best
        }
    })
}

/// Costs of the survivor paths to all states. Only the state 0 has a path of no rows.
fn forward_pass_portable(values: &[f32], decisions: &mut [u64]) -> [f32; STATES] {
    let mut path_costs = [UNREACHABLE; STATES];
    path_costs[0] = 0.0;
    for (value, decisions) in values.iter().zip(decisions) {
        // Squared distance to the nearest level of each residue.
        let cost = [0.0, 1.0, 2.0, 3.0].map(|residue| {
            let offset = value - residue;
            let distance = offset - 4.0 * (0.25 * offset).round_ties_even();
            distance * distance
        });
        let mut next = [0.0; STATES];
        *decisions = 0;
        for i in 0..HALF {
            let [same, other] = RESIDUES[i].map(|residue| cost[residue]);
            let (low, high) = (path_costs[i], path_costs[i + HALF]);
            for (u, low, high) in [(0, low + same, high + other), (1, low + other, high + same)] {
                next[2 * i + u] = if high < low { high } else { low };
                *decisions |= u64::from(high < low) << (i + HALF * u);
            }
        }
        path_costs = next;
    }
    path_costs
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{HALF, RESIDUES, STATES, UNREACHABLE};
    use std::arch::x86_64::*;

    /// Round half to even, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    /// States of a vector.
    const LANES: usize = 8;
    /// Vectors of the states with the same oldest bit.
    const VECTORS: usize = HALF / LANES;

    /// [`super::forward_pass_portable`] with eight states side by side.
    #[target_feature(enable = "avx2")]
    pub(super) fn forward_pass(values: &[f32], decisions: &mut [u64]) -> [f32; STATES] {
        // Position of the residue of each state in a half of the cost vector.
        let residue_index = |u: usize| -> [__m256i; VECTORS] {
            std::array::from_fn(|vector| {
                let residues: [i32; LANES] =
                    std::array::from_fn(|lane| RESIDUES[LANES * vector + lane][u] as i32);
                // SAFETY: eight numbers.
                unsafe { _mm256_loadu_si256(residues.as_ptr().cast()) }
            })
        };
        let (same, other) = (residue_index(0), residue_index(1));
        let residues = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0);
        let (four, quarter) = (_mm256_set1_ps(4.0), _mm256_set1_ps(0.25));
        let unreachable = _mm256_set1_ps(UNREACHABLE);
        let mut path_costs = [unreachable; 2 * VECTORS];
        path_costs[0] = _mm256_blend_ps::<1>(unreachable, _mm256_setzero_ps());
        for (&value, decisions) in values.iter().zip(decisions) {
            let offset = _mm256_sub_ps(_mm256_set1_ps(value), residues);
            let nearest = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(quarter, offset));
            let distance = _mm256_sub_ps(offset, _mm256_mul_ps(four, nearest));
            let cost = _mm256_mul_ps(distance, distance);
            let mut next = path_costs;
            *decisions = 0;
            for vector in 0..VECTORS {
                let same = _mm256_permutevar_ps(cost, same[vector]);
                let other = _mm256_permutevar_ps(cost, other[vector]);
                let (low, high) = (path_costs[vector], path_costs[vector + VECTORS]);
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
            path_costs = next;
        }
        let mut costs = [0.0; STATES];
        for (costs, vector) in costs.chunks_exact_mut(LANES).zip(path_costs) {
            // SAFETY: the chunk has eight numbers.
            unsafe { _mm256_storeu_ps(costs.as_mut_ptr(), vector) };
        }
        costs
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The indices of least squared error for a column of `values` in units of the step, in blocks of [`BLOCK_ROWS`].
    pub(crate) fn column_indices(values: &[f32]) -> Vec<i16> {
        let blocks = values.chunks(BLOCK_ROWS);
        blocks
            .flat_map(|values| dispatch(OneBlock { values }))
            .collect()
    }

    /// One block of a column.
    struct OneBlock<'a> {
        values: &'a [f32],
    }

    impl Kernel for OneBlock<'_> {
        type Output = Vec<i16>;

        #[inline(always)]
        fn run(self) -> Vec<i16> {
            let mut search = BlockSearch::new();
            let mut values = [0.0; BLOCK_ROWS];
            values[..self.values.len()].copy_from_slice(self.values);
            search.quantize(&values, self.values.len());
            search.indices[..self.values.len()].to_vec()
        }
    }

    /// Approximately normal numbers of standard deviation `width`.
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
        let squared =
            |(&level, &value): (&i32, &f32)| (f64::from(level) - f64::from(value)).powi(2);
        levels.iter().zip(values).map(squared).sum::<f64>() / q.len() as f64
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
        let squared = |(&q, &value): (&i16, &f32)| (2.0 * f64::from(q) - f64::from(value)).powi(2);
        let rounding_error = rounded.iter().zip(&values).map(squared).sum::<f64>() / q.len() as f64;
        let at_equal_entropy = rounding_error * (2.0 * (entropy(&rounded) - entropy(&q))).exp2();
        let gain = 10.0 * (at_equal_entropy / squared_error(&values, &q)).log10();
        assert!((1.2..1.25).contains(&gain), "{gain} dB");
    }

    #[test]
    fn the_search_finds_the_best_of_all_indices_for_a_few_rows() {
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
    fn decisions_and_costs_have_the_same_bits_with_and_without_vectors() {
        for rows in [1, 2, 5, 255, 256] {
            let mut values = normals(rows, 900.0);
            values[rows / 2] = 0.5; // halfway: ties
            let (mut fast, mut portable) = ([0; BLOCK_ROWS], [0; BLOCK_ROWS]);
            assert_eq!(
                forward_pass(&values, &mut fast[..rows]),
                cheapest_state(&forward_pass_portable(&values, &mut portable[..rows]))
            );
            assert_eq!(fast, portable);
        }
    }

    #[test]
    fn blocks_begin_in_state_zero_and_rows_of_zeros_leave_the_states_unchanged() {
        let values = normals(600, 5.0);
        let q = column_indices(&values);
        let whole = levels(&q, 1, &[1; 600]);
        assert_eq!(whole[256..512], levels(&q[256..512], 1, &[1; 256]));
        let mut logs = [1; 6];
        logs[2] = 0;
        let (with, without) = (
            levels(&[1, 3, 0, 5, 7, 9], 1, &logs),
            levels(&[1, 3, 5, 7, 9], 1, &[1; 5]),
        );
        assert_eq!((with[2], [&with[..2], &with[3..]].concat()), (0, without));
    }
}
