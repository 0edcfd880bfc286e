//! The decoder with AVX-512: 32 lanes in two vectors of 16.
//!
//! The output equals that of `rows_portably`. Groups that are incomplete, or that might read beyond the end
//! of the tile, are left to the portable code.
//!
//! Safety: [`rows`] checks the processor's features. Loads and stores go through references to arrays of exactly the size
//! that is loaded or stored. [`elements`] reads
//! `entries[table << 12 | slot]` with `slot < 4096` and table numbers that `TableLookup::new` has checked
//! against the same entries.

#![allow(unsafe_code)]

use super::LANES;
use super::decode::{Cursor, GROUP_BYTES, decode_rows};
use super::lookup::{RowTables, TableLookup};
use crate::contexts::ESCAPE;
use crate::error::CodecError;
use std::arch::x86_64::*;

/// Decodes rows of a tile into `q`; the processor must have AVX-512 F, BW, DQ and VL (checked).
pub(super) fn rows(
    lookup: &TableLookup<'_>,
    cursor: &mut Cursor<'_>,
    scratch: &mut RowTables,
    row_log2_eighths: &[u8],
    q: &mut [i16],
) -> Result<(), CodecError> {
    assert!(uc_simd::has_avx512());
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
/// The processor must have the features, and every table number of the lookup must be below the number of tables.
#[target_feature(enable = "avx2,fma,popcnt,bmi1,avx512f,avx512bw,avx512dq,avx512vl")]
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
#[target_feature(enable = "avx2,fma,popcnt,bmi1,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn groups<const SHIFTED: bool>(
    cursor: &mut Cursor<'_>,
    entries: &[u32],
    number: &[u8],
    shift: &[u8],
    q: &mut [i16],
    whole: usize,
) -> Result<usize, CodecError> {
    // SAFETY: the states are 32 words of 4 bytes.
    let mut x: [__m512i; 2] = unsafe { std::mem::transmute(cursor.states) };
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
        for half in 0..2 {
            let window: &[u8; 32] = cursor.bytes[cursor.position..cursor.position + 32]
                .try_into()
                .expect("32 bytes");
            // SAFETY: the loads read 16 of 32 bytes and 32 of 32 bytes, the table numbers are in range.
            unsafe {
                let base = half * 16;
                let number = load_bytes(number, base);
                let shift = if SHIFTED {
                    load_bytes(shift, base)
                } else {
                    _mm512_setzero_si512()
                };
                let (next, index, escaped, restored) =
                    step::<SHIFTED>(x[half], entries, number, shift, window);
                x[half] = next;
                cursor.position += 2 * restored.count_ones() as usize;
                escapes |= u32::from(escaped) << base;
                let index = _mm512_cvtepi32_epi16(index);
                _mm256_storeu_si256(out[base..base + 16].as_mut_ptr().cast(), index);
            }
        }
        if escapes != 0 {
            cursor.escapes(escapes, shift, out)?;
        }
        done += 1;
    }
    // SAFETY: as above.
    cursor.states = unsafe { std::mem::transmute::<[__m512i; 2], [u32; LANES]>(x) };
    Ok(done)
}

/// Bytes `base..base + 16` as 32-bit lanes.
///
/// # Safety
/// The processor must have AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load_bytes(bytes: &[u8; LANES], base: usize) -> __m512i {
    // SAFETY: the slice has 16 bytes.
    unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes[base..base + 16].as_ptr().cast())) }
}

/// Steps 1 and 2 for 16 lanes: returns next states, indices, escaped lanes, restored lanes.
///
/// # Safety
/// The processor must have the features, and every lane of `number` must be the number of a table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn step<const SHIFTED: bool>(
    x: __m512i,
    entries: &[u32],
    number: __m512i,
    shift: __m512i,
    window: &[u8; 32],
) -> (__m512i, __m512i, u16, u16) {
    let low = _mm512_set1_epi32(0xfff);
    let one = _mm512_set1_epi32(1);
    let shifted = if SHIFTED {
        _mm512_srlv_epi32(x, shift)
    } else {
        x
    };
    let at = _mm512_or_si512(
        _mm512_slli_epi32::<12>(number),
        _mm512_and_si512(shifted, low),
    );
    // SAFETY: every position is below the number of entries.
    let entry = unsafe { elements(entries, at) };
    let symbol = _mm512_srai_epi32::<24>(entry);
    let escaped = _mm512_cmpeq_epi32_mask(symbol, _mm512_set1_epi32(ESCAPE));
    let index = if SHIFTED {
        let unit = _mm512_sllv_epi32(one, shift);
        let raw = _mm512_and_si512(x, _mm512_sub_epi32(unit, one));
        let middle = _mm512_srli_epi32::<1>(unit);
        _mm512_sub_epi32(
            _mm512_add_epi32(_mm512_sllv_epi32(symbol, shift), raw),
            middle,
        )
    } else {
        symbol
    };
    let frequency = _mm512_add_epi32(_mm512_and_si512(entry, low), one);
    let bias = _mm512_and_si512(_mm512_srli_epi32::<12>(entry), low);
    let high = _mm512_srli_epi32::<12>(shifted);
    let next = _mm512_add_epi32(_mm512_mullo_epi32(frequency, high), bias);
    let restored = _mm512_cmplt_epu32_mask(next, _mm512_set1_epi32(1 << 16));
    // SAFETY: the window has 32 bytes.
    let words = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(window.as_ptr().cast())) };
    let words = _mm512_maskz_expand_epi32(restored, words);
    let grown = _mm512_or_si512(_mm512_slli_epi32::<16>(next), words);
    (
        _mm512_mask_mov_epi32(next, restored, grown),
        index,
        escaped,
        restored,
    )
}

/// The elements at these positions. A load for each is a sixth faster than the gather instruction on Zen 4, and does not depend on
/// the mitigations that slow gathers down on other processors.
///
/// # Safety
/// The processor must have AVX-512 F, and every position must be below the number of elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn elements(elements: &[u32], positions: __m512i) -> __m512i {
    // SAFETY: a vector is 16 words of 4 bytes; the positions are in range.
    unsafe {
        let positions: [u32; 16] = std::mem::transmute(positions);
        let at = |lane: usize| *elements.get_unchecked(positions[lane] as usize);
        std::mem::transmute::<[u32; 16], __m512i>(std::array::from_fn(at))
    }
}
