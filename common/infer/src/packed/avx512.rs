//! Kernels for processors with AVX-512 VBMI and VNNI and with GFNI (Ice Lake, Zen 4 and later).
//!
//! A group of 64 columns is one vector of bytes. Its fields are brought to their 64-bit lanes by a permutation and cut out there
//! (`vpmultishiftqb`), the bits of the trellis, which are linear in the state, come from a product with a matrix of bits
//! (`vgf2p8affineqb`), and the level, made positive, is multiplied with the two signed bytes of each activation (`vpdpbusd`). What
//! making it positive adds is subtracted from the sum of a row.
//!
//! Safety: every function here is compiled for the instruction set that [`is_available`] finds; those that callers use check it. Loads
//! and stores access arrays of the length of a vector, or fields, after which there are [`SLACK`](super::SLACK) bytes.
#![allow(unsafe_code)]

mod decode;
mod few_tokens;
mod sums;
mod twelve_bits;

pub(crate) use decode::{decode, decode_bytes};
pub(crate) use few_tokens::add_products;
pub(super) use sums::joined_bytes;
pub(crate) use sums::{interleaved_sums, sums, wide_sum};
pub(crate) use twelve_bits::{byte_parts, twelve_bit_products};

use std::arch::x86_64::*;
use std::sync::LazyLock;

use uc_simd::{prefetch, prefetch_l2};

use super::{AHEAD, Cursor, GROUP, NARROW, PANEL, Piece, WIDTHS, group_bytes};

/// How far ahead fields are prefetched into the first-level cache, bytes.
const NEAR: usize = 1024;
/// Rows whose sums are kept in lanes.
const CHUNK: usize = 16;

/// Whether this processor has the instructions of this module.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        uc_simd::has_avx512()
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("gfni")
    });
    *AVAILABLE
}

/// How the fields of a width are cut out of their bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Cut {
    /// For each byte of a vector, the byte of the fields that comes there.
    gather: [u8; GROUP],
    /// For each byte, the offset in its 64-bit lane of the bit before its field.
    shift: [u8; GROUP],
    /// The bits of the doubled field.
    mask: [u8; GROUP],
}

/// Width of the widest fields whose levels, made positive, fit into a byte.
const BYTE: u8 = 7;

/// For each width up to [`BYTE`].
static CUTS: [Cut; BYTE as usize + 1] = {
    let mut cuts = [Cut {
        gather: [0; GROUP],
        shift: [0; GROUP],
        mask: [0; GROUP],
    }; BYTE as usize + 1];
    let mut width = *WIDTHS.start() as usize;
    while width < cuts.len() {
        let mut byte = 0;
        while byte < GROUP {
            let (lane, index) = (byte / 8, byte % 8);
            let from = lane * width + index;
            // Bytes above the last field of the lane are not used.
            cuts[width].gather[byte] = if from < GROUP { from as u8 } else { 0 };
            cuts[width].shift[byte] = ((index * width + 63) % 64) as u8;
            cuts[width].mask[byte] = (((1u32 << width) - 1) << 1) as u8;
            byte += 1;
        }
        width += 1;
    }
    cuts
};

/// A matrix of bits whose first two rows, those of the lowest bits of a product, are these.
const fn bit_matrix(first: u8, second: u8) -> i64 {
    i64::from_le_bytes([0, 0, 0, 0, 0, 0, second, first])
}

/// The bits of a state that are added to the lowest and to the second bit of a level; see
/// [`FEEDFORWARD`](uc_codec::trellis::FEEDFORWARD).
const LOWEST: u8 = 1 << 1 | 1 << 5;
const SECOND: u8 = 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6;

/// The activations of one token and panel as two signed bytes each: `256 · high + low`.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Halves {
    high: [i8; PANEL],
    low: [i8; PANEL],
    /// For each width up to [`NARROW`], what making the levels positive adds.
    excess: [i32; 16],
}

impl Halves {
    /// Divides the integers of a panel, whose magnitudes are at most 32512.
    pub(crate) fn new(values: &[i16; PANEL]) -> Self {
        let low = values.map(|value| value as i8);
        let sum: i32 = values.iter().map(|&value| i32::from(value)).sum();
        let mut excess = [0; 16];
        for width in *WIDTHS.start()..=NARROW {
            excess[width as usize] = sum << width;
        }
        Halves {
            high: std::array::from_fn(|index| ((values[index] - i16::from(low[index])) >> 8) as i8),
            low,
            excess,
        }
    }

