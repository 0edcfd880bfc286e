//! Kernels for processors with AVX-512 VBMI and VNNI (Ice Lake, Zen 4 and later).
//!
//! A group of 64 columns is one vector of bytes. Its fields are brought to their 64-bit lanes by a permutation and cut out there
//! (`vpmultishiftqb`), the bits of the trellis come from a table of 64 bytes, and the level, made positive, is multiplied with the
//! two signed bytes of each activation (`vpdpbusd`). What making it positive adds is subtracted from the sum of a row.
//!
//! Safety: every function here is compiled for the instruction set that [`is_available`] finds; those that callers use check it. Loads
//! and stores access arrays of the length of a vector, or fields, after which there are [`SLACK`](super::SLACK) bytes.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::sync::LazyLock;

use uc_codec::trellis::FEEDFORWARD;
use uc_simd::prefetch;

use super::{Cursor, GROUP, GROUPS, NARROW, PANEL, WIDTHS, is_special, width};
use crate::integer::LANES;

/// Bytes of fields that are fetched ahead.
const AHEAD: usize = 4096;
/// Rows whose sums are kept in lanes.
const CHUNK: usize = 16;

/// Whether this processor has the instructions of this module.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        uc_simd::has_avx512()
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
    });
    *AVAILABLE
}

/// How the fields of a width are cut out of their bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Cut {
    /// For each byte of a vector, the byte of the fields that comes there.
    gather: [u8; GROUP],
    /// For each byte, the offset of its field in the 64-bit lane.
    shift: [u8; GROUP],
    /// The bits of the doubled field.
    mask: [u8; GROUP],
}

/// Width of the widest fields whose levels, made positive, fit into a byte.
const BYTE: u32 = 7;
/// Header of a group whose fields have a byte.
const BYTE_FIELDS: usize = (NARROW - *WIDTHS.start()) as usize;

/// Whether a level of the row, made positive, may not fit into a byte, or there are no levels.
#[inline(always)]
fn exceeds_bytes(header: u16) -> bool {
    const { assert!(BYTE + 1 - *WIDTHS.start() == 6) }
    (header | header << 1 & header << 2) & 0x8888 != 0
}

/// For each nibble of a header; those of wider fields are not used.
static CUTS: [Cut; 16] = {
    let mut cuts = [Cut {
        gather: [0; GROUP],
        shift: [0; GROUP],
        mask: [0; GROUP],
    }; 16];
    let mut nibble = 0;
    while nibble <= (BYTE - *WIDTHS.start()) as usize {
        let width = nibble + *WIDTHS.start() as usize;
        let mut byte = 0;
        while byte < GROUP {
            let (lane, index) = (byte / 8, byte % 8);
            let from = lane * width + index;
            // Bytes above the last field of the lane are not used.
            cuts[nibble].gather[byte] = if from < GROUP { from as u8 } else { 0 };
            cuts[nibble].shift[byte] = (index * width) as u8;
            cuts[nibble].mask[byte] = (((1u32 << width) - 1) << 1) as u8;
            byte += 1;
        }
        nibble += 1;
    }
    cuts
};

/// The activations of one token and panel as two signed bytes each: `256 · high + low`.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Halves {
    high: [i8; PANEL],
    low: [i8; PANEL],
    /// For each group and nibble, what making the levels positive adds.
    excess: [[i32; 16]; GROUPS],
}

impl Halves {
    /// Divides the integers of a panel, whose magnitudes are at most 32512.
    pub(crate) fn new(values: &[i16; PANEL]) -> Self {
        let low = values.map(|value| value as i8);
        let mut excess = [[0; 16]; GROUPS];
        for (excess, values) in excess.iter_mut().zip(values.as_chunks::<GROUP>().0) {
            let sum: i32 = values.iter().map(|&value| i32::from(value)).sum();
            for nibble in 0..=NARROW - WIDTHS.start() {
                excess[nibble as usize] = sum << (nibble + WIDTHS.start());
            }
        }
        Halves {
            high: std::array::from_fn(|index| ((values[index] - i16::from(low[index])) >> 8) as i8),
            low,
            excess,
        }
    }

