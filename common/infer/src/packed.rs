//! The resident form of the levels of a linear: fields of a few bits, whose width follows every row and panel of columns.
//!
//! # Layout
//! The columns are sorted by their step, so that columns with levels of like spread are neighbours; see
//! [`Columns`](crate::columns::Columns). Rows are cut into strips of [`STRIP`], columns into panels of 256 and a panel into groups
//! of 64. A row of a panel has a width, that of its fields in bits, and the fields of its groups without gaps; in a row of
//! zeros the width is 0 and there are no fields. The rows of a panel in a strip are a piece. Pieces are in the order of strips and
//! panels: what a task reads, some strips, lies side by side.
//!
//! A field holds `v + 2^(width−1)`, where v is the feed-forward index ([`LevelReader::feedforward`]): with the last six v of a
//! column the level is `2v ^ FEEDFORWARD[h]`. So a kernel keeps one byte for each column, its state. Before the fields of a piece
//! are the states of its columns, unless the rows are the first of a block of the trellis, where all states are 0.
//!
//! An index that does not fit into the fields is replaced by the nearest with the same input bit, and the difference of the
//! levels is held apart, in [`Outlier`]s. The width is chosen for the least sum of bits, where an outlier counts more than its
//! bytes because it costs time as well. Rows whose sums of products may not fit into 32 bits have wide fields, whatever they need.

use uc_codec::trellis::BLOCK_ROWS;
use uc_simd::prefetch;

use crate::integer::Missing;

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
/// Rows of a strip.
pub(crate) const STRIP: usize = 64;
const _: () = assert!(BLOCK_ROWS.is_multiple_of(STRIP));
/// Width of a row of zeros.
const ZERO_ROW: u8 = 0;
/// Smallest and largest width of a field.
const WIDTHS: std::ops::RangeInclusive<u32> = 2..=15;
/// Widest field of a row whose sums over a panel fit into 32 bits.
const NARROW: u32 = 8;
/// Bytes after the last field, so that a kernel may read a whole vector there.
const SLACK: usize = 64;

/// Outliers in a line of the caches.
const OUTLIERS_OF_LINE: usize = 64 / size_of::<Outlier>();

/// How far ahead fields are prefetched into the second-level cache, bytes. On Intel processors few lines can be in flight to the
/// first level.
pub(crate) const AHEAD: usize = 8192;

/// What is missing to the level of an element in the fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlier {
    /// Row within its strip.
    pub(crate) row: u8,
    /// Column within its panel.
    pub(crate) column: u8,
    /// A quarter of the difference of the levels.
    quarter: i16,
}

impl Outlier {
    /// What is missing to the level, with the row within the strip.
    pub(crate) fn missing(&self) -> Missing {
        Missing {
            row: self.row.into(),
            column: self.column.into(),
            difference: self.difference(),
        }
    }

    /// The difference of the levels.
    pub(crate) fn difference(self) -> i32 {
        4 * i32::from(self.quarter)
    }
}

/// Where a piece begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Offset of its states, or of its first field.
    base: usize,
    /// Number of its first outlier.
    outliers: u32,
}

/// The levels of a linear `[rows, cols]`.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    rows: usize,
    cols: usize,
    /// For each piece the widths of its rows.
    widths: Vec<u8>,
    /// For each piece the states of its columns and the fields of its rows.
    fields: Vec<u8>,
    /// For each piece.
    places: Vec<Place>,
    /// In the order of pieces, rows and columns.
    outliers: Vec<Outlier>,
}

/// The rows of a panel in a strip.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    /// One for each row.
    widths: &'a [u8],
    /// Those of the columns before the first row; none if all are 0.
    states: &'a [u8],
    /// From the first field on.
    fields: &'a [u8],
    outliers: &'a [Outlier],
    /// Groups that have columns.
    groups: usize,
}

impl Packed {
    /// Panels of a strip.
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

    /// The rows of panel `panel` in strip `strip`.
    pub(crate) fn piece(&self, strip: usize, panel: usize) -> Piece<'_> {
        let first = strip * STRIP;
        let rows = STRIP.min(self.rows - first);
        let widths = &self.widths[first * self.panels() + panel * rows..][..rows];
        let index = strip * self.panels() + panel;
        let Place { base, outliers } = self.places[index];
        let end = self.places.get(index + 1);
        let end = end.map_or(self.outliers.len(), |next| next.outliers as usize);
        let groups = (self.cols - panel * PANEL).min(PANEL).div_ceil(GROUP);
        let states = match first.is_multiple_of(BLOCK_ROWS) {
            true => 0,
            false => groups * GROUP,
        };
        let (states, fields) = self.fields[base..].split_at(states);
        Piece {
            widths,
            states,
            fields,
            outliers: &self.outliers[outliers as usize..end],
            groups,
        }
    }
}

