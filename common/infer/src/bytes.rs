//! A matrix in signed bytes, from which the likely tokens are found.

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

use crate::arithmetic::MemoryForm;
use crate::columns::Columns;
use crate::huge_pages;
use crate::integer::{Quantized, Scratch, byte_products};
use crate::matrix::Dense;
use crate::packed::GROUP;
use crate::product::transposed;

/// Weights of a task, about.
const TASK_WEIGHTS: usize = 1 << 18;
/// Largest magnitude of a byte.
const LARGEST: f32 = 127.0;
/// A row whose largest weight is below this counts as zero.
const SMALLEST: f32 = 1e-30;

/// The matrix `[rows, cols]` with a byte for each weight, `w ≈ scale of its row · (byte − 128)`.
#[derive(Debug)]
pub(crate) struct ByteMatrix {
    columns: Columns,
    /// The rows, unless they are made each time they are used.
    rows: Option<ByteRows>,
}

/// Rows of bytes.
#[derive(Debug, Default)]
struct ByteRows {
    /// `[rows, stride]`
    values: Vec<u8>,
    /// `[rows]`
    scales: Vec<f32>,
}

impl ByteMatrix {
    /// For a matrix `[_, cols]`, whose bytes are kept in the form `resident`.
    pub(crate) fn new(matrix: &Dense, cols: usize, memory: MemoryForm) -> Self {
        let rows = matrix.len() / cols;
        ByteMatrix {
            columns: Columns::new(&vec![0; cols]),
            rows: (memory == MemoryForm::Resident).then(|| {
                let stride = cols.next_multiple_of(GROUP);
                let mut bytes = ByteRows {
                    values: huge_pages::collect(std::iter::repeat_n(0, rows * stride)),
                    scales: vec![0.0; rows],
                };
                let parts = bytes.values.par_chunks_mut(stride);
                let parts = parts.zip(&mut bytes.scales).enumerate();
                parts.for_each_init(Vec::new, |row, (index, (values, scale))| {
                    *scale = row_of_bytes(matrix, index, cols, row, values);
                });
                bytes
            }),
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let rows = self.rows.as_ref();
        rows.map_or(0, |rows| {
            rows.values.len() + size_of::<f32>() * rows.scales.len()
        })
    }

    /// `x Wᵀ` for the matrix and `x: [tokens, cols]`, with activations of 16 bits; `[tokens, rows]`.
    pub(crate) fn product(&self, matrix: &Dense, x: &[f32]) -> Vec<f32> {
        let cols = self.columns.len();
        let (rows, stride) = (matrix.len() / cols, cols.next_multiple_of(GROUP));
        let quantized = Quantized::new(x, &self.columns);
        let tokens = quantized.tokens();
        let task_rows = (TASK_WEIGHTS / stride).next_multiple_of(4);
        let mut out = vec![0.0; rows * tokens];
        let tasks = out.par_chunks_mut(task_rows * tokens).enumerate();
        tasks.for_each_init(
            || (Scratch::default(), ByteRows::default(), Vec::new()),
            |(scratch, made, row), (task, out)| {
                let range = task * task_rows..task * task_rows + out.len() / tokens;
                let (values, scales) = match &self.rows {
                    Some(rows) => (
                        &rows.values[range.start * stride..range.end * stride],
                        &rows.scales[range],
                    ),
                    None => {
                        made.values.resize(range.len() * stride, 0);
                        made.scales.clear();
                        let values = made.values.chunks_exact_mut(stride);
                        let scales = range
                            .zip(values)
                            .map(|(index, values)| row_of_bytes(matrix, index, cols, row, values));
                        made.scales.extend(scales);
                        (&*made.values, &*made.scales)
                    }
                };
                byte_products(values, stride, &quantized, scratch, out);
                for (out, scale) in out.chunks_exact_mut(tokens).zip(scales) {
                    out.iter_mut().for_each(|y| *y *= scale);
                }
            },
        );
        transposed(out, tokens)
    }
}

/// Rounds row `index` of a matrix to bytes, of which those beyond its columns have no meaning; its scale.
fn row_of_bytes(
    matrix: &Dense,
    index: usize,
    cols: usize,
    row: &mut Vec<f32>,
    bytes: &mut [u8],
) -> f32 {
    row.resize(cols, 0.0);
    matrix.read(index * cols, row);
    dispatch(Bytes(row, bytes))
}

/// Rounds a row to bytes; its scale.
struct Bytes<'a>(&'a [f32], &'a mut [u8]);

impl Kernel for Bytes<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Bytes(row, bytes) = self;
        let largest = row.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        if largest < SMALLEST {
            bytes.fill(128);
            return 0.0;
        }
        let inverse = LARGEST / largest;
        for (byte, x) in bytes.iter_mut().zip(row) {
            // Adding 1.5 · 2^23 rounds to the nearest integer.
            let rounded = (x * inverse + 12_582_912.0) - 12_582_912.0;
            *byte = (rounded as i32 + 128) as u8;
        }
        largest / LARGEST
    }
}
