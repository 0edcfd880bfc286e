//! The encoder: tiles in parallel, each from its last index to its first.

use super::{EncodedTensor, LANES, LOWEST_STATE, tile_rows};
use crate::code::TensorCode;
use crate::contexts::{
    ESCAPE, FINE_CONTEXTS, LARGEST_SYMBOL, LayerTables, PROBABILITY_BITS, fine_context,
};
use crate::contexts::{symbol_index, symbol_of};
use crate::error::{CodecError, check_matrix};
use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

/// The tables of a layer in the form that the encoder reads.
struct EncodeTables {
    /// `[FINE_CONTEXTS]`
    places: [Place; FINE_CONTEXTS],
    /// By table and index: `frequency | first slot << 16` of the index's symbol; 0 if it has no code.
    codes: Vec<u32>,
    /// By fine context: the same of the escape.
    escapes: [u32; FINE_CONTEXTS],
}

/// Where the codes of a fine context are.
#[derive(Clone, Copy)]
struct Place {
    /// Position of the first code: that of the index `−centre`.
    start: u32,
    centre: i32,
    /// Number of the last code. It is 0, for all indices that no symbol stands for.
    last: u32,
    /// Raw bits per index.
    shift: u32,
}

impl EncodeTables {
    fn new(tables: &LayerTables) -> Self {
        // A single code, 0, for contexts without a table.
        let mut codes = vec![0];
        let nowhere = Place {
            start: 0,
            centre: 0,
            last: 0,
            shift: 0,
        };
        let (mut places, mut escapes) = ([nowhere; FINE_CONTEXTS], [0; FINE_CONTEXTS]);
        let width = 1 << tables.granularity();
        let contexts = places.chunks_mut(width).zip(escapes.chunks_mut(width));
        for (context, (places, escapes)) in contexts.enumerate() {
            let Some(table) = tables.table(context) else {
                continue;
            };
            let firsts = table.first_slots();
            let code = |symbol: i32| match table.frequency_of(symbol) {
                0 => 0,
                frequency => frequency | u32::from(firsts[symbol_index(symbol)]) << 16,
            };
            let centre = -ESCAPE << table.shift;
            places.fill(Place {
                start: codes.len() as u32,
                centre,
                last: 2 * centre as u32,
                shift: table.shift,
            });
            escapes.fill(code(ESCAPE));
            codes.extend((-centre..=centre).map(|index| {
                let symbol = symbol_of(index, table.shift);
                match symbol.abs() <= LARGEST_SYMBOL {
                    true => code(symbol),
                    false => 0,
                }
            }));
        }
        EncodeTables {
            places,
            codes,
            escapes,
        }
    }
}

/// Encodes tiles with the tables of a layer.
pub struct TileEncoder {
    tables: EncodeTables,
    granularity: u32,
}

impl TileEncoder {
    /// An encoder for the tiles of a layer.
    pub fn new(tables: &LayerTables) -> Self {
        TileEncoder {
            tables: EncodeTables::new(tables),
            granularity: tables.granularity(),
        }
    }

    /// The bytes of a tile with the indices `q` [rows, cols], at least one of each; on the calling thread.
    ///
    /// # Errors
    /// [`CodecError::Shape`]; [`CodecError::NoCode`] if the tables were built from other tensors.
    pub fn encode(
        &self,
        q: &[i16],
        row_log2_eighths: &[u8],
        column_log2_eighths: &[u8],
    ) -> Result<Vec<u8>, CodecError> {
        let (rows, cols) = (row_log2_eighths.len(), column_log2_eighths.len());
        check_matrix("indices", q.len(), rows, cols)?;
        let encoded = dispatch(EncodeTile {
            q,
            row_log2_eighths,
            column_log2_eighths,
            tables: &self.tables,
        });
        encoded.map_err(|NoCode { fine, value }| CodecError::NoCode {
            context: fine >> self.granularity,
            value,
        })
    }
}

