//! The decoder: checks the arguments, then decodes tiles in parallel with the widest kernel of this processor.
//!
//! Input is checked before it is used. Every pair of row and column logarithm must have a context with a table, so that the
//! kernels look up tables without further checks. Every read of words is checked against the end of the tile.

use super::lookup::{LogarithmSet, RowTables, TableLookup};
use super::{LANES, LOWEST_STATE};
use crate::contexts::{ESCAPE, LayerTables, PROBABILITY_BITS, check_log2_eighths};
use crate::error::{CodecError, check_matrix};
use rayon::prelude::*;

/// Largest number of bytes that one group can take: a word to restore each state, a byte and a word per escaped index.
pub(super) const GROUP_BYTES: usize = LARGEST_INDEX_BYTES * LANES;
/// Largest number of bytes that one index can take.
const LARGEST_INDEX_BYTES: usize = 5;

/// Decodes the indices [rows, cols] of a tensor, in parallel over its tiles.
///
/// # Errors
/// [`CodecError::Shape`] if the logarithms do not have the shape; [`CodecError::Damaged`] for anything that [`super::encode`]
/// cannot have written. Allocates the result and at most two bytes per column and distinct row logarithm, nothing whose size
/// the payload determines.
pub fn decode(
    rows: usize,
    cols: usize,
    row_log2_eighths: &[u8],
    column_log2_eighths: &[u8],
    tables: &LayerTables,
    tile_rows: u32,
    tile_offsets: &[u64],
    payload: &[u8],
) -> Result<Vec<i16>, CodecError> {
    check_log2_eighths(rows, cols, row_log2_eighths, column_log2_eighths)?;
    let tiles = tiles(rows, cols, tile_rows, tile_offsets, payload)?;
    if tiles.is_empty() {
        return Ok(Vec::new());
    }
    let occurring = LogarithmSet::of(row_log2_eighths);
    let lookup = TableLookup::new(&occurring, column_log2_eighths, tables)?;
    let count = rows.checked_mul(cols).ok_or(CodecError::Damaged {
        what: "shape",
        found: rows as u64,
        expected: "a product that fits the address space",
    })?;
    let mut q = vec![0i16; count];
    let tile_rows = tile_rows as usize;
    q.par_chunks_mut(tile_rows.saturating_mul(cols).min(count))
        .zip(row_log2_eighths.par_chunks(tile_rows))
        .zip(tiles)
        .try_for_each(|((q, row_log2_eighths), bytes)| {
            Tile {
                bytes,
                row_log2_eighths,
                lookup: &lookup,
            }
            .decode(widest_kernel(), q)
        })?;
    Ok(q)
}

/// Decodes one tile, [row_log2_eighths.len(), column_log2_eighths.len()], from its bytes and the logarithms of its rows.
///
/// # Errors
/// As [`decode`].
pub fn decode_tile(
    row_log2_eighths: &[u8],
    column_log2_eighths: &[u8],
    tables: &LayerTables,
    bytes: &[u8],
) -> Result<Vec<i16>, CodecError> {
    let offsets: &[u64] = if row_log2_eighths.is_empty() || column_log2_eighths.is_empty() {
        &[]
    } else {
        &[0]
    };
    let rows = row_log2_eighths.len();
    let tile_rows = u32::try_from(rows.max(1)).unwrap_or(u32::MAX);
    decode(
        rows,
        column_log2_eighths.len(),
        row_log2_eighths,
        column_log2_eighths,
        tables,
        tile_rows,
        offsets,
        bytes,
    )
}

/// The bytes of every tile.
fn tiles<'a>(
    rows: usize,
    cols: usize,
    tile_rows: u32,
    offsets: &[u64],
    payload: &'a [u8],
) -> Result<Vec<&'a [u8]>, CodecError> {
    let damaged = |what, found, expected| CodecError::Damaged {
        what,
        found,
        expected,
    };
    if tile_rows == 0 {
        return Err(damaged("tile rows", 0, "at least 1"));
    }
    let count = if cols == 0 {
        0
    } else {
        rows.div_ceil(tile_rows as usize)
    };
    if offsets.len() != count {
        return Err(damaged(
            "tile offsets",
            offsets.len() as u64,
            "one per tile",
        ));
    }
    if offsets.first().is_some_and(|&first| first != 0) || (count == 0 && !payload.is_empty()) {
        return Err(damaged(
            "tile offsets",
            offsets.first().copied().unwrap_or(0),
            "0 first",
        ));
    }
    let end = payload.len() as u64;
    let ends = offsets.iter().skip(1).copied().chain([end]);
    let tile = |(&start, end): (&u64, u64)| {
        let bytes = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        bytes
            .and_then(|(start, end)| payload.get(start..end))
            .ok_or(damaged(
                "tile offsets",
                start,
                "rising offsets inside the payload",
            ))
    };
    offsets.iter().zip(ends).map(tile).collect()
}

