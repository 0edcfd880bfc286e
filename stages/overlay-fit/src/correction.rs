//! The overlay of a single linear, and the output error of a linear as a reader reconstructs it.

use uc_codec::factor::Factor;
use uc_codec::overlay::{self, OverlayFit};
use uc_codec::{CodecError, LowRank, TensorCode, bf16, output_error, reconstruct};
use uc_layer_quantizer::InputMoments;

/// Relative output error of a linear as a reader of the pack reconstructs it. Each row is measured in units of its step,
/// because rows with larger steps matter less to the loss.
pub fn output_error(
    w: &[f32],
    code: &TensorCode,
    second_moment: &[f32],
) -> Result<f64, CodecError> {
    let in_row_steps = |mut values: Vec<f32>| {
        for (row, step) in values.chunks_mut(code.cols).zip(code.steps().rows) {
            row.iter_mut().for_each(|x| *x /= step);
        }
        values
    };
    let reconstructed = reconstruct::reconstruct(code)?.into_iter();
    let reconstructed = in_row_steps(reconstructed.map(bf16::to_f32).collect());
    let w = in_row_steps(w.to_vec());
    output_error::relative_output_error(&w, &reconstructed, code.rows, code.cols, second_moment)
}

/// Whether it is certain, up to a probability that [`overlay::capture_bound`] states, that [`best_rank`] is 0.
pub fn is_excluded(
    w: &[f32],
    code: &TensorCode,
    input: &InputMoments,
    max_rank: usize,
) -> Result<bool, CodecError> {
    let (shape, rows) = ((code.rows, code.cols), code.steps().rows);
    let InputMoments { moments, damping } = input;
    let residual = code.residual(w)?;
    let bound = overlay::capture_bound(&residual, shape, moments, *damping, &rows, max_rank)?;
    Ok(bound.excludes(code.rows, code.cols, max_rank))
}

/// The rank up to `max_rank` with the least predicted error, if the overlay's bits are taken from the indices. Often 0.
pub fn best_rank(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    max_rank: usize,
) -> Result<usize, CodecError> {
    Ok(fit(w, code, factor, max_rank)?.best_rank())
}

/// The overlay of a given rank.
pub fn correction(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    rank: usize,
) -> Result<Option<LowRank>, CodecError> {
    Ok(fit(w, code, factor, rank)?.low_rank(rank))
}

/// Overlays of up to `rank`, fitted to the residual that remains after quantization of a linear.
fn fit(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    rank: usize,
) -> Result<OverlayFit, CodecError> {
    let (residual, rows) = (code.residual(w)?, code.steps().rows);
    overlay::fit(&residual, code.rows, code.cols, factor, &rows, rank)
}
