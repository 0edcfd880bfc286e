//! The coupled search in plain loops: the reference for [`super::avx512`], and the search of all other processors.

use super::super::{HALF, RESIDUES, STATES, predecessor};
use super::{
    Coupling, ERROR_BITS, GROUP, GROUPS, MergedPrefix, PerState, Search, Survivors, TARGET_BITS,
    UNREACHABLE, start,
};
use uc_simd::Kernel;

/// The search as a kernel.
pub(super) struct Portable<'a>(pub(super) Search<'a>);

impl Kernel for Portable<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let targets = self.0.targets();
        let Search {
            values,
            coupling,
            survivors,
            levels,
        } = self.0;
        let mut path_costs = [UNREACHABLE; STATES];
        path_costs[0] = 0;
        let mut merged = MergedPrefix::new(values, levels);
        for (group, targets) in targets[..values.len()].chunks(GROUP).enumerate() {
            let least = least(&path_costs);
            let pending = pending_sums(group, coupling, survivors, &mut merged);
            let weights = &coupling.within[group];
            // See `Survivors::first_bits`; the bits of rows that are not searched are 0.
            let mut first_bits: [u32; STATES] = std::array::from_fn(|state| 4 * state as u32);
            let mut errors = [[0i16; STATES]; GROUP];
            for (lane, &target) in targets.iter().enumerate() {
                let mut inner = [0i16; STATES];
                for (errors, weights) in errors[..lane].iter().zip(weights) {
                    for (sum, &error) in inner.iter_mut().zip(errors) {
                        *sum = sum.wrapping_add(multiply_high(error, weights[lane]));
                    }
                }
                let sums: [i16; STATES] = std::array::from_fn(|state| {
                    let inner = inner[state] << (15 - coupling.shift);
                    pending[start(first_bits[state])][lane].saturating_add(inner)
                });
                let decisions;
                (path_costs, errors[lane], decisions) = step(target, &sums, &path_costs);
                let predecessors: [usize; STATES] =
                    std::array::from_fn(|state| predecessor(state, decisions));
                first_bits = predecessors.map(|previous| first_bits[previous]);
                if lane < 2 {
                    for (state, bits) in first_bits.iter_mut().enumerate() {
                        *bits |= (state as u32 & 1) << (1 - lane);
                    }
                }
                for errors in &mut errors[..lane] {
                    *errors = predecessors.map(|previous| errors[previous]);
                }
            }
            path_costs = path_costs.map(|cost| cost.saturating_sub(least));
            survivors.first_bits[group] = PerState(first_bits);
            for (pairs, rows) in survivors.errors[group].iter_mut().zip(errors.chunks(2)) {
                let pair = |state: usize| [0, 1].map(|row| u32::from(rows[row][state] as u16));
                pairs.0 = std::array::from_fn(|state| pair(state)[0] | pair(state)[1] << 16);
            }
        }
        let least = least(&path_costs);
        let best = path_costs.iter().position(|&cost| cost == least);
        merged.finish(best.unwrap_or(0), survivors);
    }
}

/// The least of the path costs.
#[inline(always)]
fn least(path_costs: &[u16; STATES]) -> u16 {
    path_costs
        .iter()
        .fold(UNREACHABLE, |least, &cost| least.min(cost))
}

/// The product of two numbers with 15 bits behind the point, rounded to as many.
#[inline(always)]
fn multiply_high(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b) + (1 << 14)) >> 15) as i16
}

/// [states before the group, rows of the group] what the errors of the groups above add to the targets of
/// the group's rows. Extends the prefix where all survivor paths have merged.
#[inline(always)]
fn pending_sums(
    group: usize,
    coupling: &Coupling,
    survivors: &Survivors,
    merged: &mut MergedPrefix<'_>,
) -> [[i16; GROUP]; STATES] {
    // The states after each group that lie on a survivor path, from below.
    let mut on_path = [u64::MAX; GROUPS + 1];
    let mut above = group;
    while above > merged.groups {
        if on_path[above].count_ones() == 1 {
            let state = on_path[above].trailing_zeros() as usize;
            merged.extend(above, state, group, survivors, coupling);
            break;
        }
        let first_bits = &survivors.first_bits[above - 1].0;
        let states = states(on_path[above]);
        on_path[above - 1] = states.fold(0, |set, state| set | 1 << start(first_bits[state]));
        above -= 1;
    }
    let mut sums = [merged.group_sums(group, coupling); STATES];
    for above in merged.groups..group {
        let first_bits = &survivors.first_bits[above].0;
        let above_sums = sums;
        for state in states(on_path[above + 1]) {
            sums[state] = above_sums[start(first_bits[state])];
            let errors = survivors.errors[above].iter();
            for (errors, pair) in errors.zip(&coupling.earlier[group][above]) {
                for half in 0..2 {
                    let error = i32::from((errors.0[state] >> (16 * half)) as i16);
                    for (sum, pair) in sums[state].iter_mut().zip(pair) {
                        let weight = i32::from((pair >> (16 * half)) as i16);
                        *sum = sum.wrapping_add(weight * error);
                    }
                }
            }
        }
    }
    let narrow = |sum: i32| (sum >> coupling.shift).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
    sums.map(|sums| sums.map(narrow))
}

/// The states in a set, one bit for each.
#[inline(always)]
fn states(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let state = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (state < STATES).then_some(state)
    })
}

/// One row: path costs, errors and decisions of the states after it, from the path costs of the states before it and the
/// `sums` that are added to their `target`.
#[inline(always)]
fn step(
    target: i16,
    sums: &[i16; STATES],
    path_costs: &[u16; STATES],
) -> ([u16; STATES], [i16; STATES], u64) {
    // Signed distance of a state's target from the nearest level of a residue.
    let distance = |state: usize, residue: usize| {
        let target = target.wrapping_add(sums[state] << (TARGET_BITS - ERROR_BITS));
        target.wrapping_sub((residue << TARGET_BITS) as i16)
    };
    let (mut next, mut errors, mut decisions) = ([0; STATES], [0; STATES], 0);
    for i in 0..HALF {
        let [same, other] = RESIDUES[i];
        for (u, low, high) in [(0, same, other), (1, other, same)] {
            let (low, high) = ((i, distance(i, low)), (i + HALF, distance(i + HALF, high)));
            let cost = |(state, distance): (usize, i16)| {
                let square = i32::from(distance) * i32::from(distance);
                path_costs[state].saturating_add((square >> 16) as u16)
            };
            let better = cost(high) < cost(low);
            let (state, distance) = if better { high } else { low };
            next[2 * i + u] = cost((state, distance));
            errors[2 * i + u] =
                (distance >> (TARGET_BITS - ERROR_BITS)).saturating_sub(sums[state]);
            decisions |= u64::from(better) << (i + HALF * u);
        }
    }
    (next, errors, decisions)
}