/// Decodes whole rows of a tile: the lookup, the cursor, the rows' logarithms, the indices [rows, cols].
pub(super) type RowKernel = fn(
    &TableLookup<'_>,
    &mut Cursor<'_>,
    &mut RowTables,
    &[u8],
    &mut [i16],
) -> Result<(), CodecError>;

/// The widest kernel of this processor.
fn widest_kernel() -> RowKernel {
    #[cfg(target_arch = "x86_64")]
    {
        if uc_simd::has_avx512() {
            return super::avx512::rows;
        }
        if uc_simd::has_avx2() {
            return super::avx2::rows;
        }
    }
    rows_portably
}

/// The kernel without special instructions: the reference.
pub(super) fn rows_portably(
    lookup: &TableLookup<'_>,
    cursor: &mut Cursor<'_>,
    scratch: &mut RowTables,
    row_log2_eighths: &[u8],
    q: &mut [i16],
) -> Result<(), CodecError> {
    let no_groups = |_: &mut Cursor<'_>, _: &[u8], _: &[u8], _: &mut [i16]| Ok(0);
    decode_rows(lookup, cursor, scratch, row_log2_eighths, q, no_groups)
}

/// Decodes rows group by group. `whole_groups(cursor, number, shift, q)` decodes complete groups from the left of a row with the
/// instructions of its kernel, and returns how many; the portable code decodes the others.
#[inline(always)]
pub(super) fn decode_rows(
    lookup: &TableLookup<'_>,
    cursor: &mut Cursor<'_>,
    scratch: &mut RowTables,
    row_log2_eighths: &[u8],
    q: &mut [i16],
    mut whole_groups: impl FnMut(&mut Cursor<'_>, &[u8], &[u8], &mut [i16]) -> Result<usize, CodecError>,
) -> Result<(), CodecError> {
    let cols = lookup.cols();
    let entries = &lookup.tables.entries;
    for (q, &row_log2_eighths) in q.chunks_mut(cols).zip(row_log2_eighths) {
        let (number, shift) = lookup.row(row_log2_eighths, scratch);
        let done = whole_groups(cursor, number, shift, q)?;
        for first in (done * LANES..cols).step_by(LANES) {
            let columns = first..cols.min(first + LANES);
            let shift = shift.get(columns.clone()).unwrap_or(&[]);
            cursor.group(entries, &number[columns.clone()], shift, &mut q[columns])?;
        }
    }
    Ok(())
}

/// Decodes a tensor in pieces of whole rows, so that memory depends neither on the size of the tensor nor on that of a tile.
/// Begins every tile with [`PieceDecoder::begin`] and ends it with [`PieceDecoder::finish`].
pub struct PieceDecoder<'a> {
    lookup: TableLookup<'a>,
    occurring: LogarithmSet,
    scratch: RowTables,
    kernel: RowKernel,
    states: [u32; LANES],
}

impl<'a> PieceDecoder<'a> {
    /// Prepares to decode a tensor with these row and column logarithms.
    ///
    /// # Errors
    /// [`CodecError::Damaged`] for a pair of logarithms whose context has no table.
    pub fn new(
        occurring: LogarithmSet,
        column_log2_eighths: &'a [u8],
        tables: &'a LayerTables,
    ) -> Result<Self, CodecError> {
        Ok(PieceDecoder {
            lookup: TableLookup::new(&occurring, column_log2_eighths, tables)?,
            occurring,
            scratch: RowTables::default(),
            kernel: widest_kernel(),
            states: [LOWEST_STATE; LANES],
        })
    }

    /// Largest number of bytes that `rows` rows can take: a word to restore a state, a byte and a word for an escape.
    pub fn largest_rows(&self, rows: usize) -> usize {
        rows * self.lookup.cols() * LARGEST_INDEX_BYTES
    }

