//! A layer on its way to a file: coded linears and exact tensors by name, before groups are formed.
//!
//! Owns the grouping of linears by input, so that rate control and the final writer count the same bytes.

use std::borrow::Cow;

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
        encode_draft(self.layer, &self.linears, &self.extras)
    }
}

/// The bytes of the file of a layer with these linears and exact tensors, of which no copy is made. Linears that read
/// the same input and have the same column logarithms share a group.
///
/// # Errors
/// As [`encode_layer`].
pub fn encode_draft(
    layer: u32,
    coded: &[CodedLinear],
    extras: &[ExactTensor],
) -> Result<Vec<u8>, PackError> {
    let mut groups: Vec<ColumnGroup> = Vec::new();
    let mut linears = Vec::with_capacity(coded.len());
    for linear in coded {
        let same = |group: &ColumnGroup| {
            group.input == linear.input && group.column_log == linear.code.column_log
        };
        let group = groups.iter().position(same).unwrap_or_else(|| {
            groups.push(ColumnGroup {
                input: linear.input.clone(),
                column_log: linear.code.column_log.clone(),
            });
            groups.len() - 1
        });
        linears.push(Linear {
            name: linear.name.clone(),
            group,
            code: Cow::Borrowed(&linear.code),
        });
    }
    encode_layer(&LayerContents {
        layer,
        groups,
        linears,
        extras: Cow::Borrowed(extras),
    })
}
