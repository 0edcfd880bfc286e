//! Makes the resident form of a linear from its indices.

use uc_codec::trellis::{BLOCK_ROWS, LevelReader};
use uc_simd::{Kernel, dispatch};

use super::{
    GROUP, NARROW, Outlier, PANEL, Packed, Place, SLACK, STRIP, WIDTHS, ZERO_ROW, next_state,
};
use crate::huge_pages;
use crate::integer::LARGEST;

/// Bits that an outlier may save: the bits that it takes, and its time, which is that of some ten fields.
const OUTLIER_COST: usize = 120;

/// Bits that fields of [`NARROW`] bits must save, because of the time for their row.
const BYTE_COST: usize = 1000;
/// Largest sum of the magnitudes of the levels of a row of a panel whose products with activations fit into 32 bits.
const LARGEST_SUM: u32 = i32::MAX as u32 / LARGEST as u32;

/// Bits of a weight for which room is made. Memory that is not used is given back; if it is not enough, there will be more.
const LIKELY_BITS: usize = 7;

/// Builds a [`Packed`] from pieces of whole rows, from the first to the last.
pub(crate) struct PackedBuilder {
    reader: LevelReader,
    /// Column of the source for each column here.
    order: std::sync::Arc<[u32]>,
    packed: Packed,
    /// `[cols]` feed-forward indices of a row, in the order of the source.
    row: Vec<i16>,
    /// `[rows, panels · PANEL]` those of the strip so far, in the order of the columns here.
    strip: Vec<i16>,
    /// For each row of the strip, whether it is a row of zeros.
    zeros: Vec<bool>,
    /// `[panels · PANEL]` the states of the columns before the strip.
    states: Vec<u8>,
}

impl PackedBuilder {
    /// For a linear `[rows, order.len()]`. `order` is a permutation of the columns.
    pub(crate) fn new(rows: usize, order: std::sync::Arc<[u32]>) -> Self {
        let cols = order.len();
        PackedBuilder {
            reader: LevelReader::new(cols),
            packed: Packed {
                rows,
                cols,
                widths: Vec::with_capacity(rows * cols.div_ceil(PANEL)),
                fields: huge_pages::with_capacity(rows * cols * LIKELY_BITS / 8),
                places: Vec::new(),
                outliers: Vec::new(),
            },
            row: vec![0; cols],
            strip: Vec::new(),
            zeros: Vec::new(),
            states: vec![0; cols.div_ceil(PANEL) * PANEL],
            order,
        }
    }

    /// Adds rows, as many as there are logarithms; `q` are their indices `[rows, cols]`.
    pub(crate) fn rows(&mut self, q: &[i16], row_logs: &[u8]) {
        let stride = self.packed.panels() * PANEL;
        for (q, &log) in q.chunks_exact(self.order.len()).zip(row_logs) {
            self.reader.feedforward(q, log, &mut self.row);
            let first = self.strip.len();
            self.strip.resize(first + stride, 0);
            for (value, &column) in self.strip[first..].iter_mut().zip(&*self.order) {
                *value = self.row[column as usize];
            }
            self.zeros.push(log == 0);
            if self.zeros.len() == STRIP {
                self.finish_strip();
            }
        }
    }

    /// The linear.
    ///
    /// # Panics
    /// If rows are missing.
    pub(crate) fn finish(mut self) -> Packed {
        self.finish_strip();
        let mut packed = self.packed;
        assert_eq!(
            packed.widths.len(),
            packed.rows * packed.panels(),
            "all rows"
        );
        packed.fields.resize(packed.fields.len() + SLACK, 0);
        packed.fields.shrink_to_fit();
        packed.outliers.shrink_to_fit();
        packed
    }

    fn finish_strip(&mut self) {
        let packed = &mut self.packed;
        let (panels, cols) = (packed.panels(), packed.cols);
        if self.zeros.is_empty() {
            return;
        }
        let first_row = packed.widths.len() / panels;
        let begins_block = first_row.is_multiple_of(BLOCK_ROWS);
        if begins_block {
            self.states.fill(0);
        }
        for panel in 0..panels {
            let groups = (cols - panel * PANEL).min(PANEL).div_ceil(GROUP);
            packed.places.push(Place {
                base: packed.fields.len(),
                outliers: packed.outliers.len() as u32,
            });
            let states = &mut self.states[panel * PANEL..][..groups * GROUP];
            if !begins_block {
                packed.fields.extend_from_slice(states);
            }
            for (row, &is_zero) in self.zeros.iter().enumerate() {
                if is_zero {
                    packed.widths.push(ZERO_ROW);
                    continue;
                }
                let values = &self.strip[(row * panels + panel) * PANEL..][..groups * GROUP];
                packed.push_row(row, values);
                dispatch(Advance { states, values });
            }
        }
        self.strip.clear();
        self.zeros.clear();
    }
}

/// Advances the states of columns by the feed-forward indices of a row.
struct Advance<'a> {
    states: &'a mut [u8],
    values: &'a [i16],
}

impl Kernel for Advance<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (state, &value) in self.states.iter_mut().zip(self.values) {
            *state = next_state(*state, value as u8);
        }
    }
}

