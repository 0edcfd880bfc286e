//! Weights of tokens in the second moments of a linear's input.
//!
//! The weight of a token is a mixture of 1, the same for all, and its Fisher weight: the squared gradient at the outputs of
//! the linears that read the input (as in GuidedQuant, Kim et al. 2025, arXiv 2505.07004), scaled so that weighting does
//! not change the energy of the input. `calibration.fisher_token_weight` is the share of the Fisher weight.

use std::collections::BTreeMap;

use uc_model::LayerPlan;
use uc_settings::AllocationMode;
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

use crate::windows::sensitivity_windows;

/// Fisher weights of tokens from their squared gradients and squared input norms, `[tokens]` each: `squares` scaled such that
/// `Σ weight · energy = Σ energy`. All ones if the gradients or the inputs are zero.
pub fn fisher_weights(squares: &[f32], energies: &[f32]) -> Vec<f32> {
    let energy: f64 = energies.iter().map(|&x| f64::from(x)).sum();
    let pairs = squares.iter().zip(energies);
    let weighted: f64 = pairs.map(|(&s, &e)| f64::from(s) * f64::from(e)).sum();
    let scale = energy / weighted;
    if !scale.is_finite() {
        return vec![1.0; squares.len()];
    }
    squares
        .iter()
        .map(|&square| (f64::from(square) * scale) as f32)
        .collect()
}

/// Weights of tokens in the moments of an input: `1 - share` plus `share` times the Fisher weight.
pub fn mixed_weights(share: f64, squares: &[f32], energies: &[f32]) -> Vec<f32> {
    let weights = fisher_weights(squares, energies).into_iter();
    let mixed = weights.map(|weight| (1.0 - share + share * f64::from(weight)) as f32);
    mixed.collect()
}

/// Square roots of the weights of all calibration tokens, by input: the factors that token vectors are scaled by before
/// their second moments are taken. The Fisher weights of the tokens in the sensitivity pass are scaled up to represent
/// all calibration tokens; tokens outside it have none. Empty if no Fisher weights are used.
pub fn sqrt_token_weights(
    job: &Job<'_>,
    plan: &LayerPlan,
    windows: usize,
    length: usize,
) -> anyhow::Result<BTreeMap<String, Vec<f32>>> {
    let share = job.settings().calibration.fisher_token_weight;
    if share == 0.0 || job.settings().allocation.mode == AllocationMode::PerTensor {
        return Ok(BTreeMap::new());
    }
    let selected = sensitivity_windows(windows, job.settings().allocation.windows);
    let sensitivity = TensorFile::open(&job.input("sensitivity")?)?;
    let sqrt_weights = |name: &String| -> anyhow::Result<Vec<f32>> {
        let weights = sensitivity.read_f32(&format!("{name}.token_weight"))?;
        anyhow::ensure!(
            weights.len() == selected.len() * length,
            "{}: weights of {} tokens, expected {} windows of {length}",
            sensitivity.path(),
            weights.len(),
            selected.len()
        );
        let mut roots = vec![(1.0 - share).sqrt() as f32; windows * length];
        let windows_per_selected = windows as f64 / selected.len() as f64;
        for (&window, weights) in selected.iter().zip(weights.chunks(length)) {
            let roots = &mut roots[window * length..(window + 1) * length];
            for (root, &weight) in roots.iter_mut().zip(weights) {
                *root =
                    (1.0 - share + share * windows_per_selected * f64::from(weight)).sqrt() as f32;
            }
        }
        Ok(roots)
    };
    let inputs = plan.inputs.iter();
    inputs
        .map(|input| Ok((input.name.clone(), sqrt_weights(&input.name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fisher_weights_keep_the_energy_of_the_input() {
        assert_eq!(fisher_weights(&[1.0, 3.0], &[2.0, 2.0]), [0.5, 1.5]);
        assert_eq!(fisher_weights(&[4.0, 0.0], &[1.0, 3.0]), [4.0, 0.0]);
        assert_eq!(fisher_weights(&[0.0, 0.0], &[1.0, 3.0]), [1.0, 1.0]);
        assert_eq!(fisher_weights(&[1.0, 1.0], &[0.0, 0.0]), [1.0, 1.0]);
    }
}
