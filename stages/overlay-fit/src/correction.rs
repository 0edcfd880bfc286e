//! The correction of single linears, and what it leaves.

use uc_codec::factor::Factor;
use uc_codec::overlay::{self, OverlayFit};
use uc_codec::{CodecError, LowRank, TensorCode, bf16, output_error, reconstruct};

/// Relative output error of a linear as a reader of the pack gets it, every row in units of its step.
pub fn output_error(
    w: &[f32],
    code: &TensorCode,
    second_moment: &[f32],
) -> Result<f64, CodecError> {
    let in_units = |mut values: Vec<f32>| {
        for (row, step) in values.chunks_mut(code.cols).zip(code.steps().rows) {
            row.iter_mut().for_each(|x| *x /= step);
        }
        values
    };
    let found = reconstruct::reconstruct(code)?.into_iter();
    let found = in_units(found.map(bf16::to_f32).collect());
    let w = in_units(w.to_vec());
    output_error::relative_output_error(&w, &found, code.rows, code.cols, second_moment)
}

/// The rank whose correction, paid for from the indices, leaves the least predicted error; often 0.
pub fn worthwhile_rank(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    max_rank: usize,
) -> Result<usize, CodecError> {
    Ok(fit(w, code, factor, max_rank)?.best_rank())
}

/// The correction of a given rank.
pub fn correction(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    rank: usize,
) -> Result<Option<LowRank>, CodecError> {
    Ok(fit(w, code, factor, rank)?.low_rank(rank))
}

/// Corrections of what the indices of a linear leave.
fn fit(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    rank: usize,
) -> Result<OverlayFit, CodecError> {
    let (residual, rows) = (code.residual(w)?, code.steps().rows);
    overlay::fit(&residual, code.rows, code.cols, factor, &rows, rank)
}
