//! The coupled search with AVX-512: 32 states side by side, with the bits of [`super::portable`].
//!
//! # Order of the states
//! The two states after a state differ in their newest bit. To lie side by side in the order of their numbers, they would have to be
//! interleaved by permutations of two vectors, which take several operations each. Instead every row uses a shuffle of one operation
//! ([`shuffle`]), and the states come to lie in an order ([`ORDERS`]) in which the next row finds those with oldest bit 0 in one vector and those
//! with oldest bit 1 in the other. After a group, the numbers are brought back into the order of the states.
//!
//! Safety: every function here requires the instruction sets named at [`is_supported`], and [`super::search`] calls
//! [`search`] only if it returns true. Loads and stores access arrays of exactly the length of a vector, or that many
//! elements of a [`PerState`] at offsets inside it.

use super::super::{HALF, STATES, residue};
use super::{
    Coupling, ERROR_BITS, GROUP, MergedPrefix, PerState, Search, Square, Survivors, TARGET_BITS,
};
use std::arch::x86_64::*;
use uc_simd::has_avx512;

/// 16-bit numbers for every state.
type Words = [__m512i; 2];

/// 32-bit numbers for 32 states or paths, in order.
type Doubles = [__m512i; 2];

/// Numbers of a vector of 16-bit, of 32-bit numbers.
const WORDS: usize = STATES / 2;
const DOUBLES: usize = STATES / 4;

/// Bits between the units of targets and of errors.
const SCALE: u32 = TARGET_BITS - ERROR_BITS;

/// Bits of the number of a state.
const STATE_BITS: u32 = STATES.ilog2();

/// The state at each position of [`Words`] before each row of a group, and after the last one.
const ORDERS: [[u16; STATES]; GROUP + 1] = {
    let mut orders = [[0; STATES]; GROUP + 1];
    let mut at = 0;
    while at < STATES {
        orders[0][at] = at as u16;
        at += 1;
    }
    let mut row = 0;
    while row < GROUP {
        let mut at = 0;
        while at < STATES {
            let (newest, lane) = shuffled(row, at / WORDS, at % WORDS);
            assert!(orders[row][lane] + HALF as u16 == orders[row][lane + WORDS]);
            orders[row + 1][at] = 2 * orders[row][lane] + newest as u16;
            at += 1;
        }
        row += 1;
    }
    orders
};

/// Where a lane of a vector comes from in [`shuffle`]: the newest bit of the vector, the lane.
const fn shuffled(row: usize, vector: usize, lane: usize) -> (usize, usize) {
    match row {
        0 => (lane / 16, lane % 16 + 16 * vector),
        1 | 5 | 6 => (lane / 16, 16 * (lane / 8 % 2) + 8 * vector + lane % 8),
        _ => (lane % 2, lane / 8 * 8 + 4 * vector + lane % 8 / 2),
    }
}

/// [rows, position before the row] residues of the levels that lead from the state to one with newest bit 0, as targets.
static TARGET_RESIDUES: [PerState<u16>; GROUP] = {
    let mut residues = [PerState([0; STATES]); GROUP];
    let mut row = 0;
    while row < GROUP {
        let mut at = 0;
        while at < STATES {
            residues[row].0[at] = residue(ORDERS[row][at], 0) << TARGET_BITS;
            at += 1;
        }
        row += 1;
    }
    residues
};

/// The position of a state in two vectors of 16-bit numbers that are unpacked to, or were packed from, 32-bit numbers in order.
const fn packed_position(state: usize) -> usize {
    state & 0b10_0011 | (state & 0b01_0000) >> 2 | (state & 0b00_1100) << 1
}

/// [rows of the group, states] the position of a state after the last of these rows.
static POSITIONS: [PerState<u16>; GROUP + 1] = positions(false);

/// The same with the states in the order of [`packed_position`].
static PACKED_POSITIONS: [PerState<u16>; GROUP + 1] = positions(true);

const fn positions(packed: bool) -> [PerState<u16>; GROUP + 1] {
    let mut positions = [PerState([0; STATES]); GROUP + 1];
    let mut rows = 0;
    while rows <= GROUP {
        let mut at = 0;
        while at < STATES {
            let state = ORDERS[rows][at] as usize;
            let place = if packed {
                packed_position(state)
            } else {
                state
            };
            positions[rows].0[place] = at as u16;
            at += 1;
        }
        rows += 1;
    }
    positions
}