    /// What making the levels of rows positive adds to their sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn excess(&self, headers: &[u16; CHUNK]) -> __m512i {
        // SAFETY: the array has the length of a vector.
        let headers = unsafe { _mm256_loadu_si256(headers.as_ptr().cast()) };
        let mut nibbles = _mm512_cvtepu16_epi32(headers);
        let mut excess = _mm512_setzero_si512();
        for of_group in &self.excess {
            // The permutation uses the lowest four bits.
            let found = _mm512_permutexvar_epi32(nibbles, load(of_group));
            excess = _mm512_add_epi32(excess, found);
            nibbles = _mm512_srli_epi32::<4>(nibbles);
        }
        excess
    }
}

/// The sums of products of the next rows with the activations of one token. `special` gets the row and levels of those whose sum
/// does not fit into 32 bits; here it is 0.
pub(crate) fn products(
    cursor: &mut Cursor<'_>,
    x: &Halves,
    sums: &mut [i32],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) {
    assert!(is_available());
    // SAFETY: the processor has the instructions.
    unsafe {
        match cursor.groups {
            1 => products_of::<1>(cursor, x, sums, special),
            2 => products_of::<2>(cursor, x, sums, special),
            3 => products_of::<3>(cursor, x, sums, special),
            _ => products_of::<4>(cursor, x, sums, special),
        }
    }
}

/// Decodes the next rows, see [`crate::integer::decode`].
pub(crate) fn decode(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    assert!(is_available());
    // SAFETY: the processor has the instructions.
    unsafe { decode_rows(cursor, levels, wide) }
}

/// Passes over the next rows; only the states of the columns go on.
pub(crate) fn skip(cursor: &mut Cursor<'_>, rows: usize) {
    assert!(is_available());
    // SAFETY: the processor has the instructions.
    unsafe { skip_rows(cursor, rows) }
}

/// `sums[r][t] = <levels[r], x[t]>`.
pub(crate) fn sums(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    assert!(is_available() && sums.len() == levels.len() * x.len());
    // SAFETY: the processor has the instructions.
    unsafe { sums_of_rows(levels, x, sums) }
}

/// As [`sums`], of activations that are interleaved: `[tokens / LANES, PANEL / 2, LANES, 2]`.
pub(crate) fn interleaved_sums(
    levels: &[[i16; PANEL]],
    x: &[i16],
    tokens: usize,
    sums: &mut [i32],
) {
    assert!(is_available() && sums.len() == levels.len() * tokens);
    assert!(x.len() == tokens.next_multiple_of(LANES) * PANEL);
    // SAFETY: the processor has the instructions.
    unsafe { interleaved_rows(levels, x, tokens, sums) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load<T, const N: usize>(values: &[T; N]) -> __m512i {
    const { assert!(size_of::<[T; N]>() == 64) }
    // SAFETY: the array has the length of a vector.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

/// A part of an array that has the length of a vector.
#[inline(always)]
fn part<T, const M: usize>(values: &[T], index: usize) -> &[T; M] {
    values[index * M..(index + 1) * M]
        .try_into()
        .expect("a part")
}

/// The tables that stay in registers.
#[derive(Clone, Copy)]
struct Tables {
    feedforward: __m512i,
    one: __m512i,
}

/// A level, made positive, as `2 · doubled + single`, for fields of a byte.
struct ByteLevels {
    doubled: __m512i,
    single: __m512i,
}

impl Tables {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new() -> Self {
        Tables {
            feedforward: load(&FEEDFORWARD),
            one: _mm512_set1_epi8(1),
        }
    }

    /// The levels of a group, plus `2^width`, from the 64 bytes at its fields; `history` goes on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn levels(self, bytes: __m512i, nibble: usize, history: &mut __m512i) -> __m512i {
        let cut = &CUTS[nibble];
        let lanes = _mm512_permutexvar_epi8(load(&cut.gather), bytes);
        let fields = _mm512_multishift_epi64_epi8(load(&cut.shift), lanes);
        let term = _mm512_permutexvar_epi8(*history, self.feedforward);
        // 2 · history | (fields & 1)
        let doubled = _mm512_add_epi8(*history, *history);
        *history = _mm512_ternarylogic_epi64::<0xf8>(doubled, fields, self.one);
        // (2 · fields & mask) ^ term
        let doubled = _mm512_add_epi8(fields, fields);
        _mm512_ternarylogic_epi64::<0x6a>(doubled, load(&cut.mask), term)
    }

    /// As [`Tables::levels`], for fields of a byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn byte_levels(self, fields: __m512i, history: &mut __m512i) -> ByteLevels {
        let term = _mm512_permutexvar_epi8(*history, self.feedforward);
        let doubled = _mm512_add_epi8(*history, *history);
        *history = _mm512_ternarylogic_epi64::<0xf8>(doubled, fields, self.one);
        let single = _mm512_and_si512(term, self.one);
        // A term is at most 3: the shift moves nothing from one byte to the next that is not masked.
        let upper = _mm512_and_si512(_mm512_srli_epi16::<1>(term), self.one);
        ByteLevels {
            doubled: _mm512_xor_si512(fields, upper),
            single,
        }
    }
}

/// The sum of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn totals(rows: [__m512i; 4]) -> __m128i {
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (first, second) = (pair(rows[0], rows[1]), pair(rows[2], rows[3]));
    let all = _mm512_add_epi32(
        _mm512_unpacklo_epi64(first, second),
        _mm512_unpackhi_epi64(first, second),
    );
    let half = _mm256_add_epi32(
        _mm512_castsi512_si256(all),
        _mm512_extracti64x4_epi64::<1>(all),
    );
    _mm_add_epi32(
        _mm256_castsi256_si128(half),
        _mm256_extracti128_si256::<1>(half),
    )
}

