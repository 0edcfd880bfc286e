//! Trellis-coded quantization down the rows of a column.
//!
//! The levels of a column are the integers, `weight ≈ level · step`. An index q stands for the level `2q + b`, and the bit b
//! follows from the indices above it in the same column, so that neighbouring levels are half as far apart as the entropy of
//! the indices suggests: at equal entropy the mean square error is 1.1 dB lower than that of rounding, of 1.53 dB that any
//! quantizer can gain at high rate (entropy-coded trellis quantization: Fischer and Wang 1992; Marcellin 1994; the same idea
//! is dependent quantization in VVC, Schwarz et al. 2019).
//!
//! # The code
//! Rows are cut into blocks of 128. Every column has a history h of 5 bits, 0 before the first row of a block. In each row, with
//! `h[k]` for bit k of h and p for the lowest bit of q:
//! ```text
//! level = 2q + h[2]
//! u     = p ^ h[1] ^ h[4]
//! h     = (2h + u) mod 32
//! ```
//! A row whose row logarithm is 0 has level 0 everywhere and leaves the histories as they are. (This is Ungerboeck's (1982)
//! convolutional code of 32 states for amplitude modulation, parity check polynomials 45 and 10 in octal, in the form in which
//! the state is the last five input bits.)
//!
//! # Choosing the indices
//! [`Path::quantize`] finds the indices of least squared error in a block of one column with Viterbi's algorithm: a metric
//! for each of the 32 histories, two candidates each, one decision bit per row and history.
//!
//! [`Path::quantize_coupled`] does so where the errors of a row enter the targets of the rows below it
//! ([`crate::factor`]). Then every history carries what its own best way has left for the rows to come
//! (per-survivor processing, Raheli, Polydoros and Tzou 1995): no longer the best of all ways, but near to it.
//!
//! Safety: each vector form runs behind the check that the processor has its instruction set; loads and stores go to arrays
//! or slices of the vectors' lengths.
#![allow(unsafe_code)]

use crate::simd::{Kernel, dispatch};
#[cfg(target_arch = "x86_64")]
use crate::simd::{has_avx2, has_avx512};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 128;
/// Histories of a column.
const STATES: usize = 32;
/// Histories that differ from a later one in the oldest bit only.
const HALF: usize = STATES / 2;
/// Cost of a history that no row leads to.
const UNREACHED: f32 = 1e30;
/// By the three newest bits of a history with oldest bit 0: residues of the levels that lead on to newest bit 0 and 1. With
/// oldest bit 1 they are exchanged.
const RESIDUES: [[usize; 2]; 8] = [
    [0, 2],
    [0, 2],
    [2, 0],
    [2, 0],
    [1, 3],
    [1, 3],
    [3, 1],
    [3, 1],
];
/// Largest magnitude of a value in units of the step: its level's index is within an `i16`.
const LARGEST_VALUE: f32 = 65_530.0;

/// The level of an index after a history.
#[inline(always)]
pub(crate) fn level(history: u16, q: i16) -> i32 {
    2 * i32::from(q) + i32::from(history >> 2 & 1)
}

/// The history after an index.
#[inline(always)]
pub(crate) fn advance(history: u16, q: i16) -> u16 {
    let u = q as u16 ^ history >> 1 ^ history >> 4;
    (history << 1 | u & 1) & (STATES as u16 - 1)
}

