//! The tensors that a model must have, from its config.json, for the verification of a pack.
//!
//! Owns the translation from the plan of the model crate to that of the pack crate, neither of which knows the other; this
//! crate is where both meet. Reads no file.

use std::path::Path;

use uc_model::{ExactSpec, ModelConfig};
use uc_pack::planned::{ModelPlan, PlannedLayer};

/// Reads the model that the text of a config.json describes; `has_tensor` tells whether the pack has a tensor whose name
/// contains a text.
///
/// # Errors
/// The reason why this program cannot have compressed such a model.
pub fn read_config(
    config: &[u8],
    has_tensor: &dyn Fn(&str) -> bool,
) -> Result<ModelConfig, String> {
    ModelConfig::from_json(config, Path::new(uc_pack::CONFIG_FILE), has_tensor)
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// Derives the plan of a model from the text of its config.json, as [`read_config`].
///
/// # Errors
/// Those of [`read_config`].
pub fn plan(
    config: &[u8],
    has_tensor: &dyn Fn(&str) -> bool,
) -> Result<Box<dyn ModelPlan>, String> {
    Ok(Box::new(PlannedTensors(read_config(config, has_tensor)?)))
}

/// The plan of a model.
struct PlannedTensors(ModelConfig);

impl ModelPlan for PlannedTensors {
    fn layers(&self) -> usize {
        self.0.layers.len()
    }

    fn layer(&self, index: usize) -> PlannedLayer {
        let plan = self.0.layer_plan(index);
        let linears = plan.linears.iter();
        let linears = linears.map(|l| (l.name.clone(), [l.rows as u64, l.cols as u64]));
        PlannedLayer {
            linears: linears.collect(),
            exact: shapes(&plan.exact),
            prefix: plan.prefix,
        }
    }

    fn non_layer(&self) -> Vec<(String, Vec<u64>)> {
        shapes(&self.0.non_layer_plan())
    }
}

fn shapes(tensors: &[ExactSpec]) -> Vec<(String, Vec<u64>)> {
    let shape = |tensor: &ExactSpec| tensor.shape.iter().map(|d| *d as u64).collect();
    let tensors = tensors.iter();
    tensors.map(|t| (t.name.clone(), shape(t))).collect()
}
