//! What a run of a model would cost, from a summary of the model alone: `uc plan --config`.
//!
//! Sizes follow from the plan and the settings. Time is the work of every job at the speeds of a machine, times the slowdown that
//! its stage had in measured runs (`docs/benchmarks/throughput.json`, embedded). Every stage and artifact of the plan must have a
//! formula. Nothing here starts a process, reads a weight or measures this machine.

mod cost_model;
mod estimate;
pub mod kept_probe;
pub mod layer_costs;
mod measured;
pub mod probe;
mod simulation;
mod text;
mod types;

use std::collections::BTreeMap;

use uc_settings::{SensitivityStates, Settings};
use uc_store::ExitCode;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{JobId, ModelSource, Per, Plan, StagePlan};

use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::sources;
use crate::report::failure::failure;
use crate::report::outlook::Expectation;
use crate::schedule::limits::{self, Origin};
use crate::schedule::scheduler::Budget;
use cost_model::{BF16, CostModel};
use estimate::Estimate;
use layer_costs::LayerCosts;
use measured::{MeasuredRun, Measurements, Range, Slowdowns};
use probe::{Probe, Work};
use simulation::Sizes;
pub use types::Forecast;
pub use types::SpeedsOf;
use types::{DiskForecast, MachineForecast, OtherDisk, PackForecast, RunForecast, StageForecast};

/// The machine that the estimate is for.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Its speeds, if they were measured, and whose they are; by default those of the measured runs.
    pub probe: Option<(Probe, SpeedsOf)>,
    /// CPU cores; by default those that were measured.
    pub threads: Option<u32>,
    /// Sustained rate of large matrix products, 10⁹ operations per second; by default the measured one.
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
    let speeds = Speeds::embedded()?;
    let (base, speeds_of) = match &machine.probe {
        Some((probe, speeds_of)) => (probe, *speeds_of),
        None => (&speeds.measured.probe, SpeedsOf::MeasuredRuns),
    };
    let probe = base.with(machine.threads, machine.gflops);
    let costs = CostModel::new(&model, settings);
    let plan = plan_without_files(&model, &[], pipeline, settings, probe.cores)?;
    let estimate = Estimate::new(&plan, costs, &probe, &speeds.slowdowns)?;
    let budget = Budget {
        cpus: probe.cores,
        memory: machine.memory.map_or(0, |(bytes, _)| bytes),
    };
    let outcome = simulation::run(&plan, budget, &estimate);
    let pack = pack_forecast(&costs);
    let receipts = speeds.measured.runs.iter().map(MeasuredRun::name);
    let machine = MachineForecast {
        speeds_of,
        probe: probe.clone(),
        receipts: receipts.collect(),
        memory_bytes: machine
            .memory
            .map(|(bytes, _)| bytes)
            .filter(|bytes| *bytes > 0),
        memory_origin: machine.memory.map(|(_, origin)| origin),
    };
    let mut run = run_forecast(&estimate, &outcome, machine);
    run.other_disk = other_disk(&estimate, budget)?;
    Ok(Forecast { pack, run, model })
}

/// Peak bytes on disk if the states of the sensitivity pass were kept the other way; none without that pass.
fn other_disk(estimate: &Estimate<'_>, budget: Budget) -> anyhow::Result<Option<OtherDisk>> {
    let plan = estimate.costs.plan;
    if !plan.artifacts.contains_key(SENSITIVITY_HIDDEN) {
        return Ok(None);
    }
    let key = "allocation.states";
    let mut settings = plan.settings.clone();
    let value = match settings.allocation.states {
        SensitivityStates::Bfloat16 => "float32",
        SensitivityStates::Float32 => "bfloat16",
    };
    settings.set(key, value)?;
    let costs = CostModel::new(estimate.costs.costs.model, &settings);
    let other = Estimate::new(plan, costs, estimate.probe, estimate.slowdowns)?;
    Ok(Some(OtherDisk {
        setting: format!("{key}={value}"),
        peak_disk_bytes: simulation::run(plan, budget, &other).disk as u64,
    }))
}

/// The measured runs and what follows from them.
struct Speeds {
    measured: Measurements,
    slowdowns: Slowdowns,
}

impl Speeds {
    /// Those that this program is built with.
    fn embedded() -> anyhow::Result<Self> {
        let measured = Measurements::embedded()?;
        let pipeline = Pipeline::load(None)?;
        let plans = measured.runs.iter().map(|run| {
            let settings = run.settings()?;
            plan_without_files(&run.model, &[], &pipeline, &settings, measured.probe.cores)
        });
        let plans = plans.collect::<anyhow::Result<Vec<_>>>()?;
        let slowdowns = Slowdowns::new(&measured, &plans)?;
        Ok(Self {
            measured,
            slowdowns,
        })
    }
}