/// Levels of `q` [rows, cols], rows with the row logarithm 0 being zero: the definition, one element after another.
pub fn levels(q: &[i16], cols: usize, row_log: &[u8]) -> Vec<i32> {
    let mut history = vec![0u16; cols];
    let mut out = Vec::with_capacity(q.len());
    for (row, (q, &log)) in q.chunks(cols.max(1)).zip(row_log).enumerate() {
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
    /// [rows] bit `i + 16·u`: does the best way to the history 2i + u come from i + 16 (instead of i)?
    decisions: [u32; BLOCK_ROWS],
    /// [rows] residue modulo 4 of the level chosen.
    residues: [f32; BLOCK_ROWS],
    /// [rows] index chosen.
    pub(crate) indices: [i16; BLOCK_ROWS],
    /// [rows] level chosen.
    pub(crate) levels: [f32; BLOCK_ROWS],
    /// [rows, histories] what the best way to each history adds to the values of the rows to come.
    pending: [Histories; BLOCK_ROWS],
}

/// A number for every history, in one or two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Histories([f32; STATES]);

/// In row k and column i: how much of the error of row k, in units of its step, enters the value of a later row i.
pub(crate) type Coupling = [[f32; BLOCK_ROWS]; BLOCK_ROWS];

impl Path {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Path {
            decisions: [0; BLOCK_ROWS],
            residues: [0.0; BLOCK_ROWS],
            indices: [0; BLOCK_ROWS],
            levels: [0.0; BLOCK_ROWS],
            pending: [Histories([0.0; STATES]); BLOCK_ROWS],
        })
    }

    /// Indices and levels for the first `rows` of `values`, in units of the step; what the other rows get has no meaning.
    #[inline(always)]
    pub(crate) fn quantize(&mut self, values: &[f32; BLOCK_ROWS], rows: usize) {
        let values = values.map(|value| value.clamp(-LARGEST_VALUE, LARGEST_VALUE));
        let last = forward(&values[..rows], &mut self.decisions[..rows]);
        self.trace_back(last, rows);
        for row in 0..BLOCK_ROWS {
            self.take(row, values[row]);
        }
    }

    /// As [`Path::quantize`], with the error `value − level` of row k adding `coupling[k][i]` times itself to the value of
    /// every row i below it.
    #[inline(always)]
    pub(crate) fn quantize_coupled(
        &mut self,
        values: &[f32; BLOCK_ROWS],
        rows: usize,
        coupling: &Coupling,
    ) {
        self.pending[..rows].fill(Histories([0.0; STATES]));
        let decisions = &mut self.decisions[..rows];
        let last = forward_coupled(&values[..rows], coupling, &mut self.pending, decisions);
        self.trace_back(last, rows);
        let mut aims = *values;
        for row in 0..rows {
            self.take(row, aims[row].clamp(-LARGEST_VALUE, LARGEST_VALUE));
            let error = values[row] - self.levels[row];
            for (aim, factor) in aims[row + 1..].iter_mut().zip(&coupling[row][row + 1..]) {
                *aim = factor.mul_add(error, *aim);
            }
        }
    }

    /// Residues along the way to the history `last`.
    #[inline(always)]
    fn trace_back(&mut self, last: u32, rows: usize) {
        let mut history = last;
        for (residue, decisions) in self.residues[..rows].iter_mut().zip(&self.decisions).rev() {
            let (i, u) = (history >> 1, history & 1);
            let before = i | (decisions >> (i + 16 * u) & 1) << 4;
            let parity = (history ^ before >> 1 ^ before >> 4) & 1;
            *residue = (2 * parity + (before >> 2 & 1)) as f32;
            history = before;
        }
    }

    /// The level of the row's residue that is nearest to `value`, and its index.
    #[inline(always)]
    fn take(&mut self, row: usize, value: f32) {
        let residue = self.residues[row];
        let level = residue + 4.0 * (0.25 * (value - residue)).round_ties_even();
        self.levels[row] = level;
        self.indices[row] = (level as i32 >> 1) as i16;
    }
}

/// Fills the decisions of rows with the given values; returns the history of least total cost after them. On ties the
/// history of the smaller number wins, here and in the decisions.
fn forward(values: &[f32], decisions: &mut [u32]) -> u32 {
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
fn least(metrics: &[f32; STATES]) -> u32 {
    let best = (1..STATES).fold(0, |best, state| {
        if metrics[state] < metrics[best] {
            state
        } else {
            best
        }
    });
    best as u32
}

/// Total costs of the best ways to all histories; only the history 0 has a way of no rows.
fn forward_portably(values: &[f32], decisions: &mut [u32]) -> [f32; STATES] {
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
            let [same, other] = RESIDUES[i & 7].map(|residue| cost[residue]);
            let (low, high) = (metrics[i], metrics[i + HALF]);
            for (u, low, high) in [(0, low + same, high + other), (1, low + other, high + same)] {
                next[2 * i + u] = if high < low { high } else { low };
                *decisions |= u32::from(high < low) << (i + HALF * u);
            }
        }
        metrics = next;
    }
    metrics
}

