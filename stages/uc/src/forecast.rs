//! What a run of a model would take, from its description alone: `uc plan --config`.
//!
//! Sizes follow from the plan and the settings; time is an estimate from the rates of one measured run
//! (`docs/benchmarks/throughput.json`, embedded). Nothing here starts a process, reads a weight or looks at this machine.

mod arithmetic;
pub mod facts;
mod simulation;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uc_settings::Settings;
use uc_store::ExitCode;
use uc_store::plan::{ArtifactId, JobId, ModelSource, Per, Plan};

use crate::plan::pipeline::{Goals, Pipeline, Request};
use crate::plan::sources;
use crate::report::failure::failure;
use crate::schedule::scheduler::Budget;
use arithmetic::{Arithmetic, JobCost};
use facts::{Facts, Kind};

/// The measured run, made by `tests/benchmark/throughput.py`.
const MEASURED: &str = include_str!("../../../docs/benchmarks/throughput.json");
/// Bytes of a weight where no index tells.
const BF16: f64 = 2.0;

/// The machine that the estimate is for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    /// Processor cores; those of the measured machine if not given.
    pub threads: Option<u32>,
    /// What its matrix products sustain, 10⁹ operations a second; as measured if not given.
    pub gflops: Option<f64>,
    /// Memory that jobs may claim together, bytes; not limited if not given.
    pub memory: Option<u64>,
}

/// The receipt of the measured run.
#[derive(Debug, Deserialize)]
struct Measured {
    receipt: String,
    processor: String,
    cores: u32,
    wall_seconds: f64,
    model: Facts,
    stages: BTreeMap<String, MeasuredStage>,
}

#[derive(Debug, Deserialize)]
struct MeasuredStage {
    seconds: f64,
}

/// Everything that `uc plan --config` says.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// The model.
    pub model: Facts,
    /// What would be written.
    pub pack: PackForecast,
    /// What it would take.
    pub run: RunForecast,
}

/// The pack's size.
#[derive(Debug, Serialize)]
pub struct PackForecast {
    /// Bits per weight of the linears, every byte of the layer files counted.
    pub bits_per_weight_linears: f64,
    /// All bytes over all parameters.
    pub bits_per_weight_all: f64,
    /// Bytes of the layer files.
    pub layer_bytes: u64,
    /// Bytes of the exact scaffold.
    pub non_layer_bytes: u64,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// Their sum; the tokenizer's files come on top.
    pub total_bytes: u64,
    /// All parameters in bf16.
    pub bf16_bytes: u64,
    /// `bf16_bytes` over `total_bytes`.
    pub compression_ratio: f64,
    /// Bytes of a weight in the source, by the index; else taken as bf16.
    pub source_bytes_per_weight: f64,
}

/// What the run takes.
#[derive(Debug, Serialize)]
pub struct RunForecast {
    /// Calibration, survey and evaluation.
    pub tokens: [u64; 3],
    /// In the order of the pipeline.
    pub stages: Vec<StageForecast>,
    /// By artifact, and as `STAGE (scratch)` what a stage's job needs while it runs; the largest first.
    pub disk: Vec<DiskForecast>,
    /// Most bytes at once beside the source.
    pub peak_disk_bytes: u64,
    /// Bytes of the source.
    pub source_bytes: u64,
    /// Largest memory that a stage declares.
    pub largest_memory_bytes: u64,
    /// Most memory that jobs declare that run at the same time.
    pub peak_memory_bytes: u64,
    /// Bytes read by jobs, every input once, and the source once to hash it.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Estimated, one job after another.
    pub hours_of_jobs: f64,
    /// Estimated, jobs side by side by the driver's rules.
    pub hours: f64,
    /// What the estimate rests on.
    pub machine: MachineForecast,
}

/// What an estimate rests on.
#[derive(Debug, Serialize)]
pub struct MachineForecast {
    /// Receipt of the measured run.
    pub receipt: String,
    /// Its processor.
    pub processor: String,
    /// Its cores.
    pub measured_cores: u32,
    /// What its product-bound stages sustained together.
    pub measured_gflops: f64,
    /// Hours of its run.
    pub measured_hours: f64,
    /// Cores of the estimate.
    pub cores: u32,
    /// Of the estimate.
    pub gflops: f64,
    /// Memory that jobs may claim together; none if not limited.
    pub memory_bytes: Option<u64>,
}

