//! Task `rates`: the step at which each linear of a layer takes the average bits per weight.
//!
//! Owns the document `rates`. `allocate` reads it.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use uc_codec::factor_cache::FactorCache;
use uc_codec::rate;
use uc_codec::rate::RateProbe;
use uc_codec::steps::step_log2_eighths;
use uc_layer_quantizer::{FACTOR_CACHE_BYTES, input_factor};
use uc_model::{ModelConfig, SourceFolder};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// The document `rates` of a layer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatesFile {
    /// The linears in the order of the layer's plan.
    pub linears: Vec<LinearRate>,
}

/// The rate of one linear.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearRate {
    /// Name within the layer.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// The linear takes `quantize.bpw` bits per weight with the column steps `lambda · U_jj`.
    pub lambda: f64,
}

/// Writes `rates`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let linears = linear_rates(job)?;
    let mut file = job.output("rates")?;
    file.append(&serde_json::to_vec_pretty(&RatesFile { linears })?)?;
    job.commit("rates", file)?;
    Ok(())
}

fn linear_rates(job: &mut Job<'_>) -> anyhow::Result<Vec<LinearRate>> {
    let dir = job.plan().model.path.as_std_path();
    let plan = ModelConfig::load(dir)?.layer_plan(job.layer()? as usize);
    let source = SourceFolder::open(dir)?;
    let settings = job.settings().quantize.clone();
    let statistics = TensorFile::open(&job.input("sensitivity-statistics")?)?;
    let make_input_factor = |name: &str| {
        let input = plan
            .input(name)
            .with_context(|| format!("the plan has no input {name}"))?;
        input_factor(&statistics, input, &settings)
    };
    let no_output_factor = |_: &str| Ok(None);
    let factors = FactorCache::new(make_input_factor, no_output_factor, FACTOR_CACHE_BYTES);
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
        linears.push(LinearRate {
            name: linear.name.clone(),
            weights: w.len() as u64,
            lambda: f64::from(choice.step) / f64::from(base),
        });
        job.progress(index as u64 + 1, plan.linears.len() as u64, "linears");
    }
    Ok(linears)
}
