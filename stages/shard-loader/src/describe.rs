//! The summary of a model from its `config.json` and, if there is one, its index: what `uc plan --config` starts from.
//!
//! Lists the tensors and groups layers of identical structure. Reads no weights and estimates nothing.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use uc_model::source::{self, Index};
use uc_model::spec::{LayerSpec, Mixer};
use uc_model::{LayerPlan, ModelConfig};
use uc_store::model_summary::{
    IndexSummary, InputGroup, LayerGroup, LinearGroup, ModelSummary, PlannedTensor,
};

/// Summarizes the model of `config`. Where checkpoints of a family differ, the names in the index decide.
pub fn describe(
    config: &Path,
    index: Option<&Path>,
    with_tensors: bool,
) -> anyhow::Result<ModelSummary> {
    let index = index.map(source::read_index).transpose()?;
    let has = |part: &str| {
        let mut names = index.iter().flat_map(Index::names);
        names.any(|name| name.contains(part))
    };
    let config = ModelConfig::read(config, &has)?;
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let tensors = source::expected_tensors(&config);
    let non_layer = config.non_layer_plan();
    Ok(ModelSummary {
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
        exact_parameters: plans.iter().map(exact_parameters).sum(),
        non_layer_parameters: non_layer.iter().map(|spec| spec.parameters()).sum(),
        total_parameters: config.total_parameters(),
        layer_groups: layer_groups(&config, &plans)?,
        index: index.map(|index| summarize_index(&index, &config, &plans)),
        tensors: with_tensors.then_some(tensors),
        family: config.family,
    })
}

fn exact_parameters(plan: &LayerPlan) -> u64 {
    plan.exact.iter().map(|tensor| tensor.parameters()).sum()
}

fn layer_groups(config: &ModelConfig, plans: &[LayerPlan]) -> anyhow::Result<Vec<LayerGroup>> {
    let mut groups: Vec<LayerGroup> = Vec::new();
    for (spec, plan) in config.layers.iter().zip(plans) {
        let layer = u32::try_from(plan.index)?;
        let mut group = summarize_layer(spec, plan)?;
        let same_structure = groups.iter_mut().find(|known| {
            group.layers.clone_from(&known.layers);
            **known == group
        });
        match same_structure {
            Some(known) => known.layers.push(layer),
            None => {
                group.layers = vec![layer];
                groups.push(group);
            }
        }
    }
    Ok(groups)
}

/// One layer as a group without indices.
fn summarize_layer(spec: &LayerSpec, plan: &LayerPlan) -> anyhow::Result<LayerGroup> {
    let (mut experts, mut experts_per_token, mut attention_width) = (0, 0, 0);
    for block in &spec.blocks {
        match &block.mixer {
            Mixer::Attention(attention) => attention_width += attention.heads * attention.head_dim,
            Mixer::LatentAttention(attention) => {
                let query_width = attention.q_b.rows; // heads × (rotated + unrotated width)
                attention_width += (query_width + attention.heads * attention.v_head_dim) / 2;
            }
            Mixer::Experts(mixture) => {
                (experts, experts_per_token) = (mixture.experts.len(), mixture.top_k);
            }
            Mixer::Mlp(_) | Mixer::Mamba(_) | Mixer::Mamba2(_) => {}
        }
    }
    let mut linears: Vec<LinearGroup> = Vec::new();
    for linear in &plan.linears {
        let input = plan.input(&linear.input).context("a linear has no input")?;
        let routed = input.routed;
        let group = LinearGroup {
            name: without_numbers(&linear.name),
            rows: linear.rows,
            cols: linear.cols,
            count: 1,
            routed,
        };
        let matches = |known: &&mut LinearGroup| {
            (&known.name, known.rows, known.cols) == (&group.name, group.rows, group.cols)
        };
        match linears.iter_mut().find(matches) {
            Some(known) => known.count += 1,
            None => linears.push(group),
        }
    }
    let mut inputs: Vec<InputGroup> = Vec::new();
    for input in &plan.inputs {
        let (width, routed) = (input.width, input.routed);
        let matches = |known: &&mut InputGroup| (known.width, known.routed) == (width, routed);
        match inputs.iter_mut().find(matches) {
            Some(known) => known.count += 1,
            None => inputs.push(InputGroup {
                width,
                count: 1,
                routed,
            }),
        }
    }
    Ok(LayerGroup {
        layers: Vec::new(),
        experts,
        experts_per_token,
        linears,
        exact: plan.exact.len(),
        exact_parameters: exact_parameters(plan),
        inputs,
        attention_width,
    })
}

/// The name with `*` in place of every part that is a number.
fn without_numbers(name: &str) -> String {
    let star = |part| match str::parse::<u64>(part) {
        Ok(_) => "*",
        Err(_) => part,
    };
    name.split('.').map(star).collect::<Vec<_>>().join(".")
}

fn summarize_index(index: &Index, config: &ModelConfig, plans: &[LayerPlan]) -> IndexSummary {
    let spans = |plan: &&LayerPlan| {
        let names = plan.source_tensors();
        let shards: BTreeSet<_> = names
            .filter_map(|spec| index.shard(&spec.name).map(str::to_owned))
            .collect();
        shards.len() > 1
    };
    let agreement = index.compare_with_plan(config);
    IndexSummary {
        tensors: index.names().count(),
        shards: index.file_names().len(),
        spanning_layers: plans.iter().filter(spans).count(),
        total_size: index.total_size,
        missing: agreement
            .missing
            .into_iter()
            .map(|(name, shape)| PlannedTensor { name, shape })
            .collect(),
        left_over: agreement.unexpected,
        tolerated: agreement.ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_become_a_star() {
        assert_eq!(
            without_numbers("experts.12.w1.weight"),
            "experts.*.w1.weight"
        );
        assert_eq!(without_numbers("mlp.up_proj.weight"), "mlp.up_proj.weight");
    }
}
