//! Task `rates`: rate and error of each linear of a layer at several steps around the average bits per weight.
//!
//! Owns the document `rates`. `allocate` reads it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use uc_codec::Weights;
use uc_codec::factor_cache::FactorCache;
use uc_codec::rate::curve::{self, RateCurve};
use uc_codec::rate::{RateProbe, SampledRows};
use uc_codec::steps::step_log2_eighths;
use uc_layer_quantizer::{input_factor, overhead_bits};
use uc_model::{LayerPlan, LinearSpec, ModelConfig, SourceFolder};
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
    // The linears of an input follow one another, and each is measured once: no factor is needed again.
    let factors = FactorCache::new(make_input_factor, no_output_factor, 0);
    let mut linears = Vec::with_capacity(plan.linears.len());
    for (index, linear) in plan.linears.iter().enumerate() {
        let factor = factors.input(&linear.input)?;
        let (column_log2_eighths, base) = step_log2_eighths(&factor.inv_diag)?;
        let weights = SourceWeights {
            source: &source,
            plan: &plan,
            linear,
        };
        let sampled = SampledRows::new(&weights, settings.probe_rows as usize)?;
        let report = RefCell::new(&mut *job);
        let done = |done: usize| {
            let mut job = report.borrow_mut();
            job.progress_often(done as u64, plan.linears.len() as u64, "linears");
        };
        let rate_probe = RateProbe {
            sampled: &sampled,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &vec![0; linear.rows],
            progress: &|| done(index),
        };
        let curve =
            curve::measure(rate_probe, base, settings.bpw).with_context(|| linear.name.clone())?;
        linears.push(LinearRates {
            name: linear.name.clone(),
            weights: (linear.rows * linear.cols) as u64,
            curve,
        });
        done(index + 1);
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

/// The weights of a linear in the source.
struct SourceWeights<'a> {
    source: &'a SourceFolder,
    plan: &'a LayerPlan,
    linear: &'a LinearSpec,
}

impl Weights for SourceWeights<'_> {
    type Error = anyhow::Error;

    fn shape(&self) -> (usize, usize) {
        (self.linear.rows, self.linear.cols)
    }

    fn rows(&self, rows: Range<usize>) -> anyhow::Result<Cow<'_, [f32]>> {
        let (name, count) = (&self.linear.name, rows.len());
        let values = self
            .source
            .read_planned_rows(self.plan, name, rows.start, count)?;
        Ok(Cow::Owned(values.to_f32()?))
    }
}
