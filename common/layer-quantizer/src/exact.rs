//! The exact tensors of a layer: norms, biases, routers.
//!
//! They are read from the source unchanged: values are never converted.

use uc_model::LayerPlan;
use uc_pack::{ExactDecl, ExactDtype, ExactTensor};
use uc_store::tensors::{self, TensorDecl, TensorFile};

/// The layer's exact tensors, in the order of its plan.
///
/// # Errors
/// If a tensor cannot be read or is not a float tensor.
pub fn exact_tensors(weights: &TensorFile, plan: &LayerPlan) -> anyhow::Result<Vec<ExactTensor>> {
    let mut exact = Vec::with_capacity(plan.exact.len());
    for spec in &plan.exact {
        let ExactDecl { name, dtype, shape } = exact_decl(weights.tensor(&spec.name)?)?;
        exact.push(ExactTensor {
            name,
            dtype,
            shape,
            bytes: weights.read(&spec.name)?,
        });
    }
    Ok(exact)
}

/// The pack's descriptor of a tensor in a tensor file.
///
/// # Errors
/// If the tensor is not a float tensor.
pub fn exact_decl(tensor: &TensorDecl) -> anyhow::Result<ExactDecl> {
    let dtype = match tensor.dtype {
        tensors::TensorDtype::F32 => ExactDtype::F32,
        tensors::TensorDtype::F16 => ExactDtype::F16,
        tensors::TensorDtype::BF16 => ExactDtype::BF16,
        other => anyhow::bail!("{} is {other:?}, expected F32, F16 or BF16", tensor.name),
    };
    Ok(ExactDecl {
        name: tensor.name.clone(),
        dtype,
        shape: tensor.shape.iter().map(|&dim| dim as u64).collect(),
    })
}
