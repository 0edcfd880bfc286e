//! The coupled search with AVX-512: 32 states side by side, with the bits of [`super::portable`].
//!
//! Safety: every function here requires the instruction sets named at [`is_supported`], and [`super::search`] calls
//! [`search`] only if it returns true. Loads and stores access arrays of exactly the length of a vector, or that many
//! elements of a [`PerState`] at offsets inside it.

use super::super::{HALF, RESIDUES, STATES};
use super::{Coupling, ERROR_BITS, GROUP, MergedPrefix, PerState, Search, Survivors, TARGET_BITS};
use std::arch::x86_64::*;
use uc_simd::has_avx512;

/// 16-bit numbers for every state, in order.
type Words = [__m512i; 2];

/// States of a vector of 16-bit numbers.
const WORDS: usize = STATES / 2;

/// Bits between the units of targets and of errors.
const SCALE: u32 = TARGET_BITS - ERROR_BITS;

/// 32-bit numbers for 32 states or paths, in the order in which 16-bit numbers are unpacked and packed.
type Doubles = [__m512i; 2];

/// Whether this processor has AVX-512 F, BW, DQ, VL, VBMI2 and VNNI (Ice Lake, Zen 4 and later).
pub(super) fn is_supported() -> bool {
    has_avx512()
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("avx512vnni")
}

/// The functions of this module, with the instruction sets that they require.
macro_rules! vectorized {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident $(<const $constant:ident: usize>)? ($($arguments:tt)*) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512vnni")]
        $visibility fn $name $(<const $constant: usize>)? ($($arguments)*) $(-> $result)? $body
    )*};
}

