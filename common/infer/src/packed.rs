//! The resident form of the levels of a linear: fields of a few bits, whose width follows every row and panel of columns.
//!
//! # Layout
//! The columns are sorted by their step, so that columns with levels of like spread are neighbours; see
//! [`Columns`](crate::columns::Columns). Rows are cut into blocks of 256, as those of the trellis, columns into panels of 256 and
//! a panel into groups of 64. A row of a panel has a width, that of its fields in bits, and the fields of its groups without gaps;
//! in a row of zeros the width is 0 and there are no fields.
//!
//! A field holds `v + 2^(width−1)`, where v is the feed-forward index ([`LevelReader::feedforward`]): with the last six v of a
//! column the level is `2v ^ FEEDFORWARD[h]`. So a kernel keeps one byte for each column, and can begin at any row after it has
//! looked at the six rows above. At [`MARK_ROWS`] rows there is a mark, the offset at which a task begins.
//!
//! An index that does not fit into the fields is replaced by the nearest with the same input bit, and the difference of the
//! levels is held apart, in [`Outlier`]s. The width is chosen for the least sum of bits, where an outlier counts more than its
//! bytes because it costs time as well. Rows whose sums of products may not fit into 32 bits have wide fields, whatever they need.

use std::ops::Range;

use uc_codec::trellis::BLOCK_ROWS;
use uc_simd::{Kernel, dispatch, prefetch};

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod builder;

pub(crate) use builder::PackedBuilder;

/// Columns of a panel.
pub(crate) const PANEL: usize = 256;
/// Columns of a group.
pub(crate) const GROUP: usize = 64;
/// Rows from one mark to the next.
pub(crate) const MARK_ROWS: usize = 64;
/// Rows that decide the state of a column.
const HISTORY_ROWS: usize = 6;
/// Width of a row of zeros.
const ZERO_ROW: u8 = 0;
/// Smallest and largest width of a field.
const WIDTHS: std::ops::RangeInclusive<u32> = 2..=15;
/// Widest field of a row whose sums over a panel fit into 32 bits.
const NARROW: u32 = 8;
/// Bytes after the last field, so that a kernel may read a whole vector there.
const SLACK: usize = 64;

/// Bytes of fields that are asked for before a panel begins: about those of the rows that are decoded together.
const FIRST_FIELDS: usize = 3 << 10;

/// What is missing to the level of an element in the fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlier {
    /// Row within its block.
    pub(crate) row: u8,
    /// Column within its panel.
    pub(crate) column: u8,
    /// A quarter of the difference of the levels.
    quarter: i16,
}

impl Outlier {
    /// The difference of the levels.
    pub(crate) fn difference(self) -> i32 {
        4 * i32::from(self.quarter)
    }
}

/// Where the parts of a panel of a block begin.
#[derive(Debug, Clone, Default)]
struct Place {
    /// Offset of the first field.
    base: usize,
    /// For each mark, the offset of its row from `base`.
    marks: [u32; BLOCK_ROWS / MARK_ROWS],
    /// For each mark, the number of its first outlier.
    outliers: [u32; BLOCK_ROWS / MARK_ROWS],
}

/// The levels of a linear `[rows, cols]`.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    rows: usize,
    cols: usize,
    /// For each block and panel the widths of its rows.
    widths: Vec<u8>,
    fields: Vec<u8>,
    /// For each block and panel.
    places: Vec<Place>,
    /// In the order of blocks, panels, rows and columns.
    outliers: Vec<Outlier>,
}

/// A panel of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// One for each row.
    widths: &'a [u8],
    /// From the panel's first field on.
    fields: &'a [u8],
    place: &'a Place,
    outliers: &'a [Outlier],
    /// Groups that have columns.
    groups: usize,
}

impl Packed {
    /// Panels of a block.
    pub(crate) fn panels(&self) -> usize {
        self.cols.div_ceil(PANEL)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.widths.len()
            + self.fields.len()
            + size_of::<Place>() * self.places.len()
            + size_of::<Outlier>() * self.outliers.len()
    }

