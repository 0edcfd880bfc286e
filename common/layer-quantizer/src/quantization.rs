//! Quantization of a whole layer within its byte budget.
//!
//! `uc_codec::layer::quantize` runs the passes and scales the steps between them. This module provides what a pass
//! needs: weights from disk, storage for the coded linears, and the size of the resulting layer file.

use anyhow::Context;
use uc_codec::allocate::AllocationError;
use uc_codec::layer::{self, CodedLinear, LayerIo};
use uc_codec::{CodecError, TensorCode};
use uc_pack::{ExactTensor, LayerCoder};
use uc_store::ExitCode;
use uc_store::stage::Job;

use crate::exact::exact_tensors;
use crate::inputs::LayerInputs;
use crate::spilled_codes::SpilledCodes;

impl LayerInputs {
    /// Quantizes the layer so that its file uses nearly all of the bits allocated to its linears, but no more.
    /// `fit_overlay(i, w, code)` may add an overlay to linear `i`, whose weights are `w`. Returns the linears and the
    /// bits of the file.
    ///
    /// # Errors
    /// Those of [`layer::quantize`] and of `fit_overlay`.
    pub fn quantize<F>(
        &self,
        job: &mut Job<'_>,
        fit_overlay: F,
    ) -> anyhow::Result<(SpilledCodes, u64)>
    where
        F: Fn(usize, &[f32], &mut TensorCode) -> anyhow::Result<()>,
    {
        let probe_rows = job.settings().quantize.probe_rows as usize;
        let mut passes = Passes {
            exact: exact_tensors(&self.weights, &self.plan)?,
            inputs: self,
            job,
            fit_overlay,
            current: None,
            best: None,
            measured_bits: 0,
        };
        layer::quantize(
            &self.shapes,
            self.file_bits,
            &self.factors,
            probe_rows,
            &mut passes,
        )?;
        passes.best.context("no pass was kept")
    }
}

/// State of the passes over a layer: the coded linears of the current pass and of the best one.
struct Passes<'a, 'j, F> {
    inputs: &'a LayerInputs,
    job: &'a mut Job<'j>,
    exact: Vec<ExactTensor>,
    fit_overlay: F,
    current: Option<SpilledCodes>,
    /// Linears of the best pass and the bits of their file.
    best: Option<(SpilledCodes, u64)>,
    /// Bits of the pass that was measured last.
    measured_bits: u64,
}

impl<F> LayerIo for Passes<'_, '_, F>
where
    F: Fn(usize, &[f32], &mut TensorCode) -> anyhow::Result<()>,
{
    type Error = anyhow::Error;

    fn weights(&self, index: usize) -> anyhow::Result<Vec<f32>> {
        self.inputs.weights(&self.inputs.shapes[index].name)
    }

    fn store(&mut self, index: usize, w: &[f32], mut linear: CodedLinear) -> anyhow::Result<()> {
        (self.fit_overlay)(index, w, &mut linear.code)?;
        if index == 0 {
            self.current = Some(SpilledCodes::new(&self.job.work_dir()?)?);
        }
        let codes = self
            .current
            .as_mut()
            .context("a pass must begin with linear 0")?;
        codes.append(&linear)?;
        let total = self.inputs.shapes.len() as u64;
        self.job.progress(index as u64 + 1, total, "linears");
        Ok(())
    }

    fn measure(&mut self) -> anyhow::Result<u64> {
        let linears = self.current.as_ref().context("no pass to measure")?;
        let coder = LayerCoder::new(self.inputs.plan.index as u32, linears, &self.exact)?;
        self.measured_bits = 8 * coder.length();
        Ok(self.measured_bits)
    }

    fn keep_pass(&mut self) {
        let bits = self.measured_bits;
        self.best = self.current.take().map(|codes| (codes, bits));
    }
}

/// Exit code of an error that the model or the settings caused, `None` for any other error.
pub fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    let is_input_error = |cause: &(dyn std::error::Error + 'static)| {
        matches!(
            cause.downcast_ref(),
            Some(
                CodecError::NotFinite { .. }
                    | CodecError::NotPositiveDefinite { .. }
                    | CodecError::Budget { .. }
            )
        ) || matches!(
            cause.downcast_ref(),
            Some(AllocationError::Budget { .. } | AllocationError::NoSignal { .. })
        )
    };
    (error.chain().any(is_input_error) || uc_model::error::is_model_error(error.chain()))
        .then_some(ExitCode::BadInput)
}
