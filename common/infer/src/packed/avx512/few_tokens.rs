//! Products with the activations of few tokens: fields are decoded once for all of them and multiplied in registers.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{
    BYTE, CHUNK, Constants, Halves, LoadedCut, Position, group_fields, is_available, joined_halves,
    load, part, quarters,
};
use crate::packed::{Operands, PANEL, Piece, STRIP, ZERO_ROW, is_special};

/// Adds to `out: [tokens, rows]` the products of the rows of a piece. The sum of a row that does not fit into 32 bits counts as 0 here;
/// `special` gets the number of the row and its levels.
pub(crate) fn add_products<const T: usize>(
    of: &Operands<'_, Halves, T>,
    out: &mut [[f32; STRIP]; T],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) {
    assert!(is_available() && of.piece.widths.len() <= STRIP);
    // SAFETY: the processor has the instructions.
    unsafe {
        match of.piece.groups {
            1 => products_of::<1, T>(of, out, special),
            2 => products_of::<2, T>(of, out, special),
            3 => products_of::<3, T>(of, out, special),
            _ => products_of::<4, T>(of, out, special),
        }
    }
}

/// The lanes of the sums of a row whose levels, made positive, fit into a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")]
fn row_products<const G: usize, const T: usize>(
    width: u8,
    fields: &[u8],
    position: &mut Position<G>,
    constants: Constants,
    x: &[Halves; T],
) -> [__m512i; T] {
    position.prefetch(fields);
    let cut = LoadedCut::new(width);
    let mut sums = [[_mm512_setzero_si512(); 2]; T];
    for group in 0..G {
        let bytes = group_fields(fields, position.offset, width, group);
        let levels = constants.levels(bytes, cut, &mut position.history[group]);
        for token in 0..T {
            let x = x[token].of_group(group);
            sums[token][0] = _mm512_dpbusd_epi32(sums[token][0], levels, x[0]);
            sums[token][1] = _mm512_dpbusd_epi32(sums[token][1], levels, x[1]);
        }
    }
    position.advance(width);
    let mut lanes = [_mm512_setzero_si512(); T];
    for token in 0..T {
        lanes[token] = joined_halves(sums[token]);
    }
    lanes
}

/// As [`row_products`], for fields of a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,gfni")]
fn byte_row<const G: usize, const T: usize>(
    fields: &[u8],
    position: &mut Position<G>,
    constants: Constants,
    x: &[Halves; T],
) -> [__m512i; T] {
    position.prefetch(fields);
    let width = BYTE + 1;
    // Of the doubled and of the single part of levels.
    let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; T];
    for group in 0..G {
        let bytes = group_fields(fields, position.offset, width, group);
        let levels = constants.byte_levels(bytes, &mut position.history[group]);
        for token in 0..T {
            let x = x[token].of_group(group);
            for half in 0..2 {
                let [doubled, single] = sums[token][half];
                sums[token][half] = [
                    _mm512_dpbusd_epi32(doubled, levels.doubled, x[half]),
                    _mm512_dpbusd_epi32(single, levels.single, x[half]),
                ];
            }
        }
    }
    position.advance(width);
    let whole = |[doubled, single]: [__m512i; 2]| {
        _mm512_add_epi32(single, _mm512_add_epi32(doubled, doubled))
    };
    let mut lanes = [_mm512_setzero_si512(); T];
    for token in 0..T {
        let [high, low] = sums[token];
        lanes[token] = joined_halves([whole(high), whole(low)]);
    }
    lanes
}

/// The lanes of the next rows, up to four, with fields of any width. The bits of the second result tell which of them are special:
/// `special` gets those that have fields.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")]
fn mixed_rows<const G: usize, const T: usize>(
    piece: Piece<'_>,
    position: &mut Position<G>,
    x: &[Halves; T],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) -> ([[__m512i; T]; 4], u16) {
    let (constants, fields) = (Constants::new(), piece.fields);
    let mut lanes = [[_mm512_setzero_si512(); T]; 4];
    let mut specials = 0;
    let widths = &piece.widths[position.row..];
    for (row, (lanes, &width)) in lanes.iter_mut().zip(widths).enumerate() {
        if is_special(width) {
            let number = position.row;
            let levels = position.decode_row(piece);
            if width != ZERO_ROW {
                special(number, &levels);
            }
            specials |= 1 << row;
        } else if width > BYTE {
            *lanes = byte_row(fields, position, constants, x);
        } else {
            *lanes = row_products(width, fields, position, constants, x);
        }
    }
    (lanes, specials)
}

/// See [`add_products`]; `G` groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni,gfni")]
fn products_of<const G: usize, const T: usize>(
    of: &Operands<'_, Halves, T>,
    out: &mut [[f32; STRIP]; T],
    special: &mut dyn FnMut(usize, &[i16; PANEL]),
) {
    let &Operands {
        piece,
        x,
        sums,
        scales,
    } = of;
    let (constants, fields) = (Constants::new(), piece.fields);
    let mut position = Position::<G>::first(piece);
    for (chunk, next) in piece.widths.chunks(CHUNK).enumerate() {
        let mut padded = [0; CHUNK];
        let widths = match next.first_chunk() {
            Some(widths) => widths,
            None => {
                padded[..next.len()].copy_from_slice(next);
                &padded
            }
        };
        let mut specials = 0u16;
        let mut quads = [[_mm512_setzero_si512(); CHUNK / 4]; T];
        for (quad, widths) in widths.as_chunks::<4>().0.iter().enumerate() {
            let lanes = if widths.iter().all(|width| width.wrapping_sub(1) < BYTE) {
                let [a, b, c, d] = *widths;
                [
                    row_products(a, fields, &mut position, constants, x),
                    row_products(b, fields, &mut position, constants, x),
                    row_products(c, fields, &mut position, constants, x),
                    row_products(d, fields, &mut position, constants, x),
                ]
            } else {
                let (lanes, found) = mixed_rows(piece, &mut position, x, special);
                specials |= found << (4 * quad);
                lanes
            };
            for token in 0..T {
                let [a, b, c, d] = &lanes;
                quads[token][quad] = quarters([a[token], b[token], c[token], d[token]]);
            }
        }
        for token in 0..T {
            let found = _mm512_sub_epi32(joined(quads[token]), x[token].excess(widths));
            let sums = load(part::<_, CHUNK>(&sums[token], chunk));
            let found = _mm512_maskz_add_epi32(!specials, found, sums);
            let scale = _mm512_set1_ps(scales[token]);
            let out = &mut out[token][chunk * CHUNK..][..CHUNK];
            // SAFETY: the slice has the length of a vector.
            unsafe {
                let before = _mm512_loadu_ps(out.as_ptr());
                let after = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(found), before);
                _mm512_storeu_ps(out.as_mut_ptr(), after);
            }
        }
    }
}

/// The sums whose parts are these, side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined(parts: [__m512i; CHUNK / 4]) -> __m512i {
    // Parts 0 and 1, and parts 2 and 3, of both.
    let halves = |a, b| {
        let (first, second) = (
            _mm512_shuffle_i64x2::<0x44>(a, b),
            _mm512_shuffle_i64x2::<0xee>(a, b),
        );
        _mm512_add_epi32(first, second)
    };
    let (a, b) = (halves(parts[0], parts[1]), halves(parts[2], parts[3]));
    _mm512_add_epi32(
        _mm512_shuffle_i64x2::<0x88>(a, b),
        _mm512_shuffle_i64x2::<0xdd>(a, b),
    )
}
