//! A compressed linear in memory, and its product in both arithmetics.

use std::sync::Arc;

use uc_codec::{LowRank, TensorCode, bf16};
use uc_pack::layer::PieceBuffers;
use uc_simd::{Kernel, dispatch};

use crate::arithmetic::Arithmetic;
use crate::columns::{Columns, FACTORS};
use crate::integer::{self, Quantized, Scratch, streamed_chunk_rows};
use crate::kernel;
use crate::matrix::rows_of_task;
use crate::packed::{Cursor, PANEL, Packed, PackedBuilder, STRIP};
use crate::streamed::Streamed;

/// Rows of `exact` that are made at the same time. Together with the vectors of a few tokens they stay in the second-level cache.
const EXACT_ROWS: usize = 8;

/// The levels of a linear.
#[derive(Debug)]
enum Levels {
    /// [`MemoryForm::Resident`]
    Packed(Packed),
    /// [`MemoryForm::Streamed`]
    Streamed(Streamed),
}

/// A compressed linear in memory.
#[derive(Debug)]
pub struct Coded {
    rows: usize,
    step: f32,
    columns: Columns,
    /// `[rows]` logarithms of the factors of the steps of a row.
    row_step_log2_eighths: Vec<u8>,
    levels: Levels,
    /// V has the columns in the order of `columns`.
    overlay: Option<LowRank>,
    arithmetic: Arithmetic,
}

/// Vectors as compressed linears read them.
#[derive(Debug)]
pub(crate) enum Input {
    /// For [`Arithmetic::Exact`]: `[tokens, cols]`, in the order of the columns.
    Sorted(Vec<f32>),
    /// For [`Arithmetic::Fast`].
    Quantized(Quantized),
}

/// Memory that tasks use one after the other.
#[derive(Default)]
pub(crate) struct TaskMemory {
    scratch: Scratch,
    weights: Vec<f32>,
    buffers: PieceBuffers,
}

/// Builds a [`Coded`] from pieces of whole rows, from the first to the last.
pub(crate) struct CodedBuilder {
    coded: Coded,
    /// The levels so far, unless they are streamed.
    packed: Option<PackedBuilder>,
}

impl CodedBuilder {
    /// `streamed` are the levels for [`MemoryForm::Streamed`]; otherwise they are made from the indices.
    pub(crate) fn new(
        rows: usize,
        step: f32,
        columns: Columns,
        overlay: Option<LowRank>,
        arithmetic: Arithmetic,
        streamed: Option<Streamed>,
    ) -> Self {
        CodedBuilder {
            packed: match streamed {
                None => Some(PackedBuilder::new(rows, columns.order.clone())),
                Some(_) => None,
            },
            coded: Coded {
                rows,
                step,
                row_step_log2_eighths: Vec::with_capacity(rows),
                levels: match streamed {
                    None => Levels::Packed(Packed::default()),
                    Some(streamed) => Levels::Streamed(streamed),
                },
                overlay: overlay.map(|overlay| sorted(overlay, &columns)),
                columns,
                arithmetic,
            },
        }
    }

    /// Adds rows, as many as there are logarithms; `q` are their indices `[rows, cols]`.
    pub(crate) fn rows(&mut self, q: &[i16], row_logs: &[u8], row_steps: &[u8]) {
        if let Some(packed) = &mut self.packed {
            packed.rows(q, row_logs);
        }
        self.coded.row_step_log2_eighths.extend(row_steps);
    }

    pub(crate) fn finish(mut self) -> Coded {
        if let Some(packed) = self.packed {
            self.coded.levels = Levels::Packed(packed.finish());
        }
        self.coded
    }
}

/// The overlay with the columns of V in the order of `columns`.
fn sorted(mut overlay: LowRank, columns: &Columns) -> LowRank {
    let rows = overlay.v.chunks_exact(columns.len());
    let row = |v: &[u16]| -> Vec<u16> { columns.order.iter().map(|&j| v[j as usize]).collect() };
    overlay.v = rows.flat_map(row).collect();
    overlay
}

impl Coded {
    /// The resident form of a code.
    ///
    /// # Panics
    /// If the parts of the code do not fit together, see [`TensorCode::validate`].
    pub fn new(code: &TensorCode, arithmetic: Arithmetic) -> Self {
        let columns = Columns::new(&code.column_log2_eighths);
        let overlay = code.overlay.clone();
        let (rows, step) = (code.rows, code.step);
        let mut builder = CodedBuilder::new(rows, step, columns, overlay, arithmetic, None);
        builder.rows(&code.q, &code.row_log2_eighths, &code.row_step_log2_eighths);
        builder.finish()
    }

