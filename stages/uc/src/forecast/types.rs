//! What a forecast consists of; also the JSON of `uc plan --config --json`.

use serde::Serialize;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::Per;

use super::probe::Probe;
use crate::schedule::limits::Origin;

/// Everything that `uc plan --config` reports.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// The model.
    pub model: ModelSummary,
    /// The pack that would be written.
    pub pack: PackForecast,
    /// The run that would write it.
    pub run: RunForecast,
}

/// Size of the pack.
#[derive(Debug, Serialize)]
pub struct PackForecast {
    /// Bits per weight of the linears, including every byte of the layer files.
    pub bits_per_weight_linears: f64,
    /// Bits of all files per parameter.
    pub bits_per_weight_all: f64,
    /// Bytes of the layer files.
    pub layer_bytes: u64,
    /// Bytes of the file of the non-layer tensors.
    pub non_layer_bytes: u64,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// Their sum; the tokenizer files are not included.
    pub total_bytes: u64,
    /// All parameters in bf16.
    pub bf16_bytes: u64,
    /// `bf16_bytes` over `total_bytes`.
    pub compression_ratio: f64,
    /// Bytes per weight in the source, by the index; without one, those of bf16.
    pub source_bytes_per_weight: f64,
}

/// Cost of the run.
#[derive(Debug, Serialize)]
pub struct RunForecast {
    /// Tokens of calibration, sensitivities and evaluation.
    pub tokens: [u64; 3],
    /// In pipeline order.
    pub stages: Vec<StageForecast>,
    /// By artifact, and as `STAGE (scratch)` the temporary files of a running job; the largest first.
    pub disk: Vec<DiskForecast>,
    /// Peak bytes on disk besides the source.
    pub peak_disk_bytes: u64,
    /// The same if the states of the sensitivity pass were kept the other way; none without that pass.
    pub other_disk: Option<OtherDisk>,
    /// Bytes of the source.
    pub source_bytes: u64,
    /// The mildest change of one setting with which every job fits into the limit; none if every job fits, or if no single
    /// setting is enough.
    pub fits_with: Option<String>,
    /// Largest memory that a stage declares, bytes.
    pub largest_memory_bytes: u64,
    /// Peak of the memory declared by jobs that run at the same time, bytes.
    pub peak_memory_bytes: u64,
    /// Bytes read by jobs, counting every input once, plus the source once for hashing.
    pub read_bytes: u64,
    /// Bytes written by jobs.
    pub written_bytes: u64,
    /// Estimated hours. Jobs that run side by side share the cores, so the sum of the stages is the time of the run.
    pub hours: f64,
    /// The least hours that the measured runs make likely.
    pub hours_low: f64,
    /// The most.
    pub hours_high: f64,
    /// Basis of the estimate.
    pub machine: MachineForecast,
}

/// Disk use with another setting.
#[derive(Debug, Serialize)]
pub struct OtherDisk {
    /// The setting, as `--set` takes it.
    pub setting: String,
    /// Peak bytes on disk besides the source.
    pub peak_disk_bytes: u64,
}

/// Whose speeds an estimate of time assumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpeedsOf {
    /// This machine, as `uc plan --measure` kept them.
    ThisMachine,
    /// A machine that was measured elsewhere, from a file.
    File,
    /// The machine of the measured runs.
    MeasuredRuns,
}

/// Basis of an estimate of time.
#[derive(Debug, Serialize)]
pub struct MachineForecast {
    /// The speeds that the estimate assumes.
    pub probe: Probe,
    /// Whose speeds they are.
    pub speeds_of: SpeedsOf,
    /// Receipts of the measured runs.
    pub receipts: Vec<String>,
    /// Memory that jobs may take together, bytes; none if unlimited.
    pub memory_bytes: Option<u64>,
    /// Where that limit comes from.
    pub memory_origin: Option<Origin>,
}

/// Cost of one stage.
#[derive(Debug, Serialize)]
pub struct StageForecast {
    /// Its name.
    pub name: String,
    /// Number of jobs.
    pub jobs: u64,
    /// Whether it works per layer, per run or per shard.
    pub per: Per,
    /// Number of layers that it may be ahead of its slowest reader.
    pub max_lead: Option<u32>,
    /// Memory that it declares, bytes.
    pub memory_bytes: u64,
    /// What its jobs spend most of their time on.
    pub bound: &'static str,
    /// Estimated seconds of all jobs, with all cores.
    pub seconds: f64,
    /// The least seconds that the measured runs make likely.
    pub seconds_low: f64,
    /// The most.
    pub seconds_high: f64,
}

/// Disk use of one artifact.
#[derive(Debug, Serialize)]
pub struct DiskForecast {
    /// Its name.
    pub name: String,
    /// Whether it is deleted after its last reader.
    pub temporary: bool,
    /// Peak number of files.
    pub files: usize,
    /// Peak bytes.
    pub bytes: u64,
    /// Bytes at the time of the overall peak.
    pub bytes_at_peak: u64,
}
