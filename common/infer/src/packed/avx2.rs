//! Kernels for processors with AVX2 and without the instructions of [`super::avx512`].
//!
//! A unit of 32 columns is one vector of bytes. The two bytes that a field touches are brought to a 16-bit lane (`vpshufb`), and a product
//! with a power of two moves the field of an even column, doubled, to the lower byte of its lane and that of an odd one to the upper byte. The
//! bits of the trellis, which are linear in the state, come from two tables of 16 entries. Levels, made positive, are multiplied as 16 even
//! and 16 odd columns, in sums of pairs (`vpmaddwd`). What making them positive adds is subtracted from the sum of a row.
//!
//! Safety: every function here is compiled for the instruction set that [`is_available`] finds; those that callers use check it. Loads
//! and stores access arrays of the length of a vector, or fields, after which there are [`SLACK`](super::SLACK) bytes.
#![allow(unsafe_code)]

mod few_tokens;
mod twelve_bits;

pub(crate) use few_tokens::{Pairs, add_products};
pub(crate) use twelve_bits::twelve_bit_products;

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Cursor, GROUP, Out, PANEL, WIDTHS, is_special};
use crate::integer::LANES;

/// Columns of a unit.
const UNIT: usize = 32;
/// Bytes of a vector.
const VECTOR: usize = 32;
const _: () = assert!(VECTOR <= super::SLACK);
/// Columns of a unit that are even.
const HALF: usize = UNIT / 2;
/// Width of the widest fields whose levels, made positive, fit into a byte.
const BYTE: u8 = 7;

/// Whether this processor has the instructions of this module.
pub(crate) fn is_available() -> bool {
    uc_simd::has_avx2()
}

/// How the fields of a width are cut out of their bytes.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Cut {
    /// For each byte of the 16-bit lanes of the even and of the odd columns, the byte of the fields of the 16 columns that comes there, or
    /// [`NO_BYTE`].
    gather: [[u8; UNIT]; 2],
    /// For each lane of the even columns, the power of two whose product has the doubled field in its upper half; for each of the odd ones,
    /// that whose product has it in its upper byte.
    scale: [[u16; HALF]; 2],
    /// For each byte, the bits of the doubled field.
    mask: [u8; UNIT],
}

/// Gives a byte of 0.
const NO_BYTE: u8 = 0x80;

/// For each width up to [`BYTE`].
static CUTS: [Cut; BYTE as usize + 1] = {
    let mut cuts = [Cut {
        gather: [[NO_BYTE; UNIT]; 2],
        scale: [[0; HALF]; 2],
        mask: [0; UNIT],
    }; BYTE as usize + 1];
    let mut width = *WIDTHS.start() as usize;
    while width < cuts.len() {
        let mut column = 0;
        while column < UNIT {
            let (lane, parity) = (column / 2, column % 2);
            // Each 128-bit part has the fields of its 16 columns.
            let bit = column % HALF * width;
            let (byte, shift) = (bit / 8, bit % 8);
            cuts[width].mask[column] = ((1u32 << (width + 1)) - 2) as u8;
            // A field that begins at bit 0 or 1 lies in one byte, which is in the upper half of the lane: no product of 16 bits would move it
            // up to bit 17 from the lower one.
            let in_upper_byte = parity == 0 && shift < 2;
            if in_upper_byte {
                cuts[width].gather[parity][2 * lane + 1] = byte as u8;
            } else {
                cuts[width].gather[parity][2 * lane] = byte as u8;
                cuts[width].gather[parity][2 * lane + 1] = byte as u8 + 1;
            }
            cuts[width].scale[parity][lane] = match parity == 1 || in_upper_byte {
                true => 1 << (9 - shift),
                false => 1 << (17 - shift),
            };
            column += 1;
        }
        width += 1;
    }
    cuts
};

/// The bits that four bits of a state, from bit `first` on, add to a level; see [`FEEDFORWARD`](uc_codec::trellis::FEEDFORWARD).
const fn terms(first: u32) -> [u8; VECTOR] {
    let mut table = [0; VECTOR];
    let mut index = 0;
    while index < VECTOR {
        let state = ((index % 16) << first) as u8;
        let lowest = state >> 1 ^ state >> 5;
        let second = state >> 2 ^ state >> 4 ^ state >> 5 ^ state >> 6;
        table[index] = (second & 1) << 1 | lowest & 1;
        index += 1;
    }
    table
}

static LOW_TERMS: [u8; VECTOR] = terms(0);
static HIGH_TERMS: [u8; VECTOR] = terms(4);

