//! The search where the errors of a row enter the targets of the rows below it.
//!
//! What a row is to make up for depends on the levels chosen above it, and so on the way to each history: every history
//! carries the errors of its own best way (per-survivor processing, Raheli, Polydoros and Tzou 1995). That is no longer
//! the best of all ways, but near to it.
//!
//! Rows are worked off in groups of [`GROUP`]. Before a group the errors of the rows above are gathered along the way to each
//! history, from group to group, and what they add to the group's rows is summed up. Further up the ways meet: as soon as no
//! more than [`FEW`] are left, sums are made for these alone, and above the group at which all ways are one its errors count for
//! all rows to come, once. Within the group the errors are handed on from history to history.
//!
//! Values, errors and levels are in units of four steps here, in which levels of equal residue are whole numbers apart.

use super::{BLOCK_ROWS, HALF, LARGEST_VALUE, RESIDUES, STATES, UNREACHED, before, least};
#[cfg(target_arch = "x86_64")]
use uc_simd::has_avx512;
use uc_simd::{Kernel, dispatch};

/// How much of the error of a row, in units of its step, enters the values of the rows below it.
pub(crate) struct Coupling {
    /// [groups of later rows, rows, later rows of the group]: as the search reads them.
    groups: [[[f32; GROUP]; BLOCK_ROWS]; BLOCK_ROWS / GROUP],
}

impl Coupling {
    /// From `factor(k, i)`, how much of the error of row k enters the value of row i, asked for k < i only.
    pub(crate) fn new(factor: impl Fn(usize, usize) -> f32) -> Box<Self> {
        let mut groups = [[[0.0; GROUP]; BLOCK_ROWS]; BLOCK_ROWS / GROUP];
        for i in 0..BLOCK_ROWS {
            for k in 0..i {
                groups[i / GROUP][k][i % GROUP] = factor(k, i);
            }
        }
        Box::new(Coupling { groups })
    }
}

/// Rows whose sums are made together.
const GROUP: usize = 8;
/// Ways that are gathered together when no more are left.
const FEW: usize = 16;

/// Groups of a block.
const GROUPS: usize = BLOCK_ROWS / GROUP;

/// What the search finds beside its decisions: for every group and history after it what lies on the best way there.
pub(super) struct Survivors {
    /// [rows, histories after the row's group, or after the last row] `value − level` in units of four steps.
    errors: [Histories<f32>; BLOCK_ROWS],
    /// [groups, histories after the group] the history before the group.
    starts: [Histories<u8>; GROUPS],
}

/// A number for every history.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Histories<T>([T; STATES]);

impl Survivors {
    pub(super) fn new() -> Self {
        Survivors {
            errors: [Histories([0.0; STATES]); BLOCK_ROWS],
            starts: [Histories([0; STATES]); GROUPS],
        }
    }

    /// On the way to `history` after `group`: the errors of the group's rows, and the history before it.
    #[inline(always)]
    fn back(&self, group: usize, history: usize) -> ([f32; GROUP], usize) {
        let rows = &self.errors[group * GROUP..(group + 1) * GROUP];
        let errors = std::array::from_fn(|row| rows[row].0[history % STATES]);
        (errors, self.starts[group].0[history % STATES].into())
    }

    /// [rows] the errors on the way to `history` after the last of `rows` rows.
    #[inline(always)]
    pub(super) fn along(&self, rows: usize, mut history: usize) -> [f32; BLOCK_ROWS] {
        let mut found = [0.0; BLOCK_ROWS];
        for (group, found) in found[..rows].chunks_mut(GROUP).enumerate().rev() {
            let (errors, before) = self.back(group, history);
            found.copy_from_slice(&errors[..found.len()]);
            history = before;
        }
        found
    }
}

/// The groups through which all ways go alike.
struct Settled {
    /// How many from the first.
    groups: usize,
    /// [rows] what their errors add to the values of the rows to come.
    sums: [f32; BLOCK_ROWS],
}

