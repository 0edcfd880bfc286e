//! The decoder with AVX2: 32 lanes in four vectors of 8.
//!
//! The output equals that of `rows_portably`. Groups that are incomplete, or that might read beyond the end
//! of the tile, are left to the portable code.
//!
//! Safety: [`rows`] checks the processor's features. Loads and stores go through references to arrays of exactly the size
//! that is loaded or stored. The gathers read
//! `entries[table << 12 | slot]` with `slot < 4096` and table numbers that `TableLookup::new` has checked
//! against the same entries.

#![allow(unsafe_code)]

use super::LANES;
use super::decode::{Cursor, GROUP_BYTES, decode_rows};
use super::lookup::{RowTables, TableLookup};
use crate::contexts::ESCAPE;
use crate::error::CodecError;
use std::arch::x86_64::*;

/// Lane i of row m is the number of lanes below i in the mask m: the position of the word of lane i.
static WORD_POSITIONS: [[u32; 8]; 256] = word_positions();

const fn word_positions() -> [[u32; 8]; 256] {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let mut lane = 0;
        while lane < 8 {
            table[mask][lane] = (mask & ((1 << lane) - 1)).count_ones();
            lane += 1;
        }
        mask += 1;
    }
    table
}

/// Decodes rows of a tile into `q`; the processor must have AVX2 (checked).
pub(super) fn rows(
    lookup: &TableLookup<'_>,
    cursor: &mut Cursor<'_>,
    scratch: &mut RowTables,
    row_log2_eighths: &[u8],
    q: &mut [i16],
) -> Result<(), CodecError> {
    assert!(uc_simd::has_avx2());
    // SAFETY: the processor has the features, and `TableLookup::new` has checked the table numbers.
    unsafe {
        if lookup.shifted() {
            kernel::<true>(lookup, cursor, scratch, row_log2_eighths, q)
        } else {
            kernel::<false>(lookup, cursor, scratch, row_log2_eighths, q)
        }
    }
}

/// # Safety
/// The processor must have AVX2, and every table number of the lookup must be below the number of tables.
#[target_feature(enable = "avx2,fma,popcnt,bmi1")]
unsafe fn kernel<const SHIFTED: bool>(
    lookup: &TableLookup<'_>,
    cursor: &mut Cursor<'_>,
    scratch: &mut RowTables,
    row_log2_eighths: &[u8],
    q: &mut [i16],
) -> Result<(), CodecError> {
    let entries = &lookup.tables.entries;
    let whole = lookup.cols() / LANES;
    let whole_groups = |cursor: &mut Cursor<'_>, number: &[u8], shift: &[u8], q: &mut [i16]| {
        // SAFETY: the same requirements as of this function.
        unsafe { groups::<SHIFTED>(cursor, entries, number, shift, q, whole) }
    };
    decode_rows(lookup, cursor, scratch, row_log2_eighths, q, whole_groups)
}

/// Decodes up to `whole` complete groups of a row, as long as none can read beyond the end; returns their number.
///
/// # Safety
/// Those of [`kernel`].
#[target_feature(enable = "avx2,fma,popcnt,bmi1")]
unsafe fn groups<const SHIFTED: bool>(
    cursor: &mut Cursor<'_>,
    entries: &[u32],
    number: &[u8],
    shift: &[u8],
    q: &mut [i16],
    whole: usize,
) -> Result<usize, CodecError> {
    // SAFETY: the states are 32 words of 4 bytes.
    let mut x: [__m256i; 4] = unsafe { std::mem::transmute(cursor.states) };
    let mut done = 0;
    while done < whole && cursor.bytes.len() - cursor.position >= GROUP_BYTES {
        let columns = done * LANES..(done + 1) * LANES;
        let out: &mut [i16; LANES] = (&mut q[columns.clone()]).try_into().expect("32 columns");
        let number: &[u8; LANES] = number[columns.clone()].try_into().expect("32 columns");
        let shift: &[u8; LANES] = if SHIFTED {
            shift[columns].try_into().expect("32 columns")
        } else {
            &[0; LANES]
        };
        let mut escapes = 0u32;
        for part in 0..4 {
            let window: &[u8; 16] = cursor.bytes[cursor.position..cursor.position + 16]
                .try_into()
                .expect("16 bytes");
            // SAFETY: the loads read 8 of 32 bytes and 16 of 16 bytes, the gather is in range.
            unsafe {
                let base = part * 8;
                let number = load_bytes(number, base);
                let shift = if SHIFTED {
                    load_bytes(shift, base)
                } else {
                    _mm256_setzero_si256()
                };
                let (next, index, escaped, restored) =
                    step::<SHIFTED>(x[part], entries, number, shift, window);
                x[part] = next;
                cursor.position += 2 * restored.count_ones() as usize;
                escapes |= escaped << base;
                // Every index fits 16 bits, so the saturation never acts.
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packs_epi32(index, index));
                let packed = _mm256_castsi256_si128(packed);
                _mm_storeu_si128(out[base..base + 8].as_mut_ptr().cast(), packed);
            }
        }
        if escapes != 0 {
            cursor.escapes(escapes, shift, out)?;
        }
        done += 1;
    }
    // SAFETY: as above.
    cursor.states = unsafe { std::mem::transmute::<[__m256i; 4], [u32; LANES]>(x) };
    Ok(done)
}

