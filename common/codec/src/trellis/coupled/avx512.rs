//! The coupled search with AVX-512: sixteen states side by side, with the bits of [`super::portable`].
//!
//! Safety: every function here requires AVX-512 F, and [`super::search`] calls [`search`] only after a check that the
//! processor has it. Loads and stores access arrays of exactly the length of a vector, or that many elements of a
//! [`PerState`] at offsets inside it.

use super::super::{HALF, RESIDUES, STATES, UNREACHABLE};
use super::{Coupling, GROUP, LARGEST_TARGET, MERGE_THRESHOLD, MergedPrefix, PerState, Survivors};
use std::arch::x86_64::*;

/// Round half to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
/// States of a vector.
const LANES: usize = 16;
/// Vectors of all states.
const VECTORS: usize = STATES / LANES;
/// Vectors of the states with the same oldest bit.
const HALF_VECTORS: usize = HALF / LANES;

/// A number for every state.
type Floats = [__m512; VECTORS];
/// An integer for every state.
type Integers = [__m512i; VECTORS];

#[inline]
#[target_feature(enable = "avx512f")]
fn load(PerState(numbers): &PerState<f32>) -> Floats {
    // SAFETY: sixteen numbers each.
    std::array::from_fn(|at| unsafe { _mm512_loadu_ps(numbers.as_ptr().add(LANES * at)) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(PerState(numbers): &mut PerState<f32>, vectors: &Floats) {
    for (at, &vector) in vectors.iter().enumerate() {
        // SAFETY: sixteen numbers each.
        unsafe { _mm512_storeu_ps(numbers.as_mut_ptr().add(LANES * at), vector) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_integers(PerState(numbers): &PerState<u8>) -> Integers {
    // SAFETY: sixteen numbers each.
    std::array::from_fn(|at| unsafe {
        _mm512_cvtepu8_epi32(_mm_loadu_si128(numbers.as_ptr().add(LANES * at).cast()))
    })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_integers(PerState(numbers): &mut PerState<u8>, vectors: &Integers) {
    for (at, &vector) in vectors.iter().enumerate() {
        let narrow = _mm512_cvtepi32_epi8(vector);
        // SAFETY: sixteen numbers each.
        unsafe { _mm_storeu_si128(numbers.as_mut_ptr().add(LANES * at).cast(), narrow) };
    }
}

/// Sixteen states as indices into the vectors of all states.
#[derive(Clone, Copy)]
struct StateIndex {
    states: __m512i,
    /// Lanes whose state has the oldest bit 1.
    high: __mmask16,
}

impl StateIndex {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(states: __m512i) -> Self {
        let high = _mm512_test_epi32_mask(states, _mm512_set1_epi32(HALF as i32));
        StateIndex { states, high }
    }

    /// The number of each of the states.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn gather(self, [a, b, c, d]: Floats) -> __m512 {
        let low = _mm512_permutex2var_ps(a, self.states, b);
        let high = _mm512_permutex2var_ps(c, self.states, d);
        _mm512_mask_blend_ps(self.high, low, high)
    }

    /// [`StateIndex::gather`] for integers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn gather_integers(self, [a, b, c, d]: Integers) -> __m512i {
        let low = _mm512_permutex2var_epi32(a, self.states, b);
        let high = _mm512_permutex2var_epi32(c, self.states, d);
        _mm512_mask_blend_epi32(self.high, low, high)
    }
}

/// The transition from the states before a row to those after it: for each state after it, the position of its predecessor
/// in the two vectors that can hold it.
#[derive(Clone, Copy)]
struct Transition(Integers);

impl Transition {
    /// Turns a number for every state before the row into one for every state after it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn apply(self, old: Floats) -> Floats {
        std::array::from_fn(|at| {
            _mm512_permutex2var_ps(old[at / 2], self.0[at], old[at / 2 + HALF_VECTORS])
        })
    }

    /// [`Transition::apply`] for integers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn apply_integers(self, old: Integers) -> Integers {
        std::array::from_fn(|at| {
            _mm512_permutex2var_epi32(old[at / 2], self.0[at], old[at / 2 + HALF_VECTORS])
        })
    }
}

/// The state of least path cost.
#[inline]
#[target_feature(enable = "avx512f")]
fn cheapest_state(path_costs: Floats) -> usize {
    let [a, b, c, d] = path_costs;
    let all = _mm512_min_ps(_mm512_min_ps(a, b), _mm512_min_ps(c, d));
    let least = _mm512_set1_ps(_mm512_reduce_min_ps(all));
    let equal = |vector: usize| {
        let lanes = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(path_costs[vector], least);
        u64::from(lanes) << (LANES * vector)
    };
    (0..VECTORS)
        .fold(0, |all, vector| all | equal(vector))
        .trailing_zeros() as usize
}

/// The set of the given states, one bit for each.
#[inline]
#[target_feature(enable = "avx512f")]
fn state_set(states: Integers) -> u64 {
    let mut bits = _mm512_setzero_si512();
    for states in states {
        for half in [
            _mm512_castsi512_si256(states),
            _mm512_extracti64x4_epi64::<1>(states),
        ] {
            let shift = _mm512_cvtepu32_epi64(half);
            bits = _mm512_or_si512(bits, _mm512_sllv_epi64(_mm512_set1_epi64(1), shift));
        }
    }
    _mm512_reduce_or_epi64(bits) as u64
}

/// Vectors that are the same for all rows.
struct Constants {
    /// [newest bit] residues of the levels that lead there from the states with oldest bit 0; for the others the two are
    /// exchanged.
    residues: [[__m512; HALF_VECTORS]; 2],
    /// All states in order.
    identity: Integers,
    /// Interleaves a vector for newest bit 0 and one for newest bit 1 into two vectors of states in order.
    interleave: [__m512i; 2],
}

impl Constants {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        let index_vector = |element: &dyn Fn(usize) -> usize| {
            let index: [i32; LANES] = std::array::from_fn(|lane| element(lane) as i32);
            // SAFETY: sixteen numbers.
            unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
        };
        Constants {
            residues: [0, 1].map(|u| {
                std::array::from_fn(|vector| {
                    let quarter = |lane: usize| RESIDUES[LANES * vector + lane][u] as f32 / 4.0;
                    let residues: [f32; LANES] = std::array::from_fn(quarter);
                    // SAFETY: sixteen numbers.
                    unsafe { _mm512_loadu_ps(residues.as_ptr()) }
                })
            }),
            identity: std::array::from_fn(|vector| index_vector(&|lane| LANES * vector + lane)),
            interleave: [0, 1]
                .map(|half| index_vector(&|lane| (LANES * half + lane) / 2 + LANES * (lane % 2))),
        }
    }

    /// As `step` of [`super::portable`]: path costs, errors, transition and decisions.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn step(
        &self,
        value: f32,
        targets: Floats,
        path_costs: Floats,
    ) -> (Floats, Floats, Transition, u64) {
        let value = _mm512_set1_ps(value);
        let (mut costs, mut errors, mut moves) = (path_costs, targets, self.identity);
        let mut decisions = 0;
        for low in 0..HALF_VECTORS {
            let high = low + HALF_VECTORS;
            // The best path to the newest bit, from the states with oldest bit 0 and 1.
            let best_path = |newest: usize| {
                let candidate = |half: usize, residues: __m512| {
                    let offset = _mm512_sub_ps(targets[half], residues);
                    let distance = _mm512_sub_ps(offset, _mm512_roundscale_ps::<NEAREST>(offset));
                    let error = _mm512_add_ps(_mm512_sub_ps(value, targets[half]), distance);
                    (_mm512_fmadd_ps(distance, distance, path_costs[half]), error)
                };
                let a = candidate(low, self.residues[newest][low]);
                let b = candidate(high, self.residues[newest ^ 1][low]);
                let better = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b.0, a.0);
                (
                    _mm512_mask_mov_ps(a.0, better, b.0),
                    _mm512_mask_mov_ps(a.1, better, b.1),
                    _mm512_mask_mov_epi32(self.identity[0], better, self.identity[1]),
                    u64::from(better) << (LANES * low + HALF * newest),
                )
            };
            let (even, odd) = (best_path(0), best_path(1));
            decisions |= even.3 | odd.3;
            for (half, interleave) in self.interleave.into_iter().enumerate() {
                let at = 2 * low + half;
                costs[at] = _mm512_permutex2var_ps(even.0, interleave, odd.0);
                errors[at] = _mm512_permutex2var_ps(even.1, interleave, odd.1);
                moves[at] = _mm512_permutex2var_epi32(even.2, interleave, odd.2);
            }
        }
        (costs, errors, Transition(moves), decisions)
    }
}

