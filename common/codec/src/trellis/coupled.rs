//! The trellis search in which the errors of a row enter the targets of the rows below it.
//!
//! The target of a row depends on the levels chosen above it, and therefore on the path to each state: every state carries
//! the errors of its own survivor path (per-survivor processing: Raheli, Polydoros and Tzou 1995). The result is no longer
//! the best of all paths, but close to it.
//!
//! Rows are processed in groups of [`GROUP`]. Within a group, errors are passed on from state to state. Before a group, the
//! errors on the survivor paths above it are summed for each row of the group. Paths merge further up: after a group, fewer
//! and fewer of its states lie on a path that has survived, and sums are formed for these alone. Above the group at which
//! all paths have merged ([`MergedPrefix`]), levels are final, and their errors are summed once for all rows below.
//!
//! # Arithmetic
//! Only the distance of a target from the levels of a residue modulo 4 matters to the search. Four steps are therefore 2¹⁶,
//! and targets are 16-bit integers that wrap around. Errors are 16-bit integers in units of 2⁻⁹ steps, the weights between
//! rows 16-bit integers of [`Coupling::shift`] bits behind the point, sums of their products 32-bit integers. Integer sums
//! have the same bits in any order, so [`avx512`] may form them in another order than [`portable`], the reference. Path
//! costs are 16-bit integers in units of 2⁻¹² squared steps that saturate. Rounding in the search only costs precision of
//! the targets (about 10⁻³ steps, where the distance to the chosen level is 0.5): the errors of the merged prefix, which enter
//! all rows below, and those that are fed back to other columns follow from the levels in f32. Errors and sums beyond 64
//! steps saturate.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use super::{BLOCK_ROWS, LARGEST_VALUE, STATES, nearest_level, residue};
use uc_simd::dispatch;

/// Rows whose sums are formed together.
const GROUP: usize = 8;
/// Groups of a block.
const GROUPS: usize = BLOCK_ROWS / GROUP;
/// Rows to which errors of the merged prefix are added together; a whole number of groups.
const CHUNK: usize = 32;
/// Bits of an error behind the point.
const ERROR_BITS: u32 = 9;
/// Bits of a target behind the point: four steps are 2¹⁶.
const TARGET_BITS: u32 = 14;
/// Cost of a path that does not exist.
const UNREACHABLE: u16 = u16::MAX;

/// How much of the error of a row, in units of its step, enters the values of the rows below it.
pub(crate) struct Coupling {
    /// [groups, chunks of rows from that of the group's last row on, rows of the group, rows of the chunk] 0 for rows that are
    /// not below the group.
    later: [Vec<[[f32; CHUNK]; GROUP]>; GROUPS],
    /// [groups, earlier groups, pairs of rows of the earlier group, rows of the group] for two rows, in integers; the
    /// upper row in the lower half.
    earlier: [Vec<[[u32; GROUP]; GROUP / 2]>; GROUPS],
    /// [groups, rows, rows] among the rows of a group, in integers.
    within: [Square<i16>; GROUPS],
    /// Bits of the integers behind the point: as many as the largest weight allows.
    shift: u32,
}

/// The chunk with the last row of a group.
const fn first_chunk(group: usize) -> usize {
    group * GROUP / CHUNK
}

/// A number for each pair of rows of two groups.
type Square<T> = [[T; GROUP]; GROUP];

