//! The search where the errors of a row enter the targets of the rows below it.
//!
//! What a row is to make up for depends on the levels chosen above it, and so on the way to each history: every history
//! carries the errors of its own best way (per-survivor processing, Raheli, Polydoros and Tzou 1995). That is no longer
//! the best of all ways, but near to it.
//!
//! Rows are worked off in groups of [`GROUP`]. Before a group, the errors of the last [`MEMORY`] rows are gathered along the
//! way to each history, and what they add to the group's rows is summed up. Rows further back are decided: all ways that are
//! left go through the same histories there, those of the history of least cost, and their errors count for all ways alike
//! (truncation of the survivors, Forney 1973). Within the group the sums are handed on from history to history.
//!
//! Values, errors and levels are in units of four steps here, in which levels of equal residue are whole numbers apart.

use super::{BLOCK_ROWS, HALF, LARGEST_VALUE, RESIDUES, STATES, UNREACHED, least};
#[cfg(target_arch = "x86_64")]
use crate::simd::has_avx512;
use crate::simd::{Kernel, dispatch};

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
/// Rows above a group that are not decided yet: whole groups.
const MEMORY: usize = 64;

/// What the search finds: for every row and history the end of the best way there.
pub(super) struct Survivors {
    /// [rows, histories] `value − level` in units of four steps.
    pub(super) errors: [Histories<f32>; BLOCK_ROWS],
    /// [rows, histories] the history before.
    pub(super) before: [Histories<u8>; BLOCK_ROWS],
}

/// A number for every history.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(align(64))]
pub(super) struct Histories<T>(pub(super) [T; STATES]);

impl Survivors {
    pub(super) fn new() -> Self {
        Survivors {
            errors: [Histories([0.0; STATES]); BLOCK_ROWS],
            before: [Histories([0; STATES]); BLOCK_ROWS],
        }
    }

    /// The group that begins at row `first` no longer remembers the group [`MEMORY`] rows above it: adds the errors of that
    /// one, on the way to the history `last`, to what is `decided` of the values of the rows from `first` on. Returns the
    /// history that this way goes through before the rows remembered.
    #[inline(always)]
    fn decide(
        &self,
        first: usize,
        last: u32,
        coupling: &Coupling,
        decided: &mut [f32; BLOCK_ROWS],
    ) -> usize {
        let remembered = first - MEMORY;
        let mut history = last as usize % STATES;
        for before in self.before[remembered..first].iter().rev() {
            history = before.0[history] as usize % STATES;
        }
        let common = history;
        for row in (remembered - GROUP..remembered).rev() {
            let error = self.errors[row].0[history];
            let (groups, _) = decided.as_chunks_mut::<GROUP>();
            for (decided, coupling) in groups.iter_mut().zip(&coupling.groups).skip(first / GROUP) {
                for (decided, factor) in decided.iter_mut().zip(&coupling[row]) {
                    *decided = factor.mul_add(error, *decided);
                }
            }
            history = self.before[row].0[history] as usize % STATES;
        }
        common
    }
}

/// Fills the survivors of rows with the given values; returns the history of least total cost after them. On ties the
/// history of the smaller number wins, here and in every step.
pub(super) fn search(
    values: &[f32; BLOCK_ROWS],
    rows: usize,
    coupling: &Coupling,
    survivors: &mut Survivors,
) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the processor has the features named there.
        return unsafe { avx512::search(values, rows, coupling, survivors) };
    }
    dispatch(Search {
        values: &values[..rows],
        coupling,
        survivors,
    })
}

/// [`search`] in plain loops.
struct Search<'a> {
    values: &'a [f32],
    coupling: &'a Coupling,
    survivors: &'a mut Survivors,
}