/// Where a kernel is in the rows of a panel of `G` groups. A copy of what a [`Cursor`] has, in registers.
#[derive(Clone, Copy)]
struct Position<const G: usize> {
    history: [__m512i; G],
    row: usize,
    offset: usize,
}

impl<const G: usize> Position<G> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn of(cursor: &Cursor<'_>) -> Self {
        Position {
            history: std::array::from_fn(|group| load(part::<_, GROUP>(&cursor.history, group))),
            row: cursor.row,
            offset: cursor.offset,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn save(self, cursor: &mut Cursor<'_>) {
        let groups = cursor.history.as_chunks_mut::<GROUP>().0;
        for (history, out) in self.history.into_iter().zip(groups) {
            // SAFETY: the array has the length of a vector.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), history) };
        }
        (cursor.row, cursor.offset) = (self.row, self.offset);
    }

    /// Passes a row of zeros, or one with wide fields, which `special` gets.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn special_row(
        self,
        cursor: &mut Cursor<'_>,
        index: usize,
        special: &mut dyn FnMut(usize, &[i16; PANEL]),
    ) -> Self {
        self.save(cursor);
        let mut levels = [[0; PANEL]];
        let mut wide = 0;
        crate::integer::decode_plain(cursor, &mut levels, &mut wide);
        if wide != 0 {
            special(index, &levels[0]);
        }
        Position::of(cursor)
    }
}

/// The lanes of the sum of a row that is not special; the levels count as positive.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn row_products<const G: usize>(
    header: u16,
    fields: &[u8],
    position: &mut Position<G>,
    tables: Tables,
    high: [__m512i; G],
    low: [__m512i; G],
) -> __m512i {
    let (mut high_sum, mut low_sum) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for line in 0..G {
        prefetch(fields, position.offset + AHEAD + 64 * line);
    }
    for group in 0..G {
        let nibble = usize::from(header >> (4 * group) & 15);
        debug_assert!(position.offset + 64 <= fields.len());
        // SAFETY: fields are followed by as many bytes as a vector has.
        let bytes = unsafe { _mm512_loadu_si512(fields.as_ptr().add(position.offset).cast()) };
        position.offset += 8 * nibble + 8 * *WIDTHS.start() as usize;
        let levels = tables.levels(bytes, nibble, &mut position.history[group]);
        high_sum = _mm512_dpbusd_epi32(high_sum, levels, high[group]);
        low_sum = _mm512_dpbusd_epi32(low_sum, levels, low[group]);
    }
    position.row += 1;
    _mm512_add_epi32(_mm512_slli_epi32::<8>(high_sum), low_sum)
}

