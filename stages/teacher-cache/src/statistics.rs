//! One layer of the teacher over all windows: hidden states out, second moments of every input.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::Context;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use camino::Utf8Path;
use uc_model::device::OnDevice;
use uc_model::forward::{ActivationObserver, Layer, WeightsFromFn};
use uc_model::moments::Moments;
use uc_model::{InputSpec, LayerPlan, ModelConfig, ModelError, SourceFolder};
use uc_store::settings::AllocationMode;
use uc_store::spill::Spill;
use uc_store::stage::Job;
use uc_store::stream::map_rows;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile, f32_bytes, to_f32};

use crate::Pass;
use crate::windows::surveyed;

/// Tokens that go through the layer at once. Part of the result: sums run batch after batch.
const BATCH_TOKENS: usize = 4096;
/// The same for a layer with experts, whose weights are read once for every batch.
const ROUTED_BATCH_TOKENS: usize = 16384;

/// Gives a tensor of the layer by its name.
type Read = dyn Fn(&str) -> anyhow::Result<Vec<f32>>;

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
        let index = job.layer()? as usize;
        let plan = config.layer_plan(index);
        let (states, statistics) = match self.pass {
            Pass::Main => ("hidden", "statistics"),
            Pass::Survey => ("sensitivity-hidden", "sensitivity-statistics"),
        };
        let hidden = TensorFile::open(&job.input(states)?)?;
        let shape = sides(&hidden)?;
        let [windows, length, width] = shape;
        let emphases = match self.pass {
            Pass::Main => emphases(job, &plan, windows, length)?,
            Pass::Survey => BTreeMap::new(),
        };
        let read: Box<Read> = match self.pass {
            Pass::Main => {
                let weights = TensorFile::open(&job.input("weights")?)?;
                Box::new(move |name| Ok(weights.read_f32(name)?))
            }
            Pass::Survey => Box::new(weights_of_source(job, plan.clone())?),
        };
        let weights = WeightsFromFn::new(&*read, &device);
        let layer = Layer::<B, _>::new(&config.layers[index], length, &weights, &device)?;
        let max_input_block = job.settings().calibration.max_input_block as usize;
        let mut sums = Sums::new(&plan, max_input_block, &emphases, &job.work_dir()?)?;

        let mut output = job.output_tensors(
            states,
            &[TensorDecl::new("hidden", TensorDtype::F32, &shape)],
        )?;
        let tokens = if sums.routed() {
            ROUTED_BATCH_TOKENS
        } else {
            BATCH_TOKENS
        };
        let batch = (tokens / length).max(1);
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
                sums.first = first * length;
                let y = layer.forward(x, &mut sums)?;
                std::mem::replace(&mut sums.refused, Ok(()))?;
                job.progress((first + count) as u64, windows as u64, "windows");
                values_of(y)
            },
        )?;
        job.commit_tensors(states, output)?;
        sums.write::<B>(job, statistics, &device)
    }
}

/// Sums over the tokens at the inputs of a layer's linears. The rows that come to an expert wait on disk until
/// the last token is through: the sums of all experts at once would not fit.
struct Sums<'a> {
    plan: &'a LayerPlan,
    /// Inputs wider than this have their moments in blocks.
    max_input_block: usize,
    /// Of the inputs that all tokens pass.
    moments: BTreeMap<&'a str, Moments>,
    /// Rows of the other inputs.
    spill: Option<Spill>,
    /// What every token's vector is multiplied with, by input.
    emphases: &'a BTreeMap<String, Vec<f32>>,
    /// Number of the first token of the batch.
    first: usize,
    /// Why the batch's sums are not to be used.
    refused: anyhow::Result<()>,
}

impl<'a> Sums<'a> {
    fn new(
        plan: &'a LayerPlan,
        max_input_block: usize,
        emphases: &'a BTreeMap<String, Vec<f32>>,
        folder: &Utf8Path,
    ) -> anyhow::Result<Self> {
        let dense = plan.inputs.iter().filter(|input| !input.routed);
        let moments = dense.map(|input| {
            let moments = Moments::new(input.width, input.width.min(max_input_block));
            (input.name.as_str(), moments)
        });
        let routed = plan.inputs.iter().any(|input| input.routed);
        Ok(Sums {
            plan,
            max_input_block,
            moments: moments.collect(),
            spill: routed.then(|| Spill::new(folder)).transpose()?,
            emphases,
            first: 0,
            refused: Ok(()),
        })
    }

    fn routed(&self) -> bool {
        self.spill.is_some()
    }

    fn add<B: Backend>(
        &mut self,
        name: &str,
        x: Tensor<B, 2>,
        tokens: Option<&[usize]>,
    ) -> anyhow::Result<()> {
        let count = x.dims()[0];
        let x = match self.emphases.get(name) {
            None => x,
            Some(all) => {
                let all = &all[self.first..];
                let own = match tokens {
                    None => all[..count].to_vec(),
                    Some(tokens) => tokens.iter().map(|&token| all[token]).collect(),
                };
                times_rows(x, own)
            }
        };
        match (self.moments.get_mut(name), &mut self.spill) {
            (Some(sums), _) => Ok(sums.add(x).map_err(ModelError::from)?),
            (None, Some(spill)) => Ok(spill.append(name, &f32_bytes(&values_of(x)?))?),
            (None, None) => anyhow::bail!("the layer has an input {name} that its plan lacks"),
        }
    }