impl Kernel for Search<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        let Search {
            values,
            coupling,
            survivors,
        } = self;
        let mut metrics = [UNREACHED; STATES];
        metrics[0] = 0.0;
        let mut decided = [0.0; BLOCK_ROWS];
        for first in (0..values.len()).step_by(GROUP) {
            let remembered = first.saturating_sub(MEMORY);
            let common = (remembered > 0)
                .then(|| survivors.decide(first, least(&metrics), coupling, &mut decided));
            let mut pending = [[0.0; STATES]; GROUP];
            let mut way: [usize; STATES] = std::array::from_fn(|history| history);
            for row in (remembered..first).rev() {
                for (pending, &factor) in
                    pending.iter_mut().zip(&coupling.groups[first / GROUP][row])
                {
                    for (pending, &history) in pending.iter_mut().zip(&way) {
                        *pending = factor.mul_add(survivors.errors[row].0[history], *pending);
                    }
                }
                way = way.map(|history| survivors.before[row].0[history] as usize);
            }
            if let Some(common) = common {
                for (metric, &history) in metrics.iter_mut().zip(&way) {
                    *metric = if history == common {
                        *metric
                    } else {
                        UNREACHED
                    };
                }
            }
            for (row, &value) in values.iter().enumerate().skip(first).take(GROUP) {
                let (now, later) = pending[row - first..]
                    .split_first_mut()
                    .expect("a row of the group");
                let aims =
                    now.map(|pending| (value + decided[row] + pending).clamp(-LARGEST, LARGEST));
                let (errors, before) = (&mut survivors.errors[row].0, &mut survivors.before[row].0);
                metrics = step(value, &aims, &metrics, errors, before);
                for (pending, &factor) in later
                    .iter_mut()
                    .zip(&coupling.groups[first / GROUP][row][row - first + 1..])
                {
                    let old = *pending;
                    for (history, pending) in pending.iter_mut().enumerate() {
                        *pending = factor.mul_add(errors[history], old[before[history] as usize]);
                    }
                }
            }
        }
        least(&metrics)
    }
}

/// Largest magnitude of a value.
const LARGEST: f32 = LARGEST_VALUE / 4.0;

