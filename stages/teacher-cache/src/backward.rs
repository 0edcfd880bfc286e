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
use uc_store::stream::map_rows;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile};

use crate::sensitivity::LayerSensitivity;
use crate::states::{finite_values, hidden_dims, source_weights};
use crate::windows::reference_windows;

/// Number of tokens whose graph is in memory at once. It affects the bits of the result, because sums are accumulated
/// batch by batch.
const BATCH_TOKENS: usize = 1024;

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
        let hidden = TensorFile::open(&job.input("sensitivity-hidden")?)?;
        let output_gradient = TensorFile::open(&job.input("gradient")?)?;
        let [windows, length, width] = hidden_dims(&hidden)?;
        ensure!(
            hidden_dims(&output_gradient)? == [windows, length, width],
            "{} and {} differ in shape",
            output_gradient.path(),
            hidden.path()
        );
        let layer = Layer::new(&config.layers[index], length, &weights, &device)?;
        let batch = windows_per_batch(BATCH_TOKENS, length);
        let mut sensitivity = LayerSensitivity::new(
            &plan,
            windows * length,
            reference_windows(windows, batch) * length,
            job.settings(),
        );
        let decl = TensorDecl::new("hidden", TensorDtype::F32, &[windows, length, width]);
        let mut output = job.output_tensors("gradient", &[decl])?;
        let mut waiting = Waiting::begin();
        map_rows(
            &output_gradient,
            "hidden",
            batch,
            &mut output,
            |output_gradient, count, first| {
                waiting.computing(|| {
                    let shape = [count, length, width];
                    let states = hidden.read_rows_f32("hidden", first, count)?;
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
        job.commit_tensors("gradient", output)?;
        waiting.finish(3 * windows * length * width);

        sensitivity.write(job, &plan, [windows, length])?;
        work::log();
        Ok(())
    }
}