    /// Reads the states with which a tile begins; returns the number of bytes they take.
    ///
    /// # Errors
    /// [`CodecError::Damaged`].
    pub fn begin(&mut self, bytes: &[u8]) -> Result<usize, CodecError> {
        let cursor = Cursor::begin(bytes, self.lookup.cols())?;
        self.states = cursor.states;
        Ok(cursor.position)
    }

    /// Decodes the next rows, as many as there are logarithms, into `q` [rows, cols]; returns the number of bytes they took.
    /// `bytes` follow those that the previous call took. They must reach the end of the tile or hold
    /// [`PieceDecoder::largest_rows`] bytes.
    ///
    /// # Errors
    /// [`CodecError::Shape`], and [`CodecError::Damaged`] for bytes that no encoder can have written.
    pub fn rows(
        &mut self,
        bytes: &[u8],
        row_log2_eighths: &[u8],
        q: &mut [i16],
    ) -> Result<usize, CodecError> {
        check_matrix(
            "indices",
            q.len(),
            row_log2_eighths.len(),
            self.lookup.cols(),
        )?;
        let other = |log: &&u8| !self.occurring.contains(**log);
        if let Some(log) = row_log2_eighths.iter().find(other) {
            let (what, expected) = ("row logarithm", "one of those given before");
            let found = u64::from(*log);
            return Err(CodecError::Damaged {
                what,
                found,
                expected,
            });
        }
        let (position, states) = (0, self.states);
        let mut cursor = Cursor {
            bytes,
            position,
            states,
        };
        let scratch = &mut self.scratch;
        (self.kernel)(&self.lookup, &mut cursor, scratch, row_log2_eighths, q)?;
        self.states = cursor.states;
        Ok(cursor.position)
    }

    /// Checks the end of a tile: `rest` bytes are left, and every state is the one with which the encoder began.
    ///
    /// # Errors
    /// [`CodecError::Damaged`].
    pub fn finish(&self, rest: u64) -> Result<(), CodecError> {
        check_end(rest, &self.states)
    }
}

/// A tile to decode.
pub(super) struct Tile<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) row_log2_eighths: &'a [u8],
    pub(super) lookup: &'a TableLookup<'a>,
}

/// The state of the decoder in a tile.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) position: usize,
    pub(super) states: [u32; LANES],
}

impl Tile<'_> {
    /// Decodes into `q` [row_log2_eighths.len(), cols].
    pub(super) fn decode(&self, kernel: RowKernel, q: &mut [i16]) -> Result<(), CodecError> {
        let mut cursor = Cursor::begin(self.bytes, self.lookup.cols())?;
        let mut scratch = RowTables::default();
        kernel(
            self.lookup,
            &mut cursor,
            &mut scratch,
            self.row_log2_eighths,
            q,
        )?;
        let rest = (cursor.bytes.len() - cursor.position) as u64;
        check_end(rest, &cursor.states)
    }
}

/// Checks that all bytes of a tile are used and that every state is the one with which the encoder began.
fn check_end(rest: u64, states: &[u32; LANES]) -> Result<(), CodecError> {
    if rest != 0 {
        let expected = "no bytes after the last index";
        return Err(CodecError::Damaged {
            what: "end of a tile",
            found: rest,
            expected,
        });
    }
    match states.iter().find(|&&state| state != LOWEST_STATE) {
        None => Ok(()),
        Some(&state) => Err(CodecError::Damaged {
            what: "last state of a tile",
            found: u64::from(state),
            expected: "65536",
        }),
    }
}

impl<'a> Cursor<'a> {
    /// Reads the initial states of a tile of `cols` columns.
    fn begin(bytes: &'a [u8], cols: usize) -> Result<Self, CodecError> {
        let lanes = cols.min(LANES);
        let length = bytes.len() as u64;
        if bytes.len() < 4 * lanes {
            let expected = "its states";
            return Err(CodecError::Damaged {
                what: "length of a tile",
                found: length,
                expected,
            });
        }
        let mut states = [LOWEST_STATE; LANES];
        for (state, bytes) in states[..lanes].iter_mut().zip(bytes.chunks_exact(4)) {
            *state = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if *state < LOWEST_STATE {
                let (what, found) = ("state of a tile", u64::from(*state));
                return Err(CodecError::Damaged {
                    what,
                    found,
                    expected: "at least 65536",
                });
            }
        }
        Ok(Cursor {
            bytes,
            position: 4 * lanes,
            states,
        })
    }
}

