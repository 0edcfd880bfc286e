//! A layer on its way to a file: coded linears and exact tensors by name, before groups are formed.
//!
//! Owns the grouping of linears by input, so that rate control and the final writer count the same bytes.

use serde::{Deserialize, Serialize};
use uc_codec::layer::CodedLinear;

use crate::error::PackError;
use crate::exact::ExactTensor;
use crate::layer::{ColumnGroup, LayerContents, Linear, encode_layer};

/// Everything that a layer file is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerDraft {
    /// Position of the layer in the model.
    pub layer: u32,
    /// The coded linears in the order of the layer plan.
    pub linears: Vec<CodedLinear>,
    /// The exact tensors in the order of the layer plan.
    pub extras: Vec<ExactTensor>,
}

impl LayerDraft {
    /// The bytes of the layer file.
    ///
    /// # Errors
    /// As [`encode_layer`].
    pub fn encode(&self) -> Result<Vec<u8>, PackError> {
        encode_layer(&self.contents())
    }

    /// Linears that read the same input and have the same column logarithms share a group.
    fn contents(&self) -> LayerContents {
        let mut groups: Vec<ColumnGroup> = Vec::new();
        let mut linears = Vec::with_capacity(self.linears.len());
        for linear in &self.linears {
            let same = |group: &ColumnGroup| {
                group.input == linear.input && group.column_log == linear.code.column_log
            };
            let group = groups.iter().position(same).unwrap_or_else(|| {
                let column_log = linear.code.column_log.clone();
                groups.push(ColumnGroup {
                    input: linear.input.clone(),
                    column_log,
                });
                groups.len() - 1
            });
            linears.push(Linear {
                name: linear.name.clone(),
                group,
                code: linear.code.clone(),
            });
        }
        LayerContents {
            layer: self.layer,
            groups,
            linears,
            extras: self.extras.clone(),
        }
    }
}