    /// Those of group `group`, the high and the low bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn of_group(&self, group: usize) -> [__m512i; 2] {
        [
            load(part::<_, GROUP>(&self.high, group)),
            load(part::<_, GROUP>(&self.low, group)),
        ]
    }

    /// What making the levels of rows positive adds to their sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn excess(&self, widths: &[u8; CHUNK]) -> __m512i {
        // SAFETY: the array has the length of a vector.
        let widths = unsafe { _mm_loadu_si128(widths.as_ptr().cast()) };
        // The permutation uses the lowest four bits.
        _mm512_permutexvar_epi32(_mm512_cvtepu8_epi32(widths), load(&self.excess))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load<T, const N: usize>(values: &[T; N]) -> __m512i {
    const { assert!(size_of::<[T; N]>() == 64) }
    // SAFETY: the array has the length of a vector.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

/// Prefetches the fields that are read some rows after those at a place.
#[inline(always)]
fn prefetch_ahead(fields: &[u8], place: usize) {
    prefetch_l2(fields, place + AHEAD);
    prefetch(fields, place + NEAR);
}

/// A part of an array that has the length of a vector.
#[inline(always)]
fn part<T, const M: usize>(values: &[T], index: usize) -> &[T; M] {
    values[index * M..(index + 1) * M]
        .try_into()
        .expect("a part")
}

/// The constants that stay in registers.
#[derive(Clone, Copy)]
struct Constants {
    /// Bit 1 of every byte.
    newest: __m512i,
    feedforward: __m512i,
}

/// A [`Cut`] in registers.
#[derive(Clone, Copy)]
struct LoadedCut {
    gather: __m512i,
    shift: __m512i,
    mask: __m512i,
}

impl LoadedCut {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(width: u8) -> Self {
        let cut = &CUTS[usize::from(width & BYTE)];
        LoadedCut {
            gather: load(&cut.gather),
            shift: load(&cut.shift),
            mask: load(&cut.mask),
        }
    }
}

/// A level, made positive, as `2 · doubled + single`, for fields of a byte.
struct ByteLevels {
    doubled: __m512i,
    single: __m512i,
}

impl Constants {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new() -> Self {
        Constants {
            newest: _mm512_set1_epi8(1 << 1),
            feedforward: _mm512_set1_epi64(bit_matrix(LOWEST, SECOND)),
        }
    }

    /// The states after a field whose lowest bit is bit 1 of `doubled`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn next(self, history: __m512i, doubled: __m512i) -> __m512i {
        // 2 · history | doubled & 2
        let history = _mm512_add_epi8(history, history);
        _mm512_ternarylogic_epi64::<0xf8>(history, doubled, self.newest)
    }

    /// The levels of a group, plus `2^width`, from the 64 bytes at its fields; `history` goes on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn levels(self, bytes: __m512i, cut: LoadedCut, history: &mut __m512i) -> __m512i {
        let lanes = _mm512_permutexvar_epi8(cut.gather, bytes);
        let doubled = _mm512_multishift_epi64_epi8(cut.shift, lanes);
        let term = _mm512_gf2p8affine_epi64_epi8::<0>(*history, self.feedforward);
        *history = self.next(*history, doubled);
        // (doubled & mask) ^ term
        _mm512_ternarylogic_epi64::<0x6a>(doubled, cut.mask, term)
    }

    /// As [`Constants::levels`], for fields of a byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn byte_levels(self, fields: __m512i, history: &mut __m512i) -> ByteLevels {
        let [lowest, second] = [LOWEST, SECOND].map(|bits| _mm512_set1_epi64(bit_matrix(bits, 0)));
        let second = _mm512_gf2p8affine_epi64_epi8::<0>(*history, second);
        let single = _mm512_gf2p8affine_epi64_epi8::<0>(*history, lowest);
        *history = self.next(*history, _mm512_add_epi8(fields, fields));
        ByteLevels {
            doubled: _mm512_xor_si512(fields, second),
            single,
        }
    }
}

/// The sums of the products with activations, from those with their high and their low bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined_halves([high, low]: [__m512i; 2]) -> __m512i {
    _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn totals(rows: [__m512i; 4]) -> __m128i {
    let all = quarters(rows);
    let half = _mm256_add_epi32(
        _mm512_castsi512_si256(all),
        _mm512_extracti64x4_epi64::<1>(all),
    );
    _mm_add_epi32(
        _mm256_castsi256_si128(half),
        _mm256_extracti128_si256::<1>(half),
    )
}

/// Four parts, side by side, of the sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn quarters(rows: [__m512i; 4]) -> __m512i {
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (first, second) = (pair(rows[0], rows[1]), pair(rows[2], rows[3]));
    _mm512_add_epi32(
        _mm512_unpacklo_epi64(first, second),
        _mm512_unpackhi_epi64(first, second),
    )
}

/// Where a kernel is in the rows of a piece of `G` groups: what a [`Cursor`] has, in registers.
#[derive(Clone, Copy)]
struct Position<const G: usize> {
    history: [__m512i; G],
    row: usize,
    offset: usize,
}

impl<const G: usize> Position<G> {
    /// Before the first row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn first(piece: Piece<'_>) -> Self {
        let state = |group| match piece.states.is_empty() {
            true => _mm512_setzero_si512(),
            false => load(part::<_, GROUP>(piece.states, group)),
        };
        Position {
            history: std::array::from_fn(state),
            row: 0,
            offset: 0,
        }
    }

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

    /// Prefetches fields of later rows, as many lines as the next row has groups.
    #[inline(always)]
    fn prefetch(&self, fields: &[u8]) {
        for line in 0..G {
            prefetch_ahead(fields, self.offset + 64 * line);
        }
    }

    /// Moves past a row whose fields have this width.
    #[inline(always)]
    fn advance(&mut self, width: u8) {
        self.offset += G * group_bytes(width);
        self.row += 1;
    }
}

/// The bytes from group `group` of a row on, whose fields begin at `offset`.
#[inline]
#[target_feature(enable = "avx512f")]
fn group_fields(fields: &[u8], offset: usize, width: u8, group: usize) -> __m512i {
    let first = offset + group * group_bytes(width);
    debug_assert!(first + 64 <= fields.len());
    // SAFETY: fields are followed by as many bytes as a vector has.
    unsafe { _mm512_loadu_si512(fields.as_ptr().add(first).cast()) }
}
