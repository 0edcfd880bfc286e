//! Norm, head and the comparison of every next-token distribution.

use anyhow::{Context, ensure};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use uc_model::ModelConfig;
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{Head, WeightsFromFn};
use uc_model::text::WindowSet;
use uc_pack::{Manifest, NonLayerFile};
use uc_store::stage::Job;
use uc_store::tensors::{self, TensorDtype, TensorFile};

use crate::metrics::{Accumulator, Figures, METRICS_VERSION, TokenComparison, compare_logits};

/// Positions whose logits are in memory at once.
const CHUNK: usize = 256;

/// Everything needed to read and to repeat an evaluation.
#[derive(Debug, Serialize)]
struct Metrics {
    metrics_version: u32,
    tool_version: String,
    model: String,
    pack_fingerprint: String,
    bits_per_weight_linears: String,
    bits_per_weight_all: String,
    texts: Vec<TextFile>,
    window_length: usize,
    seed: u64,
    windows_sha256: String,
    device: String,
    interval: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Debug, Serialize)]
struct TextFile {
    name: String,
    size: u64,
    sha256: String,
}

/// Writes `metrics`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let manifest_path = job.input("manifest")?;
    let folder = manifest_path
        .parent()
        .context("the manifest has no folder")?;
    let (manifest, fingerprint) = Manifest::read(folder)?;
    let set: WindowSet = serde_json::from_slice(&std::fs::read(job.input("evaluation-windows")?)?)
        .context("cannot read the evaluation windows")?;
    let kind = crate::device(job);
    let figures = dispatch(kind, Comparison { job, set: &set })??;
    job.metric("PPL teacher", figures.teacher_ppl.value);
    job.metric("PPL pack", figures.pack_ppl.value);
    job.metric("mean KL", figures.mean_kl.value);

    let plan = job.plan();
    let texts = job.external("evaluation-text")?.files.iter();
    let metrics = Metrics {
        metrics_version: METRICS_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: plan.model.name.clone(),
        pack_fingerprint: fingerprint.to_string(),
        bits_per_weight_linears: manifest.totals.bits_per_weight_linears.clone(),
        bits_per_weight_all: manifest.totals.bits_per_weight_all.clone(),
        texts: texts
            .map(|file| TextFile {
                name: file.path.file_name().unwrap_or_default().into(),
                size: file.size,
                sha256: file.sha256.to_string(),
            })
            .collect(),
        window_length: set.length,
        seed: set.seed,
        windows_sha256: set.sha256,
        device: kind.to_string(),
        interval: "95 %, over windows: normal for means, bootstrap for quantiles",
        figures,
    };
    let mut file = job.output("metrics")?;
    let mut text = serde_json::to_vec_pretty(&metrics)?;
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
    type Output = anyhow::Result<Figures>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<Figures> {
        let Self { job, set } = self;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let non_layer = TensorFile::open(&job.input("non-layer")?)?;
        let packed = NonLayerFile::open(job.input("pack-non-layer")?)?;
        check_embedding(&config, &non_layer, &packed)?;
        let of_teacher = |name: &str| -> anyhow::Result<_> { Ok(non_layer.read_f32(name)?) };
        let of_pack = |name: &str| read_packed(&packed, name);
        let teacher = Head::new(&config, &WeightsFromFn::<B, _>::new(&of_teacher, &device))?;
        let pack = Head::new(&config, &WeightsFromFn::<B, _>::new(&of_pack, &device))?;
        let hidden = TensorFile::open(&job.input("eval-hidden")?)?;
        let mut all = Accumulator::default();
        for (index, window) in set.windows.iter().enumerate() {
            let states = |name: &str| -> anyhow::Result<Vec<f32>> {
                let bytes = hidden.read_rows(name, index, 1)?;
                tensors::to_f32(TensorDtype::F32, &bytes).context("hidden states are f32")
            };
            let (of_teacher, of_pack) = (states("teacher")?, states("pack")?);
            let positions = set.length - 1; // the last one predicts nothing in the text
            let mut tokens = Vec::with_capacity(positions);
            for first in (0..positions).step_by(CHUNK) {
                let count = CHUNK.min(positions - first);
                let range = first * config.hidden..(first + count) * config.hidden;
                let targets = &window.ids[first + 1..first + count + 1];
                let of = |head: &Head<B>, states: &[f32]| {
                    logits(head, &states[range.clone()], count, config.hidden, &device)
                };
                let (a, b) = (of(&teacher, &of_teacher)?, of(&pack, &of_pack)?);
                tokens.extend(compare(&a, &b, targets, config.vocab));
            }
            all.add_window(&tokens);
            job.progress(index as u64 + 1, set.windows.len() as u64, "windows");
        }
        all.finish().context("no token was compared")
    }
}

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

/// Compares positions in parallel over fixed pieces; the order of the result is that of the positions.
fn compare(teacher: &[f32], pack: &[f32], targets: &[u32], vocab: usize) -> Vec<TokenComparison> {
    let threads = uc_store::resources::available_cpus() as usize;
    let piece = targets.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = targets
            .chunks(piece)
            .zip(
                teacher
                    .chunks(piece * vocab)
                    .zip(pack.chunks(piece * vocab)),
            )
            .map(|(targets, (teacher, pack))| {
                scope.spawn(move || {
                    let rows = teacher.chunks(vocab).zip(pack.chunks(vocab));
                    let compared = targets.iter().zip(rows);
                    compared
                        .map(|(&id, (a, b))| compare_logits(a, b, id as usize))
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

/// The states of the pack were embedded with the source's matrices: the pack's must be the same bytes.
fn check_embedding(
    config: &ModelConfig,
    non_layer: &TensorFile,
    packed: &NonLayerFile,
) -> anyhow::Result<()> {
    let spec = &config.embedding;
    for name in std::iter::once(&spec.weight).chain(&spec.positions) {
        ensure!(
            non_layer.read(name)? == packed.read(name)?,
            "the pack's {name} is not the source's; expected equal bytes"
        );
    }
    Ok(())
}

fn read_packed(packed: &NonLayerFile, name: &str) -> anyhow::Result<Vec<f32>> {
    let decl = packed.tensors().iter().find(|decl| decl.name == name);
    let dtype = float(
        decl.with_context(|| format!("the pack's scaffold has no {name}"))?
            .dtype,
        name,
    )?;
    tensors::to_f32(dtype, &packed.read(name)?).context("a float tensor")
}

/// The float types that weights may have.
pub fn float(dtype: uc_pack::ExactDtype, name: &str) -> anyhow::Result<TensorDtype> {
    match dtype {
        uc_pack::ExactDtype::F32 => Ok(TensorDtype::F32),
        uc_pack::ExactDtype::F16 => Ok(TensorDtype::F16),
        uc_pack::ExactDtype::BF16 => Ok(TensorDtype::BF16),
        other => anyhow::bail!("{name} is {other:?} in the pack, expected F32, F16 or BF16"),
    }
}