/// The artifact with the states of the sensitivity pass before every layer, which wait for the backward sweep.
const SENSITIVITY_HIDDEN: &str = "sensitivity-hidden";
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
            let jobs = jobs_of(plan, stage);
            let seconds: f64 = jobs.iter().map(|job| estimate.seconds(job)).sum();
            all += seconds;
            // Stages that only wait for the network have no forecast.
            if seconds > 0.0 {
                seconds_per_job.insert(stage.name.clone(), seconds / jobs.len().max(1) as f64);
            }
        }
        let wall = simulation::run(plan, budget, estimate).seconds;
        let concurrency = if wall > 0.0 { all / wall } else { 1.0 };
        // Jobs that run side by side share the cores.
        seconds_per_job
            .values_mut()
            .for_each(|seconds| *seconds *= concurrency);
        Expectation {
            seconds_per_job,
            concurrency,
        }
    })
}

/// The jobs of a stage.
fn jobs_of(plan: &Plan, stage: &StagePlan) -> Vec<JobId> {
    let units = stage.units(plan.model.layers).into_iter();
    let job = |unit| JobId {
        stage: stage.name.clone(),
        unit,
    };
    units.map(job).collect()
}

/// Passes the estimate of a plan on this machine to `derive`: with the speeds that `uc plan --measure` kept, else those of the
/// measured runs with the cores of `budget`. None if the number of windows depends on the text, or if a stage or artifact has no
/// formula.
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
    let speeds = Speeds::embedded().ok()?;
    let probe = kept_probe::load();
    let probe = probe.map_or_else(|| speeds.measured.probe.clone(), |(probe, _)| probe);
    let probe = probe.with(Some(budget.cpus), None);
    let costs = CostModel::new(model, settings);
    let estimate = Estimate::new(plan, costs, &probe, &speeds.slowdowns).ok()?;
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
    let (plan, costs) = (estimate.costs.plan, &estimate.costs.costs);
    let source = costs.model.total_parameters as f64 * costs.source_width;
    let (mut read, mut written) = (source, 0.0);
    let mut stages = Vec::new();
    for stage in plan.stages.iter().filter(|stage| !stage.optional) {
        let jobs = jobs_of(plan, stage);
        let seconds: Range = jobs.iter().map(|job| estimate.range(job)).sum();
        let work: Option<Work> = jobs.iter().map(|job| estimate.costs.work(job)).sum();
        let bound = work.map_or("network", |work| {
            work.bound(estimate.probe, costs.model.hidden).bound()
        });
        read += jobs
            .iter()
            .map(|job| estimate.costs.bytes_read(job))
            .sum::<f64>();
        written += jobs
            .iter()
            .map(|job| estimate.costs.bytes_written(job))
            .sum::<f64>();
        stages.push(StageForecast {
            name: stage.name.clone(),
            jobs: jobs.len() as u64,
            per: stage.per,
            max_lead: stage.max_lead,
            memory_bytes: stage.memory,
            bound,
            seconds: seconds.expected,
            seconds_low: seconds.low,
            seconds_high: seconds.high,
        });
    }
    let tokens = [
        costs.calibration_tokens(),
        costs.sensitivity_tokens(),
        costs.evaluation_tokens(),
    ];
    let hours =
        |seconds: &dyn Fn(&StageForecast) -> f64| stages.iter().map(seconds).sum::<f64>() / 3600.0;
    RunForecast {
        tokens: tokens.map(|tokens| tokens as u64),
        peak_disk_bytes: outcome.disk as u64,
        other_disk: None,
        source_bytes: source as u64,
        fits_with: setting_that_fits(
            plan,
            costs.model,
            machine.memory_bytes,
            estimate.probe.cores,
        ),
        largest_memory_bytes: stages.iter().map(|s| s.memory_bytes).max().unwrap_or(0),
        peak_memory_bytes: outcome.memory,
        read_bytes: read as u64,
        written_bytes: written as u64,
        hours: hours(&|stage| stage.seconds),
        hours_low: hours(&|stage| stage.seconds_low),
        hours_high: hours(&|stage| stage.seconds_high),
        stages,
        disk: disk_forecast(plan, outcome),
        machine,
    }
}

/// The mildest change of one setting with which every job fits into a limit of memory that some job exceeds.
fn setting_that_fits(
    plan: &Plan,
    model: &ModelSummary,
    limit: Option<u64>,
    threads: u32,
) -> Option<String> {
    let limit = limit?;
    let mut stages = plan.stages.iter().filter(|stage| !stage.optional);
    if stages.all(|stage| stage.memory <= limit) {
        return None;
    }
    let budget = Budget {
        cpus: threads,
        memory: limit,
    };
    limits::smaller_setting(plan, model, budget).map(|(setting, _)| setting)
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
