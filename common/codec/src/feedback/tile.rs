//! The innermost kernel of error feedback: one tile, column by column, with its rows in vector lanes.

use super::BLOCK_COLUMNS;
use super::input::RowBlockInput;
use crate::bf16;
use crate::trellis::{BLOCK_ROWS, BlockSearch};
use uc_simd::Kernel;

/// Columns whose errors are propagated to the rest of the tile together.
const SUB_BLOCK: usize = 8;

/// A number for each row of a block.
type Column<T> = [T; BLOCK_ROWS];

/// Scratch memory of a tile, column-major.
pub(super) struct Scratch {
    /// `[columns]` what is to be quantized.
    targets: Vec<Column<f32>>,
    /// `[columns]` the weights, and w − ŵ once the column is quantized.
    residuals: Vec<Column<f32>>,
    /// `[columns]` target − ŵ.
    pub(super) errors: Vec<Column<f32>>,
    /// `[columns]`
    indices: Vec<Column<i16>>,
    search: Box<BlockSearch>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Scratch {
            targets: vec![[0.0; BLOCK_ROWS]; BLOCK_COLUMNS],
            residuals: vec![[0.0; BLOCK_ROWS]; BLOCK_COLUMNS],
            errors: vec![[0.0; BLOCK_ROWS]; BLOCK_COLUMNS],
            indices: vec![[0; BLOCK_ROWS]; BLOCK_COLUMNS],
            search: BlockSearch::new(),
        }
    }
}

/// The columns `first..first + width` of a row block.
pub(super) struct Tile<'a> {
    pub(super) input: &'a RowBlockInput<'a>,
    /// [rows, n]
    pub(super) q: &'a mut [i16],
    /// [active, n]
    pub(super) residual: &'a mut [f32],
    /// [active, width]
    pub(super) targets: &'a [f32],
    /// [width, width] the factor among these columns.
    pub(super) factor: &'a [f32],
    /// `[n]` column steps.
    pub(super) steps: &'a [f32],
    pub(super) first: usize,
    pub(super) width: usize,
    pub(super) scratch: &'a mut Scratch,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.steps.len();
        let (first, width) = (self.first, self.width);
        let Scratch {
            targets,
            residuals,
            errors,
            indices,
            search,
        } = self.scratch;
        let active = &self.input.active;
        let mut row_steps = [1.0; BLOCK_ROWS];
        for (step, &row) in row_steps.iter_mut().zip(active) {
            *step = self.input.steps[row];
        }
        let row_of = |lane: usize| active[lane] * n + first..active[lane] * n + first + width;
        let lanes = active.len();
        rows_to_columns(lanes, &mut residuals[..width], |lane| {
            &self.input.weights[row_of(lane)]
        });
        rows_to_columns(lanes, &mut targets[..width], |lane| {
            &self.targets[lane * width..(lane + 1) * width]
        });
        for start in (0..width).step_by(SUB_BLOCK) {
            let end = width.min(start + SUB_BLOCK);
            for j in start..end {
                let steps = row_steps.map(|row| self.steps[first + j] * row);
                let mut values = targets[j];
                values
                    .iter_mut()
                    .zip(&steps)
                    .for_each(|(value, step)| *value /= step);
                match &self.input.coupling {
                    None => search.quantize(&values, active.len()),
                    Some(coupling) => {
                        search.quantize_coupled(&values, active.len(), &coupling.within_block)
                    }
                }
                indices[j] = search.indices;
                errors[j] = targets[j];
                let rows = residuals[j].iter_mut().zip(&mut errors[j]);
                for ((residual, error), (level, step)) in rows.zip(search.levels.iter().zip(&steps))
                {
                    let reconstructed = bf16::to_f32(bf16::round_nearest_even(level * step));
                    *residual -= reconstructed;
                    *error -= reconstructed;
                }
                propagate_error(
                    &residuals[j..=j],
                    &mut targets[j + 1..end],
                    &self.factor[j * width + j + 1..],
                    width,
                );
            }
            if end < width {
                let after = &self.factor[start * width + end..];
                propagate_error(
                    &residuals[start..end],
                    &mut targets[end..width],
                    after,
                    width,
                );
            }
        }
        columns_to_rows(lanes, &indices[..width], |lane, row| {
            self.q[row_of(lane)].copy_from_slice(row);
        });
        columns_to_rows(lanes, &residuals[..width], |lane, row| {
            self.residual[lane * n + first..][..width].copy_from_slice(row);
        });
    }
}

/// Rows that are transposed together, so that whole cache lines are written.
const TRANSPOSED: usize = 16;

/// Fills the first `lanes` lanes of `columns` from rows of as many elements as there are columns. They are copied first: in the
/// matrix they may be a power of two apart, where few of them fit into the cache.
#[inline(always)]
fn rows_to_columns<'a, T: Copy + Default + 'a>(
    lanes: usize,
    columns: &mut [Column<T>],
    row_of: impl Fn(usize) -> &'a [T],
) {
    let mut rows = [[T::default(); BLOCK_COLUMNS]; TRANSPOSED];
    for first in (0..lanes).step_by(TRANSPOSED) {
        let count = TRANSPOSED.min(lanes - first);
        for (lane, row) in rows.iter_mut().enumerate().take(count) {
            row[..columns.len()].copy_from_slice(row_of(first + lane));
        }
        for (j, column) in columns.iter_mut().enumerate() {
            for (out, row) in column[first..first + count].iter_mut().zip(&rows) {
                *out = row[j];
            }
        }
    }
}

/// Passes the first `lanes` lanes of `columns` to `sink`, with the number of the lane.
#[inline(always)]
fn columns_to_rows<T: Copy + Default>(
    lanes: usize,
    columns: &[Column<T>],
    mut sink: impl FnMut(usize, &[T]),
) {
    let mut rows = [[T::default(); BLOCK_COLUMNS]; TRANSPOSED];
    for first in (0..lanes).step_by(TRANSPOSED) {
        let count = TRANSPOSED.min(lanes - first);
        for (j, column) in columns.iter().enumerate() {
            for (row, element) in rows.iter_mut().zip(&column[first..first + count]) {
                row[j] = *element;
            }
        }
        for (lane, row) in rows.iter().enumerate().take(count) {
            sink(first + lane, &row[..columns.len()]);
        }
    }
}

/// `targets[k] += Σ_j residuals[j] · a[j · stride + k]`, in the order of j, with fused multiply-adds.
#[inline(always)]
fn propagate_error(
    residuals: &[Column<f32>],
    targets: &mut [Column<f32>],
    a: &[f32],
    stride: usize,
) {
    const LANES: usize = 32;
    for (k, target) in targets.iter_mut().enumerate() {
        for (chunk, target) in target.chunks_exact_mut(LANES).enumerate() {
            let mut sum = [0.0; LANES];
            sum.copy_from_slice(target);
            for (j, residual) in residuals.iter().enumerate() {
                let a = a[j * stride + k];
                let residual = &residual[chunk * LANES..(chunk + 1) * LANES];
                for (sum, residual) in sum.iter_mut().zip(residual) {
                    *sum = residual.mul_add(a, *sum);
                }
            }
            target.copy_from_slice(&sum);
        }
    }
}