impl Coupling {
    /// From `weight(k, i)`, how much of the error of row k enters the value of row i. It is called for k < i only.
    pub(crate) fn new(weight: impl Fn(usize, usize) -> f32) -> Box<Self> {
        let later: [Vec<[[f32; CHUNK]; GROUP]>; GROUPS] = std::array::from_fn(|group| {
            let entry = |k: usize, i: usize| match i / GROUP > group {
                true => weight(group * GROUP + k, i),
                false => 0.0,
            };
            let chunk = |chunk: usize| {
                std::array::from_fn(|k| std::array::from_fn(|i| entry(k, chunk * CHUNK + i)))
            };
            (first_chunk(group)..BLOCK_ROWS / CHUNK)
                .map(chunk)
                .collect()
        });
        let within = |group: usize, k: usize, i: usize| match k < i {
            true => weight(group * GROUP + k, group * GROUP + i),
            false => 0.0,
        };
        let within: [Square<f32>; GROUPS] = std::array::from_fn(|group| {
            std::array::from_fn(|k| std::array::from_fn(|i| within(group, k, i)))
        });
        let all = within.iter().flatten().flatten();
        let all = all.chain(later.iter().flatten().flatten().flatten());
        let largest = all.fold(0.0f32, |largest, weight| largest.max(weight.abs()));
        let whole_bits = (0..15).find(|&bits| largest <= (1 << bits) as f32);
        let shift = 15 - whole_bits.unwrap_or(14);
        let integer = |weight: f32| (weight * (1 << shift) as f32).round_ties_even() as i16;
        let pair = |from: usize, pair: usize, to: usize| -> [u32; GROUP] {
            std::array::from_fn(|i| {
                let row = to * GROUP + i;
                let chunk = &later[from][row / CHUNK - first_chunk(from)];
                let [upper, lower] =
                    [0, 1].map(|k| integer(chunk[2 * pair + k][row % CHUNK]) as u16);
                u32::from(upper) | u32::from(lower) << 16
            })
        };
        Box::new(Coupling {
            earlier: std::array::from_fn(|to| {
                let pairs = |from: usize| std::array::from_fn(|at| pair(from, at, to));
                (0..to).map(pairs).collect()
            }),
            within: within.map(|square| square.map(|row| row.map(integer))),
            later,
            shift,
        })
    }
}

/// The survivor paths: for every group and every state after it, the best path to that state.
pub(super) struct Survivors {
    /// [groups, pairs of rows of the group, states after the group, or after the last row] `value − level` of two rows; the upper
    /// row in the lower half.
    errors: [[PerState<u32>; GROUP / 2]; GROUPS],
    /// [groups, states after the group] of the path to a state: the state before the group, and behind it the newest bits after the first
    /// two rows of the group. The state after the group has the bits of the other six.
    first_bits: [PerState<u32>; GROUPS],
}

/// A number for every state.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct PerState<T>([T; STATES]);

impl Survivors {
    pub(super) fn new() -> Self {
        Survivors {
            errors: [[PerState([0; STATES]); GROUP / 2]; GROUPS],
            first_bits: [PerState([0; STATES]); GROUPS],
        }
    }
}

/// The state before a group, from the first bits of a path in it.
#[inline(always)]
const fn start(first_bits: u32) -> usize {
    first_bits as usize >> 2 & (STATES - 1)
}

/// The groups from the top of the block in which all survivor paths are the same.
struct MergedPrefix<'a> {
    /// Number of these groups.
    groups: usize,
    /// `[rows]` what their errors add to the values of the rows below, in steps.
    sums: [f32; BLOCK_ROWS],
    values: &'a [f32],
    /// `[rows]` the levels chosen.
    levels: &'a mut [f32; BLOCK_ROWS],
}

impl<'a> MergedPrefix<'a> {
    fn new(values: &'a [f32], levels: &'a mut [f32; BLOCK_ROWS]) -> Self {
        MergedPrefix {
            groups: 0,
            sums: [0.0; BLOCK_ROWS],
            values,
            levels,
        }
    }

    /// What the errors of these groups add to the rows of another group, in the integers of sums of products. Half a unit of
    /// the errors is added for rounding.
    #[inline(always)]
    fn group_sums(&self, group: usize, coupling: &Coupling) -> [i32; GROUP] {
        let mut sums = [0; GROUP];
        for (sum, merged) in sums.iter_mut().zip(&self.sums[group * GROUP..]) {
            let units = merged * (1 << ERROR_BITS) as f32;
            let units = units.clamp(f32::from(i16::MIN), f32::from(i16::MAX));
            *sum = (nearest_integer(units) << coupling.shift) + (1 << (coupling.shift - 1));
        }
        sums
    }

    /// Extends the prefix to the first `groups` groups, after which all survivor paths are in `state`. `next` is the first group that is
    /// not yet searched.
    #[inline(always)]
    fn extend(
        &mut self,
        groups: usize,
        mut state: usize,
        next: usize,
        survivors: &Survivors,
        coupling: &Coupling,
    ) {
        for group in (self.groups..groups).rev() {
            let (errors, start) = self.set_levels(group, state, survivors);
            // Sums of rows that are searched already may change too: nobody reads them again.
            let (chunk, first) = (next * GROUP / CHUNK, first_chunk(group));
            let (sums, _) = self.sums.as_chunks_mut::<CHUNK>();
            let chunks = sums.iter_mut().skip(chunk);
            for (sums, weights) in chunks.zip(coupling.later[group].iter().skip(chunk - first)) {
                add_errors(&errors, weights, sums);
            }
            state = start;
        }
        self.groups = groups;
    }

