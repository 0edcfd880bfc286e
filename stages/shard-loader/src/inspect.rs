//! Inspects a model folder before a run: checks every tensor's name, shape and type against the configuration, and reports
//! what the driver needs for its plan, with warnings about what lies in the folder and is not used.
//!
//! Reads headers only; finiteness of weights is checked when they are copied.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use camino::Utf8PathBuf;
use serde::Deserialize;
use uc_model::source::contents::{self, Contents};
use uc_model::{ModelConfig, SourceFolder};
use uc_store::plan::ShardContent;
use uc_store::sha::hash_file;

use crate::descriptions::{self, METADATA_FILES};
use crate::error::InputError;

/// What the shards of a model folder may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shards {
    /// All of them are there.
    Present,
    /// Headers may lie there in place of shards: the folder of a download for a run that fetches shards on demand.
    Headers,
}

/// Checks the model against its config.json and returns what the driver needs to plan a run.
pub fn inspect(model: &Path, shards: Shards) -> anyhow::Result<serde_json::Value> {
    let model = model
        .canonicalize()
        .with_context(|| format!("cannot open the model folder {}", model.display()))?;
    let config = ModelConfig::load(&model)?;
    refuse_adapter(&model)?;
    let source = SourceFolder::open(&model)?;
    if shards == Shards::Present
        && let Some((shard, header)) = source.shards_without_data().next()
    {
        return Err(InputError::HeaderOnly {
            shard: shard.to_owned(),
            header,
        }
        .into());
    }
    let mut warnings = source.check(&config)?;
    // A run without a usable tokenizer would fail hours later.
    if !model.join("tokenizer.json").exists() {
        let found = contents::tokenizer(&model);
        return Err(InputError::NoTokenizer { path: model, found }.into());
    }
    let tokenizer = uc_model::Tokenizer::load(&model)?;
    warnings.extend(contents::two_sources(&model));
    warnings.extend(foreign_code(&model, &config.family)?);
    warnings.extend(uc_model::text::bos::disagreement(&model, &tokenizer)?);
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
    let descriptions = descriptions::of_folder(&model);
    files.extend(descriptions.carried);
    if !descriptions.left_out.is_empty() {
        let left_out = descriptions.left_out.join(", ");
        warnings.push(format!("not carried into the pack: {left_out}"));
    }
    files.sort();
    files.dedup();
    let origin = CacheSnapshot::of(&model);
    let name = match &origin {
        Some(origin) => Some(origin.repository.clone()),
        None => model
            .file_name()
            .map(|name| name.to_string_lossy().into_owned()),
    };
    Ok(serde_json::json!({
        "name": name,
        "repository": origin.as_ref().map(|origin| &origin.repository),
        "commit": origin.as_ref().map(|origin| &origin.commit),
        "layers": config.layers.len(),
        "linear_parameters": config.linear_parameters(),
        "total_parameters": config.total_parameters(),
        "files": files,
        "shards": shard_contents(&config, &source)?,
        "overhead": overhead(&config, &source)?,
        "warnings": warnings,
    }))
}

/// Bits per weight of the layer files besides indices, and the least rate that pays for them: of all layers together, and of the
/// layer that has most.
fn overhead(config: &ModelConfig, source: &SourceFolder) -> anyhow::Result<serde_json::Value> {
    let (mut bits, mut weights, mut largest) = (0, 0, 0.0f64);
    for plan in config.layer_plans() {
        let width = |name: &str| {
            let dtype = source.planned_dtype(&plan, name);
            let dtype = dtype.with_context(|| format!("no tensor {name}"))?;
            anyhow::Ok(dtype.size())
        };
        let layer = uc_layer_quantizer::overhead_bits(&plan, width)?;
        let parameters = plan.linear_parameters();
        largest = largest.max(layer as f64 / parameters.max(1) as f64);
        bits += layer;
        weights += parameters;
    }
    let with_least = |bits: f64| {
        let least = uc_codec::allocate::least_bits_per_weight(bits);
        serde_json::json!({"bits": bits, "least": least})
    };
    Ok(serde_json::json!({
        "model": with_least(bits as f64 / weights.max(1) as f64),
        "largest_layer": with_least(largest),
    }))
}

/// A folder of the Hub's cache: `models--OWNER--NAME/snapshots/COMMIT`.
#[derive(Debug, PartialEq, Eq)]
struct CacheSnapshot {
    /// `owner/name`, or only the name.
    repository: String,
    /// The commit.
    commit: String,
}