/// One stage.
#[derive(Debug, Serialize)]
pub struct StageForecast {
    /// Its name.
    pub name: String,
    /// Number of jobs.
    pub jobs: u64,
    /// Per layer, or one for the run.
    pub per: Per,
    /// Layers that it may be ahead of its slowest reader.
    pub max_lead: Option<u32>,
    /// What it declares, bytes.
    pub memory_bytes: u64,
    /// What bounds it; none for a program that the estimate does not know.
    pub bound: Option<&'static str>,
    /// Operations or bytes of all jobs.
    pub work: f64,
    /// Estimated seconds of all jobs.
    pub seconds: f64,
}

/// One artifact.
#[derive(Debug, Serialize)]
pub struct DiskForecast {
    /// Its name.
    pub name: String,
    /// Whether it is deleted after its last reader.
    pub temporary: bool,
    /// Most files at once.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes when the whole disk is fullest.
    pub bytes_at_peak: u64,
}

/// Plans a run of a model.
///
/// # Errors
/// For settings that leave the number of windows to the text, and whatever the pipeline refuses.
pub fn forecast(
    facts: Facts,
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
                "{key}: found 0, which takes all of a text that a plan without files does not know; expected a number"
            );
            return Err(failure(ExitCode::Usage, message));
        }
    }
    let measured: Measured = serde_json::from_str(MEASURED)?;
    let source_width = source_width(&facts);
    let arithmetic = Arithmetic {
        facts: &facts,
        settings,
        source_width,
    };
    let cores = machine.threads.unwrap_or(measured.cores);
    let plan = plan(&facts, pipeline, settings, cores)?;
    let rates = Rates::of(&measured, &pipeline_of(&measured)?);
    let sizes = Estimate {
        plan: &plan,
        arithmetic,
        rates: &rates,
        products: machine.gflops.map_or(1.0, |gflops| gflops / rates.gflops),
        codec: f64::from(cores) / f64::from(measured.cores),
    };
    let budget = Budget {
        cpus: cores,
        memory: machine.memory.unwrap_or(0),
    };
    let outcome = simulation::run(&plan, budget, &sizes);
    let pack = pack(&arithmetic);
    let machine = MachineForecast {
        receipt: measured.receipt,
        processor: measured.processor,
        measured_cores: measured.cores,
        measured_gflops: rates.gflops,
        measured_hours: measured.wall_seconds / 3600.0,
        cores,
        gflops: machine.gflops.unwrap_or(rates.gflops),
        memory_bytes: machine.memory,
    };
    let run = run(&sizes, &outcome, machine);
    Ok(Forecast {
        pack,
        run,
        model: facts,
    })
}

/// Bytes that a job leaves in receipts, metrics, logs and events; 4.1 kB measured (44 jobs of the embedded model).
const RECORD_BYTES: f64 = 5e3;

/// Most bytes on disk beside the source in a run of a plan, whichever of its stages is the slow one; none where the number of
/// windows is left to the text.
pub fn disk(facts: &Facts, plan: &Plan, budget: Budget) -> Option<u64> {
    let settings = &plan.settings;
    if settings.calibration.windows == 0 || settings.evaluation.windows == 0 {
        return None;
    }
    let measured: Measured = serde_json::from_str(MEASURED).ok()?;
    let rates = Rates::of(&measured, &pipeline_of(&measured).ok()?);
    let sizes = Estimate {
        plan,
        arithmetic: Arithmetic {
            facts,
            settings,
            source_width: source_width(facts),
        },
        rates: &rates,
        products: 1.0,
        codec: f64::from(budget.cpus) / f64::from(measured.cores),
    };
    let layered = plan.stages.iter().filter(|stage| stage.per == Per::Layer);
    let most = layered
        .map(|stage| {
            let sizes = simulation::Slowed {
                sizes: &sizes,
                stage: &stage.name,
            };
            simulation::run(plan, budget, &sizes).disk
        })
        .fold(simulation::run(plan, budget, &sizes).disk, f64::max);
    let records = plan.jobs().len() as f64 * RECORD_BYTES;
    Some((most + records) as u64)
}

