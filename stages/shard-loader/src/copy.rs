//! Copies tensors from the source model into the pipeline's own files, one per layer and one for the non-layer tensors.
//!
//! Bytes are copied as they are. Every value is checked to be finite during the copy, so that later stages need not
//! check it.

use anyhow::Context;
use crossbeam_channel::bounded;
use uc_model::source::{SourceDtype, SourceError};
use uc_model::{ExactSpec, ModelConfig, SourceFolder, SourceTensor};
use uc_store::stage::Job;
use uc_store::tensors::{TensorDecl, TensorDtype};

/// Tensors buffered between the reading and the writing thread.
const BUFFERED_TENSORS: usize = 2;

/// Which tensors a job copies.
pub enum Part {
    /// Embeddings, final norm and head.
    NonLayer,
    /// The tensors of one layer.
    Layer,
}

/// The tasks `non-layer` and `layer`. The source stays open between jobs.
pub struct TensorCopier {
    part: Part,
    source: Option<(ModelConfig, SourceFolder)>,
}

impl TensorCopier {
    /// The source is opened by the first job.
    pub fn new(part: Part) -> Self {
        TensorCopier { part, source: None }
    }

    /// Writes `non-layer` or `weights`.
    pub fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let (config, source) = match self.source.take() {
            Some(open) => open,
            None => {
                let path = job.plan().model.path.as_std_path();
                let config = ModelConfig::load(path)?;
                let source = SourceFolder::open(path)?;
                source.check(&config)?; // the warnings were given when the run was planned
                (config, source)
            }
        };
        match self.part {
            Part::NonLayer => {
                let token_matrices = [&config.embedding.weight, &config.head.weight];
                let read = |name: &str| {
                    let tensor = source.read(name)?;
                    if token_matrices.iter().any(|matrix| *matrix == name) {
                        tensor.check_not_all_zero()?;
                    }
                    Ok(tensor)
                };
                copy(job, "non-layer", &config.non_layer_plan(), read, |name| {
                    source.tensor(name).map(|info| info.dtype)
                })?;
            }
            Part::Layer => {
                let plan = config.layer_plan(job.layer()? as usize);
                let tensors: Vec<ExactSpec> = plan.tensors().collect();
                let read = |name: &str| source.read_planned(&plan, name);
                copy(job, "weights", &tensors, read, |name| {
                    source.planned_dtype(&plan, name)
                })?;
            }
        }
        self.source = Some((config, source));
        Ok(())
    }
}

/// Copies tensors to the artifact `output`; one thread reads and checks, another writes.
fn copy(
    job: &mut Job<'_>,
    output: &str,
    tensors: &[ExactSpec],
    read: impl Fn(&str) -> Result<SourceTensor, SourceError> + Send,
    dtype: impl Fn(&str) -> Option<SourceDtype>,
) -> anyhow::Result<()> {
    let mut decls = Vec::with_capacity(tensors.len());
    for spec in tensors {
        let name = &spec.name;
        let dtype =
            dtype(name).with_context(|| format!("tensor {name} is no longer in the source"))?;
        let dtype = match dtype.name() {
            "F32" => TensorDtype::F32,
            "F16" => TensorDtype::F16,
            "BF16" => TensorDtype::BF16,
            other => anyhow::bail!("tensor {name} is {other}, expected F32, F16 or BF16"),
        };
        decls.push(TensorDecl::new(&spec.name, dtype, &spec.shape));
    }
    let mut file = job.output_tensors(output, &decls)?;
    let (sender, receiver) = bounded(BUFFERED_TENSORS);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        scope.spawn(move || {
            for spec in tensors {
                let tensor = read(&spec.name).and_then(|tensor| {
                    tensor.to_f32()?; // refuses NaN and infinity by name and index
                    Ok(tensor.bytes)
                });
                let failed = tensor.is_err();
                if sender.send(tensor).is_err() || failed {
                    return;
                }
            }
        });
        for (done, bytes) in receiver.iter().enumerate() {
            file.append(&bytes?)?;
            job.progress(done as u64 + 1, tensors.len() as u64, "tensors");
        }
        Ok(())
    })?;
    job.commit_tensors(output, file)?;
    Ok(())
}