impl Packed {
    /// Adds the feed-forward indices of a row's groups.
    fn push_row(&mut self, row: usize, values: &[i16]) {
        let width = dispatch(BestWidth { values });
        self.widths.push(width as u8);
        for (group, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
            let fields = dispatch(Fields { values, width });
            if fields.has_outliers {
                self.push_outliers(row, group * GROUP, values, width);
            }
            match width <= u8::BITS {
                true => {
                    let words = dispatch(PackedBytes {
                        fields: &fields.fields,
                        width,
                    });
                    let (first, bytes) = (self.fields.len(), width as usize);
                    let end = first + GROUP / 8 * bytes;
                    // Whole words, of which the next writes over what is not used.
                    self.fields.resize(end + size_of::<u64>(), 0);
                    for (index, word) in words.iter().enumerate() {
                        let out = self.fields[first + index * bytes..].first_chunk_mut();
                        *out.expect("room for a word") = word.to_le_bytes();
                    }
                    self.fields.truncate(end);
                }
                false => {
                    for fields in fields.fields.as_chunks::<8>().0 {
                        let bytes = u128::to_le_bytes(packed(fields, width));
                        self.fields.extend_from_slice(&bytes[..width as usize]);
                    }
                }
            }
        }
    }

    /// Notes the elements of a group that do not fit into their fields.
    fn push_outliers(&mut self, row: usize, first: usize, values: &[i16; GROUP], width: u32) {
        for (index, &value) in values.iter().enumerate() {
            let even = value & !1;
            let nearest = nearest(even, width);
            if nearest != even {
                self.outliers.push(Outlier {
                    row: row as u8,
                    column: (first + index) as u8,
                    quarter: (even - nearest) / 2,
                });
            }
        }
    }
}

/// The nearest even number that fits into a field.
#[inline(always)]
fn nearest(even: i16, width: u32) -> i16 {
    let half = 1i16 << (width - 1);
    even.clamp(-half, half - 2)
}

/// Makes the fields of a group.
struct Fields<'a> {
    values: &'a [i16; GROUP],
    width: u32,
}

/// The fields of a group.
struct GroupFields {
    fields: [u16; GROUP],
    has_outliers: bool,
}

impl Kernel for Fields<'_> {
    type Output = GroupFields;

    #[inline(always)]
    fn run(self) -> GroupFields {
        let width = self.width;
        let half = 1i16 << (width - 1);
        let mut fields = [0; GROUP];
        let mut outliers = 0;
        for (field, &value) in fields.iter_mut().zip(self.values) {
            let even = value & !1;
            let nearest = nearest(even, width);
            outliers |= even ^ nearest;
            *field = (nearest.wrapping_add(half) | value & 1) as u16;
        }
        GroupFields {
            fields,
            has_outliers: outliers != 0,
        }
    }
}

/// Eight fields side by side.
fn packed(fields: &[u16; 8], width: u32) -> u128 {
    let fields = fields.iter().rev();
    fields.fold(0, |word, &field| word << width | u128::from(field))
}

/// As [`packed`], for the fields of a group that have at most 8 bits.
struct PackedBytes<'a> {
    fields: &'a [u16; GROUP],
    width: u32,
}

impl Kernel for PackedBytes<'_> {
    type Output = [u64; GROUP / 8];

    #[inline(always)]
    fn run(self) -> [u64; GROUP / 8] {
        let gap = u8::BITS - self.width;
        let bytes = self.fields.map(|field| field as u8);
        let mut words = [0; GROUP / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        // Pairs, fours, and all eight move together.
        words.map(|word| {
            let word = word & 0x00ff_00ff_00ff_00ff | (word & 0xff00_ff00_ff00_ff00) >> gap;
            let word = word & 0x0000_ffff_0000_ffff | (word & 0xffff_0000_ffff_0000) >> (2 * gap);
            word & 0xffff_ffff | (word & !0xffff_ffff) >> (4 * gap)
        })
    }
}

/// Chooses the width of a row with the least sum of bits.
struct BestWidth<'a> {
    /// Whole groups, at most [`PANEL`] indices.
    values: &'a [i16],
}

impl Kernel for BestWidth<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        // A value fits into a width if its magnitude, one's complement for negative values, is below 2^(width-1).
        let mut magnitudes = [0u16; PANEL];
        for (magnitude, &value) in magnitudes.iter_mut().zip(self.values) {
            *magnitude = (value ^ (value >> 15)) as u16;
        }
        let largest = magnitudes.iter().fold(0, |a, &b| a | b);
        let widest =
            (u16::BITS - largest.leading_zeros() + 1).clamp(*WIDTHS.start(), *WIDTHS.end());
        // The level of an index v has at most the magnitude 2 · magnitude(v) + 3.
        let sum: u32 = magnitudes.iter().map(|&m| 2 * u32::from(m) + 3).sum();
        if sum > LARGEST_SUM {
            return widest.max(NARROW + 1);
        }
        let cost = |width: u32| {
            let limit = 1u16 << (width - 1);
            let outliers: u16 = magnitudes.iter().map(|&m| u16::from(m >= limit)).sum();
            let time = usize::from(width == NARROW) * BYTE_COST;
            width as usize * self.values.len() + usize::from(outliers) * OUTLIER_COST + time
        };
        // Far from the best, where outliers cost most, nothing better follows.
        let widest = widest.min(NARROW);
        let mut best = (cost(widest), widest);
        for width in (*WIDTHS.start()..widest).rev() {
            let found = cost(width);
            best = best.min((found, width));
            if found > 4 * best.0 {
                break;
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_side_by_side_in_every_width() {
        for width in WIDTHS {
            let number = |i: usize| (i as u16 * 7919 + 5) & ((1 << width) - 1);
            let group: [u16; GROUP] = std::array::from_fn(number);
            let words = (width <= 8).then(|| {
                PackedBytes {
                    fields: &group,
                    width,
                }
                .run()
            });
            for (place, fields) in group.as_chunks::<8>().0.iter().enumerate() {
                let word = packed(fields, width);
                for (index, &field) in fields.iter().enumerate() {
                    let found = word >> (index as u32 * width) & ((1 << width) - 1);
                    assert_eq!(found, u128::from(field));
                }
                if let Some(words) = words {
                    assert_eq!(u128::from(words[place]), word);
                }
            }
        }
    }
}