impl Settled {
    fn new() -> Self {
        Settled {
            groups: 0,
            sums: [0.0; BLOCK_ROWS],
        }
    }

    /// Before the group `next`: all ways go through `history` after the first `groups` groups.
    #[inline(always)]
    fn add(
        &mut self,
        groups: usize,
        mut history: usize,
        next: usize,
        survivors: &Survivors,
        coupling: &Coupling,
    ) {
        let (sums, _) = self.sums.as_chunks_mut::<GROUP>();
        for group in (self.groups..groups).rev() {
            let (errors, before) = survivors.back(group, history);
            for (sums, coupling) in sums.iter_mut().zip(&coupling.groups).skip(next) {
                for (factors, error) in coupling[group * GROUP..].iter().zip(errors) {
                    for (sum, factor) in sums.iter_mut().zip(factors) {
                        *sum = factor.mul_add(error, *sum);
                    }
                }
            }
            history = before;
        }
        self.groups = groups;
    }
}

/// Fills the survivors and the decisions (as the uncoupled search's) of rows with the given values; returns the history of least
/// total cost after them. On ties the history of the smaller number wins, here and in every step.
pub(super) fn search(
    values: &[f32],
    coupling: &Coupling,
    survivors: &mut Survivors,
    decisions: &mut [u64],
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the processor has the features named there.
        return unsafe { avx512::search(values, coupling, survivors, decisions) };
    }
    dispatch(Search {
        values,
        coupling,
        survivors,
        decisions,
    })
}

/// [`search`] in plain loops.
struct Search<'a> {
    values: &'a [f32],
    coupling: &'a Coupling,
    survivors: &'a mut Survivors,
    decisions: &'a mut [u64],
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
        let mut metrics = [UNREACHED; STATES];
        metrics[0] = 0.0;
        let mut settled = Settled::new();
        let groups = self
            .values
            .chunks(GROUP)
            .zip(self.decisions.chunks_mut(GROUP));
        for (at, (values, decisions)) in groups.enumerate() {
            let pending = gather(at, coupling, survivors, &mut settled);
            let mut start: [usize; STATES] = std::array::from_fn(|history| history);
            let mut errors = [[0.0; STATES]; GROUP];
            for (lane, (&value, decisions)) in values.iter().zip(decisions).enumerate() {
                let target = value + settled.sums[at * GROUP + lane];
                let mut sums = start.map(|start| pending[lane][start]);
                let factors = &coupling.groups[at][at * GROUP..];
                for (errors, factors) in errors[..lane].iter().zip(factors) {
                    for (sum, &error) in sums.iter_mut().zip(errors) {
                        *sum = factors[lane].mul_add(error, *sum);
                    }
                }
                let aims = sums.map(|sum| (target + sum).clamp(-LARGEST, LARGEST));
                (metrics, errors[lane], *decisions) = step(value, &aims, &metrics);
                let moved: [usize; STATES] =
                    std::array::from_fn(|history| before(history, *decisions));
                start = moved.map(|before| start[before]);
                for errors in &mut errors[..lane] {
                    *errors = moved.map(|before| errors[before]);
                }
            }
            survivors.starts[at] = Histories(start.map(|start| start as u8));
            let rows = survivors.errors[at * GROUP..].iter_mut();
            rows.zip(errors).for_each(|(row, errors)| row.0 = errors);
        }
        least(&metrics)
    }
}

