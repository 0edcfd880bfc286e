//! A model's description from its `config.json` and, if there is one, its index: what `uc plan --config` starts from.
//!
//! Says which tensors there are and how layers repeat; reads no weight and estimates nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use uc_model::source::{self, Index};
use uc_model::spec::{LayerSpec, Mixer};
use uc_model::{LayerPlan, ModelConfig};

/// A model as its configuration has it.
#[derive(Debug, Serialize)]
pub struct Description {
    family: String,
    layers: usize,
    context: usize,
    hidden: usize,
    vocab: usize,
    tied_head: bool,
    /// Linears, exact tensors of layers, tensors outside the layers, tensors of the source's files.
    linears: usize,
    exact: usize,
    non_layer_tensors: usize,
    source_tensors: usize,
    linear_parameters: u64,
    extra_parameters: u64,
    non_layer_parameters: u64,
    total_parameters: u64,
    /// Layers that are made alike, in the order of their first one.
    kinds: Vec<Kind>,
    index: Option<IndexFacts>,
    /// Every tensor of the source's files, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<BTreeMap<String, Vec<usize>>>,
}

/// Layers that are made alike.
#[derive(Debug, PartialEq, Serialize)]
struct Kind {
    layers: Vec<usize>,
    /// Experts of the layer, and how many of them a token takes; 0 without a mixture.
    experts: usize,
    chosen: usize,
    linears: Vec<LinearGroup>,
    exact: usize,
    extra_parameters: u64,
    inputs: Vec<InputGroup>,
    /// Heads × width of a head (the mean of those of queries and values), over the attention blocks.
    attention_width: usize,
}

/// Linears of a layer that differ only in the number in their names.
#[derive(Debug, PartialEq, Serialize)]
struct LinearGroup {
    /// The name, `*` for the number of an expert.
    name: String,
    rows: usize,
    cols: usize,
    count: usize,
    /// Only some tokens pass: those that are sent to the expert.
    routed: bool,
}

/// Inputs of a layer's linears that have the same width.
#[derive(Debug, PartialEq, Serialize)]
struct InputGroup {
    width: usize,
    count: usize,
    routed: bool,
}

/// What an index says.
#[derive(Debug, Serialize)]
struct IndexFacts {
    tensors: usize,
    shards: usize,
    /// Layers whose tensors lie in more than one shard.
    spanning_layers: usize,
    total_size: Option<u64>,
    missing: Vec<Planned>,
    left_over: Vec<String>,
    tolerated: Vec<String>,
}

/// A planned tensor.
#[derive(Debug, Serialize)]
struct Planned {
    name: String,
    shape: Vec<usize>,
}

/// Describes the model of `config`; the index's names decide where checkpoints of a family differ.
pub fn describe(
    config: &Path,
    index: Option<&Path>,
    with_tensors: bool,
) -> anyhow::Result<Description> {
    let index = index.map(source::read_index).transpose()?;
    let has = |part: &str| {
        let mut names = index.iter().flat_map(Index::names);
        names.any(|name| name.contains(part))
    };
    let config = ModelConfig::read(config, &has)?;
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let tensors = source::expected_tensors(&config);
    let non_layer = config.non_layer_plan();
    Ok(Description {
        layers: config.layers.len(),
        context: config.context,
        hidden: config.hidden,
        vocab: config.vocab,
        tied_head: config.head.tied,
        linears: plans.iter().map(|plan| plan.linears.len()).sum(),
        exact: plans.iter().map(|plan| plan.exact.len()).sum(),
        non_layer_tensors: non_layer.len(),
        source_tensors: tensors.len(),
        linear_parameters: config.linear_parameters(),
        extra_parameters: plans.iter().map(extra_parameters).sum(),
        non_layer_parameters: non_layer.iter().map(|spec| spec.parameters()).sum(),
        total_parameters: config.total_parameters(),
        kinds: kinds(&config, &plans)?,
        index: index.map(|index| facts(&index, &config, &plans)),
        tensors: with_tensors.then_some(tensors),
        family: config.family,
    })
}

