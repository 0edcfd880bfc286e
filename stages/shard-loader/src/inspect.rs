//! Inspects a model folder before a run: checks every tensor's name, shape and type against the configuration, and reports
//! what the driver needs for its plan.
//!
//! Reads headers only; finiteness of weights is checked when they are copied.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use uc_model::{ModelConfig, SourceFolder};
use uc_store::plan::ShardContent;

/// Files other than the weights that a run uses.
pub const METADATA_FILES: [&str; 6] = [
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];

/// Checks the model against its config.json and returns what the driver needs to plan a run.
pub fn inspect(model: &Path) -> anyhow::Result<serde_json::Value> {
    let model = model
        .canonicalize()
        .with_context(|| format!("cannot open the model folder {}", model.display()))?;
    let config = ModelConfig::load(&model)?;
    let source = SourceFolder::open(&model)?;
    source.check(&config)?;
    // A run without a usable tokenizer would fail hours later.
    uc_model::Tokenizer::load(&model)?;
    let mut files: Vec<String> = Vec::new();
    for path in source.files() {
        let name = path.file_name().and_then(|name| name.to_str());
        files.push(name.context("a shard's name is not UTF-8")?.into());
    }
    files.extend(
        METADATA_FILES
            .iter()
            .filter(|name| model.join(name).is_file())
            .map(|name| (*name).into()),
    );
    files.sort();
    files.dedup();
    Ok(serde_json::json!({
        "name": model.file_name().map(|name| name.to_string_lossy()),
        "layers": config.layers.len(),
        "linear_parameters": config.linear_parameters(),
        "total_parameters": config.total_parameters(),
        "files": files,
        "shards": shard_contents(&config, &source),
    }))
}

/// What a run reads from each shard, by file name: the layers whose tensors it holds, and whether it holds non-layer
/// tensors.
fn shard_contents(config: &ModelConfig, source: &SourceFolder) -> BTreeMap<String, ShardContent> {
    let mut contents: BTreeMap<String, ShardContent> = BTreeMap::new();
    for path in source.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let empty = ShardContent {
            layers: Vec::new(),
            non_layer: false,
        };
        contents.insert(name.into_owned(), empty);
    }
    let mut record = |tensor: &str, update: &dyn Fn(&mut ShardContent)| {
        let Some(info) = source.tensor(tensor) else {
            return;
        };
        let name = source.file_of(info).0.file_name().unwrap_or_default();
        if let Some(content) = contents.get_mut(name.to_string_lossy().as_ref()) {
            update(content);
        }
    };
    for spec in config.non_layer_plan() {
        record(&spec.name, &|content| content.non_layer = true);
    }
    if config.head.tied {
        // Older checkpoints store the tied head too; it is compared with the embedding.
        record("lm_head.weight", &|content| content.non_layer = true);
    }
    for (layer, plan) in (0..).zip(config.layer_plans()) {
        for spec in plan.source_tensors() {
            record(&spec.name, &|content| {
                if content.layers.last() != Some(&layer) {
                    content.layers.push(layer);
                }
            });
        }
    }
    contents
}
