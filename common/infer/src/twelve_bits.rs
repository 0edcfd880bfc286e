//! A matrix in integers of twelve bits: the head in the arithmetic `fast`.
//!
//! # Layout
//! A row has a scale, the largest magnitude of its weights divided by 2047, and for each group of 64 columns 96 bytes. With the weight
//! as an integer q, of which `high = q >> 4` and `low = q & 15`, these are 64 bytes `high + 128` and 32 bytes, whose lower halves are the
//! `low` of the first 32 columns and whose upper halves those of the others.
//!
//! # Arithmetic
//! As in [`crate::integer`], with the sums of the two parts apart, since the sum of q times activations would not fit into 32 bits:
//! ```text
//! y_i = scale_i · Σ (16 s_P · f32(Σ high_ij · A_j) + s_P · f32(Σ low_ij · A_j))     fused multiply-adds, in this order
//! ```

use std::ops::Range;

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

use crate::columns::Columns;
use crate::huge_pages;
use crate::integer::{Quantized, Scratch, twelve_bit_products};
use crate::matrix::Dense;
use crate::packed::{GROUP, PANEL};
use crate::product::{stripes, transpose, zeros};
use crate::tasks;
use crate::vector::nearest_integer;

/// Weights of a task, about.
const TASK_WEIGHTS: usize = 1 << 18;
/// Largest magnitude of an integer.
const LARGEST: f32 = 2047.0;
/// Bytes of a group.
pub(crate) const GROUP_BYTES: usize = GROUP + GROUP / 2;
/// Bytes of a panel.
pub(crate) const PANEL_BYTES: usize = PANEL / GROUP * GROUP_BYTES;
/// A row whose largest weight is below this counts as zero.
const SMALLEST: f32 = 1e-30;

/// A matrix `[rows, cols]` in integers.
#[derive(Debug)]
pub(crate) struct TwelveBits {
    columns: Columns,
    rows: Rows,
}

/// Rows of integers.
#[derive(Debug, Default)]
struct Rows {
    /// [rows, groups, GROUP_BYTES]
    values: Vec<u8>,
    /// `[rows]`
    scales: Vec<f32>,
}

