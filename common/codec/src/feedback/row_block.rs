//! A block of rows of the trellis: prepares the targets of each of its tiles, quantizes it, and keeps the residuals.

use super::ColumnBlock;
use super::input::RowBlockInput;
use super::tile::{Scratch, Tile};
use crate::factor::Factor;
use uc_simd::{MatrixView, dispatch, multiply_add};

/// A row block that is being quantized.
pub(super) struct RowBlock<'a> {
    input: RowBlockInput<'a>,
    /// [rows, n]
    q: &'a mut [i16],
    /// w − ŵ of the columns done, [active, n].
    residual: Vec<f32>,
    scratch: Scratch,
}

impl<'a> RowBlock<'a> {
    pub(super) fn new(input: RowBlockInput<'a>, q: &'a mut [i16]) -> Self {
        let n = q.len() / input.steps.len();
        let residual = vec![0.0; input.active.len() * n];
        RowBlock {
            input,
            q,
            residual,
            scratch: Scratch::new(),
        }
    }

    /// Quantizes the next column block. `above` [above, width] is the error of the rows above in these columns. Returns the
    /// error of these rows, [rows, width], if rows below have to compensate for it.
    pub(super) fn quantize(
        &mut self,
        columns: &ColumnBlock,
        above: &[f32],
        factor: &Factor,
        steps: &[f32],
    ) -> Option<Vec<f32>> {
        let &ColumnBlock { first, width, done } = columns;
        // Rows and columns of `a` are those of the factor's block.
        let (a, stride) = (&factor.a[(first - done) * factor.block..], factor.block);
        let mut targets = self.targets(columns, a, stride, steps.len());
        let input = &self.input;
        let coupling = input.coupling.as_ref();
        let shift = coupling.and_then(|coupling| coupling.shift(above, width, &input.active));
        if let Some(shift) = &shift {
            targets.iter_mut().zip(shift).for_each(|(t, s)| *t += s);
        }
        let diagonal_rows = (done..done + width).map(|k| &a[k * stride + done..][..width]);
        let diagonal_block = concatenated(diagonal_rows, width * width);
        dispatch(Tile {
            input,
            q: self.q,
            residual: &mut self.residual,
            targets: &targets,
            factor: &diagonal_block,
            steps,
            first,
            width,
            scratch: &mut self.scratch,
        });
        coupling.filter(|coupling| coupling.feeds_below)?;
        Some(self.errors(width, shift.as_deref()))
    }

    /// Weights of the active rows in a column block plus the feedback of the columns before it, [active, width].
    fn targets(&self, columns: &ColumnBlock, a: &[f32], stride: usize, n: usize) -> Vec<f32> {
        let &ColumnBlock { first, width, done } = columns;
        let active = &self.input.active;
        let rows = active
            .iter()
            .map(|&row| &self.input.weights[row * n + first..][..width]);
        let mut targets = concatenated(rows, active.len() * width);
        if done > 0 && !active.is_empty() {
            let residual = MatrixView::new(&self.residual[first - done..], active.len(), done, n);
            let from_left = MatrixView::new(&a[done..], done, width, stride);
            multiply_add(&mut targets, width, residual, from_left);
        }
        targets
    }

    /// Errors of the tile just quantized against the targets before their `shift` [active, width], [rows, width].
    fn errors(&self, width: usize, shift: Option<&[f32]>) -> Vec<f32> {
        let mut errors = vec![0.0; self.input.steps.len() * width];
        for (lane, &row) in self.input.active.iter().enumerate() {
            let errors = &mut errors[row * width..(row + 1) * width];
            let columns = self.scratch.errors.iter();
            for (error, column) in errors.iter_mut().zip(columns) {
                *error = column[lane];
            }
            if let Some(shift) = shift {
                let shift = &shift[lane * width..(lane + 1) * width];
                for (error, shift) in errors.iter_mut().zip(shift) {
                    *error -= shift;
                }
            }
        }
        errors
    }
}

/// One vector of `length` elements from its pieces. Faster than collecting their elements.
pub(super) fn concatenated<'a>(pieces: impl Iterator<Item = &'a [f32]>, length: usize) -> Vec<f32> {
    let mut whole = Vec::with_capacity(length);
    pieces.for_each(|piece| whole.extend_from_slice(piece));
    whole
}