impl Cursor<'_> {
    /// Decodes a group of `out.len()` columns (at most 32) with the tables `number` and their
    /// `shift` (empty if all are 0).
    #[inline(always)]
    pub(super) fn group(
        &mut self,
        entries: &[u32],
        number: &[u8],
        shift: &[u8],
        out: &mut [i16],
    ) -> Result<(), CodecError> {
        let escapes = match self.bytes.get(self.position..self.position + GROUP_BYTES) {
            Some(window) => {
                let window = window.try_into().expect("a window of this length");
                self.symbols(entries, number, shift, out, Window(window))
            }
            None => {
                let rest = self.bytes.get(self.position..).unwrap_or(&[]);
                self.symbols(entries, number, shift, out, Checked(rest))
            }
        };
        if self.position > self.bytes.len() {
            return Err(self.truncated());
        }
        if escapes == 0 {
            Ok(())
        } else {
            self.escapes(escapes, shift, out)
        }
    }

    /// Steps 1 and 2; returns the lanes whose symbol is an escape. May move the position beyond the end.
    #[inline(always)]
    fn symbols<W: Words>(
        &mut self,
        entries: &[u32],
        number: &[u8],
        shift: &[u8],
        out: &mut [i16],
        words: W,
    ) -> u32 {
        let mask = (1u32 << PROBABILITY_BITS) - 1;
        let (mut taken, mut escapes) = (0usize, 0u32);
        for (lane, ((out, &number), x)) in
            out.iter_mut().zip(number).zip(&mut self.states).enumerate()
        {
            let shift = shift.get(lane).map_or(0, |&shift| u32::from(shift));
            let at = usize::from(number) << PROBABILITY_BITS | ((*x >> shift) & mask) as usize;
            let entry = entries[at];
            let symbol = entry as i32 >> 24;
            let raw = (*x & ((1 << shift) - 1)) as i32;
            *out = ((symbol << shift) + raw - ((1 << shift) >> 1)) as i16;
            escapes |= u32::from(symbol == ESCAPE) << lane;
            let next = ((entry & mask) + 1) * (*x >> (shift + PROBABILITY_BITS))
                + ((entry >> PROBABILITY_BITS) & mask);
            let restore = next < LOWEST_STATE;
            let word = u32::from(words.at(taken));
            *x = if restore { next << 16 | word } else { next };
            taken += usize::from(restore);
        }
        self.position += 2 * taken;
        escapes
    }

    /// Step 3: the symbols of the lanes in `escapes` are the next bytes.
    #[cold]
    pub(super) fn escapes(
        &mut self,
        mut escapes: u32,
        shift: &[u8],
        out: &mut [i16],
    ) -> Result<(), CodecError> {
        while escapes != 0 {
            let lane = escapes.trailing_zeros() as usize;
            let [symbol] = self.take()?;
            let symbol = i32::from(symbol as i8);
            out[lane] = if symbol == ESCAPE {
                i16::from_le_bytes(self.take()?)
            } else {
                let shift = shift.get(lane).copied().unwrap_or(0);
                out[lane] + ((symbol - ESCAPE) << shift) as i16
            };
            escapes &= escapes - 1;
        }
        Ok(())
    }

    /// The next `N` bytes.
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let bytes = self
            .bytes
            .get(self.position..)
            .and_then(|rest| rest.first_chunk());
        let bytes = *bytes.ok_or_else(|| self.truncated())?;
        self.position += N;
        Ok(bytes)
    }

    fn truncated(&self) -> CodecError {
        let (what, found) = ("tile", self.bytes.len() as u64);
        CodecError::Damaged {
            what,
            found,
            expected: "more bytes",
        }
    }
}

/// The words that follow the position.
trait Words {
    /// Word `i`, or 0 beyond the end.
    fn at(&self, i: usize) -> u16;
}

/// Enough words for any group: words need no check.
struct Window<'a>(&'a [u8; GROUP_BYTES]);

/// Possibly fewer words than a group takes.
struct Checked<'a>(&'a [u8]);

impl Words for Window<'_> {
    #[inline(always)]
    fn at(&self, i: usize) -> u16 {
        // At most one word per lane, so the mask never changes i; it makes the bounds check unnecessary.
        let i = 2 * (i & (LANES - 1));
        u16::from_le_bytes([self.0[i], self.0[i + 1]])
    }
}

impl Words for Checked<'_> {
    #[inline(always)]
    fn at(&self, i: usize) -> u16 {
        self.0
            .get(2 * i..2 * i + 2)
            .map_or(0, |word| u16::from_le_bytes([word[0], word[1]]))
    }
}
