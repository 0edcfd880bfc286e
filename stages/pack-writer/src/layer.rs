//! Task `layer`: writes `layer_NNN.uc` and the record of what a reader reconstructs from it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use rayon::prelude::*;
use uc_codec::layer::LinearParameters;
use uc_layer_quantizer::{CodesCheckpoint, exact_tensors};
use uc_model::{LayerPlan, LinearSpec, ModelConfig};
use uc_pack::digest::Hasher;
use uc_pack::{Digest, LayerCoder, LayerEntry, LayerFile, Linears};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// Writes `pack-layer` and `layer-record`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let plan = config.layer_plan(job.layer()? as usize);
    let codes = CodesCheckpoint::open(&job.input("codes")?)?;
    let overlay = CodesCheckpoint::open(&job.input("overlay")?)?;
    let codes = if overlay.count() > 0 { overlay } else { codes };
    let weights = TensorFile::open(&job.input("weights")?)?;
    let exact = exact_tensors(&weights, &plan)?;

    let mut file = job.output("pack-layer")?;
    let target = file.target().to_owned();
    let linears = ReportedLinears::new(&codes, &plan, job);
    // The digests of the source are computed beside the file, several at a time.
    let write = || {
        let coder = LayerCoder::new(plan.index as u32, &linears, &exact)?;
        coder
            .write(&linears, &mut file)
            .with_context(|| format!("cannot write {target}"))?;
        anyhow::Ok(8 * coder.length())
    };
    let (bits, source_digests) = rayon::join(write, || source_digests(&weights, &plan));
    let (bits, source_digests) = (bits?, source_digests?);
    job.commit("pack-layer", file)?;
    job.metric("bpw", bits as f64 / plan.linear_parameters() as f64);

    // The record is computed from the file as written, not from the linears in memory.
    let written = LayerFile::open(&target)?;
    let source_digest = |name: &str| source_digests.get(name).copied();
    let entry = LayerEntry::measure(&written, &plan.prefix, source_digest)?;
    let mut record = job.output("layer-record")?;
    record.append(&serde_json::to_vec_pretty(&entry)?)?;
    job.commit("layer-record", record)?;
    Ok(())
}

/// How often the writer reads all indices.
const READS: u64 = 3;

/// The linears of a checkpoint, which report the progress as their indices are read.
struct ReportedLinears<'a, 'j> {
    codes: &'a CodesCheckpoint,
    job: Mutex<&'a mut Job<'j>>,
    /// Indices read so far.
    done: AtomicU64,
    total: u64,
}

impl<'a, 'j> ReportedLinears<'a, 'j> {
    fn new(codes: &'a CodesCheckpoint, plan: &LayerPlan, job: &'a mut Job<'j>) -> Self {
        ReportedLinears {
            codes,
            job: Mutex::new(job),
            done: AtomicU64::new(0),
            total: READS * plan.linear_parameters(),
        }
    }
}

impl Linears for ReportedLinears<'_, '_> {
    type Error = anyhow::Error;

    fn count(&self) -> usize {
        self.codes.count()
    }

    fn parameters(&self, index: usize) -> anyhow::Result<Cow<'_, LinearParameters>> {
        self.codes.parameters(index)
    }

    fn indices(&self, index: usize, tile: usize) -> anyhow::Result<Cow<'_, [i16]>> {
        let indices = self.codes.indices(index, tile)?;
        let read = indices.len() as u64;
        let done = self.done.fetch_add(read, Ordering::Relaxed) + read;
        // A thread that finds another one reporting has nothing to add.
        if let Ok(mut job) = self.job.try_lock() {
            job.progress_often(done / READS, self.total / READS, "weights");
        }
        Ok(indices)
    }
}

/// Digests of the linears in the source, by name.
fn source_digests(
    weights: &TensorFile,
    plan: &LayerPlan,
) -> anyhow::Result<BTreeMap<String, Digest>> {
    let digest = |linear: &LinearSpec| {
        let mut hasher = Hasher::default();
        weights.read_pieces(&linear.name, |bytes| hasher.bytes(bytes))?;
        Ok((linear.name.clone(), hasher.finish()))
    };
    plan.linears.par_iter().map(digest).collect()
}