/// [lanes, histories] what the errors above the group `at` that are not settled add to the values of its rows; settles those of
/// groups through which all ways go alike.
#[inline(always)]
fn gather(
    at: usize,
    coupling: &Coupling,
    survivors: &Survivors,
    settled: &mut Settled,
) -> [[f32; STATES]; GROUP] {
    // Along ways of their own, and along the last few.
    let mut near = [[0.0; STATES]; GROUP];
    let mut far = near;
    let mut way: [usize; STATES] = std::array::from_fn(|history| history);
    let mut few = false;
    for group in (settled.groups..at).rev() {
        let ways = way.iter().fold(0u64, |ways, history| ways | 1 << history);
        few |= ways.count_ones() as usize <= FEW;
        if ways.count_ones() == 1 {
            settled.add(group + 1, way[0], at, survivors, coupling);
            break;
        }
        let sums = if few { &mut far } else { &mut near };
        for row in group * GROUP..(group + 1) * GROUP {
            let errors = &survivors.errors[row].0;
            for (sums, &factor) in sums.iter_mut().zip(&coupling.groups[at][row]) {
                for (sum, &history) in sums.iter_mut().zip(&way) {
                    *sum = factor.mul_add(errors[history], *sum);
                }
            }
        }
        way = way.map(|history| survivors.starts[group].0[history].into());
    }
    for (near, far) in near.as_flattened_mut().iter_mut().zip(far.as_flattened()) {
        *near += far;
    }
    near
}

/// Largest magnitude of a value.
const LARGEST: f32 = LARGEST_VALUE / 4.0;

