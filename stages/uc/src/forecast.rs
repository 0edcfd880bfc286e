//! What a run of a model would cost, from a summary of the model alone: `uc plan --config`.
//!
//! Sizes follow from the plan and the settings; time is an estimate from the rates of one measured run
//! (`docs/benchmarks/throughput.json`, embedded). Every stage and artifact of the plan must have a formula. Nothing here
//! starts a process, reads a weight or inspects this machine.

mod cost_model;
mod estimate;
pub mod layer_costs;
mod measured;
mod simulation;
mod text;
mod types;

use std::collections::BTreeMap;

use uc_settings::Settings;
use uc_store::ExitCode;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{JobId, ModelSource, Per, Plan};

use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::sources;
use crate::report::failure::failure;
use crate::report::outlook::Expectation;
use crate::schedule::limits::{self, Origin};
use crate::schedule::scheduler::Budget;
use cost_model::{BF16, CostModel};
use estimate::Estimate;
use layer_costs::LayerCosts;
use measured::{Measurement, Rates};
use simulation::Sizes;
pub use types::Forecast;
use types::{DiskForecast, MachineForecast, PackForecast, RunForecast, StageForecast};

/// The machine that the estimate is for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    /// CPU cores; by default those of the measured machine.
    pub threads: Option<u32>,
    /// Sustained rate of matrix products, 10⁹ operations per second; by default the measured one.
    pub gflops: Option<f64>,
    /// Memory that jobs may take together, bytes, and where the limit comes from; unlimited by default.
    pub memory: Option<(u64, Origin)>,
}

/// Forecasts a run of a model.
///
/// # Errors
/// If a setting makes the number of windows depend on the text, if a stage or artifact has no formula, or if the
/// pipeline reports an error.
pub fn forecast(
    model: ModelSummary,
    pipeline: &Pipeline,
    settings: &Settings,
    machine: Machine,
) -> anyhow::Result<Forecast> {
    for (key, windows) in [
        ("calibration.windows", settings.calibration.windows),
        ("evaluation.windows", settings.evaluation.windows),
    ] {
        if windows == 0 {
            let message = format!(
                "{key}: found 0, which takes the whole text, but a plan without files has no text; expected a number"
            );
            return Err(failure(ExitCode::Usage, message));
        }
    }
    let measured = Measurement::embedded()?;
    let costs = CostModel::new(&model, settings);
    let cores = machine.threads.unwrap_or(measured.cores);
    let plan = plan_without_files(&model, &[], pipeline, settings, cores)?;
    let rates = Rates::new(&measured, &measured_plan(&measured)?);
    let estimate = Estimate::new(
        &plan,
        costs,
        &rates,
        machine.gflops.map_or(1.0, |gflops| gflops / rates.gflops),
        f64::from(cores) / f64::from(measured.cores),
    )?;
    let budget = Budget {
        cpus: cores,
        memory: machine.memory.map_or(0, |(bytes, _)| bytes),
    };
    let outcome = simulation::run(&plan, budget, &estimate);
    let pack = pack_forecast(&costs);
    let machine = MachineForecast {
        receipt: measured.receipt,
        processor: measured.processor,
        measured_cores: measured.cores,
        measured_gflops: rates.gflops,
        measured_hours: measured.wall_seconds / 3600.0,
        cores,
        gflops: machine.gflops.unwrap_or(rates.gflops),
        memory_bytes: machine
            .memory
            .map(|(bytes, _)| bytes)
            .filter(|bytes| *bytes > 0),
        memory_origin: machine.memory.map(|(_, origin)| origin),
    };
    let run = run_forecast(&estimate, &outcome, machine);
    Ok(Forecast { pack, run, model })
}

/// Bytes of receipts, metrics, logs and events per job; 4.1 kB were measured (44 jobs of the embedded model).
const RECORD_BYTES: f64 = 5e3;

