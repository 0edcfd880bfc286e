//! Task `layer`: writes `layer_NNN.uc` and the record of what a reader reconstructs from it.

use std::collections::BTreeMap;

use anyhow::Context;
use uc_layer_quantizer::{CodesCheckpoint, exact_tensors};
use uc_model::{LayerPlan, LinearSpec, ModelConfig};
use uc_pack::{Digest, LayerCoder, LayerEntry, LayerFile, Linears};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// Writes `pack-layer` and `layer-record`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let plan = config.layer_plan(job.layer()? as usize);
    let codes = CodesCheckpoint::open(&job.input("codes")?)?;
    let overlay = CodesCheckpoint::open(&job.input("overlay")?)?;
    let linears = if overlay.count() > 0 { overlay } else { codes };
    let weights = TensorFile::open(&job.input("weights")?)?;
    let exact = exact_tensors(&weights, &plan)?;

    let mut file = job.output("pack-layer")?;
    let target = file.target().to_owned();
    // The digests of the source take one thread, the file takes the others.
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

/// Digests of the linears in the source, by name.
fn source_digests(
    weights: &TensorFile,
    plan: &LayerPlan,
) -> anyhow::Result<BTreeMap<String, Digest>> {
    let digest = |linear: &LinearSpec| {
        let digest = Digest::hash_bytes(&weights.read(&linear.name)?);
        Ok((linear.name.clone(), digest))
    };
    plan.linears.iter().map(digest).collect()
}
