//! Decodes rows to levels of 16 bits.
//!
//! Safety: as in the module above.

use std::arch::x86_64::*;

use super::{
    BYTE, ByteLevels, Constants, LoadedCut, Position, group_bytes, group_fields, is_available, load,
};
use crate::integer::Missing;
use crate::packed::{Cursor, GROUP, NARROW, PANEL, Piece, WIDTHS, ZERO_ROW};

/// How wide fields are cut out of their bytes: those of 32 columns, four to a 64-bit lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct WideCut {
    /// For each byte of a vector, the byte of the fields that comes there.
    gather: [u8; GROUP],
    /// For each byte of the 16-bit integers, the offset of its bits in its 64-bit lane.
    shift: [u8; GROUP],
}

/// For each width above [`NARROW`].
static WIDE_CUTS: [WideCut; *WIDTHS.end() as usize + 1] = {
    let mut cuts = [WideCut {
        gather: [0; GROUP],
        shift: [0; GROUP],
    }; *WIDTHS.end() as usize + 1];
    let mut width = NARROW as usize + 1;
    while width < cuts.len() {
        let mut byte = 0;
        while byte < GROUP {
            // Four fields of at most 15 bits, which begin at bit 0 or 4, fit into a lane.
            let first = byte / 8 * 4 * width;
            cuts[width].gather[byte] = (first / 8 + byte % 8) as u8;
            let shift = first % 8 + byte % 8 / 2 * width + byte % 2 * 8;
            cuts[width].shift[byte] = (shift % 64) as u8;
            byte += 1;
        }
        width += 1;
    }
    cuts
};

/// Decodes the next rows, see [`crate::integer::decode`].
pub(crate) fn decode(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    assert!(is_available());
    // SAFETY: the processor has the instructions.
    unsafe { decode_rows(cursor, levels, wide) }
}

impl Constants {
    /// As [`Constants::levels`], for the fields of the two halves of a group, wider than [`NARROW`]: integers of 16 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn wide_levels(self, halves: [__m512i; 2], width: u8, history: &mut __m512i) -> [__m512i; 2] {
        let cut = &WIDE_CUTS[usize::from(width)];
        let (gather, shift) = (load(&cut.gather), load(&cut.shift));
        let mask = _mm512_set1_epi16((1 << width) - 1);
        let fields = halves.map(|bytes| {
            let lanes = _mm512_permutexvar_epi8(gather, bytes);
            _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, lanes), mask)
        });
        let terms = _mm512_gf2p8affine_epi64_epi8::<0>(*history, self.feedforward);
        let [lower, upper] = fields.map(|fields| _mm512_cvtepi16_epi8(fields));
        let lowest = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper);
        *history = self.next(*history, _mm512_add_epi8(lowest, lowest));
        let terms = widened(terms);
        [0, 1].map(|half| _mm512_xor_si512(_mm512_slli_epi16::<1>(fields[half]), terms[half]))
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
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
fn decode_rows(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    let widths = &cursor.widths[cursor.row..][..levels.len()];
    for (row, width) in widths.iter().enumerate() {
        *wide |= u64::from(u32::from(*width) > NARROW) << row;
    }
    match cursor.groups {
        1 => decode_groups::<1>(cursor, levels),
        2 => decode_groups::<2>(cursor, levels),
        3 => decode_groups::<3>(cursor, levels),
        _ => decode_groups::<4>(cursor, levels),
    }
}

impl<const G: usize> Position<G> {
    /// The levels of the next row of a piece, whatever its width.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    pub(super) fn decode_row(&mut self, piece: Piece<'_>) -> [i16; PANEL] {
        let mut levels = [[0; PANEL]];
        let mut cursor = piece.cursor();
        self.save(&mut cursor);
        decode_groups::<G>(&mut cursor, &mut levels);
        *self = Position::of(&cursor);
        levels[0]
    }
}

/// The levels of the next rows; `G` groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
fn decode_groups<const G: usize>(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]]) {
    let constants = Constants::new();
    let (widths, fields) = (&cursor.widths[cursor.row..], cursor.fields);
    let mut position = Position::<G>::of(cursor);
    for (levels, &width) in levels.iter_mut().zip(widths) {
        position.prefetch(fields);
        let groups = levels.as_chunks_mut::<GROUP>().0.iter_mut();
        let groups = groups.zip(&mut position.history).enumerate();
        if width == ZERO_ROW {
            levels.fill(0);
        } else if width <= BYTE {
            let cut = LoadedCut::new(width);
            for (group, (levels, history)) in groups {
                let bytes = group_fields(fields, position.offset, width, group);
                store(
                    widened(constants.levels(bytes, cut, history)),
                    width,
                    levels,
                );
            }
        } else {
            for (group, (levels, history)) in groups {
                let bytes = group_fields(fields, position.offset, width, group);
                let found = if u32::from(width) > NARROW {
                    let half = position.offset + group_bytes(width) / 2;
                    let upper = group_fields(fields, half, width, group);
                    constants.wide_levels([bytes, upper], width, history)
                } else {
                    let found = constants.byte_levels(bytes, history);
                    let [doubled, single] = [widened(found.doubled), widened(found.single)];
                    let doubled = doubled.map(|doubled| _mm512_slli_epi16::<1>(doubled));
                    [0, 1].map(|half| _mm512_or_si512(doubled[half], single[half]))
                };
                store(found, width, levels);
            }
        }
        position.advance(width);
    }
    position.save(cursor);
}

