//! The output of `shard-loader describe`: the sizes of a model, derived from `config.json` and, if there is one, its
//! index.
//!
//! The stage program writes this type and the driver's forecast reads it. It holds counts and shapes only, which are
//! determined without reading a weight.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A model as its configuration describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// `model_type` of the configuration.
    pub family: String,
    /// Number of layers.
    pub layers: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// Whether the head is the embedding matrix.
    pub tied_head: bool,
    /// Number of linears in all layers.
    pub linears: usize,
    /// Number of exact tensors in all layers.
    pub exact: usize,
    /// Number of tensors outside the layers.
    pub non_layer_tensors: usize,
    /// Number of tensors in the source's files.
    pub source_tensors: usize,
    /// Number of parameters of the linears.
    pub linear_parameters: u64,
    /// Number of parameters of the layers' exact tensors.
    pub exact_parameters: u64,
    /// Number of parameters outside the layers.
    pub non_layer_parameters: u64,
    /// Number of all parameters.
    pub total_parameters: u64,
    /// Layers grouped by structure, in the order of the first layer of each group.
    pub layer_groups: Vec<LayerGroup>,
    /// What the index says, if one was given.
    pub index: Option<IndexSummary>,
    /// Shape of every tensor in the source's files, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<BTreeMap<String, Vec<usize>>>,
}

/// Layers of identical structure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerGroup {
    /// Their indices.
    pub layers: Vec<u32>,
    /// Number of experts of a layer; 0 for a layer without a mixture of experts.
    pub experts: usize,
    /// Number of experts that a token is routed to.
    pub experts_per_token: usize,
    /// The linears of one layer.
    pub linears: Vec<LinearGroup>,
    /// Number of exact tensors of one layer.
    pub exact: usize,
    /// Number of parameters of these exact tensors.
    pub exact_parameters: u64,
    /// The inputs of the linears.
    pub inputs: Vec<InputGroup>,
    /// Heads × head width (the mean of those of queries and values), summed over the attention blocks.
    pub attention_width: usize,
}

/// Linears of a layer whose names differ only in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearGroup {
    /// The name, with `*` in place of every number.
    pub name: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Number of linears.
    pub count: usize,
    /// Whether it gets only the tokens routed to its expert.
    pub routed: bool,
}

/// Inputs of the same width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputGroup {
    /// Width of a token's vector.
    pub width: usize,
    /// Number of inputs.
    pub count: usize,
    /// Whether it gets only the tokens routed to its expert.
    pub routed: bool,
}

/// What an index says, compared with the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexSummary {
    /// Number of tensors that it lists.
    pub tensors: usize,
    /// Number of shards that it lists.
    pub shards: usize,
    /// Number of layers whose tensors are spread over more than one shard.
    pub spanning_layers: usize,
    /// Total bytes of all tensors, if the index states it.
    pub total_size: Option<u64>,
    /// Planned tensors that it lacks.
    pub missing: Vec<PlannedTensor>,
    /// Listed tensors that are not planned.
    pub left_over: Vec<String>,
    /// Listed tensors that are not planned but are safe to ignore.
    pub tolerated: Vec<String>,
}

/// A tensor that the configuration implies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedTensor {
    /// Full name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl ModelSummary {
    /// The group of a layer.
    pub fn layer_group(&self, layer: u32) -> Option<&LayerGroup> {
        let mut groups = self.layer_groups.iter();
        groups.find(|group| group.layers.contains(&layer))
    }
}

impl IndexSummary {
    /// Every difference from the configuration, one line each.
    pub fn differences(&self) -> Vec<String> {
        let missing = self.missing.iter().map(|tensor| {
            let PlannedTensor { name, shape } = tensor;
            format!("{name}: missing, expected {shape:?}")
        });
        let left_over = self.left_over.iter();
        let left_over = left_over.map(|name| format!("{name}: left over, expected no such tensor"));
        missing.chain(left_over).collect()
    }
}