/// As [`row_products`], for a row that has fields of a byte.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn byte_row<const G: usize>(
    header: u16,
    fields: &[u8],
    mut position: Position<G>,
    tables: Tables,
    high: &[__m512i; G],
    low: &[__m512i; G],
) -> (Position<G>, __m512i) {
    let [mut high_sum, mut low_sum, mut high_doubled, mut low_doubled] =
        [_mm512_setzero_si512(); 4];
    for group in 0..G {
        let nibble = usize::from(header >> (4 * group) & 15);
        debug_assert!(position.offset + 64 <= fields.len());
        // SAFETY: fields are followed by as many bytes as a vector has.
        let bytes = unsafe { _mm512_loadu_si512(fields.as_ptr().add(position.offset).cast()) };
        position.offset += 8 * nibble + 8 * *WIDTHS.start() as usize;
        let levels = match nibble == BYTE_FIELDS {
            true => {
                let levels = tables.byte_levels(bytes, &mut position.history[group]);
                high_doubled = _mm512_dpbusd_epi32(high_doubled, levels.doubled, high[group]);
                low_doubled = _mm512_dpbusd_epi32(low_doubled, levels.doubled, low[group]);
                levels.single
            }
            false => tables.levels(bytes, nibble, &mut position.history[group]),
        };
        high_sum = _mm512_dpbusd_epi32(high_sum, levels, high[group]);
        low_sum = _mm512_dpbusd_epi32(low_sum, levels, low[group]);
    }
    position.row += 1;
    let twice = |sums| _mm512_add_epi32(sums, sums);
    let high_sum = _mm512_add_epi32(high_sum, twice(high_doubled));
    let low_sum = _mm512_add_epi32(low_sum, twice(low_doubled));
    (
        position,
        _mm512_add_epi32(_mm512_slli_epi32::<8>(high_sum), low_sum),
    )
}

/// See [`products`]; `G` groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
fn products_of<const G: usize>(
    cursor: &mut Cursor<'_>,
    x: &Halves,
    sums: &mut [i32],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) {
    let tables = Tables::new();
    let high: [__m512i; G] = std::array::from_fn(|group| load(part::<_, GROUP>(&x.high, group)));
    let low: [__m512i; G] = std::array::from_fn(|group| load(part::<_, GROUP>(&x.low, group)));
    let (all_headers, fields) = (cursor.headers, cursor.fields);
    let mut position = Position::<G>::of(cursor);
    for (chunk, sums) in sums.chunks_mut(CHUNK).enumerate() {
        let mut lanes = [_mm512_setzero_si512(); CHUNK];
        let mut headers = [0; CHUNK];
        headers[..sums.len()].copy_from_slice(&all_headers[position.row..][..sums.len()]);
        let mut specials = 0u16;
        for (row, (lanes, &header)) in lanes.iter_mut().zip(&headers).take(sums.len()).enumerate() {
            if exceeds_bytes(header) {
                if is_special(header) {
                    position = position.special_row(cursor, chunk * CHUNK + row, special);
                    specials |= 1 << row;
                } else {
                    (position, *lanes) = byte_row(header, fields, position, tables, &high, &low);
                }
                continue;
            }
            *lanes = row_products(header, fields, &mut position, tables, high, low);
        }
        let quads: [__m128i; 4] = std::array::from_fn(|quad| totals(*part(&lanes, quad)));
        let found = _mm512_inserti64x4::<1>(
            _mm512_castsi256_si512(_mm256_set_m128i(quads[1], quads[0])),
            _mm256_set_m128i(quads[3], quads[2]),
        );
        let found = _mm512_sub_epi32(found, x.excess(&headers));
        let mut values = [0; CHUNK];
        // SAFETY: the array has the length of a vector.
        unsafe {
            _mm512_storeu_si512(
                values.as_mut_ptr().cast(),
                _mm512_maskz_mov_epi32(!specials, found),
            )
        };
        sums.copy_from_slice(&values[..sums.len()]);
    }
    position.save(cursor);
}