#[inline]
#[target_feature(enable = "avx2")]
fn load<T, const N: usize>(values: &[T; N]) -> __m256i {
    const { assert!(size_of::<[T; N]>() == 32) }
    // SAFETY: the array has the length of a vector.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<T, const N: usize>(vector: __m256i, values: &mut [T; N]) {
    const { assert!(size_of::<[T; N]>() == 32) }
    // SAFETY: the array has the length of a vector.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), vector) }
}

/// Decodes the next rows, see [`crate::integer::decode`].
pub(crate) fn decode(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    assert!(is_available());
    for (row, levels) in levels.iter_mut().enumerate() {
        if is_special(cursor.widths[cursor.row]) {
            let mut special = 0;
            crate::integer::decode_plain(cursor, std::slice::from_mut(levels), &mut special);
            *wide |= special << row;
        } else {
            // SAFETY: the processor has the instructions.
            unsafe { decode_row(cursor, levels) }
        }
    }
}

/// The levels of a row that is not special.
#[target_feature(enable = "avx2")]
fn decode_row(cursor: &mut Cursor<'_>, levels: &mut [i16; PANEL]) {
    let width = cursor.widths[cursor.row];
    let bias = _mm256_set1_epi16(1 << width);
    let (row, units) = (Row::next(cursor), cursor.units());
    for (levels, (unit, history)) in levels.as_chunks_mut::<UNIT>().0.iter_mut().zip(units) {
        let [even, odd] = match width > BYTE {
            true => row.levels::<true>(unit, history),
            false => row.levels::<false>(unit, history),
        };
        let (even, odd) = (_mm256_sub_epi16(even, bias), _mm256_sub_epi16(odd, bias));
        let lower = _mm256_unpacklo_epi16(even, odd);
        let upper = _mm256_unpackhi_epi16(even, odd);
        let [first, second] = levels.as_chunks_mut::<HALF>().0 else {
            unreachable!("a unit has two halves");
        };
        store(_mm256_permute2x128_si256::<0x20>(lower, upper), first);
        store(_mm256_permute2x128_si256::<0x31>(lower, upper), second);
    }
}

impl Cursor<'_> {
    /// The numbers and the states of the units.
    #[inline(always)]
    fn units(&mut self) -> impl Iterator<Item = (usize, &mut [u8; UNIT])> {
        let histories = self.history.as_chunks_mut().0;
        histories[..self.groups * GROUP / UNIT]
            .iter_mut()
            .enumerate()
    }
}

/// A row that is not special.
struct Row<'a> {
    /// At least [`VECTOR`] bytes longer than those of its units.
    fields: &'a [u8],
    /// Bytes of the fields of a unit.
    bytes: usize,
    cut: &'static Cut,
}

impl<'a> Row<'a> {
    /// The row at the cursor, which moves on to the next one.
    #[inline(always)]
    fn next(cursor: &mut Cursor<'a>) -> Self {
        let width = cursor.widths[cursor.row];
        let units = cursor.groups * GROUP / UNIT;
        let bytes = usize::from(width) * UNIT / 8;
        let fields = &cursor.fields[cursor.offset..][..units * bytes + VECTOR];
        cursor.row += 1;
        cursor.offset += units * bytes;
        Row {
            fields,
            bytes,
            cut: &CUTS[usize::from(width & BYTE)],
        }
    }

    /// The bytes from the fields of a unit on, those of the second 16 columns in the upper half.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fields(&self, unit: usize) -> __m256i {
        debug_assert!(unit * self.bytes + self.bytes / 2 + 16 <= self.fields.len());
        // SAFETY: after the fields are more bytes than such a vector has.
        unsafe {
            let fields = self.fields.as_ptr().add(unit * self.bytes);
            let upper = fields.add(self.bytes / 2);
            _mm256_set_m128i(
                _mm_loadu_si128(upper.cast()),
                _mm_loadu_si128(fields.cast()),
            )
        }
    }

    /// The levels of the even and of the odd columns of a unit, plus 2 to the power of the width; its states go on. The fields have 8 bits
    /// if `IS_BYTE`, else fewer.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn levels<const IS_BYTE: bool>(&self, unit: usize, history: &mut [u8; UNIT]) -> [__m256i; 2] {
        let (fields, states) = (self.fields(unit), load(&*history));
        let doubled = match IS_BYTE {
            true => _mm256_add_epi8(fields, fields),
            false => self.cut.doubled(fields),
        };
        let newest = _mm256_and_si256(doubled, _mm256_set1_epi8(2));
        let next = _mm256_or_si256(_mm256_add_epi8(states, states), newest);
        store(next, history);
        let low = _mm256_and_si256(states, _mm256_set1_epi8(15));
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(states), _mm256_set1_epi8(15));
        let terms = _mm256_xor_si256(
            _mm256_shuffle_epi8(load(&LOW_TERMS), low),
            _mm256_shuffle_epi8(load(&HIGH_TERMS), high),
        );
        if IS_BYTE {
            let (fields, terms) = (halves(fields), halves(terms));
            let mut levels = [_mm256_setzero_si256(); 2];
            for parity in 0..2 {
                let doubled = _mm256_add_epi16(fields[parity], fields[parity]);
                levels[parity] = _mm256_xor_si256(doubled, terms[parity]);
            }
            return levels;
        }
        let doubled = _mm256_and_si256(doubled, load(&self.cut.mask));
        halves(_mm256_xor_si256(doubled, terms))
    }
}

