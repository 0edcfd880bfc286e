//! The trellis search in which the errors of a row enter the targets of the rows below it.
//!
//! The target of a row depends on the levels chosen above it, and therefore on the path to each state: every state carries
//! the errors of its own survivor path (per-survivor processing: Raheli, Polydoros and Tzou 1995). The result is no longer
//! the best of all paths, but close to it.
//!
//! Rows are processed in groups of [`GROUP`]. Before a group, the search follows the survivor path of each state upwards,
//! group by group, and sums what the errors of the rows above add to the rows of the group. Survivor paths merge further up.
//! As soon as at most [`MERGE_THRESHOLD`] distinct paths are left, sums are formed for these alone. Above the group at which
//! all paths have merged ([`MergedPrefix`]), the errors are the same for every state and are summed once for all rows below.
//! Within the group, errors are passed on from state to state.
//!
//! Values, errors and levels are in units of four steps here, so that levels of equal residue differ by whole numbers.
//!
//! This module owns the shared definitions and the choice between [`portable`] (the reference) and [`avx512`]; both give the
//! same bits.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use super::{BLOCK_ROWS, LARGEST_VALUE, STATES};
use uc_simd::dispatch;
#[cfg(target_arch = "x86_64")]
use uc_simd::has_avx512;

/// Rows whose sums are formed together.
const GROUP: usize = 8;
/// Groups of a block.
const GROUPS: usize = BLOCK_ROWS / GROUP;
/// Sums are formed per distinct survivor path once at most this many are left.
const MERGE_THRESHOLD: usize = 16;
/// Largest magnitude of a target.
const LARGEST_TARGET: f32 = LARGEST_VALUE / 4.0;

/// How much of the error of a row, in units of its step, enters the values of the rows below it.
pub(crate) struct Coupling {
    /// [groups of later rows, rows, later rows of the group]: the order in which the search reads them.
    groups: [[[f32; GROUP]; BLOCK_ROWS]; GROUPS],
}

impl Coupling {
    /// From `weight(k, i)`, how much of the error of row k enters the value of row i. It is called for k < i only.
    pub(crate) fn new(weight: impl Fn(usize, usize) -> f32) -> Box<Self> {
        let mut groups = [[[0.0; GROUP]; BLOCK_ROWS]; GROUPS];
        for i in 0..BLOCK_ROWS {
            for k in 0..i {
                groups[i / GROUP][k][i % GROUP] = weight(k, i);
            }
        }
        Box::new(Coupling { groups })
    }
}

/// The survivor paths: for every group and every state after it, the best path to that state.
pub(super) struct Survivors {
    /// [rows, states after the row's group, or after the last row] `value − level` in units of four steps.
    errors: [PerState<f32>; BLOCK_ROWS],
    /// [groups, states after the group] the state before the group.
    group_starts: [PerState<u8>; GROUPS],
}

/// A number for every state.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct PerState<T>([T; STATES]);

impl Survivors {
    pub(super) fn new() -> Self {
        Survivors {
            errors: [PerState([0.0; STATES]); BLOCK_ROWS],
            group_starts: [PerState([0; STATES]); GROUPS],
        }
    }

    /// On the survivor path to `state` after `group`: the errors of the group's rows, and the state before the group.
    #[inline(always)]
    fn group_errors(&self, group: usize, state: usize) -> ([f32; GROUP], usize) {
        let rows = &self.errors[group * GROUP..(group + 1) * GROUP];
        let errors = std::array::from_fn(|row| rows[row].0[state % STATES]);
        (errors, self.group_starts[group].0[state % STATES].into())
    }

    /// `[rows]` the errors on the survivor path to `state` after the last of `rows` rows.
    #[inline(always)]
    pub(super) fn path_errors(&self, rows: usize, mut state: usize) -> [f32; BLOCK_ROWS] {
        let mut path_errors = [0.0; BLOCK_ROWS];
        let groups = path_errors[..rows].chunks_mut(GROUP).enumerate();
        for (group, group_errors) in groups.rev() {
            let (errors, start) = self.group_errors(group, state);
            group_errors.copy_from_slice(&errors[..group_errors.len()]);
            state = start;
        }
        path_errors
    }
}

/// The groups from the top of the block in which all survivor paths are the same.
struct MergedPrefix {
    /// Number of these groups.
    groups: usize,
    /// `[rows]` what their errors add to the values of the rows below.
    sums: [f32; BLOCK_ROWS],
}

impl MergedPrefix {
    fn new() -> Self {
        MergedPrefix {
            groups: 0,
            sums: [0.0; BLOCK_ROWS],
        }
    }

    /// Extends the prefix to the first `groups` groups, after which all survivor paths are in `state`. `next` is the first
    /// group that is not yet searched.
    #[inline(always)]
    fn extend(
        &mut self,
        groups: usize,
        mut state: usize,
        next: usize,
        survivors: &Survivors,
        coupling: &Coupling,
    ) {
        let (sums, _) = self.sums.as_chunks_mut::<GROUP>();
        for group in (self.groups..groups).rev() {
            let (errors, start) = survivors.group_errors(group, state);
            for (sums, coupling) in sums.iter_mut().zip(&coupling.groups).skip(next) {
                for (weights, error) in coupling[group * GROUP..].iter().zip(errors) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = weight.mul_add(error, *sum);
                    }
                }
            }
            state = start;
        }
        self.groups = groups;
    }
}

/// Fills the survivors and the decisions (in the form of the uncoupled search) of rows with the given values; returns the
/// state of least path cost after them. On ties the state of the smaller number wins, here and in every row.
pub(super) fn search(
    values: &[f32],
    coupling: &Coupling,
    survivors: &mut Survivors,
    decisions: &mut [u64],
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the processor has the features that `avx512::search` requires.
        return unsafe { avx512::search(values, coupling, survivors, decisions) };
    }
    dispatch(portable::Search {
        values,
        coupling,
        survivors,
        decisions,
    })
}