/// See [`skip`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn skip_rows(cursor: &mut Cursor<'_>, rows: usize) {
    let tables = Tables::new();
    for _ in 0..rows {
        let header = cursor.headers[cursor.row];
        if is_special(header) {
            cursor.next_row(&mut [0; PANEL]);
            continue;
        }
        cursor.row += 1;
        let groups = cursor.history.as_chunks_mut::<GROUP>().0.iter_mut();
        for (group, history) in groups.take(cursor.groups).enumerate() {
            let width = width(header, group);
            debug_assert!(cursor.offset + 64 <= cursor.fields.len());
            // SAFETY: fields are followed by as many bytes as a vector has.
            let bytes =
                unsafe { _mm512_loadu_si512(cursor.fields.as_ptr().add(cursor.offset).cast()) };
            cursor.offset += 8 * width as usize;
            let mut states = load(&*history);
            match width == NARROW {
                true => _ = tables.byte_levels(bytes, &mut states),
                false => _ = tables.levels(bytes, (width - WIDTHS.start()) as usize, &mut states),
            }
            // SAFETY: the array has the length of a vector.
            unsafe { _mm512_storeu_si512(history.as_mut_ptr().cast(), states) };
        }
    }
}

/// Bytes as integers of 16 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widened(bytes: __m512i) -> [__m512i; 2] {
    let upper = _mm512_extracti64x4_epi64::<1>(bytes);
    [_mm512_castsi512_si256(bytes), upper].map(|half| _mm512_cvtepu8_epi16(half))
}

/// See [`decode`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn decode_rows(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    let tables = Tables::new();
    for (row, levels) in levels.iter_mut().enumerate() {
        let header = cursor.headers[cursor.row];
        if is_special(header) {
            let mut special = 0;
            crate::integer::decode_plain(cursor, std::slice::from_mut(levels), &mut special);
            *wide |= special << row;
            continue;
        }
        cursor.row += 1;
        let groups = levels.as_chunks_mut::<GROUP>().0.iter_mut();
        let groups = groups.zip(cursor.history.as_chunks_mut::<GROUP>().0);
        for (group, (levels, history)) in groups.take(cursor.groups).enumerate() {
            let width = width(header, group);
            let nibble = (width - WIDTHS.start()) as usize;
            debug_assert!(cursor.offset + 64 <= cursor.fields.len());
            // SAFETY: fields are followed by as many bytes as a vector has.
            let bytes =
                unsafe { _mm512_loadu_si512(cursor.fields.as_ptr().add(cursor.offset).cast()) };
            cursor.offset += 8 * width as usize;
            let mut states = load(&*history);
            let mut found = match nibble == BYTE_FIELDS {
                true => {
                    let found = tables.byte_levels(bytes, &mut states);
                    let [doubled, single] = [widened(found.doubled), widened(found.single)];
                    [0, 1].map(|half| {
                        let doubled = _mm512_slli_epi16::<1>(doubled[half]);
                        _mm512_or_si512(doubled, single[half])
                    })
                }
                false => widened(tables.levels(bytes, nibble, &mut states)),
            };
            let bias = _mm512_set1_epi16(1 << width);
            for (found, levels) in found.iter_mut().zip(levels.as_chunks_mut::<32>().0) {
                let found = _mm512_sub_epi16(*found, bias);
                // SAFETY: the arrays have the length of a vector.
                unsafe { _mm512_storeu_si512(levels.as_mut_ptr().cast(), found) };
            }
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(history.as_mut_ptr().cast(), states) };
        }
    }
}

/// See [`sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sums_of_rows(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    let tokens = x.len();
    let (quads, rest) = levels.as_chunks::<4>();
    let (quad_sums, rest_sums) = sums.split_at_mut(4 * quads.len() * tokens);
    for (levels, sums) in quads.iter().zip(quad_sums.chunks_exact_mut(4 * tokens)) {
        let (pairs, last) = x.as_chunks::<2>();
        for (index, x) in pairs.iter().enumerate() {
            four_rows(levels, x, tokens, 2 * index, sums);
        }
        for x in last {
            four_rows(levels, std::array::from_ref(x), tokens, tokens - 1, sums);
        }
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        for (x, sum) in x.iter().zip(sums) {
            let mut found = _mm512_setzero_si512();
            for index in 0..PANEL / 32 {
                let (levels, x) = (
                    load(part::<_, 32>(levels, index)),
                    load(part::<_, 32>(x, index)),
                );
                found = _mm512_dpwssd_epi32(found, levels, x);
            }
            *sum = _mm512_reduce_add_epi32(found);
        }
    }
}

