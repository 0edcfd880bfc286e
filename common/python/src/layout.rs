//! How the source checkpoint arranges the tensors of a pack, according to the plan of the model.
//!
//! A pack stores each linear as `[outputs, inputs]`. Some checkpoints store it transposed, or the linears of all experts as one
//! tensor. Reads nothing but the text of config.json.

use std::collections::HashMap;
use std::path::Path;

use uc_model::spec::Stored;
use uc_model::{ExactSpec, ModelConfig};
use uc_pack::planned::{ModelPlan, PlannedLayer};

/// A tensor of the source checkpoint and where its values are in the pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceTensor {
    /// Full name in the checkpoint.
    pub(crate) name: String,
    /// Shape in the checkpoint.
    pub(crate) shape: Vec<u64>,
    /// Names of the pack's tensors that make it up, in order.
    pub(crate) parts: Vec<String>,
    /// Whether its only part is `[shape[1], shape[0]]`.
    pub(crate) transposed: bool,
}

/// Reads the model that a config.json describes; `has_tensor` tells whether the pack has a tensor whose name contains a text.
fn read_config(config: &[u8], has_tensor: &dyn Fn(&str) -> bool) -> Result<ModelConfig, String> {
    ModelConfig::from_json(config, Path::new(uc_pack::CONFIG_FILE), has_tensor)
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// The source's tensors that hold linears: those that are not simply a tensor of the pack under the same name.
///
/// # Errors
/// The reason why this program cannot have compressed such a model.
pub(crate) fn rearranged(
    config: &[u8],
    has_tensor: &dyn Fn(&str) -> bool,
) -> Result<Vec<SourceTensor>, String> {
    let config = read_config(config, has_tensor)?;
    let mut tensors: Vec<SourceTensor> = Vec::new();
    let mut positions: HashMap<String, usize> = HashMap::new();
    for plan in config.layer_plans() {
        for linear in &plan.linears {
            let (name, shape) = linear.source_tensor();
            let part = format!("{}{}", plan.prefix, linear.name);
            let name = format!("{}{name}", plan.prefix);
            match &linear.stored {
                Stored::Whole => continue,
                Stored::Transposed => {}
                Stored::Slice { .. } => {
                    // Experts come in order, so that parts are in order too.
                    if let Some(&position) = positions.get(&name) {
                        tensors[position].parts.push(part);
                        continue;
                    }
                    positions.insert(name.clone(), tensors.len());
                }
            }
            tensors.push(SourceTensor {
                name,
                shape: shape.iter().map(|d| *d as u64).collect(),
                parts: vec![part],
                transposed: linear.stored == Stored::Transposed,
            });
        }
    }
    Ok(tensors)
}

/// Derives the plan of a model for the verification of a pack.
///
/// # Errors
/// As [`rearranged`].
pub(crate) fn plan(
    config: &[u8],
    has_tensor: &dyn Fn(&str) -> bool,
) -> Result<Box<dyn ModelPlan>, String> {
    Ok(Box::new(Planned(read_config(config, has_tensor)?)))
}

struct Planned(ModelConfig);

impl ModelPlan for Planned {
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
