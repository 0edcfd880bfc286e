//! How a row block feeds back into other rows, by the factor of the outputs.

use super::row_block::concatenated;
use crate::factor::Factor;
use crate::trellis::Coupling;
use faer::linalg::triangular_solve::solve_unit_lower_triangular_in_place;
use faer::{MatMut, MatRef};
use uc_simd::{MatrixView, multiply};

/// The part of the output factor that concerns one row block.
pub(super) struct RowCoupling<'a> {
    /// Number of rows above that feed back into these.
    above: usize,
    /// Whether there are rows below into which these feed back.
    pub(super) feeds_below: bool,
    /// [above, rows] how much of the error of a row above enters each row.
    from_above: MatrixView<'a>,
    /// [active, active] the same among active rows, row k into row i at `(i, k)`: unit lower triangular.
    among_active: Vec<f32>,
    /// The same in units of the row steps, for the trellis search.
    pub(super) within_block: Box<Coupling>,
}

impl<'a> RowCoupling<'a> {
    /// The coupling of the rows that begin at row `first` of the linear and have the steps `steps`. The rows in
    /// `active` are those that are not zero.
    pub(super) fn new(outputs: &'a Factor, first: usize, steps: &[f32], active: &[usize]) -> Self {
        let (rows, block) = (steps.len(), outputs.block);
        let above = first % block;
        let start = first - above;
        let from_above = MatrixView::new(&outputs.a[start * block + above..], above, rows, block);
        let b = &outputs.a[first * block..];
        // How much of the error of row k enters row i, k ≤ i.
        let weight = |k: usize, i: usize| {
            let (from, to) = (above + k, above + i);
            match from / block == to / block {
                true => b[k * block + to % block],
                false => 0.0,
            }
        };
        let pairs = active
            .iter()
            .flat_map(|&i| active.iter().map(move |&k| (i, k)));
        let among_active = pairs.map(|(i, k)| if k <= i { weight(k, i) } else { 0.0 });
        let in_steps = |lane: usize, later: usize| match (active.get(lane), active.get(later)) {
            (Some(&k), Some(&i)) => weight(k, i) * (steps[k] / steps[i]),
            _ => 0.0,
        };
        RowCoupling {
            above,
            feeds_below: above + rows < block.min(outputs.n - start),
            from_above,
            among_active: among_active.collect(),
            within_block: Coupling::new(in_steps),
        }
    }

    /// How far the errors `above` [above, width] of the rows above shift the targets of the active rows, [active, width].
    /// None if no rows above feed back into these.
    pub(super) fn shift(&self, above: &[f32], width: usize, active: &[usize]) -> Option<Vec<f32>> {
        if self.above == 0 || active.is_empty() {
            return None;
        }
        let weights = self.from_above.transposed();
        let mut sums = vec![0.0; weights.rows() * width];
        let above = MatrixView::new(above, self.above, width, width);
        multiply(&mut sums, width, weights, above);
        let rows = active
            .iter()
            .map(|&row| &sums[row * width..(row + 1) * width]);
        let mut shift = concatenated(rows, active.len() * width);
        let triangle = MatRef::from_row_major_slice(&self.among_active, active.len(), active.len());
        let solution = MatMut::from_row_major_slice_mut(&mut shift, active.len(), width);
        solve_unit_lower_triangular_in_place(triangle, solution, faer::Par::Seq);
        Some(shift)
    }
}
