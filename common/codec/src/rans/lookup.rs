//! Which table each element of a tensor uses.
//!
//! Every pair of row and column logarithm is checked to have a context with a table, so that the kernels look up tables
//! without further checks.

use crate::contexts::{DecodeTables, LayerTables, PROBABILITY_BITS};
use crate::error::CodecError;

/// Largest number of table numbers that a lookup holds. Beyond it (ordinary tensors have fewer) they are made row by row.
const HELD_NUMBERS: usize = 8 << 20;

/// The row logarithms that occur in a tensor.
#[derive(Debug, Clone)]
pub struct LogarithmSet([bool; 256]);

impl LogarithmSet {
    /// The set of the given logarithms.
    pub fn of(logarithms: &[u8]) -> Self {
        let mut set = Self([false; 256]);
        logarithms.iter().for_each(|&log| set.insert(log));
        set
    }

    /// Adds a logarithm.
    #[inline]
    pub fn insert(&mut self, log: u8) {
        self.0[usize::from(log)] = true;
    }

    pub(super) fn contains(&self, log: u8) -> bool {
        self.0[usize::from(log)]
    }

    fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=255u8).filter(|&log| self.contains(log))
    }
}

/// The table of each column, for every row logarithm that occurs. Every table number is valid: [`TableLookup::new`] checks
/// them, and nothing else makes them.
pub(super) struct TableLookup<'a> {
    pub(super) tables: &'a DecodeTables,
    columns: &'a [u8],
    /// `[256]` row logarithm, `[256]` column logarithm: number of the table, for the pairs that occur.
    numbers: Vec<Option<Box<[u8; 256]>>>,
    /// `[256]` position of a row logarithm among those whose numbers are held; empty if they would take too much memory.
    position: Vec<Option<u16>>,
    /// [positions, cols] number of the table.
    number: Vec<u8>,
    /// [positions, cols] shift of the table; empty if no table has one.
    shift: Vec<u8>,
    shifted: bool,
}

/// Numbers and shifts of the tables of one row, where [`TableLookup`] does not hold them.
#[derive(Default)]
pub(super) struct RowTables {
    log: Option<u8>,
    number: Vec<u8>,
    shift: Vec<u8>,
}

impl<'a> TableLookup<'a> {
    pub(super) fn new(
        row_logarithms: &LogarithmSet,
        columns: &'a [u8],
        tables: &'a LayerTables,
    ) -> Result<Self, CodecError> {
        let decode = tables.decode_tables();
        let column_logarithms = LogarithmSet::of(columns);
        let table_count = decode.entries.len() >> PROBABILITY_BITS;
        let mut numbers: Vec<Option<Box<[u8; 256]>>> = vec![None; 256];
        for row in row_logarithms.iter() {
            let mut of_row = Box::new([0; 256]);
            for column in column_logarithms.iter() {
                let context = tables.context(row, column);
                let Some(number) = decode.table_number[context] else {
                    let expected = "a context that has a table";
                    let found = context as u64;
                    return Err(CodecError::Damaged {
                        what: "logarithms",
                        found,
                        expected,
                    });
                };
                // The kernels with unchecked lookups rely on this.
                assert!(usize::from(number) < table_count);
                of_row[usize::from(column)] = number;
            }
            numbers[usize::from(row)] = Some(of_row);
        }
        let mut lookup = TableLookup {
            tables: decode,
            columns,
            numbers,
            position: Vec::new(),
            number: Vec::new(),
            shift: Vec::new(),
            shifted: decode.shifts.iter().any(|&shift| shift > 0),
        };
        if row_logarithms.iter().count() * columns.len() <= HELD_NUMBERS {
            lookup.hold(row_logarithms);
        }
        Ok(lookup)
    }

    /// Holds the numbers and shifts of every row logarithm that occurs.
    fn hold(&mut self, row_logarithms: &LogarithmSet) {
        self.position = vec![None; 256];
        for (position, row) in row_logarithms.iter().enumerate() {
            self.position[usize::from(row)] = Some(position as u16);
            if let Some(numbers) = &self.numbers[usize::from(row)] {
                let of_columns = self.columns.iter().map(|&log| numbers[usize::from(log)]);
                self.number.extend(of_columns);
            }
        }
        if self.shifted {
            let shifts = self.number.iter();
            let shifts = shifts.map(|&number| self.tables.shifts[usize::from(number)]);
            self.shift = shifts.collect();
        }
    }

    /// Numbers and shifts of the tables of a row; no shifts if no table of the layer has one.
    ///
    /// # Panics
    /// If the row logarithm is not one of those that occur.
    #[inline]
    pub(super) fn row<'b>(&'b self, log: u8, scratch: &'b mut RowTables) -> (&'b [u8], &'b [u8]) {
        let Some(position) = self.position.get(usize::from(log)) else {
            self.fill(log, scratch);
            return (&scratch.number, &scratch.shift);
        };
        let position = usize::from(position.expect("row logarithms were listed"));
        let range = position * self.columns.len()..(position + 1) * self.columns.len();
        let shift = if self.shifted {
            &self.shift[range.clone()]
        } else {
            &[]
        };
        (&self.number[range], shift)
    }

    /// Makes the numbers and shifts of a row, unless the row before it had the same logarithm.
    fn fill(&self, log: u8, scratch: &mut RowTables) {
        if scratch.log == Some(log) {
            return;
        }
        let numbers = &self.numbers[usize::from(log)];
        let numbers = numbers.as_ref().expect("row logarithms were listed");
        let of_columns = self.columns.iter().map(|&log| numbers[usize::from(log)]);
        scratch.number.clear();
        scratch.number.extend(of_columns);
        scratch.shift.clear();
        if self.shifted {
            let shifts = scratch.number.iter();
            let shifts = shifts.map(|&number| self.tables.shifts[usize::from(number)]);
            scratch.shift.extend(shifts);
        }
        scratch.log = Some(log);
    }

    /// Columns of the tensor.
    pub(super) fn cols(&self) -> usize {
        self.columns.len()
    }

    /// Whether any table has a shift.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn shifted(&self) -> bool {
        self.shifted
    }
}
