//! Makes the resident form of a linear from its indices.

use uc_codec::trellis::{BLOCK_ROWS, LevelReader};

use super::{
    GROUP, GROUPS, MARK_ROWS, NARROW, Outlier, PANEL, Packed, Place, SLACK, WIDTHS, ZERO_ROW,
    row_bytes,
};

/// Bits that an outlier may save: the bits that it takes, and its time, which is that of some ten fields.
const OUTLIER_COST: usize = 120;

/// Bits that fields wider than [`NARROW`] must save, because of the time for their row.
const WIDE_COST: usize = 400;

/// Builds a [`Packed`] from pieces of whole rows, from the first to the last.
pub(crate) struct PackedBuilder {
    reader: LevelReader,
    /// Column of the source for each column here.
    order: std::sync::Arc<[u32]>,
    packed: Packed,
    /// `[cols]` feed-forward indices of a row, in the order of the source.
    row: Vec<i16>,
    /// `[rows, panels · PANEL]` those of the block so far, in the order of the columns here.
    block: Vec<i16>,
    /// For each row of the block, whether it is a row of zeros.
    zeros: Vec<bool>,
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
                headers: Vec::with_capacity(rows * cols.div_ceil(PANEL)),
                fields: Vec::new(),
                places: Vec::new(),
                outliers: Vec::new(),
            },
            row: vec![0; cols],
            block: Vec::new(),
            zeros: Vec::new(),
            order,
        }
    }

    /// Adds rows, as many as there are logarithms; `q` are their indices `[rows, cols]`.
    pub(crate) fn rows(&mut self, q: &[i16], row_logs: &[u8]) {
        let stride = self.packed.panels() * PANEL;
        for (q, &log) in q.chunks_exact(self.order.len()).zip(row_logs) {
            self.reader.feedforward(q, log, &mut self.row);
            let first = self.block.len();
            self.block.resize(first + stride, 0);
            for (value, &column) in self.block[first..].iter_mut().zip(&*self.order) {
                *value = self.row[column as usize];
            }
            self.zeros.push(log == 0);
            if self.zeros.len() == BLOCK_ROWS {
                self.finish_block();
            }
        }
    }

    /// The linear.
    ///
    /// # Panics
    /// If rows are missing.
    pub(crate) fn finish(mut self) -> Packed {
        self.finish_block();
        let mut packed = self.packed;
        assert_eq!(
            packed.headers.len(),
            packed.rows * packed.panels(),
            "all rows"
        );
        packed.fields.resize(packed.fields.len() + SLACK, 0);
        packed.fields.shrink_to_fit();
        packed.outliers.shrink_to_fit();
        packed
    }

    fn finish_block(&mut self) {
        let packed = &mut self.packed;
        let (panels, cols) = (packed.panels(), packed.cols);
        if self.zeros.is_empty() {
            return;
        }
        for panel in 0..panels {
            let groups = (cols - panel * PANEL).min(PANEL).div_ceil(GROUP);
            let mut place = Place {
                base: packed.fields.len(),
                ..Place::default()
            };
            for (row, &is_zero) in self.zeros.iter().enumerate() {
                if row.is_multiple_of(MARK_ROWS) {
                    let mark = row / MARK_ROWS;
                    place.marks[mark] = (packed.fields.len() - place.base) as u32;
                    place.outliers[mark..].fill(packed.outliers.len() as u32);
                }
                if is_zero {
                    packed.headers.push(ZERO_ROW);
                    continue;
                }
                let first = (row * panels + panel) * PANEL;
                packed.push_row(row, &self.block[first..first + groups * GROUP]);
            }
            // The marks of rows that the block does not have.
            let marks = self.zeros.len().div_ceil(MARK_ROWS);
            place.outliers[marks..].fill(packed.outliers.len() as u32);
            packed.places.push(place);
        }
        self.block.clear();
        self.zeros.clear();
    }
}

impl Packed {
    /// Adds the feed-forward indices of a row's groups.
    fn push_row(&mut self, row: usize, values: &[i16]) {
        let mut header = 0;
        for (group, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
            let width = best_width(values);
            header |= ((width - WIDTHS.start()) as u16) << (4 * group);
            let half = 1i32 << (width - 1);
            for (word_index, word_values) in values.as_chunks::<8>().0.iter().enumerate() {
                let mut word = 0u128;
                for (index, &value) in word_values.iter().enumerate() {
                    let even = i32::from(value & !1);
                    let nearest = even.clamp(-half, half - 2);
                    if nearest != even {
                        self.outliers.push(Outlier {
                            row: row as u8,
                            column: (group * GROUP + word_index * 8 + index) as u8,
                            quarter: ((even - nearest) / 2) as i16,
                        });
                    }
                    let field = (nearest + half) | i32::from(value & 1);
                    word |= (field as u128) << (index as u32 * width);
                }
                let bytes = word.to_le_bytes();
                self.fields.extend_from_slice(&bytes[..width as usize]);
            }
        }
        debug_assert!(values.len() / GROUP <= GROUPS && header != ZERO_ROW);
        self.headers.push(header);
        debug_assert!(row_bytes(header, values.len() / GROUP) <= PANEL * 2);
    }
}

/// The width with the least sum of bits for a group.
fn best_width(values: &[i16; GROUP]) -> u32 {
    // A value fits into a width if its magnitude, one's complement for negative values, is below 2^(width-1).
    let magnitudes = values.map(|value| (value ^ (value >> 15)) as u16);
    let largest = magnitudes.iter().fold(0, |a, &b| a | b);
    let widest = (u16::BITS - largest.leading_zeros() + 1).clamp(*WIDTHS.start(), *WIDTHS.end());
    let cost = |width: &u32| {
        let limit = 1u16 << (width - 1);
        let outliers: u16 = magnitudes.iter().map(|&m| u16::from(m >= limit)).sum();
        let wide = usize::from(*width > NARROW) * WIDE_COST;
        *width as usize * GROUP + usize::from(outliers) * OUTLIER_COST + wide
    };
    let widths = *WIDTHS.start()..=widest;
    widths.min_by_key(cost).expect("at least one width")
}