/// What moves along with the path to a state within a group: the [`packed_position`] of the state before the group, and above it what
/// becomes [`Survivors::first_bits`].
static GROUP_STARTS: PerState<u16> = {
    let mut starts = PerState([0; STATES]);
    let mut state = 0;
    while state < STATES {
        starts.0[state] = packed_position(state) as u16 | (state as u16) << (STATE_BITS + 2);
        state += 1;
    }
    starts
};

/// Whether this processor has AVX-512 F, BW, DQ, VL, VBMI, VBMI2 and VNNI, and counts bits (Ice Lake, Zen 4 and later).
pub(super) fn is_supported() -> bool {
    has_avx512()
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("popcnt")
}

/// The functions of this module, with the instruction sets that they require.
macro_rules! vectorized {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident $(<const $constant:ident: usize>)? ($($arguments:tt)*) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,popcnt")]
        $visibility fn $name $(<const $constant: usize>)? ($($arguments)*) $(-> $result)? $body
    )*};
}

vectorized! {
    fn load_words(PerState(numbers): &PerState<u16>) -> Words {
        let at = numbers.as_ptr();
        // SAFETY: 32 numbers each.
        unsafe { [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(WORDS).cast())] }
    }

    /// The numbers of half of the states.
    fn load_doubles(PerState(numbers): &PerState<u32>, half: usize) -> Doubles {
        let at = numbers[HALF * half..][..HALF].as_ptr();
        // SAFETY: 16 numbers each.
        unsafe { [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(DOUBLES).cast())] }
    }

    /// Stores pairs of 16-bit numbers that lie in the order of [`packed_position`].
    fn store_pairs(PerState(numbers): &mut PerState<u32>, lower: Words, upper: Words) {
        for (half, numbers) in numbers.chunks_exact_mut(HALF).enumerate() {
            let at = numbers.as_mut_ptr();
            // SAFETY: 16 numbers each.
            unsafe {
                _mm512_store_si512(at.cast(), _mm512_unpacklo_epi16(lower[half], upper[half]));
                _mm512_store_si512(at.add(DOUBLES).cast(), _mm512_unpackhi_epi16(lower[half], upper[half]));
            }
        }
    }

    /// The numbers at the given positions.
    fn gather([low, high]: Words, positions: Words) -> Words {
        positions.map(|positions| _mm512_permutex2var_epi16(low, positions, high))
    }

    /// The numbers of the given states.
    fn look_up(numbers: &PerState<u32>, states: __m512i) -> __m512i {
        let halves = [load_doubles(numbers, 0), load_doubles(numbers, 1)];
        let [low, high] = halves.map(|[low, high]| _mm512_permutex2var_epi32(low, states, high));
        let oldest = _mm512_test_epi32_mask(states, _mm512_set1_epi32(HALF as i32));
        _mm512_mask_mov_epi32(low, oldest, high)
    }

    /// The set of the given states, one bit for each.
    fn state_set(states: &[__m512i]) -> u64 {
        let (one, half) = (_mm512_set1_epi32(1), _mm512_set1_epi32(HALF as i32));
        let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for &states in states {
            // A shift by more bits than there are, or by less than 0, gives 0.
            low = _mm512_or_si512(low, _mm512_sllv_epi32(one, states));
            high = _mm512_or_si512(high, _mm512_sllv_epi32(one, _mm512_sub_epi32(states, half)));
        }
        let pairs = _mm512_or_si512(_mm512_unpacklo_epi32(low, high), _mm512_unpackhi_epi32(low, high));
        _mm512_reduce_or_epi64(pairs) as u64
    }

    /// The states in `set` in bytes, followed by repetitions of the first.
    fn list(set: u64) -> __m512i {
        let first = _mm512_set1_epi8(set.trailing_zeros() as i8);
        _mm512_mask_compress_epi8(first, set, state_bytes())
    }

    /// For each of `states`, the position in [`list`]: in the lowest bits of a number whose others have no meaning.
    fn positions_in_list(set: u64, states: __m512i) -> __m512i {
        _mm512_permutexvar_epi8(states, _mm512_maskz_expand_epi8(set, state_bytes()))
    }

    /// All states in order.
    fn state_bytes() -> __m512i {
        const STATES_IN_ORDER: [u8; STATES] = {
            let mut states = [0; STATES];
            let mut state = 0;
            while state < STATES {
                states[state] = state as u8;
                state += 1;
            }
            states
        };
        // SAFETY: 64 numbers.
        unsafe { _mm512_loadu_si512(STATES_IN_ORDER.as_ptr().cast()) }
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

/// What is needed to sum the errors above a group.
struct Above<'a> {
    group: usize,
    coupling: &'a Coupling,
    survivors: &'a Survivors,
}

