//! Task `rates`: rate and error of each linear of a layer at several steps around the average bits per weight.
//!
//! Owns the document `rates`. `allocate` reads it.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use uc_codec::factor_cache::FactorCache;
use uc_codec::rate::RateProbe;
use uc_codec::rate::curve::{self, RateCurve};
use uc_codec::steps::step_log2_eighths;
use uc_layer_quantizer::{FACTOR_CACHE_BYTES, input_factor, overhead_bits};
use uc_model::{ModelConfig, SourceFolder};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// The document `rates` of a layer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatesFile {
    /// Bits of the layer's file besides indices.
    pub overhead_bits: u64,
    /// The linears in the order of the layer's plan.
    pub linears: Vec<LinearRates>,
}

/// Rate and error of one linear.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearRates {
    /// Name within the layer.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// The measured points.
    pub curve: RateCurve,
}

/// Writes `rates`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let rates = measure_rates(job)?;
    let mut file = job.output("rates")?;
    file.append(&serde_json::to_vec_pretty(&rates)?)?;
    job.commit("rates", file)?;
    Ok(())
}

fn measure_rates(job: &mut Job<'_>) -> anyhow::Result<RatesFile> {
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
        let curve = curve::measure(rate_probe, base, settings.bpw, probe_rows)
            .with_context(|| linear.name.clone())?;
        linears.push(LinearRates {
            name: linear.name.clone(),
            weights: w.len() as u64,
            curve,
        });
        job.progress(index as u64 + 1, plan.linears.len() as u64, "linears");
    }
    let probes: usize = linears.iter().map(|linear| linear.curve.points.len()).sum();
    job.metric("probes", probes);
    let width = |name: &str| {
        let dtype = source.planned_dtype(&plan, name);
        let dtype = dtype.with_context(|| format!("the source has no tensor {name}"))?;
        anyhow::Ok(dtype.size())
    };
    Ok(RatesFile {
        overhead_bits: overhead_bits(&plan, width)?,
        linears,
    })
}
