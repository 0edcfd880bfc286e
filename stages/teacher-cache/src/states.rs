//! What the forward and the backward pass share: files of hidden states, weights of the source, values of tensors.

use anyhow::{Context, anyhow};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use camino::Utf8Path;
use uc_model::{HalfType, LayerPlan, SourceFolder, WeightValues};
use uc_settings::SensitivityStates;
use uc_store::StoreError;
use uc_store::stage::Job;
use uc_store::stream::{RowSink, RowSource};
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile, TensorFileWriter};

use crate::packed_states::{PackedStates, PackedWriter, is_packed};

/// The hidden states of windows, or gradients with respect to them: a tensor `hidden` `[windows, length, width]`, or packed.
pub enum HiddenStates {
    /// In a tensor file.
    Tensor {
        /// The file.
        file: TensorFile,
        /// `[windows, length, width]`
        dims: [usize; 3],
    },
    /// Compressed.
    Packed(PackedStates),
}

impl HiddenStates {
    /// Opens a file of either form.
    pub fn open(path: &Utf8Path) -> anyhow::Result<Self> {
        if is_packed(path)? {
            return Ok(Self::Packed(PackedStates::open(path)?));
        }
        let file = TensorFile::open(path)?;
        let shape = &file.tensor("hidden")?.shape;
        let dims = <[usize; 3]>::try_from(shape.as_slice()).map_err(|_| {
            anyhow!("{path}: `hidden` has shape {shape:?}, expected three dimensions")
        })?;
        Ok(Self::Tensor { file, dims })
    }

    /// `[windows, length, width]`
    pub fn dims(&self) -> [usize; 3] {
        match self {
            Self::Tensor { dims, .. } => *dims,
            Self::Packed(states) => states.dims,
        }
    }
}

impl RowSource for HiddenStates {
    fn rows(&self) -> usize {
        self.dims()[0]
    }

    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
        match self {
            Self::Tensor { file, .. } => file.read_rows_f32("hidden", first, count),
            Self::Packed(states) => states.read(first, count),
        }
    }
}

/// Writes hidden states, or gradients with respect to them, window after window.
pub enum StateWriter {
    /// To a tensor file.
    Tensor(TensorFileWriter),
    /// Compressed.
    Packed(PackedWriter),
}

impl StateWriter {
    /// The output `name` of the job, `[windows, length, width]`. Packed if it waits on disk for the backward sweep and the settings say
    /// so.
    pub fn new(job: &Job<'_>, name: &str, dims: [usize; 3]) -> anyhow::Result<Self> {
        let states = job.settings().allocation.states;
        if name == "sensitivity-hidden" && states == SensitivityStates::Bfloat16 {
            return Ok(Self::Packed(PackedWriter::new(job.output(name)?, dims)?));
        }
        let decl = TensorDecl::new("hidden", TensorDtype::F32, &dims);
        Ok(Self::Tensor(job.output_tensors(name, &[decl])?))
    }

    /// Publishes the output.
    pub fn commit(self, job: &mut Job<'_>, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Tensor(file) => job.commit_tensors(name, file)?,
            Self::Packed(file) => job.commit(name, file.finish()?)?,
        };
        Ok(())
    }
}

impl RowSink for StateWriter {
    fn append_rows(&mut self, values: &[f32]) -> Result<(), StoreError> {
        match self {
            Self::Tensor(file) => file.append_rows(values),
            Self::Packed(file) => file.append_rows(values),
        }
    }
}

/// Reads a layer's weights by name from the source model in a folder, not from the pipeline's copy.
pub fn source_weights(
    model: &Utf8Path,
    plan: LayerPlan,
) -> anyhow::Result<impl Fn(&str) -> anyhow::Result<WeightValues> + use<>> {
    let source = SourceFolder::open(model.as_std_path())?;
    Ok(move |name: &str| Ok(source.read_planned(&plan, name)?.to_values()?))
}

/// Reads a weight from a file of the pipeline.
pub fn file_weight(file: &TensorFile, name: &str) -> anyhow::Result<WeightValues> {
    Ok(match file.tensor(name)?.dtype {
        TensorDtype::BF16 => WeightValues::Half(HalfType::Bf16, file.read_u16(name)?),
        TensorDtype::F16 => WeightValues::Half(HalfType::F16, file.read_u16(name)?),
        _ => file.read_f32(name)?.into(),
    })
}

/// The values of a tensor, which must be finite; `what` names them in the error.
pub fn finite_values<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    what: &str,
) -> anyhow::Result<Vec<f32>> {
    let values: Vec<f32> = tensor
        .into_data()
        .into_vec()
        .map_err(|error| anyhow!("{error:?}"))?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => Err(anyhow!(
            "value {index} of {what} is {}, expected a finite number",
            values[index]
        )),
    }
}

/// The values of an activation of the teacher, which must be finite.
pub fn activation_values<B: Backend, const D: usize>(
    activation: Tensor<B, D>,
) -> anyhow::Result<Vec<f32>> {
    finite_values(activation, "an activation")
        .context("the teacher's own activations are not finite; the model cannot be calibrated")
}