/// [rows of the group] sums for 32 states or paths.
type Sums = [Doubles; GROUP];

impl Above<'_> {
    vectorized! {
        /// Adds what a pair of rows with these `errors` adds to every row, for 32 states or paths.
        fn add_pair(&self, above: usize, pair: usize, errors: Doubles, sums: &mut Sums) {
            let weights = &self.coupling.earlier[self.group][above][pair];
            for (sums, weights) in sums.iter_mut().zip(weights) {
                for (sum, errors) in sums.iter_mut().zip(errors) {
                    *sum = add_products(*sum, errors, weights);
                }
            }
        }

        /// What the errors of the group just above add on the paths to half of the states after it.
        fn nearest(&self, half: usize) -> Sums {
            let mut sums = [[_mm512_setzero_si512(); 2]; GROUP];
            let above = self.group - 1;
            for (pair, errors) in self.survivors.errors[above].iter().enumerate() {
                self.add_pair(above, pair, load_doubles(errors, half), &mut sums);
            }
            sums
        }

        /// Adds what the errors of the group `above` add on the paths to 32 `states` after it.
        fn add_32_paths(&self, above: usize, states: Doubles, mut sums: Sums) -> Sums {
            for (pair, errors) in self.survivors.errors[above].iter().enumerate() {
                let errors = states.map(|states| look_up(errors, states));
                self.add_pair(above, pair, errors, &mut sums);
            }
            sums
        }

        /// [`Above::add_32_paths`] for 16 `states`.
        fn add_16_paths(&self, above: usize, states: __m512i, mut sums: [__m512i; GROUP]) -> [__m512i; GROUP] {
            let weights = &self.coupling.earlier[self.group][above];
            for (errors, weights) in self.survivors.errors[above].iter().zip(weights) {
                let errors = look_up(errors, states);
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = add_products(*sum, errors, weights);
                }
            }
            sums
        }

        /// The states before the group `above` on the paths to `states` after it.
        fn starts(&self, above: usize, states: __m512i) -> __m512i {
            _mm512_srli_epi32::<2>(look_up(&self.survivors.first_bits[above], states))
        }

        /// As `pending_sums` of [`super::portable`], by row of the group and [`packed_position`].
        fn pending(&self, merged: &mut MergedPrefix<'_>) -> [Words; GROUP] {
            let mut sums = [[[_mm512_setzero_si512(); 2]; GROUP]; 2];
            let (mut above, mut states, mut set) = (self.group, [[_mm512_setzero_si512(); 2]; 2], u64::MAX);
            if above > merged.groups {
                above -= 1;
                for (half, (sums, states)) in sums.iter_mut().zip(&mut states).enumerate() {
                    *sums = self.nearest(half);
                    let first_bits = load_doubles(&self.survivors.first_bits[above], half);
                    *states = first_bits.map(|bits| _mm512_srli_epi32::<2>(bits));
                }
                set = state_set(states.as_flattened());
            }
            while above > merged.groups && set.count_ones() as usize > 2 * DOUBLES {
                above -= 1;
                for (sums, states) in sums.iter_mut().zip(&mut states) {
                    *sums = self.add_32_paths(above, *states, *sums);
                    *states = states.map(|states| self.starts(above, states));
                }
                set = state_set(states.as_flattened());
            }
            let of_paths = self.sums_of_32_paths(above, set, merged);
            let positions = states.map(|half| half.map(|states| positions_in_list(set, states)));
            let shift = _mm512_set1_epi32(self.coupling.shift as i32);
            std::array::from_fn(|row| {
                let [low, high] = of_paths[row];
                [0, 1].map(|half| {
                    let [low, high] = [0, 1].map(|part| {
                        let of_path = _mm512_permutex2var_epi32(low, positions[half][part], high);
                        _mm512_srav_epi32(_mm512_add_epi32(sums[half][row][part], of_path), shift)
                    });
                    _mm512_packs_epi32(low, high)
                })
            })
        }

        /// The sums from the merged prefix and the groups below `above`, for each of the states in `set`, at most 32 unless
        /// all groups below `above` are in the prefix.
        fn sums_of_32_paths(&self, mut above: usize, mut set: u64, merged: &mut MergedPrefix<'_>) -> Sums {
            let mut sums = [[_mm512_setzero_si512(); 2]; GROUP];
            let list = _mm512_castsi512_si256(list(set));
            let mut states = [
                _mm512_cvtepu8_epi32(_mm256_castsi256_si128(list)),
                _mm512_cvtepu8_epi32(_mm256_extracti128_si256::<1>(list)),
            ];
            while above > merged.groups && set.count_ones() as usize > DOUBLES {
                above -= 1;
                sums = self.add_32_paths(above, states, sums);
                states = states.map(|states| self.starts(above, states));
                set = state_set(&states);
            }
            let of_paths = self.sums_of_16_paths(above, set, merged);
            let positions = states.map(|states| positions_in_list(set, states));
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
            let mut states = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(list(set)));
            while above > merged.groups {
                let first = _mm512_broadcastd_epi32(_mm512_castsi512_si128(states));
                if _mm512_cmpneq_epi32_mask(states, first) == 0 {
                    let state = _mm_cvtsi128_si32(_mm512_castsi512_si128(states)) as usize;
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
    }
}