/// Decodes the rows of a piece to bytes: the lowest byte of each level, as a signed number. The high bytes of levels with fields of
/// [`NARROW`] bits go to `missing`, the levels of rows with wider fields to `wide`; for these the bytes are 0.
pub(crate) fn decode_bytes(
    piece: Piece<'_>,
    bytes: &mut [[i8; PANEL]],
    missing: &mut Vec<Missing>,
    wide: &mut Vec<(usize, [i16; PANEL])>,
) {
    assert!(is_available() && bytes.len() >= piece.widths.len());
    // SAFETY: the processor has the instructions.
    unsafe {
        match piece.groups {
            1 => bytes_of_groups::<1>(piece, bytes, missing, wide),
            2 => bytes_of_groups::<2>(piece, bytes, missing, wide),
            3 => bytes_of_groups::<3>(piece, bytes, missing, wide),
            _ => bytes_of_groups::<4>(piece, bytes, missing, wide),
        }
    }
}

/// See [`decode_bytes`]; `G` groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
fn bytes_of_groups<const G: usize>(
    piece: Piece<'_>,
    bytes: &mut [[i8; PANEL]],
    missing: &mut Vec<Missing>,
    wide: &mut Vec<(usize, [i16; PANEL])>,
) {
    let (constants, fields) = (Constants::new(), piece.fields);
    let mut position = Position::<G>::first(piece);
    for (row, (bytes, &width)) in bytes.iter_mut().zip(piece.widths).enumerate() {
        if width == ZERO_ROW {
            bytes.fill(0);
            position.advance(width);
            continue;
        }
        if u32::from(width) > NARROW {
            bytes.fill(0);
            wide.push((row, position.decode_row(piece)));
            continue;
        }
        position.prefetch(fields);
        let groups = bytes.as_chunks_mut::<GROUP>().0.iter_mut();
        let groups = groups.zip(&mut position.history).enumerate();
        if width <= BYTE {
            let cut = LoadedCut::new(width);
            let bias = _mm512_set1_epi8((1u8 << width) as i8);
            for (group, (bytes, history)) in groups {
                let fields = group_fields(fields, position.offset, width, group);
                let levels = constants.levels(fields, cut, history);
                // SAFETY: the array has the length of a vector.
                unsafe {
                    let levels = _mm512_sub_epi8(levels, bias);
                    _mm512_storeu_si512(bytes.as_mut_ptr().cast(), levels);
                }
            }
        } else {
            for (group, (bytes, history)) in groups {
                let fields = group_fields(fields, position.offset, width, group);
                let ByteLevels { doubled, single } = constants.byte_levels(fields, history);
                let low = _mm512_or_si512(_mm512_add_epi8(doubled, doubled), single);
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), low) };
                // The level, made positive by 256, has nine bits.
                let [ninth, eighth] = [doubled, low].map(|bits| _mm512_movepi8_mask(bits));
                for (of, difference) in [(ninth & eighth, 256), (!ninth & !eighth, -256)] {
                    let columns = (0..GROUP).filter(|column| of >> column & 1 == 1);
                    missing.extend(columns.map(|column| Missing {
                        row,
                        column: group * GROUP + column,
                        difference,
                    }));
                }
            }
        }
        position.advance(width);
    }
}

/// Writes levels that were made positive.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store(positive: [__m512i; 2], width: u8, levels: &mut [i16; GROUP]) {
    // For the widest fields it wraps, and so does the difference.
    let bias = _mm512_set1_epi16(1i16.wrapping_shl(width.into()));
    let halves = levels.as_chunks_mut::<32>().0.iter_mut();
    for (positive, levels) in positive.into_iter().zip(halves) {
        let found = _mm512_sub_epi16(positive, bias);
        // SAFETY: the array has the length of a vector.
        unsafe { _mm512_storeu_si512(levels.as_mut_ptr().cast(), found) };
    }
}
