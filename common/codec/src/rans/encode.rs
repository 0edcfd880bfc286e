//! The encoder: tiles in parallel, each from its last index to its first.

use super::{EncodedTensor, LANES, LOWEST_STATE, tile_rows};
use crate::code::TensorCode;
use crate::contexts::{
    ContextTable, ESCAPE, FINE_CONTEXTS, LayerTables, PROBABILITY_BITS, fine_context,
};
use crate::contexts::{symbol_index, symbol_of};
use crate::error::CodecError;
use rayon::prelude::*;

/// The table of a context in the form that the encoder reads.
struct EncodeTable {
    shift: u32,
    /// `[256]` `frequency | first slot << 16`; 0 if the symbol has no code.
    symbols: Vec<u32>,
}

impl EncodeTable {
    fn new(table: &ContextTable) -> Self {
        let starts = table.first_slots();
        let symbols = table
            .frequencies
            .iter()
            .zip(starts)
            .map(|(&frequency, start)| {
                if frequency == 0 {
                    0
                } else {
                    u32::from(frequency) | u32::from(start) << 16
                }
            });
        EncodeTable {
            shift: table.shift,
            symbols: symbols.collect(),
        }
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
    let fine: Vec<Option<EncodeTable>> = (0..FINE_CONTEXTS)
        .map(|fine| {
            tables
                .table(fine >> tables.granularity())
                .map(EncodeTable::new)
        })
        .collect();
    let rows = rows as usize;
    let tiles = code
        .q
        .par_chunks(rows * code.cols)
        .zip(code.row_log2_eighths.par_chunks(rows))
        .map(|(q, row_log2_eighths)| {
            encode_tile(q, row_log2_eighths, &code.column_log2_eighths, &fine)
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|(fine, value)| CodecError::NoCode {
            context: fine >> tables.granularity(),
            value,
        })?;
    for tile in tiles {
        encoded.tile_offsets.push(encoded.payload.len() as u64);
        encoded.payload.extend(tile);
    }
    Ok(encoded)
}

/// Encodes one tile. The error is the fine context and the index that have no code.
fn encode_tile(
    q: &[i16],
    row_log2_eighths: &[u8],
    column_log2_eighths: &[u8],
    fine: &[Option<EncodeTable>],
) -> Result<Vec<u8>, (usize, i16)> {
    let cols = column_log2_eighths.len();
    let mut states = [LOWEST_STATE; LANES];
    let mut backwards = Vec::with_capacity(q.len());
    for (q, &row_log2_eighths) in q.chunks(cols).zip(row_log2_eighths).rev() {
        for (q, column_log2_eighths) in q.chunks(LANES).zip(column_log2_eighths.chunks(LANES)).rev()
        {
            encode_group(
                q,
                row_log2_eighths,
                column_log2_eighths,
                fine,
                &mut states,
                &mut backwards,
            )?;
        }
    }
    let states = &states[..cols.min(LANES)];
    let mut bytes = Vec::with_capacity(4 * states.len() + backwards.len());
    states
        .iter()
        .for_each(|state| bytes.extend(state.to_le_bytes()));
    bytes.extend(backwards.iter().rev());
    Ok(bytes)
}

/// Encodes one group from its last lane to its first: first the bytes of escapes, then the symbols. `backwards` holds the bytes
/// of the tile in reverse order.
#[inline(always)]
fn encode_group(
    q: &[i16],
    row_log2_eighths: u8,
    column_log2_eighths: &[u8],
    fine: &[Option<EncodeTable>],
    states: &mut [u32; LANES],
    backwards: &mut Vec<u8>,
) -> Result<(), (usize, i16)> {
    let mut steps = [(0u32, 0u32, 0u32); LANES]; // frequency and first slot, raw bits, shift
    for lane in (0..q.len()).rev() {
        let context = fine_context(row_log2_eighths, column_log2_eighths[lane]);
        let index = i32::from(q[lane]);
        let table = fine[context].as_ref().ok_or((context, q[lane]))?;
        let shift = table.shift;
        let symbol = symbol_of(index, shift);
        let raw = (index + ((1 << shift) >> 1)) as u32 & ((1 << shift) - 1);
        let code = if symbol > ESCAPE && symbol < -ESCAPE {
            table.symbols[symbol_index(symbol)]
        } else {
            0
        };
        if code != 0 {
            steps[lane] = (code, raw, shift);
        } else {
            let escape = table.symbols[symbol_index(ESCAPE)];
            if escape == 0 {
                return Err((context, q[lane]));
            }
            steps[lane] = if symbol > ESCAPE && symbol < -ESCAPE {
                backwards.push(symbol as u8);
                (escape, raw, shift)
            } else {
                backwards.extend(q[lane].to_be_bytes());
                backwards.push(ESCAPE as u8);
                (escape, 0, shift)
            };
        }
    }
    for lane in (0..q.len()).rev() {
        let (code, raw, shift) = steps[lane];
        let (frequency, first) = (code & 0xffff, code >> 16);
        let mut x = states[lane];
        // The state after this symbol must fit 32 bits.
        if x >> (32 - PROBABILITY_BITS - shift) >= frequency {
            backwards.extend((x as u16).to_be_bytes());
            x >>= 16;
        }
        let slot = x % frequency + first;
        states[lane] = ((x / frequency) << PROBABILITY_BITS | slot) << shift | raw;
    }
    Ok(())
}