/// Encodes the indices of a tensor with the tables of its layer.
///
/// # Errors
/// [`CodecError::Shape`] and [`CodecError::Range`] from [`TensorCode::validate`];
/// [`CodecError::NoCode`] if the tables were built from other tensors.
pub fn encode(code: &TensorCode, tables: &LayerTables) -> Result<EncodedTensor, CodecError> {
    code.validate()?;
    let rows = tile_rows(code.rows, code.cols);
    let mut encoded = EncodedTensor {
        tile_rows: rows,
        tile_offsets: vec![],
        payload: vec![],
    };
    if code.q.is_empty() {
        return Ok(encoded);
    }
    let encoder = TileEncoder::new(tables);
    let rows = rows as usize;
    let tiles = code
        .q
        .par_chunks(rows * code.cols)
        .zip(code.row_log2_eighths.par_chunks(rows))
        .map(|(q, row_log2_eighths)| encoder.encode(q, row_log2_eighths, &code.column_log2_eighths))
        .collect::<Result<Vec<_>, _>>()?;
    encoded.payload = Vec::with_capacity(tiles.iter().map(Vec::len).sum());
    for tile in tiles {
        encoded.tile_offsets.push(encoded.payload.len() as u64);
        encoded.payload.extend(tile);
    }
    Ok(encoded)
}

/// An index without a code in the table of its fine context.
struct NoCode {
    fine: usize,
    value: i16,
}

/// One tile.
struct EncodeTile<'a> {
    /// [rows, columns]
    q: &'a [i16],
    /// `[rows]`
    row_log2_eighths: &'a [u8],
    /// `[columns]`
    column_log2_eighths: &'a [u8],
    tables: &'a EncodeTables,
}

impl Kernel for EncodeTile<'_> {
    type Output = Result<Vec<u8>, NoCode>;

    #[inline(always)]
    fn run(self) -> Result<Vec<u8>, NoCode> {
        let cols = self.column_log2_eighths.len();
        let mut states = [LOWEST_STATE; LANES];
        let groups = self.row_log2_eighths.len() * cols.div_ceil(LANES);
        let mut out = Backwards::new(groups * GROUP_BYTES);
        let rows = self.q.chunks(cols).zip(self.row_log2_eighths);
        for (q, &row_log2_eighths) in rows.rev() {
            let columns = self.column_log2_eighths.chunks(LANES);
            for (q, column_log2_eighths) in q.chunks(LANES).zip(columns).rev() {
                let (row, columns) = (row_log2_eighths, column_log2_eighths);
                let group = Group::new(q, row, columns, self.tables, &mut out)?;
                group.put_symbols(q.len(), &mut states, &mut out);
            }
        }
        let states = &states[..cols.min(LANES)];
        let words = out.written();
        let mut bytes = Vec::with_capacity(4 * states.len() + words.len());
        states
            .iter()
            .for_each(|state| bytes.extend(state.to_le_bytes()));
        bytes.extend(words);
        Ok(bytes)
    }
}

/// Most bytes of a group: a word for every lane, and three bytes if its index is escaped.
const GROUP_BYTES: usize = 5 * LANES;

/// Bytes that are written from the last to the first.
struct Backwards {
    bytes: Vec<u8>,
    /// Where the bytes written so far begin.
    start: usize,
}

impl Backwards {
    fn new(most: usize) -> Self {
        // A word may be tried before the first byte, see `put_words`.
        let bytes = vec![0; most + 2];
        Backwards {
            start: bytes.len(),
            bytes,
        }
    }

    /// Puts the words of the lanes in use for which `full` holds, from the last to the first; without a branch on it, as nothing
    /// predicts it.
    #[inline(always)]
    fn put_words(&mut self, words: &[u16], full: &[bool; LANES]) {
        let mut start = self.start;
        for (word, full) in words.iter().zip(full).rev() {
            self.bytes[start - 2..start].copy_from_slice(&word.to_le_bytes());
            start -= 2 * usize::from(*full);
        }
        self.start = start;
    }

    fn put_byte(&mut self, byte: u8) {
        self.start -= 1;
        self.bytes[self.start] = byte;
    }