/// The progress of the search; numbers per state belong to the states after the last row.
struct Progress {
    path_costs: Words,
    /// [rows of the group] by [`packed_position`].
    pending: [Words; GROUP],
    /// See [`GROUP_STARTS`].
    starts: Words,
    /// [rows of the group] value − level.
    errors: [Words; GROUP],
}

/// The outcome of a row for half of the states after it, those with the same newest bit.
struct BestPath {
    path_cost: __m512i,
    error: __m512i,
    /// Whether the better path comes from the state with oldest bit 1.
    better: __mmask32,
}

impl BestPath {
    vectorized! {
        /// The best path from the states with oldest bit 0 and 1, with these distances from the levels that lead to the newest bit.
        fn new([low, high]: Words, sums: Words, path_costs: Words) -> Self {
            let a = _mm512_adds_epu16(path_costs[0], _mm512_mulhi_epi16(low, low));
            let b = _mm512_adds_epu16(path_costs[1], _mm512_mulhi_epi16(high, high));
            let better = _mm512_cmplt_epu16_mask(b, a);
            let distance = _mm512_mask_mov_epi16(low, better, high);
            let sum = _mm512_mask_mov_epi16(sums[0], better, sums[1]);
            BestPath {
                path_cost: _mm512_min_epu16(a, b),
                error: _mm512_subs_epi16(_mm512_srai_epi16::<SCALE>(distance), sum),
                better,
            }
        }

        /// The numbers of the states before, on the path to those after.
        fn moved(&self, [low, high]: Words) -> __m512i {
            _mm512_mask_mov_epi16(low, self.better, high)
        }
    }
}

vectorized! {
    /// Brings vectors for newest bit 0 and 1 into the order of the states after `ROW`, see [`ORDERS`] and [`shuffled`].
    fn shuffle<const ROW: usize>(even: __m512i, odd: __m512i) -> Words {
        match ROW {
            0 => [_mm512_shuffle_i64x2::<0x44>(even, odd), _mm512_shuffle_i64x2::<0xee>(even, odd)],
            1 | 5 | 6 => [_mm512_shuffle_i64x2::<0x88>(even, odd), _mm512_shuffle_i64x2::<0xdd>(even, odd)],
            _ => [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)],
        }
    }
}