vectorized! {
    fn load(PerState(numbers): &PerState<i16>) -> Words {
        let at: *const i16 = numbers.as_ptr();
        // SAFETY: 32 numbers each.
        unsafe { [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(WORDS).cast())] }
    }

    fn load_unsigned(PerState(numbers): &PerState<u16>) -> Words {
        let at: *const u16 = numbers.as_ptr();
        // SAFETY: 32 numbers each.
        unsafe { [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(WORDS).cast())] }
    }

    fn store(PerState(numbers): &mut PerState<i16>, [low, high]: Words) {
        let at: *mut i16 = numbers.as_mut_ptr();
        // SAFETY: 32 numbers each.
        unsafe {
            _mm512_store_si512(at.cast(), low);
            _mm512_store_si512(at.add(WORDS).cast(), high);
        }
    }

    fn store_unsigned(PerState(numbers): &mut PerState<u16>, [low, high]: Words) {
        let at: *mut u16 = numbers.as_mut_ptr();
        // SAFETY: 32 numbers each.
        unsafe {
            _mm512_store_si512(at.cast(), low);
            _mm512_store_si512(at.add(WORDS).cast(), high);
        }
    }

    /// The numbers of the given states.
    fn gather([low, high]: Words, states: __m512i) -> __m512i {
        _mm512_permutex2var_epi16(low, states, high)
    }

    /// [`gather`] for every state.
    fn gather_all(numbers: Words, [low, high]: Words) -> Words {
        [gather(numbers, low), gather(numbers, high)]
    }

    /// A vector of 16-bit numbers.
    fn words(number: impl Fn(usize) -> usize) -> __m512i {
        let numbers: [u16; WORDS] = std::array::from_fn(|lane| number(lane) as u16);
        // SAFETY: 32 numbers.
        unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
    }

    /// A vector of 8-bit numbers.
    fn bytes(number: impl Fn(usize) -> usize) -> __m512i {
        let numbers: [u8; STATES] = std::array::from_fn(|lane| number(lane) as u8);
        // SAFETY: 64 numbers.
        unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
    }

    /// The set of the given states, one bit for each.
    fn state_set(states: __m512i) -> u64 {
        let one = _mm512_set1_epi64(1);
        let quarter = |states: __m128i| _mm512_sllv_epi64(one, _mm512_cvtepu16_epi64(states));
        let a = quarter(_mm512_castsi512_si128(states));
        let b = quarter(_mm512_extracti32x4_epi32::<1>(states));
        let c = quarter(_mm512_extracti32x4_epi32::<2>(states));
        let d = quarter(_mm512_extracti32x4_epi32::<3>(states));
        let all = _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d));
        _mm512_reduce_or_epi64(all) as u64
    }

    /// Bytes for every state, widened.
    fn widen(bytes: __m512i) -> Words {
        [
            _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes)),
            _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(bytes)),
        ]
    }

    /// Two vectors of 16-bit numbers as pairs.
    fn unpack(lower: __m512i, upper: __m512i) -> Doubles {
        [_mm512_unpacklo_epi16(lower, upper), _mm512_unpackhi_epi16(lower, upper)]
    }

    /// Adds the products of 16-bit numbers, in pairs, with one pair of weights. The compiler's intrinsic is split into two
    /// instructions and a broadcast where the sum is on the critical path.
    fn add_products(mut sums: __m512i, numbers: __m512i, weights: &u32) -> __m512i {
        // SAFETY: reads the pair of weights; the processor has AVX512-VNNI.
        unsafe {
            std::arch::asm!(
                "vpdpwssd {sums}, {numbers}, dword ptr [{weights}]{{1to16}}",
                sums = inout(zmm_reg) sums,
                numbers = in(zmm_reg) numbers,
                weights = in(reg) weights,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        sums
    }

    /// The least of the path costs.
    fn least([low, high]: Words) -> u16 {
        let all = _mm512_min_epu16(low, high);
        let all = _mm256_min_epu16(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
        let all = _mm_min_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
        _mm_extract_epi16::<0>(_mm_minpos_epu16(all)) as u16
    }
}

/// Vectors that are the same for all rows.
struct Constants {
    /// Residues of the levels that lead from each state to one with newest bit 0, as targets.
    residues: Words,
    /// All states in order.
    identity: Words,
    /// The same in bytes.
    states: __m512i,
    /// [lanes] where the 32-bit number of a lane lies in [`Doubles`], in bytes.
    positions: __m512i,
    /// Interleaves a vector for newest bit 0 and one for newest bit 1 into two vectors of states in order.
    interleave: Words,
}

/// The outcome of a row, by state after it.
struct Step {
    path_costs: Words,
    errors: Words,
    /// The state before the row.
    predecessors: Words,
    decisions: u64,
}

/// [`Step`] for half of the states, those with the same newest bit.
struct BestPath {
    path_cost: __m512i,
    error: __m512i,
    predecessor: __m512i,
    decisions: __mmask32,
}

impl Constants {
    vectorized! {
        fn new() -> Self {
            let residue = |state: usize| RESIDUES[state % HALF][state / HALF] << TARGET_BITS;
            Constants {
                residues: [words(residue), words(|lane| residue(lane + WORDS))],
                identity: [words(|lane| lane), words(|lane| lane + WORDS)],
                states: bytes(|lane| lane),
                positions: bytes(|lane| lane & 3 | (lane >> 1) & 12 | (lane & 4) << 2),
                interleave: [0, WORDS].map(|half| words(|lane| (half + lane) / 2 + WORDS * (lane % 2))),
            }
        }

        /// As `step` of [`super::portable`].
        fn step(&self, target: __m512i, sums: Words, path_costs: Words) -> Step {
            let low = self.distance(target, sums, 0);
            let high = self.distance(target, sums, 1);
            let even = self.best_path(low, high, sums, path_costs);
            // The residues of the other newest bit are two steps away.
            let two_steps = _mm512_set1_epi16(i16::MIN);
            let (low, high) = (_mm512_xor_si512(low, two_steps), _mm512_xor_si512(high, two_steps));
            let odd = self.best_path(low, high, sums, path_costs);
            Step {
                path_costs: self.interleave(even.path_cost, odd.path_cost),
                errors: self.interleave(even.error, odd.error),
                predecessors: self.interleave(even.predecessor, odd.predecessor),
                decisions: u64::from(even.decisions) | u64::from(odd.decisions) << HALF,
            }
        }

        /// Distance of the targets of half of the states from the levels that lead to newest bit 0.
        fn distance(&self, target: __m512i, sums: Words, half: usize) -> __m512i {
            let target = _mm512_add_epi16(target, _mm512_slli_epi16::<SCALE>(sums[half]));
            _mm512_sub_epi16(target, self.residues[half])
        }

        /// The best path to a newest bit, from the states with oldest bit 0 and 1 and these distances.
        fn best_path(&self, low: __m512i, high: __m512i, sums: Words, path_costs: Words) -> BestPath {
            let a = _mm512_adds_epu16(path_costs[0], _mm512_mulhi_epi16(low, low));
            let b = _mm512_adds_epu16(path_costs[1], _mm512_mulhi_epi16(high, high));
            let better = _mm512_cmplt_epu16_mask(b, a);
            let distance = _mm512_mask_mov_epi16(low, better, high);
            let sum = _mm512_mask_mov_epi16(sums[0], better, sums[1]);
            BestPath {
                path_cost: _mm512_min_epu16(a, b),
                error: _mm512_subs_epi16(_mm512_srai_epi16::<SCALE>(distance), sum),
                predecessor: _mm512_mask_mov_epi16(self.identity[0], better, self.identity[1]),
                decisions: better,
            }
        }

        /// Numbers of the states in order, from those of newest bit 0 and 1.
        fn interleave(&self, even: __m512i, odd: __m512i) -> Words {
            let [low, high] = self.interleave;
            [_mm512_permutex2var_epi16(even, low, odd), _mm512_permutex2var_epi16(even, high, odd)]
        }
    }
}

/// What is needed to sum the errors above a group.
struct Above<'a> {
    group: usize,
    constants: &'a Constants,
    coupling: &'a Coupling,
    survivors: &'a Survivors,
}

/// Adds to the sums of every row what the errors of a pair of rows add.
macro_rules! add_pair {
    ($sums:ident, $a:expr, $b:expr, $weights:expr) => {
        let weights = &$weights;
        for row in 0..GROUP {
            $sums[row][0] = add_products($sums[row][0], $a, &weights[row]);
            $sums[row][1] = add_products($sums[row][1], $b, &weights[row]);
        }
    };
}

/// [rows of the group] sums for 32 states or paths.
type Sums = [Doubles; GROUP];

impl Above<'_> {
    vectorized! {
        /// Adds what the errors of the group `above` add on the paths to 32 `states` after it.
        fn add_32_paths(&self, above: usize, states: __m512i, mut sums: Sums) -> Sums {
            let rows = &self.survivors.errors[above];
            for pair in 0..GROUP / 2 {
                let upper = gather(load(&rows[2 * pair]), states);
                let lower = gather(load(&rows[2 * pair + 1]), states);
                let [a, b] = unpack(upper, lower);
                add_pair!(sums, a, b, self.coupling.earlier[self.group][above][pair]);
            }
            sums
        }

        /// [`Above::add_32_paths`] for the states with one oldest bit and the group just above.
        fn nearest(&self, half: usize, result: &mut Sums) {
            let mut sums = [[_mm512_setzero_si512(); 2]; GROUP];
            let above = self.group - 1;
            let rows = &self.survivors.errors[above];
            for pair in 0..GROUP / 2 {
                let (upper, lower) = (load(&rows[2 * pair]), load(&rows[2 * pair + 1]));
                let [a, b] = unpack(upper[half], lower[half]);
                add_pair!(sums, a, b, self.coupling.earlier[self.group][above][pair]);
            }
            *result = sums;
        }

        /// [`Above::add_32_paths`] for 16 `states`, each given twice.
        fn add_16_paths(&self, above: usize, states: __m512i, mut sums: [__m512i; GROUP]) -> [__m512i; GROUP] {
            let weights = &self.coupling.earlier[self.group][above];
            let rows = &self.survivors.errors[above];
            for pair in 0..GROUP / 2 {
                let upper = gather(load(&rows[2 * pair]), states);
                let lower = gather(load(&rows[2 * pair + 1]), states);
                let errors = _mm512_mask_mov_epi16(upper, 0xaaaa_aaaa, lower);
                for row in 0..GROUP {
                    sums[row] = add_products(sums[row], errors, &weights[pair][row]);
                }
            }
            sums
        }

        /// The states before the group `above` on the paths to `states` after it.
        fn starts(&self, above: usize, states: __m512i) -> __m512i {
            gather(load_unsigned(&self.survivors.group_starts[above]), states)
        }

        /// As `pending_sums` of [`super::portable`], by row of the group.
        fn pending(&self, merged: &mut MergedPrefix<'_>) -> [Words; GROUP] {
            let zero = _mm512_setzero_si512();
            let mut sums = [[[zero; 2]; GROUP]; 2];
            let (mut above, mut states) = (self.group, self.constants.identity);
            let mut set = u64::MAX;
            if above > merged.groups {
                above -= 1;
                for (half, sums) in sums.iter_mut().enumerate() {
                    self.nearest(half, sums);
                }
                states = load_unsigned(&self.survivors.group_starts[above]);
                set = state_set(states[0]) | state_set(states[1]);
            }
            while above > merged.groups && set.count_ones() as usize > WORDS {
                above -= 1;
                for (sums, states) in sums.iter_mut().zip(&mut states) {
                    *sums = self.add_32_paths(above, *states, *sums);
                    *states = self.starts(above, *states);
                }
                set = state_set(states[0]) | state_set(states[1]);
            }
            let of_paths = self.sums_of_32_paths(above, set, merged);
            // Position of each state's path among the 32.
            let positions = widen(_mm512_maskz_expand_epi8(set, self.constants.positions));
            let [low, high] = gather_all(positions, states);
            let positions = [unpack(low, zero), unpack(high, zero)];
            let shift = _mm_cvtsi32_si128(self.coupling.shift as i32);
            let mut pending = [[zero; 2]; GROUP];
            for row in 0..GROUP {
                let [low, high] = of_paths[row];
                for half in 0..2 {
                    let mut parts = [zero; 2];
                    for part in 0..2 {
                        let of_path = _mm512_permutex2var_epi32(low, positions[half][part], high);
                        let sum = _mm512_add_epi32(sums[half][row][part], of_path);
                        parts[part] = _mm512_sra_epi32(sum, shift);
                    }
                    pending[row][half] = _mm512_packs_epi32(parts[0], parts[1]);
                }
            }
            pending
        }

        /// The sums from the merged prefix and the groups below `above`, for each of the states in `set`, at most 32 unless
        /// all groups below `above` are in the prefix.
        fn sums_of_32_paths(&self, mut above: usize, mut set: u64, merged: &mut MergedPrefix<'_>) -> Sums {
            let zero = _mm512_setzero_si512();
            let mut sums = [[zero; 2]; GROUP];
            let list = self.list(set);
            let mut states = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(list));
            while above > merged.groups && set.count_ones() as usize > WORDS / 2 {
                above -= 1;
                sums = self.add_32_paths(above, states, sums);
                states = self.starts(above, states);
                set = state_set(states);
            }
            let of_paths = self.sums_of_16_paths(above, set, merged);
            let positions = widen(_mm512_maskz_expand_epi8(set, self.constants.states));
            let positions = unpack(gather(positions, states), zero);
            for (sums, of_paths) in sums.iter_mut().zip(of_paths) {
                for (sum, positions) in sums.iter_mut().zip(positions) {
                    *sum = _mm512_add_epi32(*sum, _mm512_permutexvar_epi32(positions, of_paths));
                }
            }
            sums
        }

        /// [`Above::sums_of_32_paths`] for at most 16 states, unless all groups below `above` are in the prefix. Extends the prefix
        /// where all paths have merged.
        fn sums_of_16_paths(&self, mut above: usize, set: u64, merged: &mut MergedPrefix<'_>) -> [__m512i; GROUP] {
            let mut sums = [_mm512_setzero_si512(); GROUP];
            let list = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(self.list(set)));
            let mut states = _mm512_or_si512(list, _mm512_slli_epi32::<16>(list));
            while above > merged.groups {
                let first = _mm512_broadcastw_epi16(_mm512_castsi512_si128(states));
                if _mm512_cmpneq_epi16_mask(states, first) == 0 {
                    let state = _mm_extract_epi16::<0>(_mm512_castsi512_si128(states)) as usize;
                    merged.extend(above, state, self.group, self.survivors, self.coupling);
                    break;
                }
                above -= 1;
                sums = self.add_16_paths(above, states, sums);
                states = self.starts(above, states);
            }
            let merged = merged.group_sums(self.group, self.coupling);
            for (sum, merged) in sums.iter_mut().zip(merged) {
                *sum = _mm512_add_epi32(*sum, _mm512_set1_epi32(merged));
            }
            sums
        }

        /// The states in `set` in bytes, followed by repetitions of the first.
        fn list(&self, set: u64) -> __m512i {
            let first = _mm512_set1_epi8(set.trailing_zeros() as i8);
            _mm512_mask_compress_epi8(first, set, self.constants.states)
        }
    }
}