/// Peak bytes on disk besides the source, whichever stage of the plan turns out to be slow; none without an estimate.
pub fn peak_disk(model: &ModelSummary, plan: &Plan, budget: Budget) -> Option<u64> {
    with_estimate(model, plan, budget, |estimate| {
        let layered = plan.stages.iter().filter(|stage| stage.per == Per::Layer);
        let peak = layered
            .map(|stage| {
                let slowed = simulation::Slowed {
                    sizes: estimate,
                    stage: &stage.name,
                };
                simulation::run(plan, budget, &slowed).disk
            })
            .fold(simulation::run(plan, budget, estimate).disk, f64::max);
        let records = plan.jobs().len() as f64 * RECORD_BYTES;
        (peak + records) as u64
    })
}

/// What a run is expected to take; none without an estimate.
pub fn expectation(model: &ModelSummary, plan: &Plan, budget: Budget) -> Option<Expectation> {
    with_estimate(model, plan, budget, |estimate| {
        let (mut all, mut seconds_per_job) = (0.0, BTreeMap::new());
        for stage in plan.stages.iter().filter(|stage| !stage.optional) {
            let units = stage.units(plan.model.layers);
            let seconds = units.iter().map(|&unit| {
                estimate.seconds(&JobId {
                    stage: stage.name.clone(),
                    unit,
                })
            });
            let seconds: f64 = seconds.sum();
            all += seconds;
            // Stages that only wait for the network have no forecast.
            if seconds > 0.0 {
                seconds_per_job.insert(stage.name.clone(), seconds / units.len().max(1) as f64);
            }
        }
        let wall = simulation::run(plan, budget, estimate).seconds;
        Expectation {
            seconds_per_job,
            concurrency: if wall > 0.0 { all / wall } else { 1.0 },
        }
    })
}

