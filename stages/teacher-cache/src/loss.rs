//! The loss of the sensitivity pass, and its gradient at the output of the last layer.
//!
//! The loss of a token is the negative log-likelihood of a label sampled from the teacher's own distribution. The second
//! moment of its gradient is therefore the true Fisher information (Amari 1998), which gives, to second order, the KL
//! divergence that an error causes. Labels from the text would give the empirical Fisher, a different matrix
//! (Kunstner, Hennig, Balles 2019).

use anyhow::anyhow;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::ModelConfig;
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{Arithmetic, Head, WeightsFromFn, surrogate_of_values};
use uc_model::sampled_loss::sample_gradients;
use uc_model::text::splitmix64;
use uc_model::work::{self, Amount, Kind};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

use crate::kept;
use crate::states::{HiddenStates, StateWriter, file_weight, finite_values};

/// Tokens whose logits are in memory together.
const HEAD_TOKENS: usize = 512;

/// Writes the gradient of the loss at the output of the last layer.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    dispatch(job.settings().model.device.into(), LossPass { job })?
}

struct LossPass<'a, 'j> {
    job: &'a mut Job<'j>,
}

impl OnDevice for LossPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let non_layer = TensorFile::open(&job.input("non-layer")?)?;
        let read = |name: &str| file_weight(&non_layer, name);
        let head = Head::new(
            &config,
            &WeightsFromFn::<Autodiff<B>, _>::new(&read, &device).with_arithmetic(Arithmetic::Bf16),
        )?;
        let hidden = HiddenStates::open(&job.input("sensitivity-hidden")?)?;
        let dims = hidden.dims();
        let [windows, length, width] = dims;
        let seed = job.settings().allocation.seed;
        let mut output = StateWriter::new(job, "gradient", dims)?;
        let mut kept = kept::rows(job, windows, 1)?;
        kept.map_rows(&hidden, 1, &mut output, |values, _, window| {
            let mut gradients = Vec::with_capacity(values.len());
            for (chunk, values) in values.chunks(HEAD_TOKENS * width).enumerate() {
                let first_token = (window * length + chunk * HEAD_TOKENS) as u64;
                gradients.extend(loss_gradient(
                    &head,
                    values,
                    width,
                    seed,
                    first_token,
                    &device,
                )?);
            }
            job.progress(window as u64 + 1, windows as u64, "windows");
            anyhow::Ok(gradients)
        })?;
        output.commit(job, "gradient")?;
        work::log();
        Ok(())
    }
}

/// Gradient of the summed loss with respect to the hidden states `values: [tokens, width]`. The index of the first token,
/// `first_token`, and `seed` determine the sampled labels.
fn loss_gradient<B: Backend>(
    head: &Head<Autodiff<B>>,
    values: &[f32],
    width: usize,
    seed: u64,
    first_token: u64,
    device: &B::Device,
) -> anyhow::Result<Vec<f32>> {
    let tokens = values.len() / width;
    let data = TensorData::new(values.to_vec(), [tokens, width]);
    let hidden = Tensor::<Autodiff<B>, 2>::from_data(data, device).require_grad();
    let uniforms: Vec<f64> = (first_token..)
        .take(tokens)
        .map(|token| uniform(seed, token))
        .collect();
    let loss = surrogate_of_values(head.logits(hidden.clone()), |logits| {
        let shape = logits.dims();
        let values = logits.into_data().into_vec();
        let mut values: Vec<f32> = values.map_err(|error| anyhow!("{error:?}"))?;
        let labels = work::counted(Kind::Loss, Amount::values(2 * values.len()), || {
            sample_gradients(&mut values, &uniforms)
        });
        labels.map_err(|token| {
            let token = first_token + token as u64;
            anyhow!(
                "the teacher's logits of token {token} are not finite; the model cannot be calibrated"
            )
        })?;
        let gradient = TensorData::new(values, shape);
        anyhow::Ok(Tensor::from_data(gradient, device))
    })?;
    let gradients = loss.backward();
    let gradient = hidden
        .grad(&gradients)
        .ok_or_else(|| anyhow!("the loss does not depend on the output of the last layer"))?;
    finite_values(gradient, "the gradient of the loss")
}

/// The uniform number in [0, 1) that samples the label of a token.
fn uniform(seed: u64, token: u64) -> f64 {
    (splitmix64(seed, token) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_sampled_as_often_as_they_are_probable() {
        let logits = [0.5_f32, 0.25, 1e-30, 0.25].map(|p| p.ln() + 3.0);
        let uniforms: Vec<f64> = (0..40_000).map(|token| uniform(7, token)).collect();
        let mut rows = logits.repeat(uniforms.len());
        let mut counts = [0_i32; 4];
        for label in sample_gradients(&mut rows, &uniforms).unwrap() {
            counts[label] += 1;
        }
        for (count, expected) in counts.into_iter().zip([20_000, 10_000, 0, 10_000]) {
            assert!((count - expected).abs() < 400, "{counts:?}");
        }
    }
}