/// One row: the histories' total costs after it, their errors and the decisions, from the costs before it and what each history
/// aims at.
#[inline(always)]
fn step(
    value: f32,
    aims: &[f32; STATES],
    metrics: &[f32; STATES],
) -> ([f32; STATES], [f32; STATES], u64) {
    // Distance of a history's aim to the nearest level of a residue, with its sign.
    let miss = |history: usize, residue: usize| {
        let beyond = aims[history] - residue as f32 / 4.0;
        beyond - beyond.round_ties_even()
    };
    let (mut next, mut errors, mut decisions) = ([0.0; STATES], [0.0; STATES], 0);
    for i in 0..HALF {
        let [same, other] = RESIDUES[i];
        for (u, low, high) in [(0, same, other), (1, other, same)] {
            let (low, high) = ((i, miss(i, low)), (i + HALF, miss(i + HALF, high)));
            let cost = |(history, miss): (usize, f32)| miss.mul_add(miss, metrics[history]);
            let better = cost(high) < cost(low);
            let (history, miss) = if better { high } else { low };
            next[2 * i + u] = cost((history, miss));
            errors[2 * i + u] = value - aims[history] + miss;
            decisions |= u64::from(better) << (i + HALF * u);
        }
    }
    (next, errors, decisions)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::super::{HALF, RESIDUES, STATES, UNREACHED};
    use super::{Coupling, FEW, GROUP, Histories, LARGEST, Settled, Survivors};
    use std::arch::x86_64::*;

    /// Round half to even, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    /// Histories of a vector.
    const LANES: usize = 16;
    /// Vectors of all histories.
    const VECTORS: usize = STATES / LANES;
    /// Vectors of the histories with the same oldest bit.
    const SIDE: usize = HALF / LANES;

    /// A number for every history.
    type Numbers = [__m512; VECTORS];
    /// A whole number for every history.
    type Integers = [__m512i; VECTORS];

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(Histories(numbers): &Histories<f32>) -> Numbers {
        // SAFETY: sixteen numbers each.
        std::array::from_fn(|at| unsafe { _mm512_loadu_ps(numbers.as_ptr().add(LANES * at)) })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(Histories(numbers): &mut Histories<f32>, vectors: &Numbers) {
        for (at, &vector) in vectors.iter().enumerate() {
            // SAFETY: sixteen numbers each.
            unsafe { _mm512_storeu_ps(numbers.as_mut_ptr().add(LANES * at), vector) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_integers(Histories(numbers): &Histories<u8>) -> Integers {
        // SAFETY: sixteen numbers each.
        std::array::from_fn(|at| unsafe {
            _mm512_cvtepu8_epi32(_mm_loadu_si128(numbers.as_ptr().add(LANES * at).cast()))
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store_integers(Histories(numbers): &mut Histories<u8>, vectors: &Integers) {
        for (at, &vector) in vectors.iter().enumerate() {
            let narrow = _mm512_cvtepi32_epi8(vector);
            // SAFETY: sixteen numbers each.
            unsafe { _mm_storeu_si128(numbers.as_mut_ptr().add(LANES * at).cast(), narrow) };
        }
    }

    /// Sixteen histories, in the form in which they are looked up.
    #[derive(Clone, Copy)]
    struct Place {
        histories: __m512i,
        /// Those with oldest bit 1.
        high: __mmask16,
    }

    impl Place {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn new(histories: __m512i) -> Self {
            let high = _mm512_test_epi32_mask(histories, _mm512_set1_epi32(HALF as i32));
            Place { histories, high }
        }

        /// The number of each of the histories.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn of(self, [a, b, c, d]: Numbers) -> __m512 {
            let low = _mm512_permutex2var_ps(a, self.histories, b);
            let high = _mm512_permutex2var_ps(c, self.histories, d);
            _mm512_mask_blend_ps(self.high, low, high)
        }

        /// [`Place::of`] for whole numbers.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn integer_of(self, [a, b, c, d]: Integers) -> __m512i {
            let low = _mm512_permutex2var_epi32(a, self.histories, b);
            let high = _mm512_permutex2var_epi32(c, self.histories, d);
            _mm512_mask_blend_epi32(self.high, low, high)
        }
    }

    /// From the histories before a row to those after it: where the number of each lies in the two vectors that it can come from.
    #[derive(Clone, Copy)]
    struct Move(Integers);

    impl Move {
        /// What a number for every history before the row is for those after it.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn of(self, old: Numbers) -> Numbers {
            std::array::from_fn(|at| {
                _mm512_permutex2var_ps(old[at / 2], self.0[at], old[at / 2 + SIDE])
            })
        }

        /// [`Move::of`] for whole numbers.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn integer_of(self, old: Integers) -> Integers {
            std::array::from_fn(|at| {
                _mm512_permutex2var_epi32(old[at / 2], self.0[at], old[at / 2 + SIDE])
            })
        }
    }

    /// The history of least cost.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn least(metrics: Numbers) -> usize {
        let [a, b, c, d] = metrics;
        let all = _mm512_min_ps(_mm512_min_ps(a, b), _mm512_min_ps(c, d));
        let least = _mm512_set1_ps(_mm512_reduce_min_ps(all));
        let at = |vector: usize| {
            let found = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(metrics[vector], least);
            u64::from(found) << (LANES * vector)
        };
        (0..VECTORS)
            .fold(0, |all, vector| all | at(vector))
            .trailing_zeros() as usize
    }

    /// The histories that are among `histories`, a bit for each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set(histories: Integers) -> u64 {
        let mut bits = _mm512_setzero_si512();
        for histories in histories {
            for half in [
                _mm512_castsi512_si256(histories),
                _mm512_extracti64x4_epi64::<1>(histories),
            ] {
                let shift = _mm512_cvtepu32_epi64(half);
                bits = _mm512_or_si512(bits, _mm512_sllv_epi64(_mm512_set1_epi64(1), shift));
            }
        }
        _mm512_reduce_or_epi64(bits) as u64
    }

    /// Vectors that stay the same for all rows.
    struct Constants {
        /// [newest bit] residues that lead there from the histories with oldest bit 0; from the others they are exchanged.
        residues: [[__m512; SIDE]; 2],
        /// All histories in order.
        own: Integers,
        /// Two vectors for newest bit 0 and 1 become two of the histories in order.
        woven: [__m512i; 2],
    }

    impl Constants {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn new() -> Self {
            let index = |from: &dyn Fn(usize) -> usize| {
                let index: [i32; LANES] = std::array::from_fn(|lane| from(lane) as i32);
                // SAFETY: sixteen numbers.
                unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
            };
            Constants {
                residues: [0, 1].map(|u| {
                    std::array::from_fn(|vector| {
                        let of = |lane: usize| RESIDUES[LANES * vector + lane][u] as f32 / 4.0;
                        let residues: [f32; LANES] = std::array::from_fn(of);
                        // SAFETY: sixteen numbers.
                        unsafe { _mm512_loadu_ps(residues.as_ptr()) }
                    })
                }),
                own: std::array::from_fn(|vector| index(&|lane| LANES * vector + lane)),
                woven: [0, 1]
                    .map(|half| index(&|lane| (LANES * half + lane) / 2 + LANES * (lane % 2))),
            }
        }

        /// [`super::step`] with sixteen histories side by side: costs, errors, the way there and the decisions.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn step(
            &self,
            value: f32,
            aims: Numbers,
            metrics: Numbers,
        ) -> (Numbers, Numbers, Move, u64) {
            let value = _mm512_set1_ps(value);
            let (mut costs, mut errors, mut moves) = (metrics, aims, self.own);
            let mut decisions = 0;
            for low in 0..SIDE {
                let high = low + SIDE;
                // The best way to the newest bit, from histories with oldest bit 0 and 1.
                let to = |newest: usize| {
                    let from = |side: usize, residues: __m512| {
                        let beyond = _mm512_sub_ps(aims[side], residues);
                        let miss = _mm512_sub_ps(beyond, _mm512_roundscale_ps::<NEAREST>(beyond));
                        let error = _mm512_add_ps(_mm512_sub_ps(value, aims[side]), miss);
                        (_mm512_fmadd_ps(miss, miss, metrics[side]), error)
                    };
                    let a = from(low, self.residues[newest][low]);
                    let b = from(high, self.residues[newest ^ 1][low]);
                    let better = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b.0, a.0);
                    (
                        _mm512_mask_mov_ps(a.0, better, b.0),
                        _mm512_mask_mov_ps(a.1, better, b.1),
                        _mm512_mask_mov_epi32(self.own[0], better, self.own[1]),
                        u64::from(better) << (LANES * low + HALF * newest),
                    )
                };
                let (even, odd) = (to(0), to(1));
                decisions |= even.3 | odd.3;
                for (half, woven) in self.woven.into_iter().enumerate() {
                    let at = 2 * low + half;
                    costs[at] = _mm512_permutex2var_ps(even.0, woven, odd.0);
                    errors[at] = _mm512_permutex2var_ps(even.1, woven, odd.1);
                    moves[at] = _mm512_permutex2var_epi32(even.2, woven, odd.2);
                }
            }
            (costs, errors, Move(moves), decisions)
        }
    }

    /// [rows of a group] what the groups above add to the values, by history before the group.
    type Pending = [Numbers; GROUP];

    /// [`super::gather`] with sixteen histories side by side.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn gather(
        at: usize,
        own: Integers,
        coupling: &Coupling,
        survivors: &Survivors,
        settled: &mut Settled,
        pending: &mut Pending,
    ) {
        let factors = &coupling.groups[at];
        *pending = [[_mm512_setzero_ps(); VECTORS]; GROUP];
        let (mut group, mut way, mut ways) = (at, own, u64::MAX);
        while group > settled.groups && ways.count_ones() as usize > FEW {
            group -= 1;
            // Half of the histories at a time, so that their sums stay in registers.
            for side in [0, SIDE] {
                let places: [Place; SIDE] =
                    std::array::from_fn(|vector| Place::new(way[side + vector]));
                let mut sums = [[_mm512_setzero_ps(); SIDE]; GROUP];
                for (sums, pending) in sums.iter_mut().zip(&*pending) {
                    sums.copy_from_slice(&pending[side..side + SIDE]);
                }
                for row in group * GROUP..(group + 1) * GROUP {
                    let errors = load(&survivors.errors[row]);
                    let errors = places.map(|place| place.of(errors));
                    for (sums, &factor) in sums.iter_mut().zip(&factors[row]) {
                        let factor = _mm512_set1_ps(factor);
                        for (sum, error) in sums.iter_mut().zip(errors) {
                            *sum = _mm512_fmadd_ps(factor, error, *sum);
                        }
                    }
                }
                for (pending, sums) in pending.iter_mut().zip(&sums) {
                    pending[side..side + SIDE].copy_from_slice(sums);
                }
                let starts = load_integers(&survivors.starts[group]);
                for (way, place) in way[side..].iter_mut().zip(places) {
                    *way = place.integer_of(starts);
                }
            }
            ways = set(way);
        }
        if group == settled.groups {
            return;
        }
        // The ways that are left side by side, and which of them every history has.
        let mut few = [ways.trailing_zeros() as i32; LANES];
        let mut places = Histories([0; STATES]);
        for (place, few) in few.iter_mut().enumerate().take(ways.count_ones() as usize) {
            *few = ways.trailing_zeros() as i32;
            places.0[*few as usize] = place as u8;
            ways &= ways - 1;
        }
        let places = load_integers(&places);
        let places = way.map(|histories| Place::new(histories).integer_of(places));
        // SAFETY: sixteen numbers.
        let mut few = unsafe { _mm512_loadu_si512(few.as_ptr().cast()) };
        let mut far = [_mm512_setzero_ps(); GROUP];
        while group > settled.groups {
            let one = _mm512_broadcastd_epi32(_mm512_castsi512_si128(few));
            if _mm512_cmpneq_epi32_mask(few, one) == 0 {
                let history = _mm_cvtsi128_si32(_mm512_castsi512_si128(one)) as usize;
                settled.add(group, history, at, survivors, coupling);
                break;
            }
            group -= 1;
            let place = Place::new(few);
            for row in group * GROUP..(group + 1) * GROUP {
                let errors = place.of(load(&survivors.errors[row]));
                for (sum, &factor) in far.iter_mut().zip(&factors[row]) {
                    *sum = _mm512_fmadd_ps(_mm512_set1_ps(factor), errors, *sum);
                }
            }
            few = place.integer_of(load_integers(&survivors.starts[group]));
        }
        for (pending, &far) in pending.iter_mut().zip(&far) {
            for (pending, &place) in pending.iter_mut().zip(&places) {
                *pending = _mm512_add_ps(*pending, _mm512_permutexvar_ps(place, far));
            }
        }
    }

    /// Where the search stands, by history after the row that was last.
    struct State {
        constants: Constants,
        /// Total costs.
        metrics: Numbers,
        pending: Pending,
        /// The history before the group.
        start: Integers,
        /// [rows of the group] value − level.
        errors: [Numbers; GROUP],
    }

    impl State {
        /// The row `LANE` of the group: a function for each, so that loops over the rows before it are unrolled. `factors`, by
        /// those rows, tell how much of their errors enter it. Returns the decisions.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn row<const LANE: usize>(
            &mut self,
            value: f32,
            settled: f32,
            factors: &[[f32; GROUP]],
        ) -> u64 {
            let pending = self.pending[LANE];
            let mut sums = self.start.map(|start| Place::new(start).of(pending));
            for (errors, factors) in self.errors[..LANE].iter().zip(factors) {
                let factor = _mm512_set1_ps(factors[LANE]);
                for (sum, &error) in sums.iter_mut().zip(errors) {
                    *sum = _mm512_fmadd_ps(factor, error, *sum);
                }
            }
            let target = _mm512_set1_ps(value + settled);
            let aims = sums.map(|sum| {
                let aim = _mm512_min_ps(_mm512_add_ps(target, sum), _mm512_set1_ps(LARGEST));
                _mm512_max_ps(aim, _mm512_set1_ps(-LARGEST))
            });
            let (costs, errors, moves, decisions) = self.constants.step(value, aims, self.metrics);
            self.metrics = costs;
            self.start = moves.integer_of(self.start);
            for errors in &mut self.errors[..LANE] {
                *errors = moves.of(*errors);
            }
            self.errors[LANE] = errors;
            decisions
        }
    }

    /// [`super::Search`] with sixteen histories side by side, bit for bit.
    #[target_feature(enable = "avx512f")]
    pub(super) fn search(
        values: &[f32],
        coupling: &Coupling,
        survivors: &mut Survivors,
        decisions: &mut [u64],
    ) -> usize {
        let constants = Constants::new();
        let own = constants.own;
        let unreached = _mm512_set1_ps(UNREACHED);
        let mut state = State {
            constants,
            metrics: [unreached; VECTORS],
            pending: [[_mm512_setzero_ps(); VECTORS]; GROUP],
            start: own,
            errors: [[_mm512_setzero_ps(); VECTORS]; GROUP],
        };
        state.metrics[0] = _mm512_mask_mov_ps(unreached, 1, _mm512_setzero_ps());
        let mut settled = Settled::new();
        let groups = values.chunks(GROUP).zip(decisions.chunks_mut(GROUP));
        for (at, (values, decisions)) in groups.enumerate() {
            let first = at * GROUP;
            state.start = own;
            gather(
                at,
                own,
                coupling,
                survivors,
                &mut settled,
                &mut state.pending,
            );
            let factors = &coupling.groups[at][first..];
            macro_rules! rows {
                ($($lane:literal)*) => {$(
                    if let (Some(&value), Some(decisions)) = (values.get($lane), decisions.get_mut($lane)) {
                        let settled = settled.sums[first + $lane];
                        *decisions = state.row::<$lane>(value, settled, factors);
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7);
            store_integers(&mut survivors.starts[at], &state.start);
            for (row, errors) in survivors.errors[first..].iter_mut().zip(&state.errors) {
                store(row, errors);
            }
        }
        least(state.metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Path;
    use super::super::tests::normals;
    use super::*;

    /// A coupling that decays with the distance of the rows.
    fn neighbours(strength: f32) -> Box<Coupling> {
        Coupling::new(|k, i| strength.powi((i - k) as i32))
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
                    .map(|k| f64::from(coupling.groups[i / GROUP][k][i % GROUP]) * errors[k])
                    .sum::<f64>()
        };
        (0..errors.len()).map(|i| left(i).powi(2)).sum()
    }

    #[test]
    fn without_coupling_the_coupled_search_is_the_plain_one() {
        let (mut plain, mut coupled) = (Path::new(), Path::new());
        let alone = Coupling::new(|_, _| 0.0);
        for seed in 0..50 {
            let values = block(seed, 15.0);
            for rows in [1, 70, BLOCK_ROWS] {
                plain.quantize(&values, rows);
                coupled.quantize_coupled(&values, rows, &alone);
                let [least, found] = [&plain, &coupled]
                    .map(|path| coupled_error(&values[..rows], &path.levels, &alone));
                assert!(
                    (found / least - 1.0).abs() < 1e-5,
                    "{rows} rows: {found} {least}"
                );
            }
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
            alone += coupled_error(&values, &plain.levels, &Coupling::new(|_, _| 0.0));
        }
        // Unheeded, the errors add up; heeded, every row is left with what it would be left with alone.
        assert!(heeded < 0.7 * ignored, "{heeded} of {ignored}");
        assert!(heeded < 1.05 * alone, "{heeded} against {alone}");
    }

    #[test]
    fn the_coupled_search_is_the_same_bits_with_and_without_vectors() {
        let coupling = neighbours(0.7);
        for rows in [1, 2, 5, 8, 137, 255, 256] {
            let mut values = block(rows, 900.0);
            values[rows / 2] = 0.5;
            values[0] = 1e9; // saturates
            let run = |vectors: bool| {
                let (mut survivors, mut decisions) = (Survivors::new(), [0; BLOCK_ROWS]);
                let (values, decided) = (&values[..rows], &mut decisions[..rows]);
                let last = match vectors {
                    true => search(values, &coupling, &mut survivors, decided),
                    false => Search {
                        values,
                        coupling: &coupling,
                        survivors: &mut survivors,
                        decisions: decided,
                    }
                    .run(),
                };
                (
                    last,
                    survivors.along(rows, last).map(f32::to_bits),
                    decisions,
                )
            };
            assert!(run(true) == run(false), "{rows} rows");
        }
    }
}
