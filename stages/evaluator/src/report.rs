//! The final norm and head of teacher and pack, the comparison of all next-token distributions, and the metrics document.

use anyhow::{Context, ensure};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use camino::Utf8Path;
use serde::Serialize;
use uc_export::report::{REPORT_FILE, Report};
use uc_model::ModelConfig;
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{Head, WeightsFromFn};
use uc_model::text::WindowSet;
use uc_model::work::{self, Amount, Kind};
use uc_pack::{Manifest, NonLayerFile};
use uc_store::stage::Job;
use uc_store::tensors::{self, TensorDtype, TensorFile};

use crate::candidate::{Candidate, file_weight};
use uc_model::metrics::{
    EvaluationMetrics, METRICS_VERSION, MetricsAccumulator, TokenComparison, compare_logits,
};

/// Positions whose logits are in memory together.
const CHUNK_POSITIONS: usize = 512;

/// The artifact `metrics`: everything needed to interpret an evaluation and to repeat it.
#[derive(Debug, Serialize)]
struct MetricsDocument {
    metrics_version: u32,
    tool_version: String,
    model: String,
    pack_fingerprint: String,
    bits_per_weight_linears: String,
    bits_per_weight_all: Option<String>,
    /// Format and element type, if an export of the pack was measured and not the pack.
    #[serde(skip_serializing_if = "Option::is_none")]
    export: Option<String>,
    texts: Vec<TextFile>,
    /// Key or column of the text in `.jsonl` and `.parquet` files.
    field: String,
    /// Bytes of the texts, decompressed.
    text_bytes: u64,
    /// Number of excerpts of a long text that were tokenized; null if the whole text was.
    text_excerpts: Option<u64>,
    /// Windows that were asked for; 0 for all.
    requested_windows: usize,
    /// Tokens per window that were asked for.
    requested_window_length: usize,
    window_length: usize,
    seed: u64,
    /// What the text or the model could not give.
    warnings: Vec<String>,
    windows_sha256: String,
    device: String,
    /// What the intervals are; null if there are none, because there is one window.
    interval: Option<&'static str>,
    #[serde(flatten)]
    metrics: EvaluationMetrics,
}

#[derive(Debug, Serialize)]
struct TextFile {
    name: String,
    size: u64,
    sha256: String,
}

/// What was measured: a pack by its manifest, or an export by its report.
struct Subject {
    fingerprint: String,
    bits_linears: String,
    bits_all: Option<String>,
    export: Option<String>,
}

impl Subject {
    fn read(path: &Utf8Path) -> anyhow::Result<Self> {
        if path.file_name() == Some(REPORT_FILE) {
            let report: Report = uc_input::read_json(path, uc_input::LARGE_JSON)
                .with_context(|| format!("cannot read {path}"))?;
            return Ok(Self {
                fingerprint: report.pack_fingerprint.to_string(),
                bits_linears: report.pack_bits_per_weight_linears,
                bits_all: None,
                export: Some(format!("{} {}", report.format, report.element_type)),
            });
        }
        let folder = path.parent().context("the manifest has no folder")?;
        let (manifest, fingerprint) = Manifest::read(folder)?;
        Ok(Self {
            fingerprint: fingerprint.to_string(),
            bits_linears: manifest.totals.bits_per_weight_linears,
            bits_all: Some(manifest.totals.bits_per_weight_all),
            export: None,
        })
    }
}

/// Compares teacher and pack, and writes the artifact `metrics`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let subject = Subject::read(&job.input("manifest")?)?;
    let set: WindowSet = uc_input::read_json(job.input("evaluation-windows")?, u64::MAX)
        .context("cannot read the evaluation windows")?;
    let kind = job.settings().model.device.into();
    let metrics = dispatch(kind, Comparison { job, set: &set })??;
    job.metric("PPL teacher", metrics.teacher_ppl.value);
    job.metric("PPL pack", metrics.pack_ppl.value);
    job.metric("mean KL", metrics.mean_kl.value);

    let plan = job.plan();
    let texts = job.external("evaluation-text")?.files.iter();
    let document = MetricsDocument {
        metrics_version: METRICS_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: plan.model.name.clone(),
        pack_fingerprint: subject.fingerprint,
        bits_per_weight_linears: subject.bits_linears,
        bits_per_weight_all: subject.bits_all,
        export: subject.export,
        texts: texts
            .map(|file| TextFile {
                name: file.path.file_name().unwrap_or_default().into(),
                size: file.size,
                sha256: file.sha256.to_string(),
            })
            .collect(),
        field: job.settings().evaluation.field.clone(),
        text_bytes: set.text_bytes,
        text_excerpts: set.excerpts,
        requested_windows: set.requested_windows,
        requested_window_length: set.requested_length,
        window_length: set.length,
        seed: set.seed,
        warnings: set.shortfalls(),
        windows_sha256: set.sha256,
        device: kind.to_string(),
        interval: (metrics.windows > 1)
            .then_some("95 %, over windows: normal for means, bootstrap for quantiles"),
        metrics,
    };
    let mut file = job.output("metrics")?;
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    file.append(&text)?;
    job.commit("metrics", file)?;
    Ok(())
}