impl TwelveBits {
    /// The integers of a matrix `[_, cols]`.
    pub(crate) fn new(matrix: &Dense, cols: usize) -> Self {
        let (count, stride) = (matrix.len() / cols, row_bytes(cols));
        let mut rows = Rows {
            values: huge_pages::collect(std::iter::repeat_n(0, count * stride)),
            scales: vec![0.0; count],
        };
        let parts = rows.values.par_chunks_mut(stride);
        let parts = parts.zip(&mut rows.scales).enumerate();
        parts.for_each_init(Vec::new, |row, (index, (values, scale))| {
            *scale = integers_of_row(matrix, index, cols, row, values);
        });
        TwelveBits {
            columns: columns(cols),
            rows,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.values.len() + size_of::<f32>() * self.rows.scales.len()
    }

    /// `x Wᵀ` for the matrix and `x: [tokens, cols]`, with activations of 16 bits; `[tokens, rows]`.
    pub(crate) fn product(&self, x: &[f32]) -> Vec<f32> {
        let Rows { values, scales } = &self.rows;
        let stride = row_bytes(self.columns.len());
        products(
            scales.len(),
            &self.columns,
            x,
            |rows, _: &mut (), multiply| {
                let bytes = rows.start * stride..rows.end * stride;
                multiply(&values[bytes], &scales[rows]);
            },
        )
    }
}

/// As [`TwelveBits::product`], converting the matrix `[_, cols]` to integers that are not kept.
pub(crate) fn streamed_product(matrix: &Dense, cols: usize, x: &[f32]) -> Vec<f32> {
    let stride = row_bytes(cols);
    let count = matrix.len() / cols;
    products(
        count,
        &columns(cols),
        x,
        |rows, (made, row): &mut (Rows, Vec<f32>), multiply| {
            made.values.resize(rows.len() * stride, 0);
            let values = made.values.chunks_exact_mut(stride);
            let scales = rows.zip(values);
            let scales =
                scales.map(|(index, values)| integers_of_row(matrix, index, cols, row, values));
            made.scales.clear();
            made.scales.extend(scales);
            multiply(&made.values, &made.scales);
        },
    )
}

/// All columns in their order, with the same factor.
fn columns(cols: usize) -> Columns {
    Columns::new(&vec![0; cols])
}

/// `x Wᵀ` for a matrix of `count` rows, `[tokens, count]`. `with_rows` passes on the values and scales of a range of rows, which it may
/// make in memory of its thread.
fn products<T: Default>(
    count: usize,
    columns: &Columns,
    x: &[f32],
    with_rows: impl Fn(Range<usize>, &mut T, &mut dyn FnMut(&[u8], &[f32])) + Sync,
) -> Vec<f32> {
    let stride = row_bytes(columns.len());
    let quantized = Quantized::new(x, columns);
    let tokens = quantized.tokens();
    let task_rows = (TASK_WEIGHTS / stride).next_multiple_of(4);
    let mut out = zeros(count * tokens);
    let tasks = stripes(&mut out, count, task_rows).into_iter().enumerate();
    tasks::for_each(
        tasks.collect(),
        |(task, mut out), (scratch, memory, sums): &mut (Scratch, T, Vec<f32>)| {
            let first = task * task_rows;
            let rows = first..first + out[0].len();
            let mut product = |out: &mut [f32]| {
                with_rows(rows.clone(), memory, &mut |values, scales| {
                    twelve_bit_products(values, stride, &quantized, scratch, out);
                    for (out, scale) in out.chunks_exact_mut(tokens).zip(scales) {
                        out.iter_mut().for_each(|y| *y *= scale);
                    }
                });
            };
            if let [out] = &mut out[..] {
                return product(out);
            }
            sums.clear();
            sums.resize(rows.len() * tokens, 0.0);
            product(sums);
            transpose(sums, &mut out);
        },
    );
    out
}

/// Bytes of a row.
fn row_bytes(cols: usize) -> usize {
    cols.div_ceil(GROUP) * GROUP_BYTES
}

/// Rounds row `index` of a matrix; its scale.
fn integers_of_row(
    matrix: &Dense,
    index: usize,
    cols: usize,
    row: &mut Vec<f32>,
    bytes: &mut [u8],
) -> f32 {
    row.clear();
    row.resize(cols.next_multiple_of(GROUP), 0.0);
    matrix.read(index * cols, &mut row[..cols]);
    dispatch(Rounding(row, bytes))
}

/// Rounds a row of whole groups; its scale.
struct Rounding<'a>(&'a [f32], &'a mut [u8]);

impl Kernel for Rounding<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Rounding(row, bytes) = self;
        let largest = row.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let inverse = match largest < SMALLEST {
            true => 0.0,
            false => LARGEST / largest,
        };
        let groups = bytes.as_chunks_mut::<GROUP_BYTES>().0.iter_mut();
        for (bytes, row) in groups.zip(row.as_chunks::<GROUP>().0) {
            let rounded = row.map(|x| nearest_integer(x * inverse));
            let (high, low) = bytes.split_at_mut(GROUP);
            for (high, q) in high.iter_mut().zip(rounded) {
                *high = ((q >> 4) + 128) as u8;
            }
            for (index, low) in low.iter_mut().enumerate() {
                *low = (rounded[index] & 15 | (rounded[index + GROUP / 2] & 15) << 4) as u8;
            }
        }
        largest / LARGEST
    }
}

/// A panel of rows.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// [rows, stride]
    pub(crate) rows: &'a [u8],
    pub(crate) stride: usize,
    /// Number of the panel.
    pub(crate) index: usize,
}