/// [rows of a group] what the groups above add to the values, by state before the group.
type Pending = [Floats; GROUP];

/// As `pending_sums` of [`super::portable`].
#[inline]
#[target_feature(enable = "avx512f")]
fn pending_sums(
    group: usize,
    identity: Integers,
    coupling: &Coupling,
    survivors: &Survivors,
    merged: &mut MergedPrefix,
    pending: &mut Pending,
) {
    let weights = &coupling.groups[group];
    *pending = [[_mm512_setzero_ps(); VECTORS]; GROUP];
    // The state after the groups `..above` on the survivor path of each state, and the set of these states.
    let (mut above, mut on_path, mut distinct) = (group, identity, u64::MAX);
    while above > merged.groups && distinct.count_ones() as usize > MERGE_THRESHOLD {
        above -= 1;
        // Half of the states at a time, so that their sums stay in registers.
        for half in [0, HALF_VECTORS] {
            let states: [StateIndex; HALF_VECTORS] =
                std::array::from_fn(|vector| StateIndex::new(on_path[half + vector]));
            let mut sums = [[_mm512_setzero_ps(); HALF_VECTORS]; GROUP];
            for (sums, pending) in sums.iter_mut().zip(&*pending) {
                sums.copy_from_slice(&pending[half..half + HALF_VECTORS]);
            }
            for row in above * GROUP..(above + 1) * GROUP {
                let errors = load(&survivors.errors[row]);
                let errors = states.map(|states| states.gather(errors));
                for (sums, &weight) in sums.iter_mut().zip(&weights[row]) {
                    let weight = _mm512_set1_ps(weight);
                    for (sum, error) in sums.iter_mut().zip(errors) {
                        *sum = _mm512_fmadd_ps(weight, error, *sum);
                    }
                }
            }
            for (pending, sums) in pending.iter_mut().zip(&sums) {
                pending[half..half + HALF_VECTORS].copy_from_slice(sums);
            }
            let starts = load_integers(&survivors.group_starts[above]);
            for (on_path, states) in on_path[half..].iter_mut().zip(states) {
                *on_path = states.gather_integers(starts);
            }
        }
        distinct = state_set(on_path);
    }
    if above > merged.groups {
        add_merged_paths(
            above, group, on_path, distinct, coupling, survivors, merged, pending,
        );
    }
}

