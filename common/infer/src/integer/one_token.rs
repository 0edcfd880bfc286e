//! Products with the activations of one token, whose fields are decoded and multiplied in registers.

use uc_codec::trellis::BLOCK_ROWS;
use uc_simd::dispatch;

use super::several::Join;
use super::{Activations, PANEL, Values};
use crate::packed::{Cursor, Outlier, avx512};

/// The memory of products.
pub(super) struct Memory {
    /// Sums of the rows of a panel.
    sums: [i32; BLOCK_ROWS],
    /// Those of rows that need more than 32 bits.
    wide: [i64; BLOCK_ROWS],
    is_wide: [bool; BLOCK_ROWS],
    /// The rows that need them.
    wide_rows: Vec<u8>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            sums: [0; BLOCK_ROWS],
            wide: [0; BLOCK_ROWS],
            is_wide: [false; BLOCK_ROWS],
            wide_rows: Vec::new(),
        }
    }
}

impl Memory {
    /// Adds to `out: [rows]` the products of the next rows, of which row `first` of the block is the first; `outliers` are theirs.
    pub(super) fn add_products(
        &mut self,
        x: Activations<'_>,
        halves: &avx512::Halves,
        cursor: &mut Cursor<'_>,
        outliers: &[Outlier],
        first: usize,
        out: &mut [f32],
    ) {
        let Values::Plain([values]) = x.values else {
            unreachable!("the integers of one token are plain");
        };
        let sums = &mut self.sums[..out.len()];
        avx512::products(cursor, halves, sums, &mut |row, levels| {
            (self.wide[row], self.is_wide[row]) = (avx512::wide_sum(levels, values), true);
            self.wide_rows.push(row as u8);
        });
        self.add_outliers(values, outliers, first as u8);
        dispatch(Join {
            sums: &self.sums[..out.len()],
            scales: x.scales,
            out,
        });
        for row in self.wide_rows.drain(..).map(usize::from) {
            self.is_wide[row] = false;
            out[row] = x.scales[0].mul_add(self.wide[row] as f32, out[row]);
        }
    }

    fn add_outliers(&mut self, values: &[i16; PANEL], outliers: &[Outlier], first: u8) {
        for outlier in outliers {
            let row = usize::from(outlier.row.wrapping_sub(first));
            let x = i32::from(values[usize::from(outlier.column)]);
            match self.is_wide[row] {
                true => self.wide[row] += i64::from(outlier.difference()) * i64::from(x),
                // The whole sum fits into 32 bits, whatever its parts do.
                false => {
                    let product = outlier.difference().wrapping_mul(x);
                    self.sums[row] = self.sums[row].wrapping_add(product);
                }
            }
        }
    }
}