/// [`forward`] for coupled rows; `pending` begins as zeros.
fn forward_coupled(
    values: &[f32],
    coupling: &Coupling,
    pending: &mut [Histories; BLOCK_ROWS],
    decisions: &mut [u32],
) -> u32 {
    #[cfg(target_arch = "x86_64")]
    let metrics = if has_avx512() {
        // SAFETY: the processor has the features named there.
        unsafe { avx512::forward_coupled(values, coupling, pending, decisions) }
    } else {
        dispatch(Coupled {
            values,
            coupling,
            pending,
            decisions,
        })
    };
    #[cfg(not(target_arch = "x86_64"))]
    let metrics = dispatch(Coupled {
        values,
        coupling,
        pending,
        decisions,
    });
    least(&metrics)
}

/// The search of [`forward_coupled`] in plain loops.
struct Coupled<'a> {
    values: &'a [f32],
    coupling: &'a Coupling,
    pending: &'a mut [Histories; BLOCK_ROWS],
    decisions: &'a mut [u32],
}

impl Kernel for Coupled<'_> {
    type Output = [f32; STATES];

    #[inline(always)]
    fn run(self) -> [f32; STATES] {
        let rows = self.values.len();
        let mut metrics = [UNREACHED; STATES];
        metrics[0] = 0.0;
        for row in 0..rows {
            let aims = self.pending[row]
                .0
                .map(|pending| (self.values[row] + pending).clamp(-LARGEST_VALUE, LARGEST_VALUE));
            // Distance of a history's aim to the nearest level of a residue, with its sign.
            let miss = |history: usize, residue: usize| {
                let beyond = aims[history] - residue as f32;
                beyond - 4.0 * (0.25 * beyond).round_ties_even()
            };
            let (mut next, mut errors) = ([0.0; STATES], [0.0; STATES]);
            let mut decisions = 0;
            for i in 0..HALF {
                let [same, other] = RESIDUES[i & 7];
                for (u, first, second) in [(0, same, other), (1, other, same)] {
                    let (low_miss, high_miss) = (miss(i, first), miss(i + HALF, second));
                    let low = low_miss.mul_add(low_miss, metrics[i]);
                    let high = high_miss.mul_add(high_miss, metrics[i + HALF]);
                    let better = high < low;
                    next[2 * i + u] = if better { high } else { low };
                    errors[2 * i + u] = if better {
                        high_miss - self.pending[row].0[i + HALF]
                    } else {
                        low_miss - self.pending[row].0[i]
                    };
                    decisions |= u32::from(better) << (i + HALF * u);
                }
            }
            metrics = next;
            self.decisions[row] = decisions;
            for (pending, &factor) in self.pending[row + 1..rows]
                .iter_mut()
                .zip(&self.coupling[row][row + 1..])
            {
                let before = pending.0;
                for (history, pending) in pending.0.iter_mut().enumerate() {
                    let (i, u) = (history >> 1, history & 1);
                    let from = i + HALF * (decisions >> (i + HALF * u) & 1) as usize;
                    *pending = factor.mul_add(errors[history], before[from]);
                }
            }
        }
        metrics
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{
        BLOCK_ROWS, Coupling, HALF, Histories, LARGEST_VALUE, RESIDUES, STATES, UNREACHED,
    };
    use std::arch::x86_64::*;

    /// Round half to even, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// Rows whose effects on the rows behind them are written together.
    const GROUP: usize = 4;

    /// What a row does to what waits for a later row: where each history comes from, and its error.
    #[derive(Clone, Copy)]
    struct Move {
        errors: [__m512; 2],
        from: [__m512i; 2],
    }

    impl Move {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn none() -> Self {
            Move {
                errors: [_mm512_setzero_ps(); 2],
                from: [_mm512_setzero_si512(); 2],
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        fn apply(&self, [low, high]: [__m512; 2], factor: f32) -> [__m512; 2] {
            let factor = _mm512_set1_ps(factor);
            let half = |half: usize| {
                let moved = _mm512_permutex2var_ps(low, self.from[half], high);
                _mm512_fmadd_ps(factor, self.errors[half], moved)
            };
            [half(0), half(1)]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(Histories(numbers): &Histories) -> [__m512; 2] {
        // SAFETY: twice sixteen numbers.
        unsafe {
            [
                _mm512_loadu_ps(numbers.as_ptr()),
                _mm512_loadu_ps(numbers.as_ptr().add(HALF)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(Histories(numbers): &mut Histories, [low, high]: [__m512; 2]) {
        // SAFETY: twice sixteen numbers.
        unsafe {
            _mm512_storeu_ps(numbers.as_mut_ptr(), low);
            _mm512_storeu_ps(numbers.as_mut_ptr().add(HALF), high);
        }
    }

    /// Distance of aims to the nearest level of their residues, with its sign.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn miss(aims: __m512, residues: __m512) -> __m512 {
        let beyond = _mm512_sub_ps(aims, residues);
        let quarters = _mm512_mul_ps(_mm512_set1_ps(0.25), beyond);
        let nearest = _mm512_roundscale_ps::<NEAREST>(quarters);
        _mm512_sub_ps(beyond, _mm512_mul_ps(_mm512_set1_ps(4.0), nearest))
    }

    /// [`super::Coupled`] with sixteen histories side by side, bit for bit.
    #[target_feature(enable = "avx512f")]
    pub(super) fn forward_coupled(
        values: &[f32],
        coupling: &Coupling,
        pending: &mut [Histories; BLOCK_ROWS],
        decisions: &mut [u32],
    ) -> [f32; STATES] {
        let rows = values.len().min(decisions.len()).min(BLOCK_ROWS);
        let residues = |u: usize| {
            let residues: [f32; HALF] = std::array::from_fn(|i| RESIDUES[i & 7][u] as f32);
            // SAFETY: sixteen numbers.
            unsafe { _mm512_loadu_ps(residues.as_ptr()) }
        };
        let (same, other) = (residues(0), residues(1));
        let index = |from: fn(usize) -> i32| {
            let index: [i32; HALF] = std::array::from_fn(from);
            // SAFETY: sixteen numbers.
            unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
        };
        let own = index(|i| i as i32);
        // Two vectors for newest bit 0 and 1 become the histories 0..16 and 16..32.
        let (first, second) = (
            index(|n| (n / 2 + 16 * (n % 2)) as i32),
            index(|n| (8 + n / 2 + 16 * (n % 2)) as i32),
        );
        let (least, most) = (
            _mm512_set1_ps(-LARGEST_VALUE),
            _mm512_set1_ps(LARGEST_VALUE),
        );
        let mut high = _mm512_set1_ps(UNREACHED);
        let mut low = _mm512_mask_mov_ps(high, 1, _mm512_setzero_ps());
        for group in (0..rows).step_by(GROUP) {
            let end = rows.min(group + GROUP);
            let mut moves = [Move::none(); GROUP];
            for row in group..end {
                let value = _mm512_set1_ps(values[row]);
                let waiting = load(&pending[row]);
                let aims = waiting.map(|waiting| {
                    let aims = _mm512_add_ps(value, waiting);
                    _mm512_max_ps(_mm512_min_ps(aims, most), least)
                });
                let step = |low_residues, high_residues| {
                    let (low_miss, high_miss) =
                        (miss(aims[0], low_residues), miss(aims[1], high_residues));
                    let low = _mm512_fmadd_ps(low_miss, low_miss, low);
                    let high = _mm512_fmadd_ps(high_miss, high_miss, high);
                    let better = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(high, low);
                    let next = _mm512_mask_mov_ps(low, better, high);
                    let error = _mm512_mask_sub_ps(
                        _mm512_sub_ps(low_miss, waiting[0]),
                        better,
                        high_miss,
                        waiting[1],
                    );
                    let from = _mm512_mask_add_epi32(own, better, own, _mm512_set1_epi32(16));
                    (better, next, error, from)
                };
                let (even, odd) = (step(same, other), step(other, same));
                decisions[row] = u32::from(even.0) | u32::from(odd.0) << HALF;
                low = _mm512_permutex2var_ps(even.1, first, odd.1);
                high = _mm512_permutex2var_ps(even.1, second, odd.1);
                let passed = Move {
                    errors: [first, second].map(|half| _mm512_permutex2var_ps(even.2, half, odd.2)),
                    from: [first, second]
                        .map(|half| _mm512_permutex2var_epi32(even.3, half, odd.3)),
                };
                for later in row + 1..end {
                    let pending = &mut pending[later];
                    store(pending, passed.apply(load(pending), coupling[row][later]));
                }
                moves[row - group] = passed;
            }
            // Rows behind the group are read and written once for all of its rows; in the last group there are none.
            for later in end..rows {
                let pending = &mut pending[later];
                let mut waiting = load(pending);
                for (passed, row) in moves.iter().zip(group..) {
                    waiting = passed.apply(waiting, coupling[row][later]);
                }
                store(pending, waiting);
            }
        }
        let mut metrics = Histories([0.0; STATES]);
        store(&mut metrics, [low, high]);
        metrics.0
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{HALF, RESIDUES, STATES, UNREACHED};
    use std::arch::x86_64::*;

    /// Round half to even, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// [`super::forward_portably`] with eight histories side by side.
    #[target_feature(enable = "avx2")]
    pub(super) fn forward(values: &[f32], decisions: &mut [u32]) -> [f32; STATES] {
        // Residues within each half of a vector, for the histories 0..4 and 4..8 of RESIDUES.
        let index = |u: usize| {
            let [a, b, c, d, e, f, g, h] = RESIDUES.map(|residues| residues[u] as i32);
            _mm256_setr_epi32(a, b, c, d, e, f, g, h)
        };
        let (same, other) = (index(0), index(1));
        let residues = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0);
        let (four, quarter) = (_mm256_set1_ps(4.0), _mm256_set1_ps(0.25));
        let unreached = _mm256_set1_ps(UNREACHED);
        let mut low = [
            _mm256_blend_ps::<1>(unreached, _mm256_setzero_ps()),
            unreached,
        ];
        let mut high = [unreached; 2];
        for (&value, decisions) in values.iter().zip(decisions) {
            let beyond = _mm256_sub_ps(_mm256_set1_ps(value), residues);
            let nearest = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(quarter, beyond));
            let miss = _mm256_sub_ps(beyond, _mm256_mul_ps(four, nearest));
            let cost = _mm256_mul_ps(miss, miss);
            let (same, other) = (
                _mm256_permutevar_ps(cost, same),
                _mm256_permutevar_ps(cost, other),
            );
            let mut next = [unreached; 4];
            let mut bits = [0i32; 2];
            for half in 0..2 {
                let (low, high) = (low[half], high[half]);
                let (low_0, high_0) = (_mm256_add_ps(low, same), _mm256_add_ps(high, other));
                let (low_1, high_1) = (_mm256_add_ps(low, other), _mm256_add_ps(high, same));
                let (even, odd) = (_mm256_min_ps(high_0, low_0), _mm256_min_ps(high_1, low_1));
                bits[0] |=
                    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(high_0, low_0)) << (8 * half);
                bits[1] |=
                    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(high_1, low_1)) << (8 * half);
                let (first, second) =
                    (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
                next[2 * half] = _mm256_permute2f128_ps::<0x20>(first, second);
                next[2 * half + 1] = _mm256_permute2f128_ps::<0x31>(first, second);
            }
            *decisions = (bits[0] | bits[1] << HALF) as u32;
            low = [next[0], next[1]];
            high = [next[2], next[3]];
        }
        let mut metrics = [0.0; STATES];
        for (metrics, vector) in metrics
            .chunks_exact_mut(8)
            .zip([low[0], low[1], high[0], high[1]])
        {
            // SAFETY: the chunk has eight numbers.
            unsafe { _mm256_storeu_ps(metrics.as_mut_ptr(), vector) };
        }
        metrics
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
    fn normals(count: usize, width: f32) -> Vec<f32> {
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
    fn at_equal_entropy_the_error_is_a_decibel_below_that_of_rounding() {
        let values = normals(128 * 400, 15.4);
        let q = column_indices(&values);
        let rounded: Vec<i16> = values
            .iter()
            .map(|value| (value / 2.0).round() as i16)
            .collect();
        let plain = |(&q, &value): (&i16, &f32)| (2.0 * f64::from(q) - f64::from(value)).powi(2);
        let plain = rounded.iter().zip(&values).map(plain).sum::<f64>() / q.len() as f64;
        let at_equal_entropy = plain * (2.0 * (entropy(&rounded) - entropy(&q))).exp2();
        let gain = 10.0 * (at_equal_entropy / squared_error(&values, &q)).log10();
        assert!((1.05..1.2).contains(&gain), "{gain} dB");
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
        for rows in [1, 2, 5, 127, 128] {
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

    /// A coupling that decays with the distance of the rows.
    fn neighbours(strength: f32) -> Box<Coupling> {
        let mut coupling = Box::new([[0.0; BLOCK_ROWS]; BLOCK_ROWS]);
        for k in 0..BLOCK_ROWS {
            for i in k + 1..BLOCK_ROWS {
                coupling[k][i] = strength.powi((i - k) as i32);
            }
        }
        coupling
    }

    fn block(seed: usize, width: f32) -> [f32; BLOCK_ROWS] {
        normals(BLOCK_ROWS * (seed + 1), width)[seed * BLOCK_ROWS..]
            .try_into()
            .unwrap()
    }

    /// Sum of squares of what every row is left with after the errors above it came in.
    fn coupled_error(values: &[f32], levels: &[f32], coupling: &Coupling) -> f64 {
        let errors: Vec<f64> = values
            .iter()
            .zip(levels)
            .map(|(v, l)| f64::from(v - l))
            .collect();
        let left = |i: usize| {
            errors[i]
                + (0..i)
                    .map(|k| f64::from(coupling[k][i]) * errors[k])
                    .sum::<f64>()
        };
        (0..errors.len()).map(|i| left(i).powi(2)).sum()
    }

    #[test]
    fn without_coupling_the_coupled_search_is_the_plain_one() {
        let (mut plain, mut coupled) = (Path::new(), Path::new());
        for seed in 0..20 {
            let values = block(seed, 15.0);
            plain.quantize(&values, BLOCK_ROWS);
            coupled.quantize_coupled(&values, BLOCK_ROWS, &neighbours(0.0));
            let error = |path: &Path| coupled_error(&values, &path.levels, &neighbours(0.0));
            assert!((error(&plain) / error(&coupled) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn errors_that_enter_the_rows_below_are_counted_on() {
        let coupling = neighbours(0.6);
        let (mut plain, mut coupled) = (Path::new(), Path::new());
        let (mut ignored, mut heeded, mut alone) = (0.0, 0.0, 0.0);
        for seed in 0..20 {
            let values = block(seed, 15.0);
            plain.quantize(&values, BLOCK_ROWS);
            coupled.quantize_coupled(&values, BLOCK_ROWS, &coupling);
            ignored += coupled_error(&values, &plain.levels, &coupling);
            heeded += coupled_error(&values, &coupled.levels, &coupling);
            alone += coupled_error(&values, &plain.levels, &neighbours(0.0));
        }
        // Unheeded, the errors add up; heeded, every row is left with what it would be left with alone.
        assert!(heeded < 0.7 * ignored, "{heeded} of {ignored}");
        assert!(heeded < 1.05 * alone, "{heeded} against {alone}");
    }

    #[test]
    fn the_coupled_search_is_the_same_bits_with_and_without_vectors() {
        let coupling = neighbours(0.7);
        for rows in [1, 2, 5, 127, 128] {
            let mut values = block(rows, 900.0);
            values[rows / 2] = 0.5;
            values[0] = 1e9; // saturates
            let values = &values[..rows];
            let run = |vectors: bool| {
                let mut pending = [Histories([0.0; STATES]); BLOCK_ROWS];
                let mut decisions = [0; BLOCK_ROWS];
                let taken = &mut decisions[..rows];
                let last = match vectors {
                    true => forward_coupled(values, &coupling, &mut pending, taken),
                    false => least(
                        &Coupled {
                            values,
                            coupling: &coupling,
                            pending: &mut pending,
                            decisions: taken,
                        }
                        .run(),
                    ),
                };
                (last, decisions, pending.map(|row| row.0.map(f32::to_bits)))
            };
            assert!(run(true) == run(false), "{rows} rows");
        }
    }

    #[test]
    fn blocks_begin_anew_and_rows_of_zeros_do_not_move_the_histories() {
        let values = normals(300, 5.0);
        let q = column_indices(&values);
        let all = levels(&q, 1, &[1; 300]);
        assert_eq!(all[128..256], levels(&q[128..256], 1, &[1; 128]));
        let mut logs = [1; 6];
        logs[2] = 0;
        let (with, without) = (
            levels(&[1, 3, 0, 5, 7, 9], 1, &logs),
            levels(&[1, 3, 5, 7, 9], 1, &[1; 5]),
        );
        assert_eq!((with[2], [&with[..2], &with[3..]].concat()), (0, without));
    }
}