    /// Writes `<input>.second_moment` [n, block] for every input.
    fn write<B: Backend>(
        mut self,
        job: &mut Job<'_>,
        output: &str,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let block = |input: &InputSpec| input.width.min(self.max_input_block);
        let decls: Vec<TensorDecl> = (self.plan.inputs.iter())
            .map(|input| {
                let name = format!("{}.second_moment", input.name);
                TensorDecl::new(name, TensorDtype::F32, &[input.width, block(input)])
            })
            .collect();
        let mut file = job.output_tensors(output, &decls)?;
        let mut pools = BTreeMap::new();
        let (mut counts, mut short) = (BTreeMap::new(), Vec::new());
        for input in &self.plan.inputs {
            let mut sums = match self.moments.remove(input.name.as_str()) {
                Some(sums) => sums,
                None => self.of_table::<B>(&[input], device)?,
            };
            if input.routed {
                counts.insert(input.name.clone(), sums.count);
                let missing = (input.width as u64).saturating_sub(sums.count);
                if missing > 0 {
                    let pool = self.pool::<B>(input, &mut pools, device)?;
                    sums.add_pseudo_tokens(missing, pool)
                        .map_err(ModelError::from)?;
                    short.push(input.name.clone());
                }
            }
            file.append(&f32_bytes(&sums.finish().map_err(ModelError::from)?))?;
        }
        job.commit_tensors(output, file)?;
        if self.routed() {
            job.metric("tokens of experts", serde_json::to_value(counts)?);
            job.metric("inputs filled up", serde_json::to_value(short)?);
        }
        Ok(())
    }

    /// The moments of all experts' inputs that are like `input`, made when first asked for.
    fn pool<'p, B: Backend>(
        &self,
        input: &'a InputSpec,
        pools: &'p mut BTreeMap<(&'a str, usize), Moments>,
        device: &B::Device,
    ) -> anyhow::Result<&'p Moments> {
        let role = (input.role(), input.width);
        match pools.entry(role) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(empty) => {
                let alike = self.plan.inputs.iter();
                let alike =
                    alike.filter(|other| other.routed && (other.role(), other.width) == role);
                let alike: Vec<_> = alike.collect();
                Ok(empty.insert(self.of_table::<B>(&alike, device)?))
            }
        }
    }

    /// The moments of the rows that wait for these inputs, all in one.
    fn of_table<B: Backend>(
        &self,
        inputs: &[&InputSpec],
        device: &B::Device,
    ) -> anyhow::Result<Moments> {
        let width = inputs[0].width;
        let mut sums = Moments::new(width, width.min(self.max_input_block));
        let spill = self.spill.as_ref().context("no input is routed")?;
        for input in inputs {
            for piece in spill.pieces(&input.name) {
                let values = to_f32(TensorDtype::F32, &piece?).expect("f32 is a float type");
                let rows = values.len() / width;
                let x = Tensor::<B, 2>::from_data(TensorData::new(values, [rows, width]), device);
                sums.add(x).map_err(ModelError::from)?;
            }
        }
        Ok(sums)
    }
}

impl<B: Backend> ActivationObserver<B> for Sums<'_> {
    fn observe_input(&mut self, name: &str, x: &Tensor<B, 2>, tokens: Option<&[usize]>) {
        if self.refused.is_ok() {
            self.refused = self.add(name, x.clone(), tokens);
        }
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
    let share = job.settings().calibration.fisher_token_weight;
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

/// The rows of `x`, each multiplied with its factor.
pub fn times_rows<B: Backend>(x: Tensor<B, 2>, factors: Vec<f32>) -> Tensor<B, 2> {
    let factors = TensorData::new(factors, [x.dims()[0], 1]);
    let device = x.device();
    x * Tensor::from_data(factors, &device)
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

/// A layer's weights straight from the source.
pub fn weights_of_source(
    job: &Job<'_>,
    plan: LayerPlan,
) -> anyhow::Result<impl Fn(&str) -> anyhow::Result<Vec<f32>> + use<>> {
    let source = SourceFolder::open(job.plan().model.path.as_std_path())?;
    Ok(move |name: &str| Ok(source.read_planned_f32(&plan, name)?))
}

fn values_of<B: Backend, const D: usize>(y: Tensor<B, D>) -> anyhow::Result<Vec<f32>> {
    let values: Vec<f32> = y
        .into_data()
        .into_vec()
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let bad = values.iter().position(|value| !value.is_finite());
    match bad {
        None => Ok(values),
        Some(index) => Err(anyhow::anyhow!(
            "value {index} of a batch of states is {}",
            values[index]
        ))
        .context("the teacher's own activations are not finite; the model cannot be calibrated"),
    }
}
