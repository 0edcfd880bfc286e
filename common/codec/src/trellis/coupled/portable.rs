//! The coupled search in plain loops: the reference for [`super::avx512`], and the search of all other processors.

use super::super::{HALF, RESIDUES, STATES, UNREACHABLE, cheapest_state, predecessor};
use super::{Coupling, GROUP, LARGEST_TARGET, MERGE_THRESHOLD, MergedPrefix, PerState, Survivors};
use uc_simd::Kernel;

/// The arguments of [`super::search`].
pub(super) struct Search<'a> {
    pub(super) values: &'a [f32],
    pub(super) coupling: &'a Coupling,
    pub(super) survivors: &'a mut Survivors,
    pub(super) decisions: &'a mut [u64],
}

impl Kernel for Search<'_> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        let Search {
            coupling,
            survivors,
            ..
        } = self;
        let mut path_costs = [UNREACHABLE; STATES];
        path_costs[0] = 0.0;
        let mut merged = MergedPrefix::new();
        let groups = self
            .values
            .chunks(GROUP)
            .zip(self.decisions.chunks_mut(GROUP));
        for (group, (values, decisions)) in groups.enumerate() {
            let pending = pending_sums(group, coupling, survivors, &mut merged);
            let mut start: [usize; STATES] = std::array::from_fn(|state| state);
            let mut errors = [[0.0; STATES]; GROUP];
            for (lane, (&value, decisions)) in values.iter().zip(decisions).enumerate() {
                let shifted = value + merged.sums[group * GROUP + lane];
                let mut sums = start.map(|start| pending[lane][start]);
                let weights = &coupling.groups[group][group * GROUP..];
                for (errors, weights) in errors[..lane].iter().zip(weights) {
                    for (sum, &error) in sums.iter_mut().zip(errors) {
                        *sum = weights[lane].mul_add(error, *sum);
                    }
                }
                let targets =
                    sums.map(|sum| (shifted + sum).clamp(-LARGEST_TARGET, LARGEST_TARGET));
                (path_costs, errors[lane], *decisions) = step(value, &targets, &path_costs);
                let predecessors: [usize; STATES] =
                    std::array::from_fn(|state| predecessor(state, *decisions));
                start = predecessors.map(|previous| start[previous]);
                for errors in &mut errors[..lane] {
                    *errors = predecessors.map(|previous| errors[previous]);
                }
            }
            survivors.group_starts[group] = PerState(start.map(|start| start as u8));
            let rows = survivors.errors[group * GROUP..].iter_mut();
            rows.zip(errors).for_each(|(row, errors)| row.0 = errors);
        }
        cheapest_state(&path_costs)
    }
}

/// [rows of the group, states before it] what the errors above `group` that are not in the merged prefix add to the values
/// of the group's rows. Extends the prefix where all survivor paths have merged.
#[inline(always)]
fn pending_sums(
    group: usize,
    coupling: &Coupling,
    survivors: &Survivors,
    merged: &mut MergedPrefix,
) -> [[f32; STATES]; GROUP] {
    // Summed before and after the number of distinct paths falls to the threshold, as the AVX-512 form does.
    let mut near = [[0.0; STATES]; GROUP];
    let mut far = near;
    // The state after the group in question on the survivor path of each state.
    let mut on_path: [usize; STATES] = std::array::from_fn(|state| state);
    let mut few_paths = false;
    for above in (merged.groups..group).rev() {
        let distinct = on_path.iter().fold(0u64, |set, state| set | 1 << state);
        few_paths |= distinct.count_ones() as usize <= MERGE_THRESHOLD;
        if distinct.count_ones() == 1 {
            merged.extend(above + 1, on_path[0], group, survivors, coupling);
            break;
        }
        let sums = if few_paths { &mut far } else { &mut near };
        for row in above * GROUP..(above + 1) * GROUP {
            let errors = &survivors.errors[row].0;
            for (sums, &weight) in sums.iter_mut().zip(&coupling.groups[group][row]) {
                for (sum, &state) in sums.iter_mut().zip(&on_path) {
                    *sum = weight.mul_add(errors[state], *sum);
                }
            }
        }
        on_path = on_path.map(|state| survivors.group_starts[above].0[state].into());
    }
    for (near, far) in near.as_flattened_mut().iter_mut().zip(far.as_flattened()) {
        *near += far;
    }
    near
}

/// One row: path costs, errors and decisions of the states after it, from the path costs and the targets of the states
/// before it.
#[inline(always)]
fn step(
    value: f32,
    targets: &[f32; STATES],
    path_costs: &[f32; STATES],
) -> ([f32; STATES], [f32; STATES], u64) {
    // Signed distance of a state's target from the nearest level of a residue.
    let distance = |state: usize, residue: usize| {
        let offset = targets[state] - residue as f32 / 4.0;
        offset - offset.round_ties_even()
    };
    let (mut next, mut errors, mut decisions) = ([0.0; STATES], [0.0; STATES], 0);
    for i in 0..HALF {
        let [same, other] = RESIDUES[i];
        for (u, low, high) in [(0, same, other), (1, other, same)] {
            let (low, high) = ((i, distance(i, low)), (i + HALF, distance(i + HALF, high)));
            let cost =
                |(state, distance): (usize, f32)| distance.mul_add(distance, path_costs[state]);
            let better = cost(high) < cost(low);
            let (state, distance) = if better { high } else { low };
            next[2 * i + u] = cost((state, distance));
            errors[2 * i + u] = value - targets[state] + distance;
            decisions |= u64::from(better) << (i + HALF * u);
        }
    }
    (next, errors, decisions)
}