impl Progress {
    vectorized! {
        /// Searches the row `ROW` of the group, as `step` of [`super::portable`]. A function for each row, so that the loops over
        /// the rows before it are unrolled. `weights[k][ROW]` is how much of the error of row k of the group enters this row.
        fn row<const ROW: usize>(&mut self, target: i16, weights: &Square<i16>, shift: __m512i) {
            let mut inner = [_mm512_setzero_si512(); 2];
            for (errors, weights) in self.errors[..ROW].iter().zip(weights) {
                let weight = _mm512_set1_epi16(weights[ROW]);
                for (sum, &errors) in inner.iter_mut().zip(errors) {
                    *sum = _mm512_add_epi16(*sum, _mm512_mulhrs_epi16(errors, weight));
                }
            }
            let mut sums = gather(self.pending[ROW], self.starts);
            for (sum, inner) in sums.iter_mut().zip(inner) {
                *sum = _mm512_adds_epi16(*sum, _mm512_sllv_epi16(inner, shift));
            }
            let target = _mm512_set1_epi16(target);
            let residues = load_words(&TARGET_RESIDUES[ROW]);
            let distances = [0, 1].map(|half| {
                let target = _mm512_add_epi16(target, _mm512_slli_epi16::<SCALE>(sums[half]));
                _mm512_sub_epi16(target, residues[half])
            });
            let even = BestPath::new(distances, sums, self.path_costs);
            // The residues of the other newest bit are two steps away.
            let two_steps = _mm512_set1_epi16(i16::MIN);
            let distances = distances.map(|distance| _mm512_xor_si512(distance, two_steps));
            let odd = BestPath::new(distances, sums, self.path_costs);
            self.path_costs = shuffle::<ROW>(even.path_cost, odd.path_cost);
            let mut odd_starts = odd.moved(self.starts);
            if ROW < 2 {
                let newest = _mm512_set1_epi16(1 << (STATE_BITS as usize + 1 - ROW));
                odd_starts = _mm512_or_si512(odd_starts, newest);
            }
            self.starts = shuffle::<ROW>(even.moved(self.starts), odd_starts);
            for errors in &mut self.errors[..ROW] {
                *errors = shuffle::<ROW>(even.moved(*errors), odd.moved(*errors));
            }
            self.errors[ROW] = shuffle::<ROW>(even.error, odd.error);
        }

        /// Ends a group of this many rows: stores the survivor paths and brings the path costs into the order of the states.
        fn end_group(&mut self, rows: usize, group: usize, survivors: &mut Survivors) {
            let positions = load_words(&PACKED_POSITIONS[rows]);
            let first_bits = gather(self.starts, positions).map(|starts| _mm512_srli_epi16::<STATE_BITS>(starts));
            store_pairs(&mut survivors.first_bits[group], first_bits, [_mm512_setzero_si512(); 2]);
            for (pair, rows) in survivors.errors[group].iter_mut().zip(self.errors.chunks_exact(2)) {
                store_pairs(pair, gather(rows[0], positions), gather(rows[1], positions));
            }
            self.path_costs = gather(self.path_costs, load_words(&POSITIONS[rows]));
        }
    }
}

vectorized! {
    /// [`super::search`] with AVX-512.
    pub(super) fn search(arguments: Search<'_>) {
        let targets = arguments.targets();
        let Search { values, coupling, survivors, levels } = arguments;
        let (zero, unreachable) = (_mm512_setzero_si512(), _mm512_set1_epi16(-1));
        let mut progress = Progress {
            path_costs: [_mm512_mask_mov_epi16(unreachable, 1, zero), unreachable],
            pending: [[zero; 2]; GROUP],
            starts: [zero; 2],
            errors: [[zero; 2]; GROUP],
        };
        let mut merged = MergedPrefix::new(values, levels);
        let shift = _mm512_set1_epi16(15 - coupling.shift as i16);
        for (group, targets) in targets[..values.len()].chunks(GROUP).enumerate() {
            let least = _mm512_set1_epi16(least(progress.path_costs) as i16);
            progress.starts = load_words(&GROUP_STARTS);
            progress.pending = Above { group, coupling, survivors }.pending(&mut merged);
            let weights = &coupling.within[group];
            macro_rules! rows {
                ($($row:literal)*) => {$(
                    if let Some(&target) = targets.get($row) {
                        progress.row::<$row>(target, weights, shift);
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7);
            progress.end_group(targets.len(), group, survivors);
            progress.path_costs = progress.path_costs.map(|costs| _mm512_subs_epu16(costs, least));
        }
        let least = _mm512_set1_epi16(least(progress.path_costs) as i16);
        let [low, high] = progress.path_costs;
        let low = _mm512_cmpeq_epi16_mask(low, least);
        let high = _mm512_cmpeq_epi16_mask(high, least);
        let best = u64::from(low) | u64::from(high) << WORDS;
        merged.finish(best.trailing_zeros() as usize, survivors);
    }
}
