//! Quantization of a whole layer within its byte budget.
//!
//! `uc_codec::layer::quantize` runs the passes and scales the steps between them. This module provides what a pass
//! needs: weights from disk, storage for the coded linears and for what an interrupted job continues from, and the size of the
//! resulting layer file.

use anyhow::Context;
use camino::Utf8PathBuf;
use uc_codec::allocate::AllocationError;
use uc_codec::layer::{self, CodedLinear, InitialSteps, LayerIo, Progress};
use uc_codec::{CodecError, TensorCode};
use uc_pack::{ExactTensor, LayerCoder, Linears};
use uc_store::framed::{Frame, Journal};
use uc_store::stage::Job;
use uc_store::{ExitCode, atomic};

use crate::coded_linears::PassCodes;
use crate::exact::exact_tensors;
use crate::inputs::{LayerInputs, StoredWeights};

/// The initial steps of linears.
const STEPS_FRAME: Frame = Frame {
    magic: *b"UCSTEPS\0",
    version: 1,
    what: "initial steps",
    max_body: 1 << 30,
    zstd_level: None,
};

/// The bits of passes.
const PASSES_FRAME: Frame = Frame {
    magic: *b"UCPASSES",
    version: 1,
    what: "measured passes",
    max_body: 1 << 10,
    zstd_level: None,
};

impl LayerInputs {
    /// Quantizes the layer so that its file uses nearly all of the bits allocated to its linears, but no more.
    /// `fit_overlay(i, w, code)` may add an overlay to linear `i`, whose weights are `w`. Returns the linears and the
    /// bits of the file. What an interrupted job of the same key left is taken up.
    ///
    /// # Errors
    /// Those of [`layer::quantize`] and of `fit_overlay`.
    pub fn quantize<F>(&self, job: &mut Job<'_>, fit_overlay: F) -> anyhow::Result<(PassCodes, u64)>
    where
        F: Fn(usize, &StoredWeights, &mut TensorCode) -> anyhow::Result<()>,
    {
        let scratch = Scratch {
            base: job.run().root().to_owned(),
            folder: job.resumable_dir()?,
        };
        let (linears, bits) = self.quantize_from(&scratch, job, &fit_overlay)?;
        if linears.count() == self.shapes.len() {
            return Ok((linears, bits));
        }
        // The machine lost its power, and with it linears of a pass that was measured.
        atomic::remove_dir_below(&scratch.base, &scratch.folder)?;
        self.quantize_from(&scratch, job, &fit_overlay)
    }

    /// [`LayerInputs::quantize`] from what is in the scratch folder.
    fn quantize_from<F>(
        &self,
        scratch: &Scratch,
        job: &mut Job<'_>,
        fit_overlay: &F,
    ) -> anyhow::Result<(PassCodes, u64)>
    where
        F: Fn(usize, &StoredWeights, &mut TensorCode) -> anyhow::Result<()>,
    {
        let probe_rows = job.settings().quantize.probe_rows as usize;
        let mut passes = Passes {
            exact: exact_tensors(&self.weights, &self.plan)?,
            inputs: self,
            fit_overlay,
            steps: scratch.journal(STEPS_FRAME, "steps")?,
            measured: scratch.journal(PASSES_FRAME, "passes")?,
            scratch,
            job,
            current: None,
            best: None,
            measured_bits: 0,
        };
        passes.report_continuation();
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

/// The files from which an interrupted job continues.
struct Scratch {
    /// The run directory.
    base: Utf8PathBuf,
    folder: Utf8PathBuf,
}

impl Scratch {
    fn journal(&self, frame: Frame, name: &str) -> anyhow::Result<Journal> {
        Ok(Journal::open(frame, &self.base, &self.folder.join(name))?)
    }

    fn pass(&self, pass: usize) -> anyhow::Result<PassCodes> {
        PassCodes::open(&self.base, &self.folder.join(format!("pass-{pass:02}")))
    }
}

/// State of the passes over a layer: the coded linears of the current pass and of the best one.
struct Passes<'a, 'j, F> {
    inputs: &'a LayerInputs,
    job: &'a mut Job<'j>,
    exact: Vec<ExactTensor>,
    fit_overlay: &'a F,
    scratch: &'a Scratch,
    /// The initial steps of the linears, as far as they are known.
    steps: Journal,
    /// The bits of the passes that have been measured.
    measured: Journal,
    current: Option<PassCodes>,
    /// Linears of the best pass and the bits of their file.
    best: Option<(PassCodes, u64)>,
    /// Bits of the pass that was measured last.
    measured_bits: u64,
}

impl<F> Passes<'_, '_, F> {
    /// Tells the user what an interrupted job has left, if there was one.
    fn report_continuation(&mut self) {
        let (linears, probed) = (self.inputs.shapes.len(), self.steps.frames().len());
        let measured = self.measured.frames().len();
        if probed > 0 {
            self.job.note(format!(
                "continues an interrupted job: first steps of {probed} of {linears} linears, {measured} complete passes"
            ));
        }
    }
}

impl<F> LayerIo for Passes<'_, '_, F>
where
    F: Fn(usize, &StoredWeights, &mut TensorCode) -> anyhow::Result<()>,
{
    type Error = anyhow::Error;
    type Weights = StoredWeights;

    fn weights(&self, index: usize) -> anyhow::Result<StoredWeights> {
        self.inputs.weights(&self.inputs.shapes[index])
    }

    fn saved_steps(&mut self) -> anyhow::Result<Vec<InitialSteps>> {
        let saved = self.steps.frames();
        let steps = (0..saved.len()).map(|index| Ok(saved.get(index)?));
        steps.collect()
    }

    fn save_steps(&mut self, steps: &InitialSteps) -> anyhow::Result<()> {
        Ok(self.steps.append(steps)?)
    }

    fn measured(&mut self, pass: usize) -> anyhow::Result<Option<u64>> {
        if pass >= self.measured.frames().len() {
            return Ok(None);
        }
        self.begin_pass(pass)?;
        self.measured_bits = self.measured.frames().get(pass)?;
        Ok(Some(self.measured_bits))
    }

    fn begin_pass(&mut self, pass: usize) -> anyhow::Result<usize> {
        if let Some(previous) = self.current.take() {
            previous.discard()?;
        }
        let codes = self.scratch.pass(pass)?;
        let done = codes.count();
        self.current = Some(codes);
        Ok(done)
    }

    fn store(&mut self, index: usize, mut linear: CodedLinear) -> anyhow::Result<()> {
        (self.fit_overlay)(index, &self.weights(index)?, &mut linear.code)?;
        let codes = self.current.as_mut().context("no pass has begun")?;
        Ok(codes.append(&linear)?)
    }

    fn measure(&mut self) -> anyhow::Result<u64> {
        let linears = self.current.as_ref().context("no pass to measure")?;
        let coder = LayerCoder::new(self.inputs.plan.index as u32, linears, &self.exact)?;
        self.measured_bits = 8 * coder.length();
        self.measured.append(&self.measured_bits)?;
        Ok(self.measured_bits)
    }

    fn keep_pass(&mut self) -> anyhow::Result<()> {
        let current = self.current.take().context("no pass to keep")?;
        let bits = self.measured_bits;
        match self.best.replace((current, bits)) {
            Some((replaced, _)) => replaced.discard(),
            None => Ok(()),
        }
    }

    fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Steps(done) => {
                let total = self.inputs.shapes.len() as u64;
                self.job.progress_often(done as u64, total, "first steps");
            }
            Progress::Weights(done) => {
                let total = self.inputs.plan.linear_parameters();
                self.job.progress_often(done, total, "weights");
            }
        }
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