/// The rest of [`pending_sums`], for groups below `above`, once the survivor paths go through at most [`MERGE_THRESHOLD`]
/// `distinct` states: sums are formed for these, one lane each, and added to those of the states whose paths go through them.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_merged_paths(
    mut above: usize,
    group: usize,
    on_path: Integers,
    mut distinct: u64,
    coupling: &Coupling,
    survivors: &Survivors,
    merged: &mut MergedPrefix,
    pending: &mut Pending,
) {
    let weights = &coupling.groups[group];
    // The distinct states by lane, and the lane of each state's path.
    let mut by_lane = [distinct.trailing_zeros() as i32; LANES];
    let mut lanes = PerState([0; STATES]);
    let count = distinct.count_ones() as usize;
    for (lane, state) in by_lane.iter_mut().enumerate().take(count) {
        *state = distinct.trailing_zeros() as i32;
        lanes.0[*state as usize] = lane as u8;
        distinct &= distinct - 1;
    }
    let lanes = load_integers(&lanes);
    let lanes = on_path.map(|states| StateIndex::new(states).gather_integers(lanes));
    // SAFETY: sixteen numbers.
    let mut by_lane = unsafe { _mm512_loadu_si512(by_lane.as_ptr().cast()) };
    let mut sums = [_mm512_setzero_ps(); GROUP];
    while above > merged.groups {
        let first = _mm512_broadcastd_epi32(_mm512_castsi512_si128(by_lane));
        if _mm512_cmpneq_epi32_mask(by_lane, first) == 0 {
            let state = _mm_cvtsi128_si32(_mm512_castsi512_si128(first)) as usize;
            merged.extend(above, state, group, survivors, coupling);
            break;
        }
        above -= 1;
        let states = StateIndex::new(by_lane);
        for row in above * GROUP..(above + 1) * GROUP {
            let errors = states.gather(load(&survivors.errors[row]));
            for (sum, &weight) in sums.iter_mut().zip(&weights[row]) {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(weight), errors, *sum);
            }
        }
        by_lane = states.gather_integers(load_integers(&survivors.group_starts[above]));
    }
    for (pending, &sum) in pending.iter_mut().zip(&sums) {
        for (pending, &lanes) in pending.iter_mut().zip(&lanes) {
            *pending = _mm512_add_ps(*pending, _mm512_permutexvar_ps(lanes, sum));
        }
    }
}