/// Passes the estimate of a plan on a machine with the cores of `budget` to `derive`. None if the number of windows depends on the
/// text, or if a stage or artifact has no formula.
fn with_estimate<T>(
    model: &ModelSummary,
    plan: &Plan,
    budget: Budget,
    derive: impl FnOnce(&Estimate<'_>) -> T,
) -> Option<T> {
    let settings = &plan.settings;
    if settings.calibration.windows == 0 || settings.evaluation.windows == 0 {
        return None;
    }
    let measured = Measurement::embedded().ok()?;
    let rates = Rates::new(&measured, &measured_plan(&measured).ok()?);
    let codec_speed = f64::from(budget.cpus) / f64::from(measured.cores);
    let costs = CostModel::new(model, settings);
    let estimate = Estimate::new(plan, costs, &rates, 1.0, codec_speed).ok()?;
    Some(derive(&estimate))
}

/// The plan of a run of a model that is not on disk. `source_files` names the optional files to assume.
fn plan_without_files(
    model: &ModelSummary,
    source_files: &[&str],
    pipeline: &Pipeline,
    settings: &Settings,
    cores: u32,
) -> anyhow::Result<Plan> {
    let inputs = ["source", "calibration-text", "evaluation-text"];
    let request = Request {
        model: ModelSource {
            name: model.family.clone(),
            path: "/".into(),
            layers: model.layers as u32,
            linear_parameters: model.linear_parameters,
            total_parameters: model.total_parameters,
            hub: None,
        },
        source_files: source_files.iter().map(ToString::to_string).collect(),
        pack_dir: "pack".into(),
        summary: Some(model.clone()),
        settings: settings.clone(),
        externals: inputs.map(|name| (name.into(), sources::unknown())).into(),
        goals: Goals::Everything,
        cpus: cores,
        versions: BTreeMap::new(),
    };
    Ok(pipeline.assemble(&request)?)
}

/// The plan of the measured run: the built-in pipeline at its defaults.
fn measured_plan(measured: &Measurement) -> anyhow::Result<Plan> {
    let pipeline = Pipeline::load(None)?;
    let settings = pipeline.settings().clone();
    plan_without_files(&measured.model, &[], &pipeline, &settings, measured.cores)
}

fn pack_forecast(costs: &CostModel<'_>) -> PackForecast {
    let model = costs.model;
    let groups = model.layer_groups.iter();
    let layers: f64 = groups
        .map(|group| group.layers.len() as f64 * costs.pack_layer_bytes(LayerCosts { group }))
        .sum();
    let (non_layer, manifest) = (costs.non_layer_bytes(), costs.manifest_bytes());
    let total = layers + non_layer + manifest;
    let bf16 = BF16 * model.total_parameters as f64;
    PackForecast {
        bits_per_weight_linears: 8.0 * layers / model.linear_parameters.max(1) as f64,
        bits_per_weight_all: 8.0 * total / model.total_parameters.max(1) as f64,
        layer_bytes: layers as u64,
        non_layer_bytes: non_layer as u64,
        manifest_bytes: manifest as u64,
        total_bytes: total as u64,
        bf16_bytes: bf16 as u64,
        compression_ratio: bf16 / total,
        source_bytes_per_weight: costs.source_width,
    }
}

fn run_forecast(
    estimate: &Estimate<'_>,
    outcome: &simulation::Outcome,
    machine: MachineForecast,
) -> RunForecast {
    let (plan, costs) = (estimate.plan, &estimate.costs);
    let source = costs.model.total_parameters as f64 * costs.source_width;
    let (mut read, mut written) = (source, 0.0);
    let mut stages = Vec::new();
    for stage in plan.stages.iter().filter(|stage| !stage.optional) {
        let units = stage.units(plan.model.layers);
        let (mut work, mut seconds, mut bound) = (0.0, 0.0, "");
        for &unit in &units {
            let job = JobId {
                stage: stage.name.clone(),
                unit,
            };
            let cost = estimate.job_cost(&job);
            work += cost.amount();
            bound = cost.bound();
            seconds += estimate.seconds(&job);
            let inputs = plan.inputs(stage, unit).into_iter();
            read += inputs.map(|input| estimate.bytes(&input)).sum::<f64>();
            read += costs.source_bytes_read(&stage.argv, estimate.group(unit.layer()));
            let outputs = plan.outputs(stage, unit).into_iter();
            written += outputs.map(|output| estimate.bytes(&output)).sum::<f64>();
            read += estimate.scratch(&job);
            written += estimate.scratch(&job);
        }
        stages.push(StageForecast {
            name: stage.name.clone(),
            jobs: units.len() as u64,
            per: stage.per,
            max_lead: stage.max_lead,
            memory_bytes: stage.memory,
            bound,
            work,
            seconds,
        });
    }
    let tokens = [
        costs.calibration_tokens(),
        costs.sensitivity_tokens(),
        costs.evaluation_tokens(),
    ];
    RunForecast {
        tokens: tokens.map(|tokens| tokens as u64),
        peak_disk_bytes: outcome.disk as u64,
        source_bytes: source as u64,
        fits_with: machine.memory_bytes.and_then(|limit| {
            if plan
                .stages
                .iter()
                .all(|stage| stage.optional || stage.memory <= limit)
            {
                return None;
            }
            let (setting, _) = limits::smaller_setting(plan, costs.model, limit)?;
            Some(setting)
        }),
        largest_memory_bytes: stages.iter().map(|s| s.memory_bytes).max().unwrap_or(0),
        peak_memory_bytes: outcome.memory,
        read_bytes: read as u64,
        written_bytes: written as u64,
        hours_of_jobs: stages.iter().map(|stage| stage.seconds).sum::<f64>() / 3600.0,
        hours: outcome.seconds / 3600.0,
        stages,
        disk: disk_forecast(plan, outcome),
        machine,
    }
}

/// Disk use by artifact, the largest first.
fn disk_forecast(plan: &Plan, outcome: &simulation::Outcome) -> Vec<DiskForecast> {
    let peaks = outcome.peaks.iter().filter(|(_, peak)| peak.bytes > 0.0);
    let mut disk: Vec<DiskForecast> = peaks
        .map(|(name, peak)| DiskForecast {
            name: name.clone(),
            temporary: plan
                .artifacts
                .get(name)
                .is_none_or(|artifact| artifact.temporary),
            files: peak.files,
            bytes: peak.bytes as u64,
            bytes_at_peak: peak.share as u64,
        })
        .collect();
    disk.sort_by_key(|artifact| std::cmp::Reverse(artifact.bytes));
    disk
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub mod tests_support;
