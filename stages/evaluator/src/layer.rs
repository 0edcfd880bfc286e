//! The forward pass of one layer of the teacher, and of the same layer of the pack, over all windows.

use std::collections::BTreeMap;

use anyhow::Context;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::ModelConfig;
use uc_model::device::{OnDevice, dispatch};
use uc_model::forward::{
    Layer, NoObserver, Weights, WeightsFromFn, check_states, windows_per_batch,
};
use uc_model::text::WindowSet;
use uc_model::work::{self, Waiting};
use uc_store::stage::Job;
use uc_store::stream::{KeptRows, LONG_JOB, TensorRows};
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile, TensorFileWriter};

use crate::candidate::{Candidate, file_weight};

/// Number of tokens in a batch.
const BATCH_TOKENS: usize = 2048;
/// The same for a layer with experts.
const ROUTED_BATCH_TOKENS: usize = 16384;

/// Writes the artifact `eval-hidden` after the layer: the hidden states of teacher and pack.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    dispatch(job.settings().model.device.into(), LayerPass { job })?
}

struct LayerPass<'a, 'j> {
    job: &'a mut Job<'j>,
}

impl OnDevice for LayerPass<'_, '_> {
    type Output = anyhow::Result<()>;

    fn run<B: Backend>(self, device: B::Device) -> anyhow::Result<()> {
        let job = self.job;
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let hidden = TensorFile::open(&job.input("eval-hidden")?)?;
        let shape = hidden.tensor("teacher")?.shape.clone();
        let &[windows, length, width] = shape.as_slice() else {
            anyhow::bail!(
                "{}: `teacher` has shape {shape:?}, expected three dimensions",
                hidden.path()
            );
        };
        let decls = ["teacher", "pack"].map(|name| TensorDecl::new(name, TensorDtype::F32, &shape));
        let mut output = job.output_tensors("eval-hidden", &decls)?;
        let dims = [windows, length, width];

        // Teacher first, then pack, so that only one model's layer is in memory at a time.
        let weights = TensorFile::open(&job.input("weights")?)?;
        let read_teacher = |name: &str| file_weight(&weights, name);
        let spec = &config.layers[job.layer()? as usize];
        let teacher_weights = WeightsFromFn::<B, _>::new(&read_teacher, &device);
        let layer = Layer::new(spec, length, &teacher_weights, &device)?;
        let states = States {
            config: &config,
            file: &hidden,
            name: "teacher",
            own: None,
        };
        forward_windows(job, &layer, &states, dims, 0, &mut output)?;
        drop(layer);

        let candidate = Candidate::layer(&job.input("pack-layer")?)?;
        let number = job.layer()? as usize;
        let read_packed = |name: &str| candidate.read(&config, Some(number), name);
        let pack_weights = WeightsFromFn::<B, _>::new(&read_packed, &device);
        let layer = Layer::new(spec, length, &pack_weights, &device)?;
        // The embedding of an export may be rounded: its windows begin with its own.
        let own = match number == 0 && candidate.is_export() {
            true => Some(OwnEmbedding::read(job, &config, &candidate)?),
            false => None,
        };
        let states = States {
            config: &config,
            file: &hidden,
            name: "pack",
            own: own.as_ref(),
        };
        forward_windows(job, &layer, &states, dims, windows, &mut output)?;
        job.commit_tensors("eval-hidden", output)?;
        work::log();
        Ok(())
    }
}

/// The hidden states before a layer.
struct States<'a> {
    config: &'a ModelConfig,
    file: &'a TensorFile,
    /// Name of the model in the file.
    name: &'a str,
    /// What takes the place of the file's states.
    own: Option<&'a OwnEmbedding<'a>>,
}

/// The embedded windows of a model that has an embedding of its own.
struct OwnEmbedding<'a> {
    config: &'a ModelConfig,
    windows: WindowSet,
    /// The matrices of the embedding, by name: `[rows, width]`.
    matrices: BTreeMap<&'a str, Vec<f32>>,
}

impl<'a> OwnEmbedding<'a> {
    fn read(job: &Job<'_>, config: &'a ModelConfig, candidate: &Candidate) -> anyhow::Result<Self> {
        let windows = uc_input::read_json(job.input("evaluation-windows")?, u64::MAX);
        let spec = &config.embedding;
        let names = std::iter::once(&spec.weight).chain(&spec.positions);
        let matrices = names.map(|name| {
            let values = candidate.read(config, None, name)?;
            Ok((name.as_str(), values.into_f32()))
        });
        Ok(Self {
            config,
            windows: windows.context("cannot read the evaluation windows")?,
            matrices: matrices.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The states `[count, length, width]` of some windows.
    fn states(&self, first: usize, count: usize) -> anyhow::Result<Vec<f32>> {
        let width = self.config.hidden;
        let read_row = |name: &str, row: usize| -> anyhow::Result<Vec<f32>> {
            let values = self.matrices.get(name);
            let row = values.and_then(|values| values.get(row * width..(row + 1) * width));
            Ok(row
                .with_context(|| format!("{name} has too few rows"))?
                .to_vec())
        };
        let mut states = Vec::new();
        for window in &self.windows.windows[first..first + count] {
            states.extend(self.config.embedding.window(&window.ids, read_row)?);
        }
        Ok(states)
    }
}

/// Runs the layer of one model over the hidden states of its windows. `done` counts windows that were processed before, for
/// the progress display.
fn forward_windows<B: Backend, W: Weights<B, Error = anyhow::Error>>(
    job: &mut Job<'_>,
    layer: &Layer<'_, B, W>,
    states: &States<'_>,
    [windows, length, width]: [usize; 3],
    done: usize,
    output: &mut TensorFileWriter,
) -> anyhow::Result<()> {
    let number = job.layer()? as usize;
    let batch_tokens = match states.config.layer_plan(number).has_experts() {
        true => ROUTED_BATCH_TOKENS,
        false => BATCH_TOKENS,
    };
    let batch = windows_per_batch(batch_tokens, length);
    let model_name = if states.name == "pack" {
        "the pack"
    } else {
        "the model"
    };
    let (file, name) = (states.file, states.name);
    let mut waiting = Waiting::begin();
    let rows = TensorRows::new(file, name)?;
    let path = job.resumable_dir()?.join(name);
    let mut kept = KeptRows::open(job.run().root(), &path, LONG_JOB)?;
    if kept.batches() > 0 {
        let found = windows.min(kept.batches() * batch);
        job.note(format!(
            "continues an interrupted job: {found} of {windows} windows of {model_name}"
        ));
    }
    kept.map_rows::<anyhow::Error>(&rows, batch, output, |values, count, first| {
        waiting.computing(|| {
            let values = match states.own {
                Some(own) => own.states(first, count)?,
                None => values,
            };
            let states = TensorData::new(values, [count, length, width]);
            let x = Tensor::<B, 3>::from_data(states, layer.device());
            let y = layer.forward(x, &mut NoObserver)?.into_data();
            job.progress((done + first + count) as u64, 2 * windows as u64, "windows");
            let y: Vec<f32> = y.into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
            check_states(&y, width, number, model_name)?;
            Ok(y)
        })
    })?;
    waiting.finish(2 * windows * length * width);
    Ok(())
}