    /// Number of outliers.
    pub(crate) fn outliers(&self) -> usize {
        self.outliers.len()
    }

    /// Panel `panel` of block `block`.
    pub(crate) fn panel(&self, block: usize, panel: usize) -> Panel<'_> {
        let rows = BLOCK_ROWS.min(self.rows - block * BLOCK_ROWS);
        let first = block * BLOCK_ROWS * self.panels() + panel * rows;
        let index = block * self.panels() + panel;
        let place = &self.places[index];
        let end = self.places.get(index + 1);
        let end = end.map_or(self.outliers.len(), |next| next.outliers[0] as usize);
        Panel {
            widths: &self.widths[first..first + rows],
            fields: &self.fields[place.base..],
            place,
            outliers: &self.outliers[..end],
            groups: (self.cols - panel * PANEL).min(PANEL).div_ceil(GROUP),
        }
    }
}

impl<'a> Panel<'a> {
    /// The rows from mark `mark` on.
    #[inline]
    pub(crate) fn cursor(&self, mark: usize) -> Cursor<'a> {
        let mut cursor = Cursor {
            widths: self.widths,
            fields: self.fields,
            row: mark * MARK_ROWS,
            offset: self.place.marks[mark] as usize,
            groups: self.groups,
            history: [0; PANEL],
        };
        cursor.look_back();
        cursor
    }

    /// Asks for the fields of the rows from mark `mark` on before they are needed.
    pub(crate) fn prefetch(&self, mark: usize) {
        let first = self.place.marks[mark] as usize;
        for line in (0..FIRST_FIELDS).step_by(64) {
            prefetch(self.fields, first + line);
        }
    }

    /// The outliers of the rows of some marks.
    pub(crate) fn outliers(&self, marks: Range<usize>) -> &'a [Outlier] {
        let first = self.place.outliers[marks.start] as usize;
        let next = self.place.outliers.get(marks.end);
        let end = next.map_or(self.outliers.len(), |&next| next as usize);
        &self.outliers[first..end]
    }
}

/// Decodes the rows of a panel one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    widths: &'a [u8],
    fields: &'a [u8],
    row: usize,
    offset: usize,
    groups: usize,
    /// For each column the state of the trellis: the lowest bits of the last six indices, that of the latest as bit 1. The others
    /// are meaningless.
    history: [u8; PANEL],
}

/// Whether sums over a panel fit into 32 bits, if the one's complement of negative levels and the others have no more bits than
/// `magnitude`.
pub(crate) fn fits_narrow(magnitude: u32) -> bool {
    magnitude < 1 << NARROW
}

/// Whether a row has fields wider than [`NARROW`], or none.
#[inline(always)]
fn is_special(width: u8) -> bool {
    u32::from(width.wrapping_sub(1)) >= NARROW
}

/// Bytes of the fields of a group.
#[inline(always)]
fn group_bytes(width: u8) -> usize {
    usize::from(width) * GROUP / 8
}

/// Passes over rows.
struct Skip<'a, 'b> {
    cursor: &'a mut Cursor<'b>,
    rows: usize,
}

impl Kernel for Skip<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for _ in 0..self.rows {
            self.cursor.next_row(&mut [0; PANEL]);
        }
    }
}

