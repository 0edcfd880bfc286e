//! The backward pass through one teacher layer: gradients before the layer, and the sensitivities of its linears.
//!
//! The forward pass wrote the hidden states. The layer is recomputed from them with its graph recorded, block by block
//! and expert by expert (activation checkpointing), and only the gradient at its input is passed on to the preceding
//! layer.

use anyhow::ensure;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::ModelConfig;
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{Arithmetic, Layer, WeightsFromFn, windows_per_batch};
use uc_model::work::{self, Waiting};
use uc_store::stage::Job;
use uc_store::stream::{RowSource, map_rows};

use crate::sensitivity::LayerSensitivity;
use crate::states::{HiddenStates, StateWriter, finite_values, source_weights};
use crate::windows::reference_windows;

/// Number of tokens whose graph is in memory at once. It affects the bits of the result, because sums are accumulated
/// batch by batch.
const BATCH_TOKENS: usize = 1024;
/// The same for a layer with experts.
const ROUTED_BATCH_TOKENS: usize = 4096;

/// Writes the gradient at the layer's input, and the sensitivities of its linears.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    dispatch(job.settings().model.device.into(), BackwardPass { job })?
}

struct BackwardPass<'a, 'j> {
    job: &'a mut Job<'j>,
}

impl OnDevice for BackwardPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let index = job.layer()? as usize;
        let plan = config.layer_plan(index);
        let read = source_weights(job, plan.clone())?;
        let weights =
            WeightsFromFn::<Autodiff<B>, _>::new(&read, &device).with_arithmetic(Arithmetic::Bf16);
        let hidden = HiddenStates::open(&job.input("sensitivity-hidden")?)?;
        let output_gradient = HiddenStates::open(&job.input("gradient")?)?;
        let dims = hidden.dims();
        let [windows, length, width] = dims;
        ensure!(
            output_gradient.dims() == dims,
            "{} and {} differ in shape",
            job.input("gradient")?,
            job.input("sensitivity-hidden")?
        );
        let layer = Layer::new(&config.layers[index], length, &weights, &device)?;
        let batch_tokens = match plan.has_experts() {
            true => ROUTED_BATCH_TOKENS,
            false => BATCH_TOKENS,
        };
        let batch = windows_per_batch(batch_tokens, length);
        let mut sensitivity = LayerSensitivity::new(
            &plan,
            windows * length,
            reference_windows(windows, batch) * length,
            job.settings(),
        );
        let mut output = StateWriter::new(job, "gradient", dims)?;
        let mut waiting = Waiting::begin();
        map_rows(
            &output_gradient,
            batch,
            &mut output,
            |output_gradient, count, first| {
                waiting.computing(|| {
                    let shape = [count, length, width];
                    let states = hidden.read(first, count)?;
                    let tensor =
                        |values| Tensor::<B, 3>::from_data(TensorData::new(values, shape), &device);
                    let gradient =
                        layer.gradient(tensor(states), tensor(output_gradient), &mut |part| {
                            sensitivity.add(&plan, part, first * length, count * length)
                        })?;
                    job.progress((first + count) as u64, windows as u64, "windows");
                    finite_values(gradient, "the gradient at the layer's input")
                })
            },
        )?;
        output.commit(job, "gradient")?;
        waiting.finish(3 * windows * length * width);

        sensitivity.write(job, &plan, [windows, length])?;
        work::log();
        Ok(())
    }
}