/// The progress of the search; numbers per state belong to the states after the last row.
struct Progress {
    constants: Constants,
    path_costs: Floats,
    pending: Pending,
    /// The state before the group.
    start: Integers,
    /// [rows of the group] value − level.
    errors: [Floats; GROUP],
}

impl Progress {
    /// Searches the row `LANE` of the group and returns the decisions. A function for each row, so that the loops over the
    /// rows before it are unrolled. `weights[k][LANE]` is how much of the error of row k of the group enters this row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn row<const LANE: usize>(
        &mut self,
        value: f32,
        merged_sum: f32,
        weights: &[[f32; GROUP]],
    ) -> u64 {
        let pending = self.pending[LANE];
        let mut sums = self
            .start
            .map(|start| StateIndex::new(start).gather(pending));
        for (errors, weights) in self.errors[..LANE].iter().zip(weights) {
            let weight = _mm512_set1_ps(weights[LANE]);
            for (sum, &error) in sums.iter_mut().zip(errors) {
                *sum = _mm512_fmadd_ps(weight, error, *sum);
            }
        }
        let shifted = _mm512_set1_ps(value + merged_sum);
        let targets = sums.map(|sum| {
            let target = _mm512_min_ps(_mm512_add_ps(shifted, sum), _mm512_set1_ps(LARGEST_TARGET));
            _mm512_max_ps(target, _mm512_set1_ps(-LARGEST_TARGET))
        });
        let (path_costs, errors, transition, decisions) =
            self.constants.step(value, targets, self.path_costs);
        self.path_costs = path_costs;
        self.start = transition.apply_integers(self.start);
        for errors in &mut self.errors[..LANE] {
            *errors = transition.apply(*errors);
        }
        self.errors[LANE] = errors;
        decisions
    }
}

/// [`super::search`] with AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) fn search(
    values: &[f32],
    coupling: &Coupling,
    survivors: &mut Survivors,
    decisions: &mut [u64],
) -> usize {
    let constants = Constants::new();
    let identity = constants.identity;
    let unreachable = _mm512_set1_ps(UNREACHABLE);
    let mut progress = Progress {
        constants,
        path_costs: [unreachable; VECTORS],
        pending: [[_mm512_setzero_ps(); VECTORS]; GROUP],
        start: identity,
        errors: [[_mm512_setzero_ps(); VECTORS]; GROUP],
    };
    progress.path_costs[0] = _mm512_mask_mov_ps(unreachable, 1, _mm512_setzero_ps());
    let mut merged = MergedPrefix::new();
    let groups = values.chunks(GROUP).zip(decisions.chunks_mut(GROUP));
    for (group, (values, decisions)) in groups.enumerate() {
        let first = group * GROUP;
        progress.start = identity;
        pending_sums(
            group,
            identity,
            coupling,
            survivors,
            &mut merged,
            &mut progress.pending,
        );
        let weights = &coupling.groups[group][first..];
        macro_rules! rows {
            ($($lane:literal)*) => {$(
                if let (Some(&value), Some(decisions)) = (values.get($lane), decisions.get_mut($lane)) {
                    let merged_sum = merged.sums[first + $lane];
                    *decisions = progress.row::<$lane>(value, merged_sum, weights);
                }
            )*};
        }
        rows!(0 1 2 3 4 5 6 7);
        store_integers(&mut survivors.group_starts[group], &progress.start);
        for (row, errors) in survivors.errors[first..].iter_mut().zip(&progress.errors) {
            store(row, errors);
        }
    }
    cheapest_state(progress.path_costs)
}