impl Cut {
    /// For each byte the doubled field, among other bits.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn doubled(&self, fields: __m256i) -> __m256i {
        let even = _mm256_shuffle_epi8(fields, load(&self.gather[0]));
        let odd = _mm256_shuffle_epi8(fields, load(&self.gather[1]));
        let even = upper_product(even, load(&self.scale[0]));
        let odd = _mm256_mullo_epi16(odd, load(&self.scale[1]));
        _mm256_blendv_epi8(even, odd, _mm256_set1_epi16(!0xff))
    }
}

/// The upper halves of the products of 16-bit lanes. The intrinsic, of factors that do not change in a loop, is compiled to products of
/// 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn upper_product(a: __m256i, b: __m256i) -> __m256i {
    let product;
    // SAFETY: the instruction reads and writes registers only.
    unsafe {
        asm!(
            "vpmulhuw {product}, {a}, {b}",
            product = lateout(ymm_reg) product,
            a = in(ymm_reg) a,
            b = in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    product
}

/// The even and the odd bytes of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(bytes: __m256i) -> [__m256i; 2] {
    [
        _mm256_and_si256(bytes, _mm256_set1_epi16(255)),
        _mm256_srli_epi16::<8>(bytes),
    ]
}

/// `sums[r][t] = <levels[r], x[t]>`.
pub(crate) fn sums(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    assert!(is_available() && sums.len() == levels.len() * x.len());
    // SAFETY: the processor has the instructions.
    unsafe { sums_of_rows(levels, x, sums) }
}

/// The sum of the products of a row for one token, whatever its levels: those of its high and of its low bytes fit into 32 bits.
pub(crate) fn wide_sum(levels: &[i16; PANEL], x: &[i16; PANEL]) -> i64 {
    let parts = [
        levels.map(|level| level >> 8),
        levels.map(|level| level & 255),
    ];
    let mut found = [0; 2];
    sums(&parts, std::slice::from_ref(x), &mut found);
    256 * i64::from(found[0]) + i64::from(found[1])
}

/// As [`sums`], of activations that are interleaved: `[tokens / LANES, PANEL / 2, LANES, 2]`. All but the
/// first `columns` of the panel are padding, 0.
pub(crate) fn interleaved_sums(
    levels: &[[i16; PANEL]],
    x: &[i16],
    [tokens, columns]: [usize; 2],
    mut out: Out<'_>,
) {
    assert!(is_available() && out.len() == levels.len() * tokens);
    assert!(x.len() == tokens.next_multiple_of(LANES) * PANEL);
    let shape = [tokens, columns.div_ceil(2)];
    // SAFETY: the processor has the instructions.
    unsafe { interleaved_rows(levels, x.as_chunks().0, shape, &mut out) }
}

/// See [`sums`].
#[target_feature(enable = "avx2")]
fn sums_of_rows(levels: &[[i16; PANEL]], x: &[[i16; PANEL]], sums: &mut [i32]) {
    let tokens = x.len();
    let (quads, rest) = levels.as_chunks::<4>();
    let (quad_sums, rest_sums) = sums.split_at_mut(4 * quads.len() * tokens);
    for (levels, sums) in quads.iter().zip(quad_sums.chunks_exact_mut(4 * tokens)) {
        for (token, x) in x.iter().enumerate() {
            let mut found = [0; 4];
            let all = totals(rows_by_token(levels, x));
            // SAFETY: the array has the length of the vector.
            unsafe { _mm_storeu_si128(found.as_mut_ptr().cast(), all) };
            for (row, found) in found.into_iter().enumerate() {
                sums[row * tokens + token] = found;
            }
        }
    }
    for (levels, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(tokens)) {
        for (x, sum) in x.iter().zip(sums) {
            let [lanes] = rows_by_token(&[*levels], x);
            let zero = _mm256_setzero_si256();
            *sum = _mm_cvtsi128_si32(totals([lanes, zero, zero, zero]));
        }
    }
}

