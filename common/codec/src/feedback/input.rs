//! What a row block of the trellis is quantized from: its weights, its steps, and how its rows feed back into one another.

use super::coupling::RowCoupling;
use crate::factor::Factor;
use crate::weights::is_zero;

/// The inputs to the quantization of a row block.
pub(super) struct RowBlockInput<'a> {
    /// [rows, n]
    pub(super) weights: &'a [f32],
    /// Rows that are not zero.
    pub(super) active: Vec<usize>,
    /// `[rows]`
    pub(super) steps: &'a [f32],
    /// How the rows feed back into one another and into other blocks.
    pub(super) coupling: Option<RowCoupling<'a>>,
}

impl<'a> RowBlockInput<'a> {
    /// The rows of `weights` [rows, n], which begin at row `first` of the linear.
    pub(super) fn new(
        weights: &'a [f32],
        steps: &'a [f32],
        first: usize,
        outputs: Option<&'a Factor>,
    ) -> Self {
        let n = weights.len() / steps.len();
        let zero = |&row: &usize| is_zero(&weights[row * n..(row + 1) * n]);
        let active: Vec<usize> = (0..steps.len()).filter(|row| !zero(row)).collect();
        RowBlockInput {
            weights,
            coupling: outputs.map(|outputs| RowCoupling::new(outputs, first, steps, &active)),
            active,
            steps,
        }
    }
}
