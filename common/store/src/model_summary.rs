//! What `shard-loader describe` says of a model: its sizes, derived from `config.json` and, if there is one, its index.
//!
//! The one wire type that the stage program writes and the driver's forecast reads. Holds counts and shapes only: no weight
//! is behind any of it.

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
    /// Linears of all layers.
    pub linears: usize,
    /// Exact tensors of all layers.
    pub exact: usize,
    /// Tensors outside the layers.
    pub non_layer_tensors: usize,
    /// Tensors of the source's files.
    pub source_tensors: usize,
    /// Parameters of the linears.
    pub linear_parameters: u64,
    /// Parameters of the layers' exact tensors.
    pub exact_parameters: u64,
    /// Parameters outside the layers.
    pub non_layer_parameters: u64,
    /// All parameters.
    pub total_parameters: u64,
    /// Layers grouped by structure, in the order of the first layer of each group.
    pub layer_groups: Vec<LayerGroup>,
    /// What the index says, if one was given.
    pub index: Option<IndexSummary>,
    /// Shape of every tensor of the source's files, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<BTreeMap<String, Vec<usize>>>,
}

/// Layers of identical structure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerGroup {
    /// Their indices.
    pub layers: Vec<u32>,
    /// Experts of a layer; 0 without a mixture.
    pub experts: usize,
    /// Experts that a token is routed to.
    pub experts_per_token: usize,
    /// The linears of one layer.
    pub linears: Vec<LinearGroup>,
    /// Number of exact tensors of one layer.
    pub exact: usize,
    /// Their parameters.
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
    /// Whether only the tokens routed to the expert reach it.
    pub routed: bool,
}

/// Inputs of the same width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputGroup {
    /// Width of a token's vector.
    pub width: usize,
    /// Number of inputs.
    pub count: usize,
    /// Whether only the tokens routed to the expert reach it.
    pub routed: bool,
}

/// What an index says, compared with the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexSummary {
    /// Number of tensors that it lists.
    pub tensors: usize,
    /// Number of shards that it lists.
    pub shards: usize,
    /// Layers whose tensors lie in more than one shard.
    pub spanning_layers: usize,
    /// Bytes of all tensors, if it says so.
    pub total_size: Option<u64>,
    /// Planned tensors that it lacks.
    pub missing: Vec<PlannedTensor>,
    /// Tensors that are not planned.
    pub left_over: Vec<String>,
    /// Tensors that are not planned and are safe to ignore.
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