impl Cursor<'_> {
    /// Finds the states of the columns from the rows above.
    fn look_back(&mut self) {
        let (end, mut found) = (self.row, 0);
        while self.row > 0 && found < HISTORY_ROWS {
            self.row -= 1;
            let width = self.widths[self.row];
            self.offset -= self.groups * group_bytes(width);
            found += usize::from(width != ZERO_ROW);
        }
        let rows = end - self.row;
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::is_available() {
                return avx512::skip(self, rows);
            }
            if avx2::is_available() {
                return avx2::skip(self, rows);
            }
        }
        dispatch(Skip { cursor: self, rows });
    }

    /// Decodes the next row: its levels, without outliers. Columns that the panel does not have get a meaningless level. Returns
    /// whether sums of products with 16-bit integers over the panel may need more than 32 bits.
    #[inline(always)]
    pub(crate) fn next_row(&mut self, levels: &mut [i16; PANEL]) -> bool {
        let width = self.widths[self.row];
        self.row += 1;
        if width == ZERO_ROW {
            levels.fill(0);
            return false;
        }
        let groups = levels.as_chunks_mut::<GROUP>().0.iter_mut();
        let groups = groups.zip(self.history.as_chunks_mut::<GROUP>().0);
        for (levels, history) in groups.take(self.groups) {
            let bytes = group_bytes(width);
            let fields = &self.fields[self.offset..self.offset + bytes];
            self.offset += bytes;
            match is_special(width) {
                false => group_levels(fields, width.into(), history, levels),
                true => wide_group_levels(fields, width.into(), history, levels),
            }
        }
        is_special(width)
    }
}

/// The levels of a group whose fields have at most [`NARROW`] bits.
#[inline(always)]
fn group_levels(fields: &[u8], width: u32, history: &mut [u8; GROUP], levels: &mut [i16; GROUP]) {
    let mask = (1u64 << width) - 1;
    let mut values = [0u8; GROUP];
    let words = fields.chunks_exact(width as usize);
    for (word, values) in words.zip(values.as_chunks_mut::<8>().0) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        let word = u64::from_le_bytes(bytes);
        for (index, value) in values.iter_mut().enumerate() {
            *value = (word >> (index as u32 * width) & mask) as u8;
        }
    }
    let bias = 1i16 << width;
    for ((level, value), history) in levels.iter_mut().zip(values).zip(history) {
        let doubled = i16::from(value) << 1;
        *level = (doubled ^ i16::from(feedforward(*history))) - bias;
        *history = *history << 1 | value << 1 & 2;
    }
}

/// As [`group_levels`], for any width.
#[inline(always)]
fn wide_group_levels(
    fields: &[u8],
    width: u32,
    history: &mut [u8; GROUP],
    levels: &mut [i16; GROUP],
) {
    let words = fields.chunks_exact(width as usize);
    let columns = levels.as_chunks_mut::<8>().0.iter_mut();
    let columns = columns.zip(history.as_chunks_mut::<8>().0);
    for (word, (levels, history)) in words.zip(columns) {
        let mut bytes = [0; 16];
        bytes[..word.len()].copy_from_slice(word);
        let word = u128::from_le_bytes(bytes);
        for (index, (level, history)) in levels.iter_mut().zip(history).enumerate() {
            let value = (word >> (index as u32 * width)) as i32 & ((1 << width) - 1);
            let doubled = (2 * value) ^ i32::from(feedforward(*history));
            // The level of a field of 15 bits lies between -2^15 and 2^15 - 1.
            *level = (doubled - (1 << width)) as i16;
            *history = *history << 1 | (value << 1 & 2) as u8;
        }
    }
}

/// [`FEEDFORWARD`](uc_codec::trellis::FEEDFORWARD) of a state without a table, so that it can be computed for many columns at once.
#[inline(always)]
fn feedforward(history: u8) -> u8 {
    let h = history >> 1;
    let input = h >> 1 ^ h >> 3 ^ h >> 4 ^ h >> 5;
    (input & 1) << 1 | (h ^ h >> 4) & 1
}

#[cfg(test)]
mod tests {
    use uc_codec::trellis::FEEDFORWARD;

    use super::*;
    use crate::integer::{LANES, decode_plain};

