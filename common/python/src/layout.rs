//! How the source checkpoint arranges the tensors of a pack, according to the plan of the model.
//!
//! A pack stores each linear as `[outputs, inputs]`. Some checkpoints store it transposed, or the linears of all experts as one
//! tensor. Reads nothing but the text of config.json.

use std::collections::HashMap;

use uc_export::planned::read_config;
use uc_model::spec::Stored;

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
