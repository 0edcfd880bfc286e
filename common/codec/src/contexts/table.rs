//! The frequencies of one context, their bytes, and the lookup tables of the decoder.

use super::symbol_of;
use crate::bits::{BitReader, BitWriter, best_rice, unzigzag, zigzag};
use crate::error::CodecError;

/// Frequencies are in 4096ths.
pub(crate) const PROBABILITY_BITS: u32 = 12;
/// Sum of the frequencies of a table.
pub(crate) const SCALE: u32 = 1 << PROBABILITY_BITS;
/// The escape symbol.
pub(crate) const ESCAPE: i32 = -128;
/// Largest magnitude of a symbol.
pub(crate) const LARGEST_SYMBOL: i32 = 127;
/// Largest shift, which is the number of raw bits of an index.
pub(crate) const LARGEST_SHIFT: u32 = 4;
/// Largest Rice parameter of the frequencies.
const LARGEST_RICE: u32 = 12;
/// Largest zigzag of the difference of a frequency from the linear extrapolation of the two before it.
const LARGEST_DIFFERENCE: u32 = 8 * SCALE;

/// Frequencies of the symbols of a context.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContextTable {
    /// Raw bits per index, 0..=4.
    pub(crate) shift: u32,
    /// `[256]` the frequency of symbol s at `s + 128`; the sum is 4096.
    pub(crate) frequencies: Vec<u16>,
}

/// Position of a symbol in a list of all symbols.
#[inline(always)]
pub(crate) fn symbol_index(symbol: i32) -> usize {
    (symbol - ESCAPE) as usize
}

impl ContextTable {
    /// Frequency of a symbol.
    pub(crate) fn frequency_of(&self, symbol: i32) -> u32 {
        u32::from(self.frequencies[symbol_index(symbol)])
    }

    /// Whether the symbol of an index has a frequency; otherwise the index is escaped.
    pub(crate) fn holds(&self, index: i32) -> bool {
        let symbol = symbol_of(index, self.shift);
        symbol.abs() <= LARGEST_SYMBOL && self.frequency_of(symbol) > 0
    }

    /// Appends the bits of the format (see [`crate::contexts`]).
    pub(crate) fn write(&self, writer: &mut BitWriter) {
        let half = self.half();
        let mirrored =
            half > 0 && (1..=half).all(|s| self.frequency_of(s) == self.frequency_of(-s));
        writer.put(self.shift, 3);
        writer.put(half as u32, 7);
        writer.put(u32::from(mirrored), 1);
        let escape = self.frequency_of(ESCAPE);
        writer.put(u32::from(escape > 0), 1);
        if escape > 0 {
            writer.put(escape - 1, 12);
        }
        if half > 0 {
            let differences = self.differences(half, mirrored);
            let (rice, _) = best_rice(&differences, LARGEST_RICE);
            writer.put(rice, 4);
            differences
                .iter()
                .for_each(|&difference| writer.put_rice(difference, rice));
        }
    }

    /// Reads one table.
    pub(crate) fn read(reader: &mut BitReader<'_>) -> Result<Self, CodecError> {
        let shift = reader.take(3)?;
        if shift > LARGEST_SHIFT {
            return Err(reader.damaged(shift.into(), "a shift of 0..=4"));
        }
        let half = reader.take(7)? as i32;
        let mirrored = reader.take(1)? == 1;
        let mut frequencies = vec![0u16; 256];
        let mut remaining = SCALE as i32;
        if reader.take(1)? == 1 {
            let escape = reader.take(12)? as i32 + 1;
            frequencies[symbol_index(ESCAPE)] = escape as u16;
            remaining -= escape;
        }
        if half == 0 {
            if mirrored {
                return Err(reader.damaged(1, "no mirror where only the symbol 0 has a frequency"));
            }
            frequencies[symbol_index(0)] = remaining as u16;
            return Ok(ContextTable { shift, frequencies });
        }
        let rice = reader.take(4)?;
        if rice > LARGEST_RICE {
            return Err(reader.damaged(rice.into(), "a Rice parameter of 0..=12"));
        }
        for sign in if mirrored { &[-1][..] } else { &[-1, 1][..] } {
            let (mut previous, mut second_previous) = (0i32, 0i32);
            for magnitude in (1..=half).rev() {
                let difference = unzigzag(reader.take_rice(rice, LARGEST_DIFFERENCE)?);
                (previous, second_previous) =
                    (2 * previous - second_previous + difference, previous);
                remaining -= if mirrored { 2 * previous } else { previous };
                if previous < 0 || remaining < 0 {
                    let found = previous.unsigned_abs().into();
                    return Err(reader.damaged(found, "frequencies of 0 to 4096 with sum 4096"));
                }
                frequencies[symbol_index(sign * magnitude)] = previous as u16;
                if mirrored {
                    frequencies[symbol_index(magnitude)] = previous as u16;
                }
            }
        }
        frequencies[symbol_index(0)] = remaining as u16;
        Ok(ContextTable { shift, frequencies })
    }