impl Panel<'_> {
    /// Number of rows.
    pub(crate) fn count(self) -> usize {
        self.rows.len() / self.stride
    }

    /// Writes the high and the low parts of the rows, `[count, PANEL]`. Groups that the panel does not have are left as they are.
    pub(crate) fn parts(self, high: &mut [[i16; PANEL]], low: &mut [[i16; PANEL]]) {
        dispatch(Parts {
            panel: self,
            high,
            low,
        });
    }
}

/// See [`Panel::parts`].
struct Parts<'a> {
    panel: Panel<'a>,
    high: &'a mut [[i16; PANEL]],
    low: &'a mut [[i16; PANEL]],
}

impl Kernel for Parts<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let first = self.panel.index * PANEL_BYTES;
        let rows = self.panel.rows.chunks_exact(self.panel.stride);
        for ((row, high), low) in rows.zip(self.high).zip(self.low) {
            let groups = row[first..].as_chunks::<GROUP_BYTES>().0.iter();
            let high = high.as_chunks_mut::<GROUP>().0.iter_mut();
            let low = low.as_chunks_mut::<GROUP>().0.iter_mut();
            for ((bytes, high), low) in groups.zip(high).zip(low) {
                let (high_bytes, low_bytes) = bytes.split_at(GROUP);
                for (high, &byte) in high.iter_mut().zip(high_bytes) {
                    *high = i16::from(byte) - 128;
                }
                let (first, second) = low.split_at_mut(GROUP / 2);
                for ((first, second), &byte) in first.iter_mut().zip(second).zip(low_bytes) {
                    *first = i16::from(byte & 15);
                    *second = i16::from(byte >> 4);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, step: usize) -> Vec<f32> {
        let number = |i: usize| ((i * step % 1009) as f32 / 504.5 - 1.0).powi(3);
        (1..=count).map(number).collect()
    }

    /// The definition of the module.
    fn by_definition(matrix: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for x in x.chunks_exact(cols) {
            for row in matrix.chunks_exact(cols) {
                let largest = row.iter().fold(0.0f32, |a, w| a.max(w.abs()));
                let q = row
                    .iter()
                    .map(|w| (w * (2047.0 / largest)).round_ties_even() as i64);
                let q: Vec<i64> = q.collect();
                let mut y = 0.0f32;
                for (q, x) in q.chunks(PANEL).zip(x.chunks(PANEL)) {
                    let peak = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    let integer = |x: f32| (x * (32_512.0 / peak)).round_ties_even() as i64;
                    let part = |part: fn(i64) -> i64| -> f32 {
                        let products = q.iter().zip(x).map(|(&q, &x)| part(q) * integer(x));
                        products.sum::<i64>() as f32
                    };
                    let scale = peak / 32_512.0;
                    y = (16.0 * scale).mul_add(part(|q| q >> 4), y);
                    y = scale.mul_add(part(|q| q & 15), y);
                }
                out.push(y * (largest / 2047.0));
            }
        }
        out
    }

    #[test]
    fn products_have_the_bits_of_the_definition_for_any_number_of_tokens_kept_or_not() {
        for (rows, cols) in [(303, 70), (65, 600), (5, 256), (1, 1)] {
            let values = numbers(rows * cols, 7919);
            let matrix = Dense::F32(values.clone());
            for tokens in [1, 2, 7, 17] {
                let x = numbers(tokens * cols, 6421);
                let expected = by_definition(&values, &x, cols);
                let kept = TwelveBits::new(&matrix, cols).product(&x);
                for found in [kept, streamed_product(&matrix, cols, &x)] {
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(
                            found.to_bits(),
                            expected.to_bits(),
                            "{rows} {cols} {tokens}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_tiny_weights_give_zeros() {
        let matrix = Dense::F32([vec![0.0; 70], vec![1e-36; 70], vec![1.0; 70]].concat());
        let found = TwelveBits::new(&matrix, 70).product(&[1.0; 70]);
        assert_eq!(found[..2], [0.0, 0.0]);
        assert!((found[2] - 70.0).abs() < 1e-3);
    }
}