    /// Rows with fields of all widths, with outliers, and rows of zeros.
    fn packed(rows: usize, cols: usize) -> Packed {
        let number = |i: usize| ((i as i64 * 7919 + 13) * 104_729) % 65_521;
        let mut builder = PackedBuilder::new(rows, (0..cols as u32).collect());
        for row in 0..rows {
            let spread = 1 << (row % 15 + 1);
            let q = (0..cols).map(|column| {
                let place = row * cols + column;
                match place % 97 {
                    0 => (number(place) % 32_000) as i16,
                    _ => (number(place) % spread - spread / 2) as i16,
                }
            });
            match row % 17 == 3 {
                true => builder.rows(&vec![0; cols], &[0]),
                false => builder.rows(&q.collect::<Vec<_>>(), &[64]),
            }
        }
        builder.finish()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_instruction_set_decodes_the_same_levels() {
        type Decode = fn(&mut Cursor<'_>, &mut [[i16; PANEL]], &mut u64);
        let sets: [(bool, Decode); 2] = [
            (avx2::is_available(), avx2::decode),
            (avx512::is_available(), avx512::decode),
        ];
        let (rows, cols) = (300, 600);
        let packed = packed(rows, cols);
        for (block, mark) in [(0, 0), (0, 2), (1, 0)] {
            for panel in 0..packed.panels() {
                let count = (rows - block * BLOCK_ROWS - mark * MARK_ROWS).min(MARK_ROWS);
                let columns = (cols - panel * PANEL).min(PANEL);
                let panel = packed.panel(block, panel);
                let mut expected = vec![[0; PANEL]; count];
                let mut expected_wide = 0;
                decode_plain(&mut panel.cursor(mark), &mut expected, &mut expected_wide);
                assert!(expected_wide != 0 && expected_wide != u64::MAX);
                for (is_available, decode) in sets {
                    let mut found = vec![[0; PANEL]; count];
                    let (mut wide, mut cursor) = (0, panel.cursor(mark));
                    if is_available {
                        // In parts, as the products do.
                        let (first, second) = found.split_at_mut(21);
                        decode(&mut cursor, first, &mut wide);
                        let mut more = 0;
                        decode(&mut cursor, second, &mut more);
                        assert_eq!(wide | more << 21, expected_wide);
                        for (found, expected) in found.iter().zip(&expected) {
                            assert_eq!(found[..columns], expected[..columns]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2_gives_the_sums_of_the_definition() {
        if !avx2::is_available() {
            return;
        }
        let number = |i: usize| (((i as i64 * 7919 + 13) * 104_729) % 65_000 - 32_500) as i16;
        let row = |first: usize| std::array::from_fn(|i| number(first + i) / 128);
        let levels: Vec<[i16; PANEL]> = (0..11).map(|r| row(1000 * r)).collect();
        for tokens in [1, 2, 7, 16, 21] {
            let x = |token: usize, j: usize| number(31 * token + 7 * j);
            let mut expected = Vec::new();
            for levels in &levels {
                expected.extend((0..tokens).map(|token| {
                    let products = levels.iter().enumerate();
                    products
                        .map(|(j, &level)| i32::from(level) * i32::from(x(token, j)))
                        .sum::<i32>()
                }));
            }
            let mut found = vec![0; expected.len()];
            let plain: Vec<[i16; PANEL]> = (0..tokens)
                .map(|token| std::array::from_fn(|j| x(token, j)))
                .collect();
            avx2::sums(&levels, &plain, &mut found);
            assert_eq!(found, expected);
            let mut interleaved = vec![0; tokens.next_multiple_of(LANES) * PANEL];
            for token in 0..tokens {
                for j in 0..PANEL {
                    let vector = token / LANES * LANES * PANEL;
                    interleaved[vector + j / 2 * 2 * LANES + 2 * (token % LANES) + j % 2] =
                        x(token, j);
                }
            }
            found.fill(0);
            avx2::interleaved_sums(&levels, &interleaved, [tokens, PANEL], &mut found);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_feedforward_term_is_that_of_the_codec() {
        for history in 0..=255u8 {
            let bits = history >> 1 & 63;
            assert_eq!(feedforward(history), FEEDFORWARD[usize::from(bits)]);
        }
    }
}
