//! The backward pass through one teacher layer: gradients before the layer, and the sensitivities of its linears.
//!
//! The forward pass wrote the hidden states. The layer is recomputed from them with its graph recorded, block by block
//! and expert by expert (activation checkpointing), and only the gradient at its input is passed on to the preceding
//! layer. A long job continues after an interruption ([`crate::kept`]).

use anyhow::ensure;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{Arithmetic, Layer, Weights, WeightsFromFn, windows_per_batch};
use uc_model::work::{self, Waiting};
use uc_model::{LayerPlan, ModelConfig};
use uc_store::stage::Job;
use uc_store::stream::{KeptSums, RowSink, RowSource};

use crate::kept;
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
        let read = source_weights(&job.plan().model.path, plan.clone())?;
        let weights =
            WeightsFromFn::<Autodiff<B>, _>::new(&read, &device).with_arithmetic(Arithmetic::Bf16);
        let hidden = HiddenStates::open(&job.input("sensitivity-hidden")?)?;
        let output_gradient = HiddenStates::open(&job.input("gradient")?)?;
        let dims = hidden.dims();
        let [windows, length, _] = dims;
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
        let settings = job.settings();
        let mut kept = kept::rows_and_sums(job, windows, batch, || {
            let reference = reference_windows(windows, batch) * length;
            Ok(LayerSensitivity::new(
                &plan,
                windows * length,
                reference,
                settings,
            ))
        })?;
        let mut output = StateWriter::new(job, "gradient", dims)?;
        let mut progress = |done| job.progress(done as u64, windows as u64, "windows");
        let layer_of = (&layer, &plan);
        let rows: [&dyn RowSource; 2] = [&hidden, &output_gradient];
        let waiting = backward_windows(
            layer_of,
            (rows, dims),
            batch,
            &mut kept,
            &mut output,
            &mut progress,
        )?;
        output.commit(job, "gradient")?;
        waiting.finish(3 * dims.iter().product::<usize>());

        let sensitivity = kept.into_sums();
        let mut file =
            job.output_tensors("sensitivity", &sensitivity.decls(&plan, [windows, length]))?;
        sensitivity.write(&mut file, &plan)?;
        job.commit_tensors("sensitivity", file)?;
        work::log();
        Ok(())
    }
}

/// Carries gradients back through a layer and its plan. The hidden states before the layer and the gradients at its output are
/// `[windows, length, width]`; `progress` gets the number of windows that are done.
pub fn backward_windows<B: Backend, W: Weights<Autodiff<B>, Error = anyhow::Error>>(
    (layer, plan): (&Layer<'_, Autodiff<B>, W>, &LayerPlan),
    ([hidden, output_gradient], [_, length, width]): ([&dyn RowSource; 2], [usize; 3]),
    batch: usize,
    kept: &mut KeptSums<LayerSensitivity>,
    output: &mut dyn RowSink,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Waiting> {
    let mut waiting = Waiting::begin();
    kept.map_rows(
        output_gradient,
        batch,
        output,
        |sums, gradient, count, first| {
            waiting.computing(|| {
                let tensor = |values| {
                    let data = TensorData::new(values, [count, length, width]);
                    Tensor::<B, 3>::from_data(data, layer.device())
                };
                let states = tensor(hidden.read(first, count)?);
                let gradient = layer.gradient(states, tensor(gradient), &mut |part| {
                    sums.add(plan, part, first * length, count * length)
                })?;
                progress(first + count);
                finite_values(gradient, "the gradient at the layer's input")
            })
        },
    )?;
    Ok(waiting)
}