/// One row: the histories' total costs after it, from those before it and what each history aims at.
#[inline(always)]
fn step(
    value: f32,
    aims: &[f32; STATES],
    metrics: &[f32; STATES],
    errors: &mut [f32; STATES],
    before: &mut [u8; STATES],
) -> [f32; STATES] {
    // Distance of a history's aim to the nearest level of a residue, with its sign.
    let miss = |history: usize, residue: usize| {
        let beyond = aims[history] - residue as f32 / 4.0;
        beyond - beyond.round_ties_even()
    };
    let mut next = [0.0; STATES];
    for i in 0..HALF {
        let [same, other] = RESIDUES[i & 7];
        for (u, low, high) in [(0, same, other), (1, other, same)] {
            let (low, high) = ((i, miss(i, low)), (i + HALF, miss(i + HALF, high)));
            let cost = |(history, miss): (usize, f32)| miss.mul_add(miss, metrics[history]);
            let (history, miss) = if cost(high) < cost(low) { high } else { low };
            next[2 * i + u] = cost((history, miss));
            errors[2 * i + u] = value - aims[history] + miss;
            before[2 * i + u] = history as u8;
        }
    }
    next
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::super::{HALF, RESIDUES, UNREACHED};
    use super::{BLOCK_ROWS, Coupling, GROUP, Histories, LARGEST, MEMORY, Survivors};
    use std::arch::x86_64::*;

    /// Round half to even, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(Histories(numbers): &Histories<f32>) -> [__m512; 2] {
        // SAFETY: twice sixteen numbers.
        unsafe { [0, HALF].map(|half| _mm512_loadu_ps(numbers.as_ptr().add(half))) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(Histories(numbers): &mut Histories<f32>, halves: [__m512; 2]) {
        // SAFETY: twice sixteen numbers.
        unsafe {
            _mm512_storeu_ps(numbers.as_mut_ptr(), halves[0]);
            _mm512_storeu_ps(numbers.as_mut_ptr().add(HALF), halves[1]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_numbers(Histories(numbers): &Histories<u8>) -> [__m512i; 2] {
        // SAFETY: twice sixteen numbers.
        unsafe {
            [0, HALF].map(|half| {
                _mm512_cvtepu8_epi32(_mm_loadu_si128(numbers.as_ptr().add(half).cast()))
            })
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store_numbers(Histories(numbers): &mut Histories<u8>, halves: [__m512i; 2]) {
        let [low, high] = halves.map(|half| _mm512_cvtepi32_epi8(half));
        // SAFETY: twice sixteen numbers.
        unsafe {
            _mm_storeu_si128(numbers.as_mut_ptr().cast(), low);
            _mm_storeu_si128(numbers.as_mut_ptr().add(HALF).cast(), high);
        }
    }

    /// The number of the history named in every place.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of([low, high]: [__m512; 2], histories: [__m512i; 2]) -> [__m512; 2] {
        histories.map(|histories| _mm512_permutex2var_ps(low, histories, high))
    }

    /// [`of`] for whole numbers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn number_of([low, high]: [__m512i; 2], histories: [__m512i; 2]) -> [__m512i; 2] {
        histories.map(|histories| _mm512_permutex2var_epi32(low, histories, high))
    }

    /// `sum + factor · errors`
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(factor: f32, errors: [__m512; 2], sum: [__m512; 2]) -> [__m512; 2] {
        let factor = _mm512_set1_ps(factor);
        [0, 1].map(|half| _mm512_fmadd_ps(factor, errors[half], sum[half]))
    }

    /// The history of least cost.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn least([low, high]: [__m512; 2]) -> u32 {
        let least = _mm512_set1_ps(_mm512_reduce_min_ps(_mm512_min_ps(low, high)));
        let at = [low, high].map(|half| _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(half, least));
        (u32::from(at[0]) | u32::from(at[1]) << HALF).trailing_zeros()
    }

    /// Vectors that stay the same for all rows.
    struct Constants {
        /// Residues that lead from the histories 0..16 to newest bit 0 and 1; from 16..32 they are exchanged.
        residues: [__m512; 2],
        /// 0..16 and 16..32
        own: [__m512i; 2],
        /// Two vectors for newest bit 0 and 1 become the histories in order.
        woven: [__m512i; 2],
    }

    impl Constants {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn new() -> Self {
            let index = |from: fn(usize) -> i32| {
                let index: [i32; HALF] = std::array::from_fn(from);
                // SAFETY: sixteen numbers.
                unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
            };
            Constants {
                residues: [0, 1].map(|u| {
                    let residues: [f32; HALF] =
                        std::array::from_fn(|i| RESIDUES[i & 7][u] as f32 / 4.0);
                    // SAFETY: sixteen numbers.
                    unsafe { _mm512_loadu_ps(residues.as_ptr()) }
                }),
                own: [index(|i| i as i32), index(|i| (i + HALF) as i32)],
                woven: [
                    index(|n| (n / 2 + HALF * (n % 2)) as i32),
                    index(|n| ((HALF + n) / 2 + HALF * (n % 2)) as i32),
                ],
            }
        }

        /// [`super::step`] with sixteen histories side by side: costs, errors and the histories before.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn step(
            &self,
            value: f32,
            aims: [__m512; 2],
            metrics: [__m512; 2],
        ) -> ([__m512; 2], [__m512; 2], [__m512i; 2]) {
            let value = _mm512_set1_ps(value);
            let gaps = aims.map(|aims| _mm512_sub_ps(value, aims));
            let to = |newest: usize| {
                let misses = [0, 1].map(|half| {
                    let beyond = _mm512_sub_ps(aims[half], self.residues[half ^ newest]);
                    _mm512_sub_ps(beyond, _mm512_roundscale_ps::<NEAREST>(beyond))
                });
                let [low, high] =
                    [0, 1].map(|half| _mm512_fmadd_ps(misses[half], misses[half], metrics[half]));
                let better = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(high, low);
                let errors = [0, 1].map(|half| _mm512_add_ps(gaps[half], misses[half]));
                (
                    _mm512_mask_mov_ps(low, better, high),
                    _mm512_mask_mov_ps(errors[0], better, errors[1]),
                    _mm512_mask_mov_epi32(self.own[0], better, self.own[1]),
                )
            };
            let (even, odd) = (to(0), to(1));
            (
                of([even.0, odd.0], self.woven),
                of([even.1, odd.1], self.woven),
                number_of([even.2, odd.2], self.woven),
            )
        }
    }

    /// Where the search stands.
    struct State<'a> {
        constants: Constants,
        values: &'a [f32; BLOCK_ROWS],
        coupling: &'a Coupling,
        survivors: &'a mut Survivors,
        /// [rows] what decided rows add to the values.
        decided: [f32; BLOCK_ROWS],
        /// Total costs of the histories.
        metrics: [__m512; 2],
    }

    /// What the rows above add to the values of a group's rows, by history.
    type Pending = [[__m512; 2]; GROUP];

    impl State<'_> {
        /// Sums up what the errors above the row `first` add to the values of the group that begins there.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn gather(&mut self, first: usize) -> Pending {
            let remembered = first.saturating_sub(MEMORY);
            let common = (remembered > 0).then(|| {
                let last = least(self.metrics);
                self.survivors
                    .decide(first, last, self.coupling, &mut self.decided)
            });
            let mut pending = [[_mm512_setzero_ps(); 2]; GROUP];
            let mut way = self.constants.own;
            for row in (remembered..first).rev() {
                let errors = of(load(&self.survivors.errors[row]), way);
                way = number_of(load_numbers(&self.survivors.before[row]), way);
                let factors = &self.coupling.groups[first / GROUP][row];
                for (pending, &factor) in pending.iter_mut().zip(factors) {
                    *pending = add(factor, errors, *pending);
                }
            }
            if let Some(common) = common {
                let common = _mm512_set1_epi32(common as i32);
                self.metrics = [0, 1].map(|half| {
                    let stays = _mm512_cmpeq_epi32_mask(way[half], common);
                    _mm512_mask_mov_ps(_mm512_set1_ps(UNREACHED), stays, self.metrics[half])
                });
            }
            pending
        }

        /// The row `LANE` of the group that begins at `first`: a function for each, so that what is pending stays in registers.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn row<const LANE: usize>(&mut self, first: usize, pending: &mut Pending) {
            let row = first + LANE;
            let value = self.values[row];
            let target = _mm512_set1_ps(value + self.decided[row]);
            let aims = pending[LANE].map(|pending| {
                let aims = _mm512_min_ps(_mm512_add_ps(target, pending), _mm512_set1_ps(LARGEST));
                _mm512_max_ps(aims, _mm512_set1_ps(-LARGEST))
            });
            let (metrics, errors, before) = self.constants.step(value, aims, self.metrics);
            self.metrics = metrics;
            store(&mut self.survivors.errors[row], errors);
            store_numbers(&mut self.survivors.before[row], before);
            let factors = &self.coupling.groups[first / GROUP][row];
            for later in LANE + 1..GROUP {
                pending[later] = add(factors[later], errors, of(pending[later], before));
            }
        }
    }

    /// [`super::Search`] with sixteen histories side by side, bit for bit.
    #[target_feature(enable = "avx512f")]
    pub(super) fn search(
        values: &[f32; BLOCK_ROWS],
        rows: usize,
        coupling: &Coupling,
        survivors: &mut Survivors,
    ) -> u32 {
        let unreached = _mm512_set1_ps(UNREACHED);
        let mut state = State {
            constants: Constants::new(),
            values,
            coupling,
            survivors,
            decided: [0.0; BLOCK_ROWS],
            metrics: [
                _mm512_mask_mov_ps(unreached, 1, _mm512_setzero_ps()),
                unreached,
            ],
        };
        let mut last = 0;
        for first in (0..rows.min(BLOCK_ROWS)).step_by(GROUP) {
            let mut pending = state.gather(first);
            // Rows behind the last one are worked off too, and come to nothing.
            macro_rules! rows {
                ($($lane:literal)*) => {$(
                    state.row::<$lane>(first, &mut pending);
                    if first + $lane + 1 == rows {
                        last = least(state.metrics);
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7);
        }
        last
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
    fn without_coupling_the_coupled_search_is_the_plain_one_but_for_early_decisions() {
        let (mut plain, mut coupled) = (Path::new(), Path::new());
        let alone = Coupling::new(|_, _| 0.0);
        for (rows, most) in [(MEMORY + GROUP, 1e-5), (BLOCK_ROWS, 0.005)] {
            let (mut least, mut found) = (0.0, 0.0);
            for seed in 0..50 {
                let values = block(seed, 15.0);
                plain.quantize(&values, rows);
                coupled.quantize_coupled(&values, rows, &alone);
                least += coupled_error(&values[..rows], &plain.levels, &alone);
                found += coupled_error(&values[..rows], &coupled.levels, &alone);
            }
            assert!(found / least - 1.0 < most, "{rows} rows: {found} {least}");
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
        for rows in [1, 2, 5, 127, 128] {
            let mut values = block(rows, 900.0);
            values[rows / 2] = 0.5;
            values[0] = 1e9; // saturates
            let run = |vectors: bool| {
                let mut survivors = Survivors::new();
                let last = match vectors {
                    true => search(&values, rows, &coupling, &mut survivors),
                    false => Search {
                        values: &values[..rows],
                        coupling: &coupling,
                        survivors: &mut survivors,
                    }
                    .run(),
                };
                let errors = survivors.errors.map(|row| row.0.map(f32::to_bits));
                (
                    last,
                    survivors.before[..rows].to_vec(),
                    errors[..rows].to_vec(),
                )
            };
            assert!(run(true) == run(false), "{rows} rows");
        }
    }
}