    /// `[rows, cols]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns.len()]
    }

    /// Bytes that it takes in memory, with its share of the columns, which linears of one input have together.
    pub(crate) fn bytes(&self) -> usize {
        let overlay = self.overlay.as_ref();
        let sharers = Arc::strong_count(&self.columns.order);
        let levels = match &self.levels {
            Levels::Packed(levels) => levels.bytes(),
            Levels::Streamed(levels) => levels.bytes(),
        };
        levels
            + self.columns.bytes().div_ceil(sharers)
            + self.row_step_log2_eighths.len()
            + overlay.map_or(0, |overlay| 2 * (overlay.u.len() + overlay.v.len()))
    }

    /// Number of levels that are held apart.
    pub(crate) fn outliers(&self) -> usize {
        match &self.levels {
            Levels::Packed(levels) => levels.outliers(),
            Levels::Streamed(_) => 0,
        }
    }

    /// Whether an input of this linear is one of the other, if they read the same vectors.
    pub(crate) fn shares_input(&self, other: &Coded) -> bool {
        self.arithmetic == other.arithmetic && self.columns.is_same(&other.columns)
    }

    /// The vectors `x: [tokens, cols]` as this linear reads them.
    pub(crate) fn input(&self, x: &[f32]) -> Input {
        match self.arithmetic {
            Arithmetic::Fast => Input::Quantized(Quantized::new(x, &self.columns)),
            Arithmetic::Exact => {
                let mut sorted = Vec::with_capacity(x.len());
                self.columns.sort(x, &mut sorted);
                Input::Sorted(sorted)
            }
        }
    }

    /// The products of the vectors with V of an overlay that is applied after them, [tokens, rank].
    pub(crate) fn inner_products(&self, x: &[f32]) -> Option<Vec<f32>> {
        let overlay = self.overlay.as_ref();
        let overlay = overlay.filter(|_| self.arithmetic == Arithmetic::Fast)?;
        let mut sorted = Vec::with_capacity(x.len());
        self.columns.sort(x, &mut sorted);
        let v: Vec<f32> = overlay.v.iter().map(|&v| bf16::to_f32(v)).collect();
        let mut out = vec![0.0; sorted.len() / self.columns.len() * overlay.rank];
        kernel::products(&sorted, &v, self.columns.len(), &mut out);
        Some(out)
    }

    /// Adds `U (V x)` to the rows of a product from `first` on, `out: [rows, tokens]`.
    pub(crate) fn add_overlay(&self, first: usize, inner: &[f32], out: &mut [f32]) {
        let Some(overlay) = &self.overlay else {
            return;
        };
        let rank = overlay.rank;
        let rows = out.chunks_exact_mut(inner.len() / rank);
        for (out, u) in rows.zip(overlay.u[first * rank..].chunks_exact(rank)) {
            for (y, inner) in out.iter_mut().zip(inner.chunks_exact(rank)) {
                for (&u, inner) in u.iter().zip(inner) {
                    *y = bf16::to_f32(u).mul_add(*inner, *y);
                }
            }
        }
    }

    /// Rows of a task of a product with so many tokens, if possible no more than `largest`.
    pub(crate) fn task_rows(&self, tokens: usize, largest: usize) -> usize {
        match &self.levels {
            Levels::Streamed(levels) => levels.tile_rows(),
            Levels::Packed(_) if tokens > 1 => STRIP,
            Levels::Packed(_) => rows_of_task(self.columns.len(), largest, STRIP),
        }
    }

    /// The rows of `x Wᵀ` from `first` on, where a task begins; `out: [rows, tokens]`, of zeros. In fast arithmetic without the
    /// overlay.
    pub(crate) fn rows_of_product(
        &self,
        first: usize,
        input: &Input,
        memory: &mut TaskMemory,
        out: &mut [f32],
    ) {
        match (&self.levels, input) {
            (Levels::Packed(levels), Input::Quantized(x)) => {
                integer::products(levels, first / STRIP, x, &mut memory.scratch, out);
                self.scale_rows(first, x.tokens(), out);
            }
            (Levels::Streamed(levels), Input::Quantized(x)) => {
                self.fast_tile(levels, first / levels.tile_rows(), x, memory, out);
                self.scale_rows(first, x.tokens(), out);
            }
            (Levels::Packed(levels), Input::Sorted(x)) => {
                self.exact_rows(levels, first, x, memory, out);
            }
            (Levels::Streamed(levels), Input::Sorted(x)) => {
                self.exact_tile(levels, first / levels.tile_rows(), x, memory, out);
            }
        }
    }

    /// Multiplies rows with their steps.
    fn scale_rows(&self, first: usize, tokens: usize, out: &mut [f32]) {
        let logs = &self.row_step_log2_eighths[first..];
        for (out, &log) in out.chunks_exact_mut(tokens).zip(logs) {
            let step = self.step * FACTORS[usize::from(log)];
            out.iter_mut().for_each(|y| *y *= step);
        }
    }

    fn fast_tile(
        &self,
        levels: &Streamed,
        tile: usize,
        x: &Quantized,
        memory: &mut TaskMemory,
        mut out: &mut [f32],
    ) {
        let TaskMemory {
            scratch, buffers, ..
        } = memory;
        let mut sink = |rows: &mut _, count: usize| {
            let count = count * x.tokens();
            let (chunk, rest) = std::mem::take(&mut out).split_at_mut(count);
            integer::decoded_products(rows, x, scratch, chunk);
            out = rest;
        };
        levels.levels(
            tile,
            streamed_chunk_rows(),
            &self.columns,
            buffers,
            &mut sink,
        );
    }

    fn exact_rows(
        &self,
        levels: &Packed,
        first: usize,
        x: &[f32],
        memory: &mut TaskMemory,
        out: &mut [f32],
    ) {
        let (cols, tokens) = (self.columns.len(), x.len() / self.columns.len());
        let column_steps = self.column_steps();
        memory.weights.resize(EXACT_ROWS * cols, 0.0);
        for (strip, out) in out.chunks_mut(STRIP * tokens).enumerate() {
            let strip = first / STRIP + strip;
            let mut reader = RowReader::new(self, levels, &column_steps, strip);
            for out in out.chunks_mut(EXACT_ROWS * tokens) {
                let weights = &mut memory.weights[..out.len() / tokens * cols];
                reader.rows(weights);
                kernel::products(weights, x, cols, out);
            }
        }
    }

    fn exact_tile(
        &self,
        levels: &Streamed,
        tile: usize,
        x: &[f32],
        memory: &mut TaskMemory,
        mut out: &mut [f32],
    ) {
        let (cols, tokens) = (self.columns.len(), x.len() / self.columns.len());
        let TaskMemory {
            weights: sorted,
            buffers,
            ..
        } = memory;
        levels.weights(tile, buffers, &mut |weights| {
            sorted.clear();
            for row in weights.chunks_exact(cols) {
                let order = self.columns.order.iter();
                sorted.extend(order.map(|&column| bf16::to_f32(row[column as usize])));
            }
            let rows = weights.len() / cols;
            let (chunk, rest) = std::mem::take(&mut out).split_at_mut(rows * tokens);
            kernel::products(sorted, x, cols, chunk);
            out = rest;
        });
    }

    /// `[cols]` the steps of the columns, in their order here.
    fn column_steps(&self) -> Vec<f32> {
        let factors = self.columns.factors(0..self.columns.len());
        factors.map(|factor| self.step * factor).collect()
    }

    /// The weights of the rows from `first` on into `out: [rows, cols]`, in the order of the source: bfloat16 values as f32.
    pub(crate) fn rows_into(&self, first: usize, out: &mut [f32]) {
        let cols = self.columns.len();
        let end = first + out.len() / cols;
        let levels = match &self.levels {
            Levels::Packed(levels) => levels,
            Levels::Streamed(levels) => {
                return streamed_rows(levels, first, cols, out);
            }
        };
        let column_steps = self.column_steps();
        let mut weights = vec![0.0; cols];
        for strip in first / STRIP..end.div_ceil(STRIP) {
            let mut reader = RowReader::new(self, levels, &column_steps, strip);
            for row in strip * STRIP..end.min((strip + 1) * STRIP) {
                reader.rows(&mut weights);
                if row < first {
                    continue;
                }
                let out = &mut out[(row - first) * cols..][..cols];
                for (weight, &column) in weights.iter().zip(&*self.columns.order) {
                    out[column as usize] = *weight;
                }
            }
        }
    }
}