/// The lanes of the sums of `R` rows for a token.
#[inline]
#[target_feature(enable = "avx2")]
fn rows_by_token<const R: usize>(levels: &[[i16; PANEL]; R], x: &[i16; PANEL]) -> [__m256i; R] {
    let mut found = [_mm256_setzero_si256(); R];
    for (index, x) in x.as_chunks::<HALF>().0.iter().enumerate() {
        let x = load(x);
        for (found, levels) in found.iter_mut().zip(levels) {
            let levels = load(&levels.as_chunks::<HALF>().0[index]);
            *found = _mm256_add_epi32(*found, _mm256_madd_epi16(levels, x));
        }
    }
    found
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn totals(lanes: [__m256i; 4]) -> __m128i {
    let parts = quarters(lanes);
    _mm_add_epi32(
        _mm256_castsi256_si128(parts),
        _mm256_extracti128_si256::<1>(parts),
    )
}

/// Two parts, side by side, of the sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn quarters([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let first = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let second = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    _mm256_add_epi32(
        _mm256_unpacklo_epi64(first, second),
        _mm256_unpackhi_epi64(first, second),
    )
}

/// Values of a vector of tokens: `[PANEL / 2, LANES, 2]`.
type Vector = [i16; LANES * PANEL];

/// See [`interleaved_sums`], with `[tokens, pairs of columns]`. The activations of a vector stay in the first-level cache while the rows
/// pass.
#[target_feature(enable = "avx2,fma")]
fn interleaved_rows(levels: &[[i16; PANEL]], x: &[Vector], shape: [usize; 2], out: &mut Out<'_>) {
    let (blocks, rest) = levels.as_chunks::<BLOCK>();
    for (index, x) in x.iter().enumerate() {
        let first = index * LANES;
        for (index, levels) in blocks.iter().enumerate() {
            interleaved_block(levels, x, [BLOCK * index, first], shape, out);
        }
        for (index, levels) in rest.iter().enumerate() {
            let row = BLOCK * blocks.len() + index;
            interleaved_block(std::array::from_ref(levels), x, [row, first], shape, out);
        }
    }
}

/// Rows that are multiplied together: as many as there are registers for.
const BLOCK: usize = 4;

/// The sums of `R` rows, of which row `row` is the first, for the tokens of a vector, of which token `first` is the first.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn interleaved_block<const R: usize>(
    levels: &[[i16; PANEL]; R],
    x: &Vector,
    [row, first]: [usize; 2],
    [tokens, pairs]: [usize; 2],
    out: &mut Out<'_>,
) {
    let mut found = [[_mm256_setzero_si256(); 2]; R];
    let of_pairs = x.as_chunks::<{ 2 * LANES }>().0.iter();
    for (pair, x) in of_pairs.take(pairs).enumerate() {
        let [lower, upper] = x.as_chunks::<HALF>().0 else {
            unreachable!("a pair of columns has two halves");
        };
        let x = [load(lower), load(upper)];
        for (found, levels) in found.iter_mut().zip(levels) {
            let both = [levels[2 * pair] as u16, levels[2 * pair + 1] as u16].map(u32::from);
            let both = _mm256_set1_epi32((both[0] | both[1] << 16) as i32);
            for (found, x) in found.iter_mut().zip(x) {
                *found = _mm256_add_epi32(*found, _mm256_madd_epi16(both, x));
            }
        }
    }
    for (index, found) in found.into_iter().enumerate() {
        out.take_halves(found, row + index, first, tokens);
    }
}

impl Out<'_> {
    /// Takes the sums of a row for at most [`LANES`] tokens, of which token `first` is the first.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn take_halves(&mut self, sums: [__m256i; 2], row: usize, first: usize, tokens: usize) {
        let count = (tokens - first).min(LANES);
        let at = row * tokens + first;
        let mut values = [[0; LANES / 2]; 2];
        for half in 0..2 {
            store(sums[half], &mut values[half]);
        }
        let values = values.as_flattened();
        match self {
            Out::Sums(out) => out[at..at + count].copy_from_slice(&values[..count]),
            Out::Joined(scales, out) => {
                let (scales, out) = (&scales[first..first + count], &mut out[at..at + count]);
                let (scales, rest) = scales.as_chunks::<{ LANES / 2 }>();
                let (out, rest_out) = out.as_chunks_mut::<{ LANES / 2 }>();
                for half in 0..scales.len().min(2) {
                    let scales = _mm256_castsi256_ps(load(&scales[half]));
                    let old = _mm256_castsi256_ps(load(&out[half]));
                    let new = _mm256_fmadd_ps(scales, _mm256_cvtepi32_ps(sums[half]), old);
                    store(_mm256_castps_si256(new), &mut out[half]);
                }
                let values = &values[count - rest.len()..];
                for ((out, scale), &value) in rest_out.iter_mut().zip(rest).zip(values) {
                    *out = scale.mul_add(value as f32, *out);
                }
            }
        }
    }
}
