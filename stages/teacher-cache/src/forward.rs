//! The forward pass of one teacher layer over all windows: hidden states after the layer, second moments of its inputs.
//!
//! Windows are processed in batches of fixed size and order, so the sums have the same bits for any number of threads.

use std::collections::BTreeMap;

use anyhow::Context;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{Arithmetic, Layer, WeightsFromFn, check_states, windows_per_batch};
use uc_model::work::{self, Waiting};
use uc_model::{ModelConfig, WeightValues};
use uc_store::stage::Job;
use uc_store::stream::map_rows;
use uc_store::tensors::TensorFile;

use crate::input_moments::InputMoments;
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
        let [windows, length, width] = dims;
        let sqrt_weights = match self.pass {
            Pass::Calibration => sqrt_token_weights(job, &plan, windows, length)?,
            Pass::Sensitivity => BTreeMap::new(),
        };
        let read: Box<ReadTensor> = match self.pass {
            Pass::Calibration => {
                let weights = TensorFile::open(&job.input("weights")?)?;
                Box::new(move |name| file_weight(&weights, name))
            }
            Pass::Sensitivity => Box::new(source_weights(job, plan.clone())?),
        };
        let weights = WeightsFromFn::new(&*read, &device).with_arithmetic(Arithmetic::Bf16);
        let layer = Layer::<B, _>::new(&config.layers[index], length, &weights, &device)?;
        let max_input_block = job.settings().calibration.max_input_block as usize;
        let mut moments =
            InputMoments::new(&plan, max_input_block, &sqrt_weights, &job.work_dir()?)?;

        let mut output = StateWriter::new(job, states, dims)?;
        let batch_tokens = match plan.has_experts() {
            true => ROUTED_BATCH_TOKENS,
            false => BATCH_TOKENS,
        };
        let batch = windows_per_batch(batch_tokens, length);
        let mut waiting = Waiting::begin();
        map_rows::<anyhow::Error>(&hidden, batch, &mut output, |values, count, first| {
            waiting.computing(|| {
                let data = TensorData::new(values, [count, length, width]);
                let x = Tensor::<B, 3>::from_data(data, &device);
                moments.begin_batch(first * length);
                let y = layer.forward(x, &mut moments)?;
                let y = y.into_data().into_vec();
                let y: Vec<f32> = y.map_err(|error| anyhow::anyhow!("{error:?}"))?;
                check_states(&y, width, index, "the model")?;
                moments.check_batch()?;
                job.progress((first + count) as u64, windows as u64, "windows");
                Ok(y)
            })
        })?;
        output.commit(job, states)?;
        waiting.finish(2 * windows * length * width);
        drop(layer); // the moments are copied when they are written
        let written = moments.write::<B>(job, statistics, &device);
        work::log();
        written.with_context(|| format!("layer {index}"))
    }
}
