//! What decides how many bits a linear gets: its rate at a step, and what the loss says of its errors.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use uc_codec::allocate::{Allocation, BitAllocation, LinearSensitivity, allocate};
use uc_codec::factor_cache::FactorCache;
use uc_codec::rate;
use uc_codec::rate::RateProbe;
use uc_codec::steps::step_log2_eighths;
use uc_model::{LayerPlan, ModelConfig, SourceFolder};
use uc_settings::AllocationMode;
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// The document `rates`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RatesFile {
    linears: Vec<Rate>,
}

/// One linear of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rate {
    /// Name within the layer.
    name: String,
    /// Number of weights.
    weights: u64,
    /// The column steps at which it takes the wanted bits are `lambda · U_jj`.
    lambda: f64,
}

/// Rates of a layer's linears.
pub fn rates(job: &mut Job<'_>) -> anyhow::Result<()> {
    let dir = job.plan().model.path.as_std_path();
    let plan = ModelConfig::load(dir)?.layer_plan(job.layer()? as usize);
    let source = SourceFolder::open(dir)?;
    let settings = job.settings().quantize.clone();
    let statistics = TensorFile::open(&job.input("sensitivity-statistics")?)?;
    let of_input = |name: &str| {
        let input = plan
            .input(name)
            .with_context(|| format!("no input {name} in the plan"))?;
        uc_layer_quantizer::input_factor(&statistics, input, &settings)
    };
    let factors = FactorCache::new(
        of_input,
        |_: &str| Ok(None),
        uc_layer_quantizer::KEPT_FACTORS,
    );
    let mut linears = Vec::with_capacity(plan.linears.len());
    for (index, linear) in plan.linears.iter().enumerate() {
        let factor = factors.input(&linear.input)?;
        let (column_log2_eighths, base) = step_log2_eighths(&factor.inv_diag)?;
        let w = source.read_planned_f32(&plan, &linear.name)?;
        let rate_probe = RateProbe {
            w: &w,
            m: linear.rows,
            n: linear.cols,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &vec![0; linear.rows],
        };
        let probe_rows = settings.probe_rows as usize;
        let choice = rate::choose_step(rate_probe, base, settings.bpw, probe_rows)
            .with_context(|| linear.name.clone())?;
        linears.push(Rate {
            name: linear.name.clone(),
            weights: w.len() as u64,
            lambda: f64::from(choice.step) / f64::from(base),
        });
        job.progress(index as u64 + 1, plan.linears.len() as u64, "linears");
    }
    let mut file = job.output("rates")?;
    file.append(&serde_json::to_vec_pretty(&RatesFile { linears })?)?;
    job.commit("rates", file)?;
    Ok(())
}

/// Bits of every linear of the model.
pub fn allocate_bits(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let mut surveyed = Vec::new();
    for layer in 0..job.plan().model.layers {
        surveyed.push(of_layer(job, &config.layer_plan(layer as usize))?);
    }
    let bpw = job.settings().quantize.bpw;
    let all: Vec<&LinearSensitivity> = surveyed.iter().flatten().collect();
    let bits: Vec<f64> = match job.settings().allocation.mode {
        AllocationMode::PerTensor => vec![bpw; all.len()],
        AllocationMode::PerLayer => surveyed
            .iter()
            .flat_map(|layer| allocate(&layer.iter().collect::<Vec<_>>(), bpw))
            .collect(),
        AllocationMode::Global => allocate(&all, bpw),
    };
    let most = bits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = bits.iter().copied().fold(f64::INFINITY, f64::min);
    job.metric("most bits of a linear", most);
    job.metric("fewest bits of a linear", least);

    let mut dealt = bits.into_iter();
    let layers = surveyed.iter().map(|layer| {
        let allocations = layer.iter().zip(dealt.by_ref());
        allocations
            .map(|(linear, bits)| BitAllocation {
                name: linear.name.clone(),
                bits,
            })
            .collect()
    });
    let allocation = Allocation {
        layers: layers.collect(),
    };
    let mut file = job.output("allocation")?;
    file.append(&serde_json::to_vec_pretty(&allocation)?)?;
    job.commit("allocation", file)?;
    Ok(())
}

fn of_layer(job: &Job<'_>, plan: &LayerPlan) -> anyhow::Result<Vec<LinearSensitivity>> {
    let layer = plan.index as u32;
    let path = job.input_at("rates", layer)?;
    let text = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let rates: RatesFile = serde_json::from_slice(&text)?;
    let sensitivity = TensorFile::open(&job.input_at("sensitivity", layer)?)?;
    let settings = &job.settings().quantize;
    let with_sensitivity = |rate: Rate| {
        let linear = plan
            .linear(&rate.name)
            .with_context(|| format!("{} is not of layer {layer}", rate.name))?;
        let outputs = uc_layer_quantizer::output_factor(&sensitivity, linear, settings)?;
        Ok(LinearSensitivity {
            name: rate.name,
            weights: rate.weights,
            lambda: rate.lambda,
            sensitivity: outputs.sensitivity(),
        })
    };
    rates.linears.into_iter().map(with_sensitivity).collect()
}
