//! Task `allocate`: divides the model's bits among its linears by their rates and sensitivities.
//!
//! `uc_codec::allocate` implements the rule. With `allocation.mode = "per-tensor"`, every linear gets the same bits per
//! weight and a run has no such task.

use anyhow::Context;
use uc_codec::allocate::{Allocation, BitAllocation, LinearSensitivity, allocate};
use uc_layer_quantizer::output_factor;
use uc_model::{LayerPlan, ModelConfig};
use uc_settings::AllocationMode;
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

use crate::rates::{LinearRate, RatesFile};

/// Writes `allocation`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let mut layers = Vec::new();
    for layer in 0..job.plan().model.layers {
        layers.push(layer_sensitivities(
            job,
            &config.layer_plan(layer as usize),
        )?);
    }
    let settings = job.settings();
    let bits = allocate_bits(&layers, settings.allocation.mode, settings.quantize.bpw);
    let most = bits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let fewest = bits.iter().copied().fold(f64::INFINITY, f64::min);
    job.metric("most bits of a linear", most);
    job.metric("fewest bits of a linear", fewest);

    let allocation = allocation(&layers, bits);
    let mut file = job.output("allocation")?;
    file.append(&serde_json::to_vec_pretty(&allocation)?)?;
    job.commit("allocation", file)?;
    Ok(())
}

/// Bits per weight of all linears, in the order of the layers.
fn allocate_bits(layers: &[Vec<LinearSensitivity>], mode: AllocationMode, bpw: f64) -> Vec<f64> {
    let all: Vec<&LinearSensitivity> = layers.iter().flatten().collect();
    match mode {
        AllocationMode::PerTensor => vec![bpw; all.len()],
        AllocationMode::PerLayer => layers
            .iter()
            .flat_map(|layer| allocate(&layer.iter().collect::<Vec<_>>(), bpw))
            .collect(),
        AllocationMode::Global => allocate(&all, bpw),
    }
}

/// The document of the allocated `bits`, which are in the order of the layers.
fn allocation(layers: &[Vec<LinearSensitivity>], bits: Vec<f64>) -> Allocation {
    let mut bits = bits.into_iter();
    let layers = layers.iter().map(|layer| {
        let linears = layer.iter().zip(bits.by_ref());
        linears
            .map(|(linear, bits)| BitAllocation {
                name: linear.name.clone(),
                bits,
            })
            .collect()
    });
    Allocation {
        layers: layers.collect(),
    }
}

/// The linears of a layer with their rates and sensitivities.
fn layer_sensitivities(job: &Job<'_>, plan: &LayerPlan) -> anyhow::Result<Vec<LinearSensitivity>> {
    let layer = plan.index as u32;
    let path = job.input_at("rates", layer)?;
    let text = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let rates: RatesFile = serde_json::from_slice(&text)?;
    let sensitivity = TensorFile::open(&job.input_at("sensitivity", layer)?)?;
    let settings = &job.settings().quantize;
    let with_sensitivity = |rate: LinearRate| {
        let linear = plan
            .linear(&rate.name)
            .with_context(|| format!("layer {layer} has no linear {}", rate.name))?;
        let factor = output_factor(&sensitivity, linear, settings)?;
        Ok(LinearSensitivity {
            name: rate.name,
            weights: rate.weights,
            lambda: rate.lambda,
            sensitivity: factor.sensitivity(),
        })
    };
    rates.linears.into_iter().map(with_sensitivity).collect()
}