/// The weights of the rows from `first` on into `out: [rows, cols]`.
fn streamed_rows(levels: &Streamed, first: usize, cols: usize, out: &mut [f32]) {
    let (tile_rows, end) = (levels.tile_rows(), first + out.len() / cols);
    let mut buffers = PieceBuffers::default();
    for tile in first / tile_rows..end.div_ceil(tile_rows) {
        let mut row = tile * tile_rows;
        levels.weights(tile, &mut buffers, &mut |weights| {
            for weights in weights.chunks_exact(cols) {
                if (first..end).contains(&row) {
                    let out = &mut out[(row - first) * cols..(row - first + 1) * cols];
                    for (out, &weight) in out.iter_mut().zip(weights) {
                        *out = bf16::to_f32(weight);
                    }
                }
                row += 1;
            }
        });
    }
}

/// Makes the weights of the contract, one row after the other from a strip on: `bf16(level · step + overlay)`, with fused
/// multiply-adds, bit for bit the reconstruction of `uc_codec::reconstruct`.
struct RowReader<'a> {
    coded: &'a Coded,
    packed: &'a Packed,
    column_steps: &'a [f32],
    row: usize,
    /// For each panel.
    cursors: Vec<Cursor<'a>>,
    /// For each panel those of the current row.
    levels: Vec<[i16; PANEL]>,
}

