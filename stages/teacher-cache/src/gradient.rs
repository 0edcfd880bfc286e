//! The backward sweep: how much the loss minds errors at the outputs of a linear.
//!
//! The loss of a token is the negative log-likelihood of a next token drawn from the teacher's own distribution, so
//! that the second moment of the gradient is the Fisher information (Amari 1998), to second order the KL divergence that
//! an error causes. Kept are its blocks of outputs that feed back into one another, a token counting by the leverage of its input
//! ([`crate::metric`]), and for every input the weight of each token: the squared gradient there at the linears of the input
//! (as in GuidedQuant, Kim et al. 2025, arXiv 2505.07004), scaled so that the weighted energy of the input is the plain one. The
//! hidden states wait on disk since the forward sweep; a layer is computed once more with its graph recorded, block by block and
//! expert by expert, and only the gradient by its input is handed on.

use std::collections::BTreeMap;

use anyhow::Context;
use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData, activation};
use uc_codec::factor::NEAR_OUTPUTS;
use uc_model::device::OnDevice;
use uc_model::forward::{Head, Layer, PartTrace, WeightsFromFn};
use uc_model::moments::Moments;
use uc_model::text::splitmix64;
use uc_model::{LayerPlan, LinearSpec, ModelConfig, ModelError};
use uc_store::settings::Settings;
use uc_store::stage::Job;
use uc_store::stream::map_rows;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile, f32_bytes};

use crate::metric::Metrics;
use crate::statistics::{sides, times_rows, weights_of_source};

/// Tokens whose graph is in memory at once. Part of the result: sums run batch after batch.
const BATCH_TOKENS: usize = 1024;
/// Tokens whose logits are in memory at once.
const HEAD_TOKENS: usize = 256;
/// Of the survey's windows, the first of so many set the metrics.
pub const PARTS: usize = 4;

/// Gradient of the loss by the output of the last layer.
pub struct LossPass<'a, 'j> {
    /// The job.
    pub job: &'a mut Job<'j>,
}

impl OnDevice for LossPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let non_layer = TensorFile::open(&job.input("non-layer")?)?;
        let read = |name: &str| -> anyhow::Result<Vec<f32>> { Ok(non_layer.read_f32(name)?) };
        let head = Head::new(
            &config,
            &WeightsFromFn::<Autodiff<B>, _>::new(&read, &device),
        )?;
        let hidden = TensorFile::open(&job.input("sensitivity-hidden")?)?;
        let [windows, length, width] = sides(&hidden)?;
        let seed = job.settings().allocation.seed;
        let decl = TensorDecl::new("hidden", TensorDtype::F32, &[windows, length, width]);
        let mut output = job.output_tensors("gradient", &[decl])?;
        map_rows(&hidden, "hidden", 1, &mut output, |values, _, window| {
            let mut gradients = Vec::with_capacity(values.len());
            for (chunk, values) in values.chunks(HEAD_TOKENS * width).enumerate() {
                let first = (window * length + chunk * HEAD_TOKENS) as u64;
                gradients.extend(loss_gradient(&head, values, width, seed, first, &device)?);
            }
            job.progress(window as u64 + 1, windows as u64, "windows");
            anyhow::Ok(gradients)
        })?;
        job.commit_tensors("gradient", output)?;
        Ok(())
    }
}

/// Gradient of the summed loss by `values: [tokens, width]`; `first` is the number of the first token.
fn loss_gradient<B: Backend>(
    head: &Head<Autodiff<B>>,
    values: &[f32],
    width: usize,
    seed: u64,
    first: u64,
    device: &B::Device,
) -> anyhow::Result<Vec<f32>> {
    let tokens = values.len() / width;
    let data = TensorData::new(values.to_vec(), [tokens, width]);
    let hidden = Tensor::<Autodiff<B>, 2>::from_data(data, device).require_grad();
    let log_probabilities = activation::log_softmax(head.logits(hidden.clone()), 1);
    let vocab = log_probabilities.dims()[1];
    let known = vector(log_probabilities.clone().inner())?;
    let drawn: Vec<i32> = known
        .chunks_exact(vocab)
        .zip(first..)
        .map(|(row, token)| draw(row, uniform(seed, token)) as i32)
        .collect();
    let labels = TensorData::new(drawn, [tokens, 1]);
    let labels = Tensor::<Autodiff<B>, 2, Int>::from_data(labels, device);
    let loss = log_probabilities.gather(1, labels).sum().neg();
    let gradients = loss.backward();
    vector(gradient_of(&hidden, &gradients)?)
}

