//! The correction of single linears and the re-quantization of a layer that makes room for it.

use uc_codec::factor::Factor;
use uc_codec::factors::Factors;
use uc_codec::layer::{CodedLinear, LayerWork, LinearShape};
use uc_codec::overlay::{self, Fit};
use uc_codec::{CodecError, TensorCode, bf16, error, reconstruct};
use uc_pack::{LayerDraft, encode_draft};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

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
    error::relative_output_error(&w, &found, code.rows, code.cols, second_moment)
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

/// Bits that the overlays of a layer take.
pub fn overlay_bits(linears: &[CodedLinear]) -> f64 {
    let factors = linears
        .iter()
        .filter_map(|linear| linear.code.overlay.as_ref());
    factors
        .map(|overlay| 16.0 * (overlay.u.len() + overlay.v.len()) as f64)
        .sum()
}

/// Corrections of what the indices of a linear leave.
fn fit(w: &[f32], code: &TensorCode, factor: &Factor, rank: usize) -> Result<Fit, CodecError> {
    let (residual, rows) = (code.residual(w)?, code.steps().rows);
    overlay::fit(&residual, code.rows, code.cols, factor, &rows, rank)
}

/// Quantizes the layer again with overlays of given ranks.
pub struct Refit<'a, 'j> {
    /// The job, for progress.
    pub job: &'a mut Job<'j>,
    /// The layer's weights.
    pub weights: &'a TensorFile,
    /// The linears.
    pub shapes: &'a [LinearShape],
    /// What is known of inputs and outputs.
    pub factors: &'a Factors<'a, anyhow::Error>,
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
        let rank = self.ranks[index];
        if rank > 0 {
            let factor = self.factors.input(&self.shapes[index].input)?;
            code.overlay = fit(w, code, &factor, rank)?.low_rank(rank);
        }
        Ok(())
    }

    fn measure(&self, linears: &[CodedLinear]) -> anyhow::Result<u64> {
        let bytes = encode_draft(self.draft.layer, linears, &self.draft.extras)?;
        Ok(bytes.len() as u64 * 8)
    }

    fn progress(&mut self, done: usize, total: usize) {
        self.job.progress(done as u64, total as u64, "linears");
    }
}