impl<'a> RowReader<'a> {
    /// From strip `strip` on.
    fn new(coded: &'a Coded, packed: &'a Packed, column_steps: &'a [f32], strip: usize) -> Self {
        let row = strip * STRIP;
        let cursor = |panel| packed.piece(strip, panel).cursor();
        RowReader {
            coded,
            packed,
            column_steps,
            row,
            cursors: (0..packed.panels()).map(cursor).collect(),
            levels: vec![[0; PANEL]; packed.panels()],
        }
    }

    /// The next rows, [rows, cols] in the order of the columns here.
    fn rows(&mut self, out: &mut [f32]) {
        let coded = self.coded;
        for out in out.chunks_exact_mut(self.column_steps.len()) {
            let row_factor = FACTORS[usize::from(coded.row_step_log2_eighths[self.row])];
            let parts = out.chunks_mut(PANEL).zip(self.column_steps.chunks(PANEL));
            let sources = self.cursors.iter_mut().zip(&mut self.levels);
            for ((out, column_steps), (cursor, levels)) in parts.zip(sources) {
                integer::decode(cursor, std::slice::from_mut(levels), &mut 0);
                dispatch(Scaled {
                    levels: &levels[..out.len()],
                    column_steps,
                    row_factor,
                    out,
                });
            }
            self.add_outliers(row_factor, out);
            dispatch(Rounded {
                overlay: coded.overlay.as_ref(),
                row: self.row,
                out,
            });
            self.row += 1;
        }
    }

    /// Replaces the products of the outliers of the current row.
    fn add_outliers(&self, row_factor: f32, out: &mut [f32]) {
        let (strip, row) = (self.row / STRIP, self.row % STRIP);
        for panel in 0..self.cursors.len() {
            let outliers = self.packed.piece(strip, panel).outliers();
            let begin = outliers.partition_point(|outlier| usize::from(outlier.row) < row);
            let of_row = outliers[begin..].iter();
            for outlier in of_row.take_while(|outlier| usize::from(outlier.row) == row) {
                let column = panel * PANEL + usize::from(outlier.column);
                let level = i32::from(self.levels[panel][usize::from(outlier.column)]);
                let level = (level + outlier.difference()) as f32;
                out[column] = level * (self.column_steps[column] * row_factor);
            }
        }
    }
}

/// Levels times steps.
struct Scaled<'a> {
    levels: &'a [i16],
    column_steps: &'a [f32],
    row_factor: f32,
    out: &'a mut [f32],
}

impl Kernel for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let columns = self.out.iter_mut().zip(self.levels).zip(self.column_steps);
        for ((out, &level), &step) in columns {
            *out = f32::from(level) * (step * self.row_factor);
        }
    }
}

/// Adds a row of the overlay and rounds to bfloat16.
struct Rounded<'a> {
    overlay: Option<&'a LowRank>,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for Rounded<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Rounded { overlay, row, out } = self;
        if let Some(overlay) = overlay {
            let (rank, cols) = (overlay.rank, out.len());
            for r in 0..rank {
                let u = bf16::to_f32(overlay.u[row * rank + r]);
                for (out, &v) in out.iter_mut().zip(&overlay.v[r * cols..(r + 1) * cols]) {
                    *out = u.mul_add(bf16::to_f32(v), *out);
                }
            }
        }
        for out in out {
            *out = bf16::to_f32(bf16::round_nearest_even(*out));
        }
    }
}

#[cfg(test)]
mod tests;
