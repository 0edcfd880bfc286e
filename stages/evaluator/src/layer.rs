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
use uc_pack::LayerFile;
use uc_store::stage::Job;
use uc_store::stream::map_rows;
use uc_store::tensors::{self, TensorDecl, TensorDtype, TensorFile, TensorFileWriter};

/// Number of tokens in a batch.
const BATCH_TOKENS: usize = 4096;

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
        let read_teacher = |name: &str| -> anyhow::Result<Vec<f32>> { Ok(weights.read_f32(name)?) };
        let spec = &config.layers[job.layer()? as usize];
        let teacher_weights = WeightsFromFn::<B, _>::new(&read_teacher, &device);
        let layer = Layer::new(spec, length, &teacher_weights, &device)?;
        forward_windows(job, &layer, &hidden, "teacher", dims, 0, &mut output)?;
        drop(layer);

        let packed = PackedLayer::open(job)?;
        let read_packed = |name: &str| packed.read_f32(name);
        let pack_weights = WeightsFromFn::<B, _>::new(&read_packed, &device);
        let layer = Layer::new(spec, length, &pack_weights, &device)?;
        forward_windows(job, &layer, &hidden, "pack", dims, windows, &mut output)?;
        job.commit_tensors("eval-hidden", output)?;
        Ok(())
    }
}

/// Runs the layer of one model, `name`, over the hidden states of its windows. `done` counts windows that were processed
/// before, for the progress display.
fn forward_windows<B: Backend, W: Weights<B, Error = anyhow::Error>>(
    job: &mut Job<'_>,
    layer: &Layer<'_, B, W>,
    hidden: &TensorFile,
    name: &str,
    [windows, length, width]: [usize; 3],
    done: usize,
    output: &mut TensorFileWriter,
) -> anyhow::Result<()> {
    let batch = windows_per_batch(BATCH_TOKENS, length);
    let number = job.layer()? as usize;
    let model_name = if name == "pack" {
        "the pack"
    } else {
        "the model"
    };
    map_rows::<anyhow::Error>(hidden, name, batch, output, |values, count, first| {
        let states = TensorData::new(values, [count, length, width]);
        let x = Tensor::<B, 3>::from_data(states, layer.device());
        let y = layer.forward(x, &mut NoObserver)?.into_data();
        job.progress((done + first + count) as u64, 2 * windows as u64, "windows");
        let y: Vec<f32> = y.into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        check_states(&y, width, number, model_name)?;
        Ok(y)
    })
}

/// A layer as a reader of the pack reconstructs it: coded linears decoded, other tensors exact.
struct PackedLayer {
    file: LayerFile,
    /// Index in the file, by name.
    linears: BTreeMap<String, usize>,
    /// Index in the file, by name.
    exact: BTreeMap<String, usize>,
}

impl PackedLayer {
    fn open(job: &Job<'_>) -> anyhow::Result<Self> {
        let file = LayerFile::open(job.input("pack-layer")?)?;
        let index = |names: Vec<&String>| names.into_iter().cloned().zip(0..).collect();
        let linears = index(file.linears().iter().map(|linear| &linear.name).collect());
        let exact = index(file.exact().iter().map(|tensor| &tensor.name).collect());
        Ok(Self {
            file,
            linears,
            exact,
        })
    }

    fn read_f32(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        if let Some(&index) = self.linears.get(name) {
            let bits = self.file.reconstruct(index)?;
            return Ok(bits.into_iter().map(uc_codec::bf16::to_f32).collect());
        }
        let &index = self
            .exact
            .get(name)
            .with_context(|| format!("the pack's layer has no tensor {name}"))?;
        let dtype = crate::report::float_dtype(self.file.exact()[index].dtype, name)?;
        let bytes = self.file.exact_bytes(index)?;
        tensors::to_f32(dtype, &bytes)
            .with_context(|| format!("exact tensor {name} is not a float tensor"))
    }
}
