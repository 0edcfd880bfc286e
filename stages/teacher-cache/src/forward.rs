//! The forward pass of one teacher layer over all windows: hidden states after the layer, second moments of its inputs.
//!
//! Windows are processed in batches of fixed size and order, so the sums have the same bits for any number of threads. A long job
//! continues after an interruption ([`crate::kept`]).

use std::collections::BTreeMap;

use anyhow::Context;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{
    Arithmetic, Layer, Weights, WeightsFromFn, check_states, windows_per_batch,
};
use uc_model::work::{self, Waiting};
use uc_model::{ModelConfig, WeightValues};
use uc_store::spill::Spill;
use uc_store::stage::Job;
use uc_store::stream::{KeptSums, RowSink, RowSource};
use uc_store::tensors::TensorFile;

use crate::input_moments::{ExpertTokens, InputMoments};
use crate::kept;
use crate::states::{HiddenStates, StateWriter, file_weight, source_weights};
use crate::token_weights::sqrt_token_weights;

/// Number of tokens in a batch. It affects the bits of the result, because sums are accumulated batch by batch.
const BATCH_TOKENS: usize = 2048;
/// The same for a layer with experts.
const ROUTED_BATCH_TOKENS: usize = 16384;

/// Reads a tensor of the layer by its name.
type ReadTensor = dyn Fn(&str) -> anyhow::Result<WeightValues>;

/// Which windows are run through the teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// All calibration windows.
    Calibration,
    /// The windows of the sensitivity pass; weights are read from the source model once more.
    Sensitivity,
}

/// Writes the hidden states after the layer, and the second moments of its inputs.
pub fn run(job: &mut Job<'_>, pass: Pass) -> anyhow::Result<()> {
    dispatch(
        job.settings().model.device.into(),
        ForwardPass { job, pass },
    )?
}

struct ForwardPass<'a, 'j> {
    job: &'a mut Job<'j>,
    pass: Pass,
}

impl OnDevice for ForwardPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let index = job.layer()? as usize;
        let plan = config.layer_plan(index);
        let (states, statistics) = match self.pass {
            Pass::Calibration => ("hidden", "statistics"),
            Pass::Sensitivity => ("sensitivity-hidden", "sensitivity-statistics"),
        };
        let hidden = HiddenStates::open(&job.input(states)?)?;
        let dims = hidden.dims();
        let [windows, length, _] = dims;
        let sqrt_weights = match self.pass {
            Pass::Calibration => sqrt_token_weights(job, &plan, windows, length)?,
            Pass::Sensitivity => BTreeMap::new(),
        };
        let read: Box<ReadTensor> = match self.pass {
            Pass::Calibration => {
                let weights = TensorFile::open(&job.input("weights")?)?;
                Box::new(move |name| file_weight(&weights, name))
            }
            Pass::Sensitivity => Box::new(source_weights(&job.plan().model.path, plan.clone())?),
        };
        let weights = WeightsFromFn::new(&*read, &device).with_arithmetic(Arithmetic::Bf16);
        let layer = Layer::<B, _>::new(&config.layers[index], length, &weights, &device)?;
        let batch_tokens = match plan.has_experts() {
            true => ROUTED_BATCH_TOKENS,
            false => BATCH_TOKENS,
        };
        let batch = windows_per_batch(batch_tokens, length);
        let max_input_block = job.settings().calibration.max_input_block as usize;
        let (run, spill) = (job.run().root(), job.resumable_dir()?.join("routed"));
        let mut kept = kept::rows_and_sums(job, windows, batch, || {
            let spill = plan.has_experts().then(|| Spill::new(run, &spill));
            let spill = spill.transpose()?;
            Ok(InputMoments::new(
                &plan,
                max_input_block,
                &sqrt_weights,
                spill,
            ))
        })?;

        let mut output = StateWriter::new(job, states, dims)?;
        let mut progress = |done| job.progress(done as u64, windows as u64, "windows");
        let (layer_of, rows) = ((&layer, index), (&hidden as &dyn RowSource, dims));
        let waiting =
            forward_windows(layer_of, rows, batch, &mut kept, &mut output, &mut progress)?;
        output.commit(job, states)?;
        waiting.finish(2 * dims.iter().product::<usize>());
        drop(layer); // the moments are copied when they are written
        let written = write_moments::<B>(job, statistics, kept.into_sums(), &device);
        work::log();
        written.with_context(|| format!("layer {index}"))
    }
}

/// Runs a layer and its number over windows, `[windows, length, width]`; `progress` gets the number of windows that are done.
pub fn forward_windows<B: Backend, W: Weights<B, Error = anyhow::Error>>(
    (layer, number): (&Layer<'_, B, W>, usize),
    (hidden, [_, length, width]): (&dyn RowSource, [usize; 3]),
    batch: usize,
    kept: &mut KeptSums<InputMoments<'_>>,
    output: &mut dyn RowSink,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Waiting> {
    let mut waiting = Waiting::begin();
    kept.map_rows::<anyhow::Error>(hidden, batch, output, |moments, values, count, first| {
        waiting.computing(|| {
            let data = TensorData::new(values, [count, length, width]);
            let x = Tensor::<B, 3>::from_data(data, layer.device());
            moments.begin_batch(first * length);
            let y = layer.forward(x, moments)?;
            let y = y.into_data().into_vec();
            let y: Vec<f32> = y.map_err(|error| anyhow::anyhow!("{error:?}"))?;
            check_states(&y, width, number, "the model")?;
            moments.check_batch()?;
            progress(first + count);
            Ok(y)
        })
    })?;
    Ok(waiting)
}

/// Writes the moments as the artifact `output`.
fn write_moments<B: Backend>(
    job: &mut Job<'_>,
    output: &str,
    moments: InputMoments<'_>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let mut file = job.output_tensors(output, &moments.decls())?;
    let experts = moments.write::<B>(&mut file, device)?;
    job.commit_tensors(output, file)?;
    if let Some(ExpertTokens { counts, filled_up }) = experts {
        job.metric("tokens of experts", serde_json::to_value(counts)?);
        job.metric("inputs filled up", serde_json::to_value(filled_up)?);
    }
    Ok(())
}
