//! One layer of the teacher over all windows: hidden states out, second moments of every input.

use std::collections::BTreeMap;

use anyhow::Context;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::device::OnDevice;
use uc_model::llama::LlamaLayer;
use uc_model::moments::Moments;
use uc_model::{LayerPlan, ModelConfig, ModelError, Rope, SourceFolder};
use uc_store::settings::AllocationMode;
use uc_store::stage::Job;
use uc_store::stream::map_rows;
use uc_store::tensors::{Dtype, TensorDecl, TensorFile, f32_bytes};

use crate::Pass;
use crate::windows::surveyed;

/// Tokens that go through the layer at once. Part of the result: sums run batch after batch.
const BATCH_TOKENS: usize = 4096;

/// The work of one job.
pub struct LayerPass<'a, 'j> {
    /// The job.
    pub job: &'a mut Job<'j>,
    /// Whose states go through.
    pub pass: Pass,
}

impl OnDevice for LayerPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let plan = config.layer_plan(job.layer()? as usize);
        let layer = match self.pass {
            Pass::Main => {
                let weights = TensorFile::open(&job.input("weights")?)?;
                let read = |name: &str| -> anyhow::Result<Vec<f32>> { Ok(weights.read_f32(name)?) };
                LlamaLayer::<B>::new(&config, &read, &device)?
            }
            Pass::Survey => layer_of_source(job, &config, &device)?,
        };
        let (states, statistics) = match self.pass {
            Pass::Main => ("hidden", "statistics"),
            Pass::Survey => ("survey-hidden", "survey-statistics"),
        };
        let hidden = TensorFile::open(&job.input(states)?)?;
        let shape = sides(&hidden)?;
        let [windows, length, width] = shape;
        let rope = Rope::<B>::new(&config, length, &device)?;
        let emphases = match self.pass {
            Pass::Main => emphases(job, &plan, windows, length)?,
            Pass::Survey => BTreeMap::new(),
        };
        let widest = job.settings().calibration.widest as usize;
        let mut moments: BTreeMap<String, Moments> = plan
            .inputs
            .iter()
            .map(|input| {
                let moments = Moments::new(input.width, input.width.min(widest));
                (input.name.clone(), moments)
            })
            .collect();

        let mut output =
            job.output_tensors(states, &[TensorDecl::new("hidden", Dtype::F32, &shape)])?;
        let batch = (BATCH_TOKENS / length).max(1);
        map_rows(
            &hidden,
            "hidden",
            batch,
            &mut output,
            |values, count, first| {
                let x = Tensor::<B, 3>::from_data(
                    TensorData::new(values, [count, length, width]),
                    &device,
                );
                let mut refused: Result<(), ModelError> = Ok(());
                let mut observe = |name: &str, x: Tensor<B, 2>| {
                    let x = match emphases.get(name) {
                        None => x,
                        Some(all) => {
                            let own = all[first * length..(first + count) * length].to_vec();
                            let own = TensorData::new(own, [count * length, 1]);
                            x * Tensor::<B, 2>::from_data(own, &device)
                        }
                    };
                    if let (Some(sums), Ok(())) = (moments.get_mut(name), &refused) {
                        refused = sums.add(x).map_err(ModelError::from);
                    }
                };
                let y = layer.forward(x, &rope, Some(&mut observe));
                refused?;
                job.progress((first + count) as u64, windows as u64, "windows");
                values_of(y)
            },
        )?;
        job.commit_tensors(states, output)?;
        write(job, statistics, moments)
    }
}

/// What the vectors of all tokens are multiplied with before their second moments are taken, by input: roots of weights
/// of mean 1. A share of every token's weight is the same for all, the rest goes to the tokens of the survey as the loss
/// minds them there. Empty without a survey or without such a share.
fn emphases(
    job: &Job<'_>,
    plan: &LayerPlan,
    windows: usize,
    length: usize,
) -> anyhow::Result<BTreeMap<String, Vec<f32>>> {
    let share = job.settings().calibration.loss_share;
    if share == 0.0 || job.settings().allocation.mode == AllocationMode::PerTensor {
        return Ok(BTreeMap::new());
    }
    let chosen = surveyed(windows, job.settings().allocation.windows);
    let sensitivity = TensorFile::open(&job.input("sensitivity")?)?;
    let of_input = |name: &String| -> anyhow::Result<Vec<f32>> {
        let weights = sensitivity.read_f32(&format!("{name}.token_weight"))?;
        anyhow::ensure!(
            weights.len() == chosen.len() * length,
            "{}: weights of {} tokens, expected {} windows of {length}",
            sensitivity.path(),
            weights.len(),
            chosen.len()
        );
        let mut emphases = vec![(1.0 - share).sqrt() as f32; windows * length];
        let times = windows as f64 / chosen.len() as f64;
        for (&window, weights) in chosen.iter().zip(weights.chunks(length)) {
            let own = &mut emphases[window * length..(window + 1) * length];
            for (emphasis, &weight) in own.iter_mut().zip(weights) {
                *emphasis = (1.0 - share + share * times * f64::from(weight)).sqrt() as f32;
            }
        }
        Ok(emphases)
    };
    let inputs = plan.inputs.iter();
    inputs
        .map(|input| Ok((input.name.clone(), of_input(&input.name)?)))
        .collect()
}

/// The three sides of `hidden` in a checkpoint.
pub fn sides(file: &TensorFile) -> anyhow::Result<[usize; 3]> {
    let shape = &file.tensor("hidden")?.shape;
    <[usize; 3]>::try_from(shape.as_slice()).map_err(|_| {
        anyhow::anyhow!(
            "{}: `hidden` has shape {shape:?}, expected three sides",
            file.path()
        )
    })
}

/// The job's layer, its weights straight from the source.
pub fn layer_of_source<B: Backend>(
    job: &Job<'_>,
    config: &ModelConfig,
    device: &B::Device,
) -> anyhow::Result<LlamaLayer<B>> {
    let source = SourceFolder::open(job.plan().model.path.as_std_path())?;
    let prefix = config.layer_plan(job.layer()? as usize).prefix;
    let read = |name: &str| -> anyhow::Result<Vec<f32>> {
        Ok(source.read_f32(&format!("{prefix}{name}"))?)
    };
    LlamaLayer::new(config, &read, device)
}

fn values_of<B: Backend>(y: Tensor<B, 3>) -> anyhow::Result<Vec<f32>> {
    let values: Vec<f32> = y
        .into_data()
        .into_vec()
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let bad = values.iter().position(|value| !value.is_finite());
    match bad {
        None => Ok(values),
        Some(index) => Err(anyhow::anyhow!(
            "hidden state {index} of the batch is {}",
            values[index]
        ))
        .context("the teacher's own activations are not finite; the model cannot be calibrated"),
    }
}

/// `<input>.second_moment` [n, block] for every input.
fn write(
    job: &mut Job<'_>,
    output: &str,
    moments: BTreeMap<String, Moments>,
) -> anyhow::Result<()> {
    let decl = |(name, moments): (&String, &Moments)| {
        let name = format!("{name}.second_moment");
        TensorDecl::new(name, Dtype::F32, &[moments.n, moments.block])
    };
    let decls: Vec<TensorDecl> = moments.iter().map(decl).collect();
    let mut file = job.output_tensors(output, &decls)?;
    for sums in moments.into_values() {
        file.append(&f32_bytes(&sums.finish().map_err(ModelError::from)?))?;
    }
    job.commit_tensors(output, file)?;
    Ok(())
}