impl CacheSnapshot {
    /// The repository and commit that the path of the folder `dir` names.
    fn of(dir: &Path) -> Option<Self> {
        let part = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        let commit = part(dir)?;
        let snapshots = dir.parent()?;
        let repository = part(snapshots.parent()?)?;
        let repository = repository.strip_prefix("models--")?.replacen("--", "/", 1);
        let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let is_snapshot = part(snapshots)? == "snapshots" && is_commit;
        (is_snapshot && !repository.is_empty() && repository.chars().all(is_name))
            .then_some(Self { repository, commit })
    }
}

/// Refuses a folder in which an adapter lies beside the weights: other programs apply it, and what they compute would not
/// be what the pack is made from.
fn refuse_adapter(model: &Path) -> Result<(), InputError> {
    match Contents::of(model).adapter(model) {
        None => Ok(()),
        Some(found) => Err(InputError::Adapter {
            path: model.to_owned(),
            found,
        }),
    }
}

/// A warning if the configuration names code of the model's own. Classes of the family itself, which many models name
/// although transformers has them, are not meant.
fn foreign_code(model: &Path, family: &str) -> anyhow::Result<Option<String>> {
    let path = model.join("config.json");
    let config: Config = uc_input::read_json(&path, uc_input::SMALL_JSON)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let simple = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let family = simple(family.trim_end_matches("_text"));
    let is_foreign = |class: &&str| {
        let class = class.rsplit(['.', '-']).next().unwrap_or(class);
        !simple(class).starts_with(&family)
    };
    let named = config.auto_map.values().flat_map(classes);
    let mut foreign: Vec<&str> = named.filter(is_foreign).collect();
    foreign.sort_unstable();
    foreign.dedup();
    let Some(first) = foreign.first() else {
        return Ok(None);
    };
    let more = match foreign.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first = uc_input::printable(first)
        .chars()
        .take(200)
        .collect::<String>();
    Ok(Some(format!(
        "config.json: auto_map names code of the model's own ({first}{more}), which is never run; the model is computed as \
         the model_type says. If that code computes something else, the pack is not of this model"
    )))
}

/// The part of a configuration that names code.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auto_map: BTreeMap<String, serde_json::Value>,
}

/// The classes of an entry of `auto_map`: one, or one for each kind of tokenizer.
fn classes(entry: &serde_json::Value) -> Vec<&str> {
    match entry {
        serde_json::Value::String(class) => vec![class],
        serde_json::Value::Array(list) => list.iter().filter_map(|class| class.as_str()).collect(),
        _ => Vec::new(),
    }
}

/// What a run reads from each shard, by file name: the layers whose tensors it holds, and whether it holds non-layer
/// tensors.
fn shard_contents(
    config: &ModelConfig,
    source: &SourceFolder,
) -> anyhow::Result<BTreeMap<String, ShardContent>> {
    let mut contents: BTreeMap<String, ShardContent> = BTreeMap::new();
    for path in source.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let empty = ShardContent {
            layers: Vec::new(),
            non_layer: false,
            header: None,
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
    for (shard, header) in source.shards_without_data() {
        let name = shard.file_name().unwrap_or_default().to_string_lossy();
        let header = Utf8PathBuf::from_path_buf(header);
        let header = header.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))?;
        if let Some(content) = contents.get_mut(name.as_ref()) {
            content.header = Some(hash_file(&header)?.0);
        }
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_the_cache_is_named_by_its_repository() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |path: &str| CacheSnapshot::of(Path::new(path)).map(|found| found.repository);
        for (folder, name) in [
            ("models--org--tiny-model", "org/tiny-model"),
            ("models--org--a--b", "org/a--b"),
            ("models--gpt2", "gpt2"),
        ] {
            let path = format!("/cache/{folder}/snapshots/{commit}");
            assert_eq!(of(&path).as_deref(), Some(name), "{folder}");
        }
        for path in [
            format!("/cache/datasets--a--b/snapshots/{commit}"),
            format!("/cache/models--a--b/blobs/{commit}"),
            "/cache/models--a--b/snapshots/main".into(),
            format!("/cache/models--a--b\n/snapshots/{commit}"),
            "/".into(),
        ] {
            assert_eq!(of(&path), None, "{path}");
        }
    }
}