    /// Sets the levels of a group on the survivor path to `state` after it; returns their errors and the state before it.
    #[inline(always)]
    fn set_levels(
        &mut self,
        group: usize,
        state: usize,
        survivors: &Survivors,
    ) -> ([f32; GROUP], usize) {
        let count = GROUP.min(self.values.len() - group * GROUP);
        let rows = group * GROUP..group * GROUP + count;
        let first_bits = survivors.first_bits[group].0[state % STATES];
        let bits = match count {
            1 => first_bits >> 1,
            _ => first_bits << (count - 2) | state as u32,
        };
        let bits = bits << (GROUP - count);
        let (mut values, mut levels) = ([0.0; GROUP], [0.0; GROUP]);
        values[..count].copy_from_slice(&self.values[rows.clone()]);
        let mut errors = [0.0; GROUP];
        for (errors, pairs) in errors.chunks_mut(2).zip(&survivors.errors[group]) {
            let pair = pairs.0[state % STATES];
            for (error, units) in errors.iter_mut().zip([pair as i16, (pair >> 16) as i16]) {
                *error = f32::from(units) * (1.0 / (1 << ERROR_BITS) as f32);
            }
        }
        for row in 0..GROUP {
            // Bits above those of a state change nothing.
            let before = (bits >> (GROUP - row)) as u16;
            let residue = residue(before, (bits >> (GROUP - 1 - row)) as u16 & 1);
            let reached = (values[row] - errors[row]).clamp(-LARGEST_VALUE, LARGEST_VALUE);
            levels[row] = nearest_level(reached, f32::from(residue));
            errors[row] = values[row] - levels[row];
        }
        self.levels[rows].copy_from_slice(&levels[..count]);
        (errors, start(first_bits))
    }

    /// Sets the levels of all other groups along the survivor path to `state` after the last row.
    #[inline(always)]
    fn finish(mut self, mut state: usize, survivors: &Survivors) {
        for group in (self.groups..self.values.len().div_ceil(GROUP)).rev() {
            (_, state) = self.set_levels(group, state, survivors);
        }
    }
}

/// Adds what the errors of a group add to a chunk of rows below it: `sums[i] += Σ_k errors[k] · weights[k][i]`.
#[inline(always)]
fn add_errors(errors: &[f32; GROUP], weights: &[[f32; CHUNK]; GROUP], sums: &mut [f32; CHUNK]) {
    let mut total = *sums;
    for (error, weights) in errors.iter().zip(weights) {
        for (sum, weight) in total.iter_mut().zip(weights) {
            *sum = weight.mul_add(*error, *sum);
        }
    }
    *sums = total;
}

/// The integer nearest to a number of magnitude up to 2²², half to even. Unlike a conversion it vectorizes.
#[inline(always)]
fn nearest_integer(number: f32) -> i32 {
    /// `1.5 · 2²³`: adding it leaves the integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    (number + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// The arguments of [`search`].
pub(super) struct Search<'a> {
    /// `[rows]` in units of the step.
    pub(super) values: &'a [f32],
    pub(super) coupling: &'a Coupling,
    /// Scratch memory.
    pub(super) survivors: &'a mut Survivors,
    /// `[rows]` to be set.
    pub(super) levels: &'a mut [f32; BLOCK_ROWS],
}

impl Search<'_> {
    /// `[rows]` the values as targets.
    #[inline(always)]
    fn targets(&self) -> [i16; BLOCK_ROWS] {
        let mut targets = [0; BLOCK_ROWS];
        for (target, value) in targets.iter_mut().zip(self.values) {
            let value = value.clamp(-LARGEST_VALUE, LARGEST_VALUE);
            let offset = value - nearest_level(value, 0.0);
            *target = nearest_integer(offset * (1 << TARGET_BITS) as f32) as i16;
        }
        targets
    }
}

/// Sets the levels of the rows with the given values. On ties the state of the smaller number wins.
pub(super) fn search(arguments: Search<'_>) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_supported() {
        // SAFETY: the processor has the features that `avx512::search` requires.
        return unsafe { avx512::search(arguments) };
    }
    dispatch(portable::Portable(arguments));
}
