//! The backward sweep: how much the loss minds an error at the output of a linear.
//!
//! The loss of a token is the negative log-likelihood of a next token drawn from the teacher's own distribution, so
//! that the mean squared gradient is the diagonal of the Fisher information (Amari 1998), to second order the KL
//! divergence that an error causes. The hidden states wait on disk since the forward sweep; a layer is computed once
//! more with its graph recorded, and only the gradient by its input is handed on.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData, activation};
use uc_model::device::OnDevice;
use uc_model::llama::{Head, Tap};
use uc_model::text::split_mix;
use uc_model::{ModelConfig, Rope};
use uc_store::stage::Job;
use uc_store::stream::map_rows;
use uc_store::tensors::{Dtype, TensorDecl, TensorFile, to_f32};

use crate::statistics::{layer_of_source, sides};

/// Tokens whose graph is in memory at once. Part of the result: sums run batch after batch.
const BATCH_TOKENS: usize = 1024;
/// Tokens whose logits are in memory at once.
const HEAD_TOKENS: usize = 256;

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
        let scaffold = TensorFile::open(&job.input("scaffold")?)?;
        let read = |name: &str| -> anyhow::Result<Vec<f32>> { Ok(scaffold.read_f32(name)?) };
        let head = Head::<Autodiff<B>>::new(&config, &read, &device)?;
        let hidden = TensorFile::open(&job.input("survey-hidden")?)?;
        let [windows, length, width] = sides(&hidden)?;
        let seed = job.settings().allocation.seed;
        let decl = TensorDecl::new("hidden", Dtype::F32, &[windows, length, width]);
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
    (split_mix(seed, token) >> 11) as f64 / (1u64 << 53) as f64
}

/// Sensitivities of one layer, and the gradient by its input.
pub struct BackwardPass<'a, 'j> {
    /// The job.
    pub job: &'a mut Job<'j>,
}

impl OnDevice for BackwardPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let layer = layer_of_source::<Autodiff<B>>(job, &config, &device)?;
        let hidden = TensorFile::open(&job.input("survey-hidden")?)?;
        let above = TensorFile::open(&job.input("gradient")?)?;
        let [windows, length, width] = sides(&hidden)?;
        anyhow::ensure!(
            sides(&above)? == [windows, length, width],
            "{} and {} differ in shape",
            above.path(),
            hidden.path()
        );
        let rope = Rope::<Autodiff<B>>::new(&config, length, &device)?;
        let mut squares: BTreeMap<String, Squares> = BTreeMap::new();
        let decl = TensorDecl::new("hidden", Dtype::F32, &[windows, length, width]);
        let mut output = job.output_tensors("gradient", &[decl])?;
        let batch = (BATCH_TOKENS / length).max(1);
        map_rows(
            &above,
            "hidden",
            batch,
            &mut output,
            |above, count, first| {
                let shape = [count, length, width];
                let states = hidden.read_rows("hidden", first, count)?;
                let states = to_f32(Dtype::F32, &states).expect("hidden states are f32");
                let tensor = |values| Tensor::from_data(TensorData::new(values, shape), &device);
                let x: Tensor<Autodiff<B>, 3> = tensor(states).require_grad();
                let mut taps = Taps(Vec::new());
                let y = layer.forward_tapped(x.clone(), &rope, &mut taps);
                // The gradient of y · above by anything is what `above` becomes there.
                let gradients = (y * tensor(above)).sum().backward();
                for (name, tap) in taps.0 {
                    let at_output = vector(gradient_of(&tap, &gradients)?)?;
                    squares.entry(name).or_default().add(&at_output);
                }
                job.progress((first + count) as u64, windows as u64, "windows");
                vector(gradient_of(&x, &gradients)?)
            },
        )?;
        job.commit_tensors("gradient", output)?;

        let means: BTreeMap<&String, f64> = squares
            .iter()
            .map(|(name, sum)| (name, sum.mean()))
            .collect();
        let mut file = job.output("sensitivity")?;
        file.append(&serde_json::to_vec_pretty(&means)?)?;
        job.commit("sensitivity", file)?;
        Ok(())
    }
}

/// A running mean of squares.
#[derive(Debug, Default)]
struct Squares {
    sum: f64,
    count: u64,
}

impl Squares {
    fn add(&mut self, values: &[f32]) {
        let squares = values.iter().map(|&x| f64::from(x) * f64::from(x));
        self.sum += squares.sum::<f64>();
        self.count += values.len() as u64;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }
}

/// Adds to every output a zero whose gradient is asked for afterwards.
struct Taps<B: AutodiffBackend>(Vec<(String, Tensor<B, 2>)>);

impl<B: AutodiffBackend> Tap<B> for Taps<B> {
    fn input(&mut self, _: &str, _: &Tensor<B, 2>) {}

    fn output(&mut self, weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let zero = Tensor::zeros(y.dims(), &y.device()).require_grad();
        self.0.push((weight.to_owned(), zero.clone()));
        y + zero
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
        "a gradient is not finite"
    );
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

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