fn source_width(facts: &Facts) -> f64 {
    let size = facts.index.as_ref().and_then(|index| index.total_size);
    size.map_or(BF16, |size| {
        size as f64 / facts.total_parameters.max(1) as f64
    })
}

/// The plan of a run of this model, its files unknown.
fn plan(
    facts: &Facts,
    pipeline: &Pipeline,
    settings: &Settings,
    cores: u32,
) -> anyhow::Result<Plan> {
    let texts = ["source", "calibration-text", "evaluation-text"];
    let request = Request {
        model: ModelSource {
            name: facts.family.clone(),
            path: "/".into(),
            layers: facts.layers as u32,
            linear_parameters: facts.linear_parameters,
            total_parameters: facts.total_parameters,
            hub: None,
        },
        source_files: Default::default(),
        pack_dir: "pack".into(),
        settings: settings.clone(),
        externals: texts.map(|name| (name.into(), sources::unknown())).into(),
        goals: Goals::Everything,
        cpus: cores,
        versions: BTreeMap::new(),
    };
    Ok(pipeline.assemble(&request)?)
}

/// The plan of the measured run: the built-in pipeline at its defaults.
fn pipeline_of(measured: &Measured) -> anyhow::Result<Plan> {
    let pipeline = Pipeline::load(None)?;
    let settings = pipeline.settings().clone();
    plan(&measured.model, &pipeline, &settings, measured.cores)
}

/// What the measured machine did in a second.
struct Rates {
    /// By the program and its first arguments: work per second.
    by_command: BTreeMap<String, f64>,
    /// Of all product-bound stages together, 10⁹ operations a second.
    gflops: f64,
}

impl Rates {
    fn of(measured: &Measured, plan: &Plan) -> Self {
        let arithmetic = Arithmetic {
            facts: &measured.model,
            settings: &plan.settings,
            source_width: source_width(&measured.model),
        };
        let (mut operations, mut seconds) = (0.0, 0.0);
        let mut by_command = BTreeMap::new();
        for stage in &plan.stages {
            let Some(found) = measured.stages.get(&stage.name) else {
                continue;
            };
            let units = stage.units(plan.model.layers).into_iter();
            let works: Vec<JobCost> = units
                .filter_map(|unit| {
                    arithmetic.work(&stage.argv, kind(&measured.model, unit.layer()))
                })
                .collect();
            let amount: f64 = works.iter().map(|work| work.amount()).sum();
            if let Some(JobCost::Product(_)) = works.first() {
                operations += amount;
                seconds += found.seconds;
            }
            by_command.insert(stage.argv.join(" "), amount / found.seconds);
        }
        Rates {
            by_command,
            gflops: operations / seconds / 1e9,
        }
    }
}

fn kind(facts: &Facts, layer: Option<u32>) -> Option<&Kind> {
    layer.and_then(|layer| facts.kind(layer))
}

/// Sizes and seconds of the jobs and files of a plan.
struct Estimate<'a> {
    plan: &'a Plan,
    arithmetic: Arithmetic<'a>,
    rates: &'a Rates,
    /// How many times as fast as measured products are.
    products: f64,
    /// The same of the codec.
    codec: f64,
}

impl Estimate<'_> {
    fn kind(&self, layer: Option<u32>) -> Option<&Kind> {
        kind(self.arithmetic.facts, layer)
    }

    fn argv(&self, job: &JobId) -> &[String] {
        self.plan.stage(&job.stage).map_or(&[], |stage| &stage.argv)
    }

    fn work(&self, job: &JobId) -> Option<JobCost> {
        self.arithmetic
            .work(self.argv(job), self.kind(job.unit.layer()))
    }
}

