//! What `shard-loader describe` says of a model.

use serde::{Deserialize, Serialize};

/// A model as its configuration has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// `model_type`.
    pub family: String,
    /// Number of layers.
    pub layers: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// The head is the embedding.
    pub tied_head: bool,
    /// Linears of all layers.
    pub linears: usize,
    /// Exact tensors of all layers.
    pub exact: usize,
    /// Tensors outside the layers.
    pub non_layer_tensors: usize,
    /// Tensors of the source's files.
    pub source_tensors: usize,
    /// Weights of the linears.
    pub linear_parameters: u64,
    /// Values of the exact tensors of the layers.
    pub extra_parameters: u64,
    /// Values outside the layers.
    pub non_layer_parameters: u64,
    /// All values.
    pub total_parameters: u64,
    /// Layers that are made alike.
    pub kinds: Vec<Kind>,
    /// What the index says, where one was given.
    pub index: Option<IndexFacts>,
}

/// Layers that are made alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kind {
    /// Their numbers.
    pub layers: Vec<u32>,
    /// Experts of a layer; 0 without a mixture.
    pub experts: usize,
    /// Experts that a token takes.
    pub chosen: usize,
    /// The linears.
    pub linears: Vec<LinearGroup>,
    /// Exact tensors of a layer.
    pub exact: usize,
    /// Their values.
    pub extra_parameters: u64,
    /// The inputs of the linears.
    pub inputs: Vec<InputGroup>,
    /// Heads × width of a head.
    pub attention_width: usize,
}

/// Linears of a layer that differ only in a number in their names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearGroup {
    /// The name, `*` for the number.
    pub name: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// How many.
    pub count: usize,
    /// Only the tokens of the expert pass.
    pub routed: bool,
}

/// Inputs of one width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputGroup {
    /// Width of a token's vector.
    pub width: usize,
    /// How many.
    pub count: usize,
    /// Only the tokens of the expert pass.
    pub routed: bool,
}

/// What an index says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexFacts {
    /// Tensors that it names.
    pub tensors: usize,
    /// Shards that it names.
    pub shards: usize,
    /// Layers whose tensors lie in more than one shard.
    pub spanning_layers: usize,
    /// Bytes of all tensors, where it says so.
    pub total_size: Option<u64>,
    /// Planned tensors that it lacks.
    pub missing: Vec<Planned>,
    /// Tensors that are not planned.
    pub left_over: Vec<String>,
    /// Tensors that are not planned and do no harm.
    pub tolerated: Vec<String>,
}

/// A planned tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Full name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl Facts {
    /// How a layer is made.
    pub fn kind(&self, layer: u32) -> Option<&Kind> {
        let mut kinds = self.kinds.iter();
        kinds.find(|kind| kind.layers.contains(&layer))
    }
}

impl IndexFacts {
    /// Every difference from the plan, a line each.
    pub fn differences(&self) -> Vec<String> {
        let missing = self.missing.iter();
        let missing = missing.map(|planned| {
            let Planned { name, shape } = planned;
            format!("{name}: missing, expected {shape:?}")
        });
        let left_over = self.left_over.iter();
        let left_over = left_over.map(|name| format!("{name}: left over, expected no such tensor"));
        missing.chain(left_over).collect()
    }
}
