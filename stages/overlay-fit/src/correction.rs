//! The correction of single linears and the re-quantization of a layer that makes room for it.

use std::collections::BTreeMap;

use uc_codec::factor::Factor;
use uc_codec::layer::{CodedLinear, LayerWork, LinearShape};
use uc_codec::{CodecError, TensorCode, bf16, error, overlay, reconstruct, steps, trellis};
use uc_pack::LayerDraft;
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// Relative output error of a linear as a reader of the pack gets it.
pub fn output_error(
    w: &[f32],
    code: &TensorCode,
    second_moment: &[f32],
) -> Result<f64, CodecError> {
    let found: Vec<f32> = reconstruct::reconstruct(code)?
        .into_iter()
        .map(bf16::to_f32)
        .collect();
    error::relative_output_error(w, &found, code.rows, code.cols, second_moment)
}

/// The rank whose correction, paid for from the indices, leaves the least predicted error; often 0.
pub fn worthwhile_rank(
    w: &[f32],
    code: &TensorCode,
    factor: &Factor,
    max_rank: usize,
) -> Result<usize, CodecError> {
    Ok(overlay::fit(&residual(w, code), code.rows, code.cols, factor, max_rank)?.best_rank())
}

/// Bits that the overlays of a layer take.
pub fn overlay_bits(linears: &[CodedLinear]) -> f64 {
    let factors = linears
        .iter()
        .filter_map(|linear| linear.code.overlay.as_ref());
    factors
        .map(|overlay| 16.0 * (overlay.u.len() + overlay.v.len()) as f64)
        .sum()
}

/// What the indices alone leave, `[rows, cols]`.
fn residual(w: &[f32], code: &TensorCode) -> Vec<f32> {
    let steps = steps::column_steps(code.step, &code.column_log);
    let levels = trellis::levels(&code.q, code.cols, &code.row_log);
    let rows = w.chunks(code.cols).zip(levels.chunks(code.cols));
    rows.flat_map(|(w, levels)| {
        w.iter()
            .zip(levels)
            .zip(&steps)
            .map(|((w, &level), s)| w - level as f32 * s)
    })
    .collect()
}

/// Quantizes the layer again with overlays of given ranks.
pub struct Refit<'a, 'j> {
    /// The job, for progress.
    pub job: &'a mut Job<'j>,
    /// The layer's weights.
    pub weights: &'a TensorFile,
    /// The linears.
    pub shapes: &'a [LinearShape],
    /// Factor of every input.
    pub factors: &'a BTreeMap<String, Factor>,
    /// Rank of every linear.
    pub ranks: &'a [usize],
    /// The layer as quantized without overlays.
    pub draft: &'a LayerDraft,
}

impl LayerWork for Refit<'_, '_> {
    type Error = anyhow::Error;

    fn weights(&self, index: usize) -> anyhow::Result<Vec<f32>> {
        Ok(self.weights.read_f32(&self.shapes[index].name)?)
    }

    fn finish(&self, index: usize, w: &[f32], code: &mut TensorCode) -> anyhow::Result<()> {
        let (rank, factor) = (self.ranks[index], &self.factors[&self.shapes[index].input]);
        if rank > 0 {
            let fit = overlay::fit(&residual(w, code), code.rows, code.cols, factor, rank)?;
            code.overlay = fit.low_rank(rank);
        }
        Ok(())
    }

    fn measure(&self, linears: &[CodedLinear]) -> anyhow::Result<u64> {
        let (layer, extras) = (self.draft.layer, self.draft.extras.clone());
        Ok(LayerDraft {
            layer,
            linears: linears.to_vec(),
            extras,
        }
        .encode()?
        .len() as u64
            * 8)
    }

    fn progress(&mut self, done: usize, total: usize) {
        self.job.progress(done as u64, total as u64, "linears");
    }
}