struct Comparison<'a, 'j> {
    job: &'a mut Job<'j>,
    set: &'a WindowSet,
}

impl OnDevice for Comparison<'_, '_> {
    type Output = anyhow::Result<EvaluationMetrics>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<EvaluationMetrics> {
        let Self { job, set } = self;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let non_layer = TensorFile::open(&job.input("non-layer")?)?;
        let candidate = Candidate::non_layer(&job.input("pack-non-layer")?)?;
        if let Candidate::PackNonLayer(packed) = &candidate {
            check_embedding(&config, &non_layer, packed)?;
        }
        let read_teacher = |name: &str| file_weight(&non_layer, name);
        let read_pack = |name: &str| candidate.read(&config, None, name);
        let teacher_head = Head::new(&config, &WeightsFromFn::<B, _>::new(&read_teacher, &device))?;
        let pack_head = Head::new(&config, &WeightsFromFn::<B, _>::new(&read_pack, &device))?;
        let hidden = TensorFile::open(&job.input("eval-hidden")?)?;
        let mut accumulator = MetricsAccumulator::default();
        for (index, window) in set.windows.iter().enumerate() {
            let states = |name: &str| -> anyhow::Result<Vec<f32>> {
                let bytes = hidden.read_rows(name, index, 1)?;
                tensors::to_f32(TensorDtype::F32, &bytes).context("hidden states are f32")
            };
            let (teacher_states, pack_states) = (states("teacher")?, states("pack")?);
            let positions = set.length - 1; // the last position has no next token to predict
            let mut tokens = Vec::with_capacity(positions);
            for first in (0..positions).step_by(CHUNK_POSITIONS) {
                let count = CHUNK_POSITIONS.min(positions - first);
                let range = first * config.hidden..(first + count) * config.hidden;
                let targets = &window.ids[first + 1..first + count + 1];
                let chunk_logits = |head: &Head<B>, states: &[f32]| {
                    logits(head, &states[range.clone()], count, config.hidden, &device)
                };
                let teacher = chunk_logits(&teacher_head, &teacher_states)?;
                let pack = chunk_logits(&pack_head, &pack_states)?;
                let amount = Amount::values(teacher.len() + pack.len());
                tokens.extend(work::counted(Kind::Loss, amount, || {
                    compare(&teacher, &pack, targets, config.vocab)
                }));
            }
            accumulator.add_window(&tokens);
            job.progress(index as u64 + 1, set.windows.len() as u64, "windows");
        }
        work::log();
        accumulator.finish().context("no token was compared")
    }
}

/// Logits `[count, vocab]` of the hidden states `[count, width]`.
fn logits<B: Backend>(
    head: &Head<B>,
    states: &[f32],
    count: usize,
    width: usize,
    device: &B::Device,
) -> anyhow::Result<Vec<f32>> {
    let x = Tensor::<B, 2>::from_data(TensorData::new(states.to_vec(), [count, width]), device);
    head.logits(x)
        .into_data()
        .into_vec()
        .map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// Compares the logits `[positions, vocab]` of all positions in parallel. Results are in the order of the positions and do not
/// depend on the number of threads.
fn compare(teacher: &[f32], pack: &[f32], targets: &[u32], vocab: usize) -> Vec<TokenComparison> {
    let threads = uc_store::resources::available_cpus() as usize;
    let per_thread = targets.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = targets
            .chunks(per_thread)
            .zip(
                teacher
                    .chunks(per_thread * vocab)
                    .zip(pack.chunks(per_thread * vocab)),
            )
            .map(|(targets, (teacher, pack))| {
                scope.spawn(move || {
                    let rows = teacher.chunks(vocab).zip(pack.chunks(vocab));
                    let positions = targets.iter().zip(rows);
                    positions
                        .map(|(&id, (teacher, pack))| compare_logits(teacher, pack, id as usize))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let joined = workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        joined.flatten().collect()
    })
}

/// Checks that the pack's embedding is byte-equal to the source's, because the windows of both models were embedded
/// with the source's.
fn check_embedding(
    config: &ModelConfig,
    non_layer: &TensorFile,
    packed: &NonLayerFile,
) -> anyhow::Result<()> {
    let spec = &config.embedding;
    for name in std::iter::once(&spec.weight).chain(&spec.positions) {
        ensure!(
            non_layer.read(name)? == packed.read(name)?,
            "the pack's {name} differs from the source's, expected equal bytes"
        );
    }
    Ok(())
}