impl<'a> Piece<'a> {
    /// The rows from the first on.
    #[inline]
    pub(crate) fn cursor(&self) -> Cursor<'a> {
        let mut cursor = Cursor {
            widths: self.widths,
            fields: self.fields,
            row: 0,
            offset: 0,
            groups: self.groups,
            history: [0; PANEL],
        };
        cursor.history[..self.states.len()].copy_from_slice(self.states);
        cursor
    }

    /// Asks for the outliers: they are apart from the fields, in small pieces, and would come late otherwise.
    pub(crate) fn prefetch_outliers(&self) {
        for line in (0..self.outliers.len()).step_by(OUTLIERS_OF_LINE) {
            prefetch(self.outliers, line);
        }
    }

    /// The outliers, ordered by row.
    pub(crate) fn outliers(&self) -> &'a [Outlier] {
        self.outliers
    }
}

/// Decodes the rows of a piece one after the other.
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

/// Most tokens that are multiplied side by side: their sums lie in registers.
#[cfg(target_arch = "x86_64")]
pub(crate) const SIDE: usize = 4;

/// The operands of the product of a piece with the activations of `T` tokens. Kernels add `scale · f32(sum)` to their results
/// `[tokens, rows]`.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Operands<'a, P, const T: usize> {
    pub(crate) piece: Piece<'a>,
    /// The activations of the panel, as the instruction set takes them.
    pub(crate) x: &'a [P; T],
    /// What is added to the sums of products, modulo 2³².
    pub(crate) sums: &'a [[i32; STRIP]; T],
    pub(crate) scales: &'a [f32; T],
}

/// What becomes of sums [rows, tokens].
#[cfg(target_arch = "x86_64")]
pub(crate) enum Out<'a> {
    /// They are written.
    Sums(&'a mut [i32]),
    /// Times the scales `[tokens]` of the activations, they are added to numbers.
    Joined(&'a [f32], &'a mut [f32]),
}

#[cfg(target_arch = "x86_64")]
impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Out::Sums(out) => out.len(),
            Out::Joined(_, out) => out.len(),
        }
    }
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

impl Cursor<'_> {
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
        *history = next_state(*history, value);
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
            *history = next_state(*history, value as u8);
        }
    }
}

/// The state of a column after a field or an index.
#[inline(always)]
fn next_state(history: u8, field: u8) -> u8 {
    history << 1 | field << 1 & 2
}

/// [`FEEDFORWARD`](uc_codec::trellis::FEEDFORWARD) of a state without a table, so that it can be computed for many columns at once.
#[inline(always)]
fn feedforward(history: u8) -> u8 {
    let h = history >> 1;
    let input = h >> 1 ^ h >> 3 ^ h >> 4 ^ h >> 5;
    (input & 1) << 1 | (h ^ h >> 4) & 1
}

#[cfg(test)]
pub(crate) mod tests {
    use uc_codec::trellis::FEEDFORWARD;

    use super::*;
    use crate::integer::{LANES, decode_plain};

    /// Rows with fields of all widths, with outliers, and rows of zeros.
    pub(crate) fn packed(rows: usize, cols: usize) -> Packed {
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
        for strip in [0, 2, 4] {
            for panel in 0..packed.panels() {
                let count = (rows - strip * STRIP).min(STRIP);
                let columns = (cols - panel * PANEL).min(PANEL);
                let piece = packed.piece(strip, panel);
                let mut expected = vec![[0; PANEL]; count];
                let mut expected_wide = 0;
                decode_plain(&mut piece.cursor(), &mut expected, &mut expected_wide);
                assert!(expected_wide != 0 && expected_wide != u64::MAX);
                for (is_available, decode) in sets {
                    let mut found = vec![[0; PANEL]; count];
                    let (mut wide, mut cursor) = (0, piece.cursor());
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
            let sums = Out::Sums(&mut found);
            avx2::interleaved_sums(&levels, &interleaved, [tokens, PANEL], sums);
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
