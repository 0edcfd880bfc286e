//! Where every tensor of a pack goes in the files of an export.
//!
//! A format turns a [`Catalog`](crate::catalog::Catalog) into a [`Layout`]: files with a header that is known in advance, and
//! for every tensor of the pack the place, order and element type of its rows. The writer follows it, and so does the reader
//! of exports, backwards. This module touches no file.

use std::ops::Range;

use crate::encoding::{Adjustment, Encoding};

/// The order of the rows of a matrix in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As in the pack.
    Kept,
    /// Within each head of `head_dim` rows, of which the first `rotated` are rotated: the pairs `(i, i + rotated/2)` become
    /// neighbours.
    RotaryPairs {
        /// Rows of a head.
        head_dim: u64,
        /// Rows of a head that are rotated; even.
        rotated: u64,
    },
    /// From query, key and value of each head to all queries, all keys, all values.
    HeadsToParts {
        /// Number of heads.
        heads: u64,
        /// Rows of a head of each part.
        head_dim: u64,
    },
}

impl RowOrder {
    /// The row of the export that holds row `row` of the pack.
    pub fn target(self, row: u64) -> u64 {
        match self {
            Self::Kept => row,
            Self::RotaryPairs { head_dim, rotated } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = rotated / 2;
                let within = match within {
                    within if within >= rotated => within,
                    within => 2 * (within % half) + within / half,
                };
                head * head_dim + within
            }
            Self::HeadsToParts { heads, head_dim } => {
                let (head, within) = (row / (3 * head_dim), row % (3 * head_dim));
                let (part, within) = (within / head_dim, within % head_dim);
                (part * heads + head) * head_dim + within
            }
        }
    }
}

/// A range of a tensor's rows in a file of the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the pack's tensor.
    pub rows: Range<u64>,
    /// Index of the file.
    pub file: usize,
    /// Offset of the first of these rows in the file, bytes.
    pub offset: u64,
}

/// Where the values of a tensor go.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Rows, as this placement divides the values.
    pub rows: u64,
    /// Values of a row.
    pub columns: u64,
    /// The rows: the segments cover all of them in order.
    pub segments: Vec<Segment>,
    /// Their order, in the numbering of the pack. Segments have the order `Kept` unless there is only one.
    pub order: RowOrder,
    /// The matrix is stored as `[columns, rows]`.
    pub transposed: bool,
    /// What is done to the values first.
    pub adjustment: Adjustment,
    /// Their element type.
    pub encoding: Encoding,
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Its name.
    pub name: String,
    /// Its first bytes.
    pub header: Vec<u8>,
    /// Values that come from no tensor of the pack, by offset.
    pub computed: Vec<(u64, Vec<u8>)>,
    /// Its size, bytes.
    pub size: u64,
}

/// The files of an export that hold tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The files.
    pub files: Vec<OutputFile>,
    /// Per tensor of the catalog.
    pub placements: Vec<Placement>,
}

impl Placement {
    /// Bytes of one row in the export.
    pub fn row_bytes(&self) -> u64 {
        self.encoding.bytes(self.columns)
    }

    /// The ranges of files that the tensor fills: file, offset, length.
    pub fn ranges(&self) -> impl Iterator<Item = (usize, u64, u64)> + '_ {
        let length = |segment: &Segment| (segment.rows.end - segment.rows.start) * self.row_bytes();
        let segments = self.segments.iter();
        segments.map(move |segment| (segment.file, segment.offset, length(segment)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_a_permutation_and_the_pairs_are_those_of_the_rotary_embedding() {
        let orders = [
            RowOrder::Kept,
            RowOrder::RotaryPairs {
                head_dim: 8,
                rotated: 8,
            },
            RowOrder::RotaryPairs {
                head_dim: 8,
                rotated: 4,
            },
            RowOrder::HeadsToParts {
                heads: 2,
                head_dim: 4,
            },
        ];
        for order in orders {
            let mut rows: Vec<u64> = (0..24).map(|row| order.target(row)).collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..24), "{order:?}");
        }
        let pairs = orders[1];
        assert_eq!([0, 4, 1, 5].map(|row| pairs.target(row)), [0, 1, 2, 3]);
        assert_eq!([8, 12].map(|row| pairs.target(row)), [8, 9]);
        // Head 1: its query follows that of head 0, its value is the last.
        let parts = orders[3];
        assert_eq!(
            [0, 4, 8, 12, 23].map(|row| parts.target(row)),
            [0, 8, 16, 4, 23]
        );
    }
}