/// The sums of four rows for `T` tokens, of which token `first` is the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn four_rows<const T: usize>(
    levels: &[[i16; PANEL]; 4],
    x: &[[i16; PANEL]; T],
    tokens: usize,
    first: usize,
    sums: &mut [i32],
) {
    let mut found = [[_mm512_setzero_si512(); 4]; T];
    for index in 0..PANEL / 32 {
        let levels: [__m512i; 4] =
            std::array::from_fn(|row| load(part::<_, 32>(&levels[row], index)));
        for (found, x) in found.iter_mut().zip(x) {
            let x = load(part::<_, 32>(x, index));
            for (found, levels) in found.iter_mut().zip(levels) {
                *found = _mm512_dpwssd_epi32(*found, levels, x);
            }
        }
    }
    for (token, found) in found.into_iter().enumerate() {
        let mut values = [0; 4];
        // SAFETY: the array has the length of a vector.
        unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), totals(found)) };
        for (row, value) in values.into_iter().enumerate() {
            sums[row * tokens + first + token] = value;
        }
    }
}

/// Values of a vector of tokens: `[PANEL / 2, LANES, 2]`.
type Vector = [i16; LANES * PANEL];

/// See [`interleaved_sums`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_rows(levels: &[[i16; PANEL]], x: &[i16], tokens: usize, sums: &mut [i32]) {
    let x = x.as_chunks().0;
    let (eights, rest) = levels.as_chunks::<8>();
    let (sums, rest_sums) = sums.split_at_mut(8 * eights.len() * tokens);
    for (levels, sums) in eights.iter().zip(sums.chunks_exact_mut(8 * tokens)) {
        interleaved_tokens(levels, x, tokens, sums);
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        interleaved_tokens(&[*levels], x, tokens, sums);
    }
}

/// The sums of `R` rows for all tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_tokens<const R: usize>(
    levels: &[[i16; PANEL]; R],
    x: &[Vector],
    tokens: usize,
    sums: &mut [i32],
) {
    let (pairs, last) = x.as_chunks::<2>();
    for (index, pair) in pairs.iter().enumerate() {
        interleaved_block(levels, pair, tokens, 2 * index * LANES, sums);
    }
    for x in last {
        let first = 2 * pairs.len() * LANES;
        interleaved_block(levels, std::array::from_ref(x), tokens, first, sums);
    }
}

/// The sums of `R` rows for `V` vectors of tokens, of which token `first` is the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn interleaved_block<const R: usize, const V: usize>(
    levels: &[[i16; PANEL]; R],
    x: &[Vector; V],
    tokens: usize,
    first: usize,
    sums: &mut [i32],
) {
    let mut found = [[_mm512_setzero_si512(); V]; R];
    for pair in 0..PANEL / 2 {
        let x: [__m512i; V] =
            std::array::from_fn(|vector| load(part::<_, { 2 * LANES }>(&x[vector], pair)));
        for (found, levels) in found.iter_mut().zip(levels) {
            let both = [levels[2 * pair] as u16, levels[2 * pair + 1] as u16].map(u32::from);
            let both = _mm512_set1_epi32((both[0] | both[1] << 16) as i32);
            for (found, x) in found.iter_mut().zip(x) {
                *found = _mm512_dpwssd_epi32(*found, both, x);
            }
        }
    }
    for (found, sums) in found.iter().zip(sums.chunks_exact_mut(tokens)) {
        for (found, sums) in found.iter().zip(sums[first..].chunks_mut(LANES)) {
            let mut values = [0; LANES];
            // SAFETY: the array has the length of a vector.
            unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), *found) };
            sums.copy_from_slice(&values[..sums.len()]);
        }
    }
}