    fn written(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// What the lanes of a group encode.
struct Group {
    /// `frequency | first slot << 16` of each lane's symbol.
    codes: [u32; LANES],
    /// Raw bits, and their number.
    raw: [u32; LANES],
    shifts: [u32; LANES],
}

impl Group {
    /// Looks up the codes of `q` [at most LANES], and puts the bytes of those that are escaped.
    #[inline(always)]
    fn new(
        q: &[i16],
        row_log2_eighths: u8,
        column_log2_eighths: &[u8],
        tables: &EncodeTables,
        out: &mut Backwards,
    ) -> Result<Self, NoCode> {
        let mut group = Group {
            // Lanes that are not in use encode a symbol that leaves any state as it is.
            codes: [1 << PROBABILITY_BITS; LANES],
            raw: [0; LANES],
            shifts: [0; LANES],
        };
        let (mut indices, mut contexts) = ([0; LANES], [0; LANES]);
        for (index, &q) in indices.iter_mut().zip(q) {
            *index = i32::from(q);
        }
        for (context, &column) in contexts.iter_mut().zip(column_log2_eighths) {
            *context = fine_context(row_log2_eighths, column);
        }
        for lane in 0..q.len().min(LANES) {
            let place = tables.places[contexts[lane] % FINE_CONTEXTS];
            // An index below the first one wraps to a large number.
            let at = ((indices[lane] + place.centre) as u32).min(place.last);
            group.codes[lane] = tables.codes[(place.start + at) as usize];
            group.shifts[lane] = place.shift;
        }
        for (raw, (index, shift)) in group.raw.iter_mut().zip(indices.iter().zip(group.shifts)) {
            *raw = (index + ((1 << shift) >> 1)) as u32 & ((1 << shift) - 1);
        }
        if group
            .codes
            .iter()
            .fold(u32::MAX, |least, &code| least.min(code))
            == 0
        {
            group.escape(q, &contexts, tables, out)?;
        }
        Ok(group)
    }

    /// Replaces the codes that are missing by those of the escape, and puts the bytes that follow it.
    #[cold]
    fn escape(
        &mut self,
        q: &[i16],
        contexts: &[usize; LANES],
        tables: &EncodeTables,
        out: &mut Backwards,
    ) -> Result<(), NoCode> {
        for (lane, &value) in q.iter().enumerate().rev() {
            if self.codes[lane] != 0 {
                continue;
            }
            let fine = contexts[lane];
            self.codes[lane] = tables.escapes[fine];
            if self.codes[lane] == 0 {
                return Err(NoCode { fine, value });
            }
            let symbol = symbol_of(i32::from(value), self.shifts[lane]);
            if symbol.abs() <= LARGEST_SYMBOL {
                out.put_byte(symbol as u8);
            } else {
                let [low, high] = value.to_le_bytes();
                for byte in [high, low, ESCAPE as u8] {
                    out.put_byte(byte);
                }
                self.raw[lane] = 0;
            }
        }
        Ok(())
    }

    /// Puts the words that the symbols push out of the states of `lanes` lanes, from the last to the first.
    #[inline(always)]
    fn put_symbols(&self, lanes: usize, states: &mut [u32; LANES], out: &mut Backwards) {
        let (mut words, mut full) = ([0; LANES], [false; LANES]);
        for lane in 0..LANES {
            let (frequency, first) = (self.codes[lane] & 0xffff, self.codes[lane] >> 16);
            let (x, shift) = (states[lane], self.shifts[lane]);
            words[lane] = x as u16;
            // The state after this symbol must fit 32 bits.
            full[lane] = x >> (32 - PROBABILITY_BITS - shift) >= frequency;
            let x = if full[lane] { x >> 16 } else { x };
            let quotient = floor(f64::from(x) / f64::from(frequency));
            let slot = x - quotient * frequency + first;
            states[lane] = (quotient << PROBABILITY_BITS | slot) << shift | self.raw[lane];
        }
        out.put_words(&words[..lanes.min(LANES)], &full);
    }
}

/// The whole part of a number from 1 to 2^20 whose fraction is a multiple of 1 / frequency, a frequency being at most 4096. In this
/// form it is computed in vectors.
#[inline(always)]
fn floor(quotient: f64) -> u32 {
    /// Sums of this size have no fraction, and end with the bits of the number that was added.
    const WHOLE: f64 = (1u64 << 52) as f64;
    // Rounded to the nearest, and no fraction is at the middle.
    let lowered = quotient - 0.5 + 1.0 / 16384.0;
    (lowered + WHOLE).to_bits() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_rounded_down() {
        for frequency in 1..=4096u32 {
            for quotient in [1, 2, 1023, 524_287, 524_288, (1 << 20) - 1] {
                let least = quotient * frequency;
                for x in [least, least + frequency / 2, least + frequency - 1] {
                    let found = floor(f64::from(x) / f64::from(frequency));
                    assert_eq!(found, x / frequency, "{x} / {frequency}");
                }
            }
        }
    }
}