/// The index that a uniform number picks from a distribution given by its logarithms.
fn draw(log_probabilities: &[f32], uniform: f64) -> usize {
    let mut sum = 0.0;
    for (index, log) in log_probabilities.iter().enumerate() {
        sum += f64::from(*log).exp();
        if uniform < sum {
            return index;
        }
    }
    log_probabilities.len() - 1
}

/// A number in [0, 1) for a token.
fn uniform(seed: u64, token: u64) -> f64 {
    (splitmix64(seed, token) >> 11) as f64 / (1u64 << 53) as f64
}

/// What the loss minds in one layer, and the gradient by its input.
pub struct BackwardPass<'a, 'j> {
    /// The job.
    pub job: &'a mut Job<'j>,
}

impl OnDevice for BackwardPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let index = job.layer()? as usize;
        let plan = config.layer_plan(index);
        let read = weights_of_source(job, plan.clone())?;
        let weights = WeightsFromFn::<Autodiff<B>, _>::new(&read, &device);
        let hidden = TensorFile::open(&job.input("sensitivity-hidden")?)?;
        let above = TensorFile::open(&job.input("gradient")?)?;
        let [windows, length, width] = sides(&hidden)?;
        anyhow::ensure!(
            sides(&above)? == [windows, length, width],
            "{} and {} differ in shape",
            above.path(),
            hidden.path()
        );
        let layer = Layer::new(&config.layers[index], length, &weights, &device)?;
        let batch = (BATCH_TOKENS / length).max(1);
        let opening = opening(windows, batch) * length;
        let mut found = Found::new(&plan, windows * length, opening, job.settings());
        let decl = TensorDecl::new("hidden", TensorDtype::F32, &[windows, length, width]);
        let mut output = job.output_tensors("gradient", &[decl])?;
        map_rows(
            &above,
            "hidden",
            batch,
            &mut output,
            |above, count, first| {
                let shape = [count, length, width];
                let states = hidden.read_rows_f32("hidden", first, count)?;
                let tensor =
                    |values| Tensor::<B, 3>::from_data(TensorData::new(values, shape), &device);
                let mut traced = |part| found.add(&plan, part, first * length, count * length);
                let gradient = layer.gradient(tensor(states), tensor(above), &mut traced)?;
                job.progress((first + count) as u64, windows as u64, "windows");
                vector(gradient)
            },
        )?;
        job.commit_tensors("gradient", output)?;

        found.write(job, &plan, [windows, length])
    }
}

/// How many of `windows` windows, which go through in batches, set the metrics: whole batches, and not all.
fn opening(windows: usize, batch: usize) -> usize {
    match (windows / PARTS).next_multiple_of(batch) {
        all if all >= windows => 0,
        part => part,
    }
}

/// How many outputs of a linear keep the second moments of their gradients together. Experts see too few tokens for more than
/// those that lie near each other.
fn together(plan: &LayerPlan, linear: &LinearSpec, max_output_block: usize) -> usize {
    let routed = plan.input(&linear.input).is_some_and(|input| input.routed);
    linear.rows.min(if routed {
        NEAR_OUTPUTS
    } else {
        max_output_block
    })
}

/// Sums of one layer over the tokens of the survey.
struct Found {
    /// Share of a token's weight that goes by the loss.
    share: f64,
    /// Number of tokens at the beginning, which set the metrics and are not in the moments.
    opening: usize,
    /// Of the inputs, tokens weighted as in the calibration.
    metrics: Metrics,
    /// By linear, of the gradients at its outputs, tokens weighted by the leverage of the input.
    moments: BTreeMap<String, Moments>,
    /// By input, per token: squared gradient at the outputs of its linears; 0 for a token that does not pass.
    squares: BTreeMap<String, Vec<f32>>,
    /// By input, per token: its squared length; 0 for a token that does not pass.
    energies: BTreeMap<String, Vec<f32>>,
}

impl Found {
    fn new(plan: &LayerPlan, tokens: usize, opening: usize, settings: &Settings) -> Self {
        let max_output_block = settings.calibration.max_output_block as usize;
        let moments = plan.linears.iter().map(|linear| {
            let moments = Moments::new(linear.rows, together(plan, linear, max_output_block));
            (linear.name.clone(), moments)
        });
        let zeros = plan
            .inputs
            .iter()
            .map(|input| (input.name.clone(), vec![0.0; tokens]));
        let zeros: BTreeMap<_, _> = zeros.collect();
        Found {
            share: settings.calibration.fisher_token_weight,
            opening,
            metrics: Metrics::new(settings.calibration.max_input_block as usize),
            moments: moments.collect(),
            squares: zeros.clone(),
            energies: zeros,
        }
    }