/// The progress of the search; numbers per state belong to the states after the last row.
struct Progress {
    constants: Constants,
    path_costs: Words,
    pending: [Words; GROUP],
    /// The state before the group.
    start: Words,
    /// [rows of the group] value − level.
    errors: [Words; GROUP],
}

impl Progress {
    vectorized! {
        /// Searches the row `LANE` of the group and returns the decisions. A function for each row, so that the loops over
        /// the rows before it are unrolled. `weights[k][LANE]` is how much of the error of row k of the group enters this row.
        fn row<const LANE: usize>(&mut self, target: i16, weights: &[[i16; GROUP]; GROUP], shift: __m128i) -> u64 {
            let mut inner = [_mm512_setzero_si512(); 2];
            for (errors, weights) in self.errors[..LANE].iter().zip(weights) {
                let weight = _mm512_set1_epi16(weights[LANE]);
                for (sum, &errors) in inner.iter_mut().zip(errors) {
                    *sum = _mm512_add_epi16(*sum, _mm512_mulhrs_epi16(errors, weight));
                }
            }
            let mut sums = gather_all(self.pending[LANE], self.start);
            for (sum, inner) in sums.iter_mut().zip(inner) {
                *sum = _mm512_adds_epi16(*sum, _mm512_sll_epi16(inner, shift));
            }
            let step = self.constants.step(_mm512_set1_epi16(target), sums, self.path_costs);
            self.path_costs = step.path_costs;
            self.start = gather_all(self.start, step.predecessors);
            for errors in &mut self.errors[..LANE] {
                *errors = gather_all(*errors, step.predecessors);
            }
            self.errors[LANE] = step.errors;
            step.decisions
        }
    }
}

