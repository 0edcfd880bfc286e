//! The overlay of a single linear, and the output error of a linear as a reader reconstructs it.

use uc_codec::factor::Factor;
use uc_codec::output_error::OutputError;
use uc_codec::overlay::{self, OverlayFit};
use uc_codec::{CodecError, TensorCode, Weights, bf16, reconstruct};
use uc_layer_quantizer::{InputMoments, StoredWeights};
use uc_pack::Linears;

/// Relative output error of a linear as a reader of the pack reconstructs it. Each row is measured in units of its step,
/// because rows with larger steps matter less to the loss.
pub fn output_error<L>(
    w: &StoredWeights,
    linears: &L,
    index: usize,
    second_moment: &[f32],
) -> anyhow::Result<f64>
where
    L: Linears<Error = anyhow::Error>,
{
    let linear = linears.parameters(index)?;
    let mut error = OutputError::new(linear.code.cols, second_moment)?;
    for tile in 0..linear.tiles() {
        let code = linear.tile_code(tile, linears.indices(index, tile)?.into_owned());
        let steps = code.steps().rows;
        let in_row_steps = |mut values: Vec<f32>| {
            for (row, step) in values.chunks_mut(code.cols).zip(&steps) {
                row.iter_mut().for_each(|x| *x /= step);
            }
            values
        };
        let reconstructed = reconstruct::reconstruct(&code)?.into_iter();
        let reconstructed = in_row_steps(reconstructed.map(bf16::to_f32).collect());
        let w = in_row_steps(w.rows(linear.tile(tile))?.into_owned());
        error.add(&w, &reconstructed)?;
    }
    Ok(error.relative())
}

/// Whether it is certain, up to a probability that [`overlay::capture_bound`] states, that no overlay of a rank up to
/// `max_rank` is worth its bits. `residual` is that of `code`, whose indices are not used.
pub fn is_excluded(
    residual: &[f32],
    code: &TensorCode,
    input: &InputMoments,
    max_rank: usize,
) -> Result<bool, CodecError> {
    let (rows, cols) = (code.rows, code.cols);
    let InputMoments { moments, damping } = input;
    let steps = code.steps().rows;
    let bound =
        overlay::capture_bound(residual, (rows, cols), moments, *damping, &steps, max_rank)?;
    Ok(bound.excludes(rows, cols, max_rank))
}

/// Overlays of up to `rank`, fitted to the residual that remains after quantization of a linear. The indices of `code` are not used.
pub fn fit(
    residual: Vec<f32>,
    code: &TensorCode,
    factor: &Factor,
    rank: usize,
) -> Result<OverlayFit, CodecError> {
    let steps = code.steps().rows;
    overlay::fit(residual, code.rows, code.cols, factor, &steps, rank)
}