    /// Adds a part of the layer, in a batch of `count` tokens from token `first` on.
    fn add<B: Backend>(
        &mut self,
        plan: &LayerPlan,
        part: PartTrace<B>,
        first: usize,
        count: usize,
    ) -> anyhow::Result<()> {
        let tokens = first..first + count;
        let opening = first < self.opening;
        let mut squares: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for (name, gradient) in &part.output_gradients {
            let rows = row_energies(gradient.clone())?;
            let sums = squares.entry(&linear_of(plan, name)?.input);
            let sums = sums.or_insert_with(|| vec![0.0; rows.len()]);
            add_rows(sums, &rows, None);
        }
        let mut leverages = BTreeMap::new();
        for (name, (x, own)) in part.inputs {
            let input = plan.input(&name).context("an input beside the plan")?;
            let energies = row_energies(x.clone())?;
            let own = own.as_deref();
            let sums = self.energies.get_mut(&name).expect("an input of the plan");
            add_rows(&mut sums[tokens.clone()], &energies, own);
            let Some(squares) = squares.get(name.as_str()) else {
                continue; // no linear of this part reads it
            };
            let sums = self.squares.get_mut(&name).expect("an input of the plan");
            add_rows(&mut sums[tokens.clone()], squares, own);

            let weights = mixture(self.share, squares, &energies);
            if opening {
                self.metrics.add(input, scaled(x, &weights))?;
            } else {
                let found = self.metrics.leverages(input, &vector(x)?, &weights)?;
                leverages.insert(name, found);
            }
        }
        if opening {
            return Ok(());
        }
        for (name, gradient) in part.output_gradients {
            let leverages = leverages.get(&linear_of(plan, &name)?.input);
            let gradient = match leverages.with_context(|| format!("{name} without input"))? {
                Some(leverages) => scaled(gradient, leverages),
                None => gradient,
            };
            let moments = self.moments.get_mut(&name).expect("a linear of the plan");
            moments.add(gradient).map_err(ModelError::from)?;
        }
        Ok(())
    }

    /// Has linears to which no token came count as if one had come, with the mean gradient of its like.
    fn fill(&mut self, plan: &LayerPlan) -> anyhow::Result<()> {
        let role = |linear: &LinearSpec| (linear.role().to_owned(), linear.rows);
        for linear in &plan.linears {
            let own = &self.moments[&linear.name];
            if own.count > 0 {
                continue;
            }
            let mut pool = Moments::new(own.n, own.block);
            let alike = plan
                .linears
                .iter()
                .filter(|other| role(other) == role(linear))
                .map(|other| &self.moments[&other.name])
                .filter(|other| other.block == own.block);
            for other in alike {
                pool.merge(other).map_err(ModelError::from)?;
            }
            let own = self.moments.get_mut(&linear.name).expect("one per linear");
            own.add_pseudo_tokens(1, &pool).map_err(ModelError::from)?;
        }
        Ok(())
    }

    /// Writes `<linear>.output_moment` [rows, block], means over all tokens after those that set the metrics, and
    /// `<input>.token_weight` [windows, length].
    fn write(
        mut self,
        job: &mut Job<'_>,
        plan: &LayerPlan,
        sides: [usize; 2],
    ) -> anyhow::Result<()> {
        let moments = plan.linears.iter().map(|linear| {
            let name = format!("{}.output_moment", linear.name);
            let block = self.moments[&linear.name].block;
            TensorDecl::new(name, TensorDtype::F32, &[linear.rows, block])
        });
        let weights = plan.inputs.iter().map(|input| {
            TensorDecl::new(
                format!("{}.token_weight", input.name),
                TensorDtype::F32,
                &sides,
            )
        });
        let decls: Vec<_> = moments.chain(weights).collect();
        self.fill(plan)?;
        let tokens = (sides[0] * sides[1] - self.opening) as u64;
        let mut file = job.output_tensors("sensitivity", &decls)?;
        for linear in &plan.linears {
            let moments = self.moments.remove(&linear.name).expect("one per linear");
            let mut means = moments
                .finish_with_count(tokens)
                .map_err(ModelError::from)?;
            let input = plan.input(&linear.input).context("an input of the plan")?;
            let scale = self.metrics.scale(input);
            means.iter_mut().for_each(|mean| *mean *= scale);
            file.append(&f32_bytes(&means))?;
        }
        for input in &plan.inputs {
            let (squares, energies) = (&self.squares[&input.name], &self.energies[&input.name]);
            file.append(&f32_bytes(&token_weights(squares, energies)))?;
        }
        job.commit_tensors("sensitivity", file)?;
        Ok(())
    }
}