vectorized! {
    /// [`super::search`] with AVX-512.
    pub(super) fn search(arguments: Search<'_>) {
        let targets = arguments.targets();
        let Search { values, coupling, survivors, levels } = arguments;
        let constants = Constants::new();
        let (zero, unreachable) = (_mm512_setzero_si512(), _mm512_set1_epi16(-1));
        let mut progress = Progress {
            path_costs: [_mm512_mask_mov_epi16(unreachable, 1, zero), unreachable],
            pending: [[zero; 2]; GROUP],
            start: constants.identity,
            errors: [[zero; 2]; GROUP],
            constants,
        };
        let mut merged = MergedPrefix::new(values, levels);
        let shift = _mm_cvtsi32_si128(15 - coupling.shift as i32);
        for (group, targets) in targets[..values.len()].chunks(GROUP).enumerate() {
            let first = group * GROUP;
            let least = _mm512_set1_epi16(least(progress.path_costs) as i16);
            let constants = &progress.constants;
            progress.start = constants.identity;
            let above = Above { group, constants, coupling, survivors };
            progress.pending = above.pending(&mut merged);
            let weights = &coupling.within[group];
            macro_rules! rows {
                ($($lane:literal)*) => {$(
                    if let Some(&target) = targets.get($lane) {
                        let decisions = progress.row::<$lane>(target, weights, shift);
                        survivors.decisions[first + $lane] = decisions;
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7);
            for costs in &mut progress.path_costs {
                *costs = _mm512_subs_epu16(*costs, least);
            }
            store_unsigned(&mut survivors.group_starts[group], progress.start);
            for (row, &errors) in survivors.errors[group].iter_mut().zip(&progress.errors) {
                store(row, errors);
            }
        }
        let least = _mm512_set1_epi16(least(progress.path_costs) as i16);
        let [low, high] = progress.path_costs;
        let low = _mm512_cmpeq_epi16_mask(low, least);
        let high = _mm512_cmpeq_epi16_mask(high, least);
        let best = u64::from(low) | u64::from(high) << WORDS;
        merged.finish(best.trailing_zeros() as usize, survivors);
    }
}