impl simulation::Sizes for Estimate<'_> {
    fn seconds(&self, job: &JobId) -> f64 {
        let rate = self.rates.by_command.get(&self.argv(job).join(" "));
        let Some((work, rate)) = self.work(job).zip(rate) else {
            return 0.0;
        };
        let times = match work {
            JobCost::Product(_) => self.products,
            JobCost::Codec(_) => self.codec,
            JobCost::Bytes(_) => 1.0,
        };
        work.amount() / rate / times
    }

    fn bytes(&self, artifact: &ArtifactId) -> f64 {
        let kind = self.kind(artifact.layer);
        self.arithmetic
            .artifact(&artifact.name, kind)
            .unwrap_or(0.0)
    }

    fn scratch(&self, job: &JobId) -> f64 {
        self.arithmetic
            .scratch(self.argv(job), self.kind(job.unit.layer()))
    }
}

fn pack(arithmetic: &Arithmetic<'_>) -> PackForecast {
    let facts = arithmetic.facts;
    let kinds = facts.kinds.iter();
    let layers: f64 = kinds
        .map(|kind| kind.layers.len() as f64 * arithmetic.pack_layer_bytes(kind))
        .sum();
    let (non_layer, manifest) = (arithmetic.non_layer_bytes(), arithmetic.manifest_bytes());
    let total = layers + non_layer + manifest;
    let bf16 = BF16 * facts.total_parameters as f64;
    PackForecast {
        bits_per_weight_linears: 8.0 * layers / facts.linear_parameters.max(1) as f64,
        bits_per_weight_all: 8.0 * total / facts.total_parameters.max(1) as f64,
        layer_bytes: layers as u64,
        non_layer_bytes: non_layer as u64,
        manifest_bytes: manifest as u64,
        total_bytes: total as u64,
        bf16_bytes: bf16 as u64,
        compression_ratio: bf16 / total,
        source_bytes_per_weight: arithmetic.source_width,
    }
}

fn run(
    sizes: &Estimate<'_>,
    outcome: &simulation::Outcome,
    machine: MachineForecast,
) -> RunForecast {
    use simulation::Sizes;
    let (plan, arithmetic) = (sizes.plan, &sizes.arithmetic);
    let source = arithmetic.facts.total_parameters as f64 * arithmetic.source_width;
    let (mut read, mut written) = (source, 0.0);
    let mut stages = Vec::new();
    for stage in plan.stages.iter().filter(|stage| !stage.optional) {
        let units = stage.units(plan.model.layers);
        let (mut work, mut seconds, mut bound) = (0.0, 0.0, None);
        for &unit in &units {
            let job = JobId {
                stage: stage.name.clone(),
                unit,
            };
            if let Some(found) = sizes.work(&job) {
                work += found.amount();
                bound = Some(found.bound());
            }
            seconds += sizes.seconds(&job);
            let inputs = plan.inputs(stage, unit).into_iter();
            read += inputs.map(|input| sizes.bytes(&input)).sum::<f64>();
            read += arithmetic.source_read(&stage.argv, sizes.kind(unit.layer()));
            let outputs = plan.outputs(stage, unit).into_iter();
            written += outputs.map(|output| sizes.bytes(&output)).sum::<f64>();
            read += sizes.scratch(&job);
            written += sizes.scratch(&job);
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
    let tokens = [
        arithmetic.calibration_tokens(),
        arithmetic.survey_tokens(),
        arithmetic.evaluation_tokens(),
    ];
    RunForecast {
        tokens: tokens.map(|tokens| tokens as u64),
        peak_disk_bytes: outcome.disk as u64,
        source_bytes: source as u64,
        largest_memory_bytes: stages.iter().map(|s| s.memory_bytes).max().unwrap_or(0),
        peak_memory_bytes: outcome.memory,
        read_bytes: read as u64,
        written_bytes: written as u64,
        hours_of_jobs: stages.iter().map(|stage| stage.seconds).sum::<f64>() / 3600.0,
        hours: outcome.seconds / 3600.0,
        stages,
        disk,
        machine,
    }
}

#[cfg(test)]
mod tests;
