//! Task `allocate`: divides the model's bits among its linears by their measured rates and errors and by their sensitivities.
//!
//! `uc_codec::allocate` implements the rule. With `allocation.mode = "per-tensor"`, every linear gets the same bits per
//! weight and a run has no such task.

use anyhow::Context;
use uc_codec::allocate::{MeasuredLayer, MeasuredLinear, Plan, Scope, allocate};
use uc_layer_quantizer::output_factor;
use uc_model::{LayerPlan, ModelConfig};
use uc_settings::AllocationMode;
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

use crate::rates::{LinearRates, RatesFile};

/// Writes `allocation`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let mut layers = Vec::new();
    for layer in 0..job.plan().model.layers {
        layers.push(measured_layer(job, &config.layer_plan(layer as usize))?);
    }
    let settings = job.settings();
    let scope = match settings.allocation.mode {
        AllocationMode::PerTensor => Scope::Tensor,
        AllocationMode::PerLayer => Scope::Layer,
        AllocationMode::Global => Scope::Model,
    };
    let plan = allocate(&layers, settings.quantize.bpw, scope)?;
    report(job, &plan);
    let mut file = job.output("allocation")?;
    file.append(&serde_json::to_vec_pretty(&plan.allocation)?)?;
    job.commit("allocation", file)?;
    Ok(())
}

/// Reports the range of the bits, the scope that was used and the part of the budget that no linear can use.
fn report(job: &mut Job<'_>, plan: &Plan) {
    let linears = plan
        .allocation
        .layers
        .iter()
        .flat_map(|layer| &layer.linears);
    let bits = linears.map(|linear| linear.bits);
    let (fewest, most) = bits.fold((f64::INFINITY, 0.0), |(fewest, most): (f64, f64), bits| {
        (fewest.min(bits), most.max(bits))
    });
    let scope = match plan.scope {
        Scope::Tensor => "per tensor",
        Scope::Layer => "per layer",
        Scope::Model => "global",
    };
    job.metric("scope", scope);
    job.metric("most bits of a linear", most);
    job.metric("fewest bits of a linear", fewest);
    job.metric("unused bpw", plan.unused);
}

/// The linears of a layer with their rates and sensitivities.
fn measured_layer(job: &Job<'_>, plan: &LayerPlan) -> anyhow::Result<MeasuredLayer> {
    let layer = plan.index as u32;
    let path = job.input_at("rates", layer)?;
    let rates: RatesFile = uc_input::read_json(&path, uc_input::LARGE_JSON)
        .with_context(|| format!("cannot read {path}"))?;
    let sensitivity = TensorFile::open(&job.input_at("sensitivity", layer)?)?;
    let settings = &job.settings().quantize;
    let with_sensitivity = |rates: LinearRates| {
        let linear = plan
            .linear(&rates.name)
            .with_context(|| format!("layer {layer} has no linear {}", rates.name))?;
        let factor = output_factor(&sensitivity, linear, settings)?;
        anyhow::Ok(MeasuredLinear {
            name: rates.name,
            weights: rates.weights,
            sensitivity: factor.sensitivity(),
            curve: rates.curve,
        })
    };
    let linears = rates.linears.into_iter().map(with_sensitivity);
    Ok(MeasuredLayer {
        overhead_bits: rates.overhead_bits,
        linears: linears.collect::<anyhow::Result<_>>()?,
    })
}