    /// Bits that [`ContextTable::write`] appends.
    pub(crate) fn bits(&self) -> u64 {
        let half = self.half();
        let escape = if self.frequency_of(ESCAPE) > 0 { 12 } else { 0 };
        if half == 0 {
            return 12 + escape;
        }
        let mirrored = (1..=half).all(|s| self.frequency_of(s) == self.frequency_of(-s));
        16 + escape + best_rice(&self.differences(half, mirrored), LARGEST_RICE).1
    }

    /// Largest magnitude of a symbol with a frequency.
    fn half(&self) -> i32 {
        let used = |&s: &i32| self.frequency_of(s) > 0 || self.frequency_of(-s) > 0;
        (1..=LARGEST_SYMBOL).rev().find(used).unwrap_or(0)
    }

    /// The values that are stored for the frequencies, before the Rice code.
    fn differences(&self, half: i32, mirrored: bool) -> Vec<u32> {
        let mut differences = Vec::with_capacity(2 * half as usize);
        for sign in if mirrored { &[-1][..] } else { &[-1, 1][..] } {
            let (mut previous, mut second_previous) = (0, 0);
            for magnitude in (1..=half).rev() {
                let frequency = self.frequency_of(sign * magnitude) as i32;
                differences.push(zigzag(frequency - (2 * previous - second_previous)));
                (previous, second_previous) = (frequency, previous);
            }
        }
        differences
    }

    /// `[256]` first slot of every symbol.
    pub(crate) fn first_slots(&self) -> Vec<u16> {
        let mut next = 0u16;
        let mut start = |&frequency: &u16| {
            next += frequency;
            next - frequency
        };
        self.frequencies.iter().map(&mut start).collect()
    }
}

/// Lookup tables of the decoder: for each context with a table, 4096 entries, one per slot, of
/// `(frequency − 1) | (slot − first slot of the symbol) << 12 | symbol << 24`.
#[derive(Debug, Clone)]
pub(crate) struct DecodeTables {
    /// [tables, 4096]
    pub(crate) entries: Vec<u32>,
    /// `[contexts]` number of the context's table, None if it has none.
    pub(crate) table_number: Vec<Option<u8>>,
    /// `[tables]` shift of the table.
    pub(crate) shifts: Vec<u8>,
}

impl DecodeTables {
    /// Lays out the tables of all contexts one after another.
    pub(crate) fn new(contexts: &[Option<ContextTable>]) -> Self {
        let mut tables = DecodeTables {
            entries: Vec::new(),
            table_number: Vec::new(),
            shifts: Vec::new(),
        };
        for context in contexts {
            tables
                .table_number
                .push(context.as_ref().map(|_| tables.shifts.len() as u8));
            let Some(table) = context else { continue };
            tables.shifts.push(table.shift as u8);
            for (index, &frequency) in table.frequencies.iter().enumerate() {
                let symbol = (index as i32 + ESCAPE) as u8;
                tables.entries.extend((0..u32::from(frequency)).map(|bias| {
                    (u32::from(frequency) - 1) | bias << PROBABILITY_BITS | u32::from(symbol) << 24
                }));
            }
            debug_assert_eq!(
                tables.entries.len(),
                tables.shifts.len() << PROBABILITY_BITS
            );
        }
        tables
    }
}