/// Bytes `base..base + 8` as 32-bit lanes.
///
/// # Safety
/// The processor must have AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_bytes(bytes: &[u8; LANES], base: usize) -> __m256i {
    // SAFETY: the slice has 8 bytes.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes[base..base + 8].as_ptr().cast())) }
}

/// Steps 1 and 2 for 8 lanes: returns next states, indices, escaped lanes, restored lanes.
///
/// # Safety
/// The processor must have AVX2, and every lane of `number` must be the number of a table.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step<const SHIFTED: bool>(
    x: __m256i,
    entries: &[u32],
    number: __m256i,
    shift: __m256i,
    window: &[u8; 16],
) -> (__m256i, __m256i, u32, u32) {
    let low = _mm256_set1_epi32(0xfff);
    let one = _mm256_set1_epi32(1);
    let shifted = if SHIFTED {
        _mm256_srlv_epi32(x, shift)
    } else {
        x
    };
    let at = _mm256_or_si256(
        _mm256_slli_epi32::<12>(number),
        _mm256_and_si256(shifted, low),
    );
    // SAFETY: every index is below the number of entries.
    let entry = unsafe { _mm256_i32gather_epi32::<4>(entries.as_ptr().cast(), at) };
    let symbol = _mm256_srai_epi32::<24>(entry);
    let escaped = mask(_mm256_cmpeq_epi32(symbol, _mm256_set1_epi32(ESCAPE)));
    let index = if SHIFTED {
        let unit = _mm256_sllv_epi32(one, shift);
        let raw = _mm256_and_si256(x, _mm256_sub_epi32(unit, one));
        let middle = _mm256_srli_epi32::<1>(unit);
        _mm256_sub_epi32(
            _mm256_add_epi32(_mm256_sllv_epi32(symbol, shift), raw),
            middle,
        )
    } else {
        symbol
    };
    let frequency = _mm256_add_epi32(_mm256_and_si256(entry, low), one);
    let bias = _mm256_and_si256(_mm256_srli_epi32::<12>(entry), low);
    let high = _mm256_srli_epi32::<12>(shifted);
    let next = _mm256_add_epi32(_mm256_mullo_epi32(frequency, high), bias);
    let below = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(next), _mm256_setzero_si256());
    let restored = mask(below);
    // SAFETY: the window has 16 bytes, a row of the positions 32.
    let (words, positions) = unsafe {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(window.as_ptr().cast()));
        (
            words,
            _mm256_loadu_si256(WORD_POSITIONS[restored as usize].as_ptr().cast()),
        )
    };
    let words = _mm256_permutevar8x32_epi32(words, positions);
    let grown = _mm256_or_si256(_mm256_slli_epi32::<16>(next), words);
    (
        _mm256_blendv_epi8(next, grown, below),
        index,
        escaped,
        restored,
    )
}

/// One bit per lane whose bits are all set.
#[inline]
#[target_feature(enable = "avx2")]
fn mask(lanes: __m256i) -> u32 {
    _mm256_movemask_ps(_mm256_castsi256_ps(lanes)) as u32
}