fn extra_parameters(plan: &LayerPlan) -> u64 {
    plan.exact.iter().map(|extra| extra.parameters()).sum()
}

fn kinds(config: &ModelConfig, plans: &[LayerPlan]) -> anyhow::Result<Vec<Kind>> {
    let mut kinds: Vec<Kind> = Vec::new();
    for (spec, plan) in config.layers.iter().zip(plans) {
        let mut kind = kind(spec, plan)?;
        let known = kinds.iter_mut().find(|known| {
            kind.layers.clone_from(&known.layers);
            **known == kind
        });
        match known {
            Some(known) => known.layers.push(plan.index),
            None => {
                kind.layers = vec![plan.index];
                kinds.push(kind);
            }
        }
    }
    Ok(kinds)
}

fn kind(spec: &LayerSpec, plan: &LayerPlan) -> anyhow::Result<Kind> {
    let (mut experts, mut chosen, mut attention_width) = (0, 0, 0);
    for block in &spec.blocks {
        match &block.mixer {
            Mixer::Attention(attention) => attention_width += attention.heads * attention.head_dim,
            Mixer::LatentAttention(attention) => {
                let scored = attention.q_b.rows; // heads times both parts of a query
                attention_width += (scored + attention.heads * attention.v_head_dim) / 2;
            }
            Mixer::Experts(mixture) => {
                (experts, chosen) = (mixture.experts.len(), mixture.top_k);
            }
            Mixer::Mlp(_) | Mixer::Mamba(_) | Mixer::Mamba2(_) => {}
        }
    }
    let mut linears: Vec<LinearGroup> = Vec::new();
    for linear in &plan.linears {
        let input = plan
            .input(&linear.input)
            .context("a linear without input")?;
        let routed = input.routed;
        let group = LinearGroup {
            name: without_numbers(&linear.name),
            rows: linear.rows,
            cols: linear.cols,
            count: 1,
            routed,
        };
        let alike = |known: &&mut LinearGroup| {
            (&known.name, known.rows, known.cols) == (&group.name, group.rows, group.cols)
        };
        match linears.iter_mut().find(alike) {
            Some(known) => known.count += 1,
            None => linears.push(group),
        }
    }
    let mut inputs: Vec<InputGroup> = Vec::new();
    for input in &plan.inputs {
        let (width, routed) = (input.width, input.routed);
        let alike = |known: &&mut InputGroup| (known.width, known.routed) == (width, routed);
        match inputs.iter_mut().find(alike) {
            Some(known) => known.count += 1,
            None => inputs.push(InputGroup {
                width,
                count: 1,
                routed,
            }),
        }
    }
    Ok(Kind {
        layers: Vec::new(),
        experts,
        chosen,
        linears,
        exact: plan.exact.len(),
        extra_parameters: extra_parameters(plan),
        inputs,
        attention_width,
    })
}

/// The name with `*` for every part that is a number.
fn without_numbers(name: &str) -> String {
    let star = |part| match str::parse::<u64>(part) {
        Ok(_) => "*",
        Err(_) => part,
    };
    name.split('.').map(star).collect::<Vec<_>>().join(".")
}

fn facts(index: &Index, config: &ModelConfig, plans: &[LayerPlan]) -> IndexFacts {
    let spans = |plan: &&LayerPlan| {
        let names = plan.source_tensors();
        let shards: BTreeSet<_> = names
            .filter_map(|spec| index.shard(&spec.name).map(str::to_owned))
            .collect();
        shards.len() > 1
    };
    let agreement = index.compare_with_plan(config);
    IndexFacts {
        tensors: index.names().count(),
        shards: index.file_names().len(),
        spanning_layers: plans.iter().filter(spans).count(),
        total_size: index.total_size,
        missing: agreement
            .missing
            .into_iter()
            .map(|(name, shape)| Planned { name, shape })
            .collect(),
        left_over: agreement.unexpected,
        tolerated: agreement.ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_give_way_to_a_star() {
        assert_eq!(
            without_numbers("experts.12.w1.weight"),
            "experts.*.w1.weight"
        );
        assert_eq!(without_numbers("mlp.up_proj.weight"), "mlp.up_proj.weight");
    }
}
