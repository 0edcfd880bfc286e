//! The frequencies of one context, their bytes, and the lookup tables of the decoder.

use crate::bits::{BitReader, BitWriter, best_rice, unzigzag, zigzag};
use crate::error::CodecError;

/// Frequencies are in 4096ths.
pub(crate) const PROBABILITY_BITS: u32 = 12;
/// Sum of the frequencies of a table.
pub(crate) const SCALE: u32 = 1 << PROBABILITY_BITS;
/// The symbol that announces a raw index.
pub(crate) const ESCAPE: i32 = -128;
/// Largest magnitude of a symbol.
pub(crate) const LARGEST_SYMBOL: i32 = 127;
/// Largest number of raw bits of an index.
pub(crate) const LARGEST_SHIFT: u32 = 4;
/// Largest Rice parameter of the frequencies.
const LARGEST_RICE: u32 = 12;
/// Largest zigzag of what a frequency differs by from the line through the two before it.
const LARGEST_DIFFERENCE: u32 = 8 * SCALE;

/// Frequencies of the symbols of a context.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContextTable {
    /// Raw bits per index, 0..=4.
    pub(crate) shift: u32,
    /// [256] frequency of symbol s at `s + 128`; sum 4096.
    pub(crate) frequency: Vec<u16>,
}

/// Position of a symbol among the frequencies.
#[inline(always)]
pub(crate) fn place(symbol: i32) -> usize {
    (symbol - ESCAPE) as usize
}

impl ContextTable {
    /// Frequency of a symbol.
    pub(crate) fn of(&self, symbol: i32) -> u32 {
        u32::from(self.frequency[place(symbol)])
    }

    /// Appends the bytes of the format (see [`crate::contexts`]).
    pub(crate) fn write(&self, writer: &mut BitWriter) {
        let half = self.half();
        let mirrored = half > 0 && (1..=half).all(|s| self.of(s) == self.of(-s));
        writer.put(self.shift, 3);
        writer.put(half as u32, 7);
        writer.put(u32::from(mirrored), 1);
        let escape = self.of(ESCAPE);
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
        let mut frequency = vec![0u16; 256];
        let mut left = SCALE as i32;
        if reader.take(1)? == 1 {
            let escape = reader.take(12)? as i32 + 1;
            frequency[place(ESCAPE)] = escape as u16;
            left -= escape;
        }
        if half == 0 {
            if mirrored {
                return Err(reader.damaged(1, "no mirror where only the symbol 0 has a frequency"));
            }
            frequency[place(0)] = left as u16;
            return Ok(ContextTable { shift, frequency });
        }
        let rice = reader.take(4)?;
        if rice > LARGEST_RICE {
            return Err(reader.damaged(rice.into(), "a Rice parameter of 0..=12"));
        }
        for sign in if mirrored { &[-1][..] } else { &[-1, 1][..] } {
            let (mut previous, mut before) = (0i32, 0i32);
            for magnitude in (1..=half).rev() {
                let difference = unzigzag(reader.take_rice(rice, LARGEST_DIFFERENCE)?);
                (previous, before) = (2 * previous - before + difference, previous);
                left -= if mirrored { 2 * previous } else { previous };
                if previous < 0 || left < 0 {
                    let found = previous.unsigned_abs().into();
                    return Err(reader.damaged(found, "frequencies of 0 to 4096 with sum 4096"));
                }
                frequency[place(sign * magnitude)] = previous as u16;
                if mirrored {
                    frequency[place(magnitude)] = previous as u16;
                }
            }
        }
        frequency[place(0)] = left as u16;
        Ok(ContextTable { shift, frequency })
    }

    /// Bits that [`ContextTable::write`] appends.
    pub(crate) fn bits(&self) -> u64 {
        let half = self.half();
        let escape = if self.of(ESCAPE) > 0 { 12 } else { 0 };
        if half == 0 {
            return 12 + escape;
        }
        let mirrored = (1..=half).all(|s| self.of(s) == self.of(-s));
        16 + escape + best_rice(&self.differences(half, mirrored), LARGEST_RICE).1
    }

    /// Largest magnitude of a symbol with a frequency.
    fn half(&self) -> i32 {
        let used = |&s: &i32| self.of(s) > 0 || self.of(-s) > 0;
        (1..=LARGEST_SYMBOL).rev().find(used).unwrap_or(0)
    }

    /// What is stored of the frequencies, before the Rice code.
    fn differences(&self, half: i32, mirrored: bool) -> Vec<u32> {
        let mut differences = Vec::with_capacity(2 * half as usize);
        for sign in if mirrored { &[-1][..] } else { &[-1, 1][..] } {
            let (mut previous, mut before) = (0, 0);
            for magnitude in (1..=half).rev() {
                let frequency = self.of(sign * magnitude) as i32;
                differences.push(zigzag(frequency - (2 * previous - before)));
                (previous, before) = (frequency, previous);
            }
        }
        differences
    }

    /// First slot of every symbol, by place.
    pub(crate) fn starts(&self) -> Vec<u16> {
        let mut next = 0u16;
        let mut start = |&frequency: &u16| {
            next += frequency;
            next - frequency
        };
        self.frequency.iter().map(&mut start).collect()
    }
}

/// One lookup per symbol: for each context with a table 4096 entries, one per slot, of
/// `(frequency − 1) | (slot − first slot of the symbol) << 12 | symbol << 24`.
#[derive(Debug, Clone)]
pub(crate) struct DecodeTables {
    /// [tables, 4096]
    pub(crate) entries: Vec<u32>,
    /// [contexts] number of the table, None where the context has none.
    pub(crate) number: Vec<Option<u8>>,
    /// [tables]
    pub(crate) shift: Vec<u8>,
}

impl DecodeTables {
    /// Lays out the tables of all contexts one after another.
    pub(crate) fn new(contexts: &[Option<ContextTable>]) -> Self {
        let mut tables = DecodeTables {
            entries: Vec::new(),
            number: Vec::new(),
            shift: Vec::new(),
        };
        for context in contexts {
            tables
                .number
                .push(context.as_ref().map(|_| tables.shift.len() as u8));
            let Some(table) = context else { continue };
            tables.shift.push(table.shift as u8);
            for (place, &frequency) in table.frequency.iter().enumerate() {
                let symbol = (place as i32 + ESCAPE) as u8;
                tables.entries.extend((0..u32::from(frequency)).map(|bias| {
                    (u32::from(frequency) - 1) | bias << PROBABILITY_BITS | u32::from(symbol) << 24
                }));
            }
            debug_assert_eq!(tables.entries.len(), tables.shift.len() << PROBABILITY_BITS);
        }
        tables
    }
}
