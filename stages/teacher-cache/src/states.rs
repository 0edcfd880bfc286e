//! Functions that the forward and the backward pass share: shapes of state files, weights of the source, values of
//! tensors.

use anyhow::{Context, anyhow};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use uc_model::{LayerPlan, SourceFolder, WeightValues};
use uc_store::stage::Job;
use uc_store::tensors::{TensorDtype, TensorFile};

/// The dimensions `[windows, length, width]` of the tensor `hidden` of a file.
pub fn hidden_dims(file: &TensorFile) -> anyhow::Result<[usize; 3]> {
    let shape = &file.tensor("hidden")?.shape;
    <[usize; 3]>::try_from(shape.as_slice()).map_err(|_| {
        anyhow!(
            "{}: `hidden` has shape {shape:?}, expected three dimensions",
            file.path()
        )
    })
}

/// Reads a layer's weights by name from the source model, not from the pipeline's copy.
pub fn source_weights(
    job: &Job<'_>,
    plan: LayerPlan,
) -> anyhow::Result<impl Fn(&str) -> anyhow::Result<WeightValues> + use<>> {
    let source = SourceFolder::open(job.plan().model.path.as_std_path())?;
    Ok(move |name: &str| Ok(source.read_planned(&plan, name)?.to_values()?))
}

/// Reads a weight from a file of the pipeline.
pub fn file_weight(file: &TensorFile, name: &str) -> anyhow::Result<WeightValues> {
    Ok(match file.tensor(name)?.dtype {
        TensorDtype::BF16 => WeightValues::from_bf16_bytes(&file.read(name)?),
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