/// `squares` times the number with which `Σ weight · energy = Σ energy`; ones where the loss minds no token at all.
fn token_weights(squares: &[f32], energies: &[f32]) -> Vec<f32> {
    let plain: f64 = energies.iter().map(|&x| f64::from(x)).sum();
    let pairs = squares.iter().zip(energies);
    let weighted: f64 = pairs.map(|(&s, &e)| f64::from(s) * f64::from(e)).sum();
    let scale = plain / weighted;
    if !scale.is_finite() {
        return vec![1.0; squares.len()];
    }
    squares
        .iter()
        .map(|&square| (f64::from(square) * scale) as f32)
        .collect()
}

/// What tokens count in the moments of an input: a share goes by the loss, the rest is the same for all.
fn mixture(share: f64, squares: &[f32], energies: &[f32]) -> Vec<f32> {
    let weights = token_weights(squares, energies).into_iter();
    let mixed = weights.map(|weight| (1.0 - share + share * f64::from(weight)) as f32);
    mixed.collect()
}

fn linear_of<'a>(plan: &'a LayerPlan, name: &str) -> anyhow::Result<&'a LinearSpec> {
    plan.linear(name)
        .with_context(|| format!("a linear {name} beside the plan"))
}

/// The rows of `x`, multiplied with the roots of their weights.
fn scaled<B: Backend>(x: Tensor<B, 2>, weights: &[f32]) -> Tensor<B, 2> {
    times_rows(x, weights.iter().map(|weight| weight.sqrt()).collect())
}

/// Sum of squares of every row.
fn row_energies<B: Backend>(x: Tensor<B, 2>) -> anyhow::Result<Vec<f32>> {
    vector((x.clone() * x).sum_dim(1))
}

/// Adds a row's number to that of its token.
fn add_rows(sums: &mut [f32], rows: &[f32], tokens: Option<&[usize]>) {
    match tokens {
        None => sums.iter_mut().zip(rows).for_each(|(sum, x)| *sum += x),
        Some(tokens) => tokens
            .iter()
            .zip(rows)
            .for_each(|(&token, x)| sums[token] += x),
    }
}

fn gradient_of<B: AutodiffBackend, const D: usize>(
    tensor: &Tensor<B, D>,
    gradients: &B::Gradients,
) -> anyhow::Result<Tensor<B::InnerBackend, D>> {
    let found = tensor.grad(gradients);
    found.ok_or_else(|| anyhow::anyhow!("the loss does not depend on a tensor of the layer"))
}

fn vector<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> anyhow::Result<Vec<f32>> {
    let values: Vec<f32> = tensor
        .into_data()
        .into_vec()
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    anyhow::ensure!(
        values.iter().all(|value| value.is_finite()),
        "a gradient, or an input beside it, is not finite"
    );
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_tokens_keep_the_energy_of_the_input() {
        assert_eq!(token_weights(&[1.0, 3.0], &[2.0, 2.0]), [0.5, 1.5]);
        assert_eq!(token_weights(&[4.0, 0.0], &[1.0, 3.0]), [4.0, 0.0]);
        assert_eq!(token_weights(&[0.0, 0.0], &[1.0, 3.0]), [1.0, 1.0]);
        assert_eq!(token_weights(&[1.0, 1.0], &[0.0, 0.0]), [1.0, 1.0]);
    }

    #[test]
    fn whole_batches_set_the_metrics_and_others_are_left() {
        assert_eq!(opening(48, 1), 12);
        assert_eq!(opening(46, 4), 12);
        assert_eq!(opening(3, 1), 0);
        assert_eq!(opening(8, 8), 0);
        assert_eq!(opening(9, 8), 8);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let log = [
            0.5_f32.ln(),
            0.25_f32.ln(),
            f32::NEG_INFINITY,
            0.25_f32.ln(),
        ];
        let mut counts = [0_i32; 4];
        for token in 0..40_000 {
            counts[draw(&log, uniform(7, token))] += 1;
        }
        for (count, expected) in counts.into_iter().zip([20_000, 10_000, 0, 10_000]) {
            assert!((count - expected).abs() < 400, "{counts:?}");
        }
        assert_eq!(draw(&[f32::NEG_INFINITY, -20.0], 0.99), 1);
    }
}
