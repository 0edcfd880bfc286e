//! Comparison of the tensors of a folder, or of an index alone, with the plan of the configured model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{Finding, SourceError};
use super::folder::{SourceFolder, TensorInfo};
use super::index::Index;
use crate::config::ModelConfig;

/// Ends of the names of tensors that belong to a quantized matrix: GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, MXFP4.
const QUANTIZED_PARTS: [&str; 13] = [
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".weight.absmax",
    ".weight.quant_map",
    ".SCB",
    "_blocks",
    "_scales",
];
/// Bytes per step when two tensors are compared.
const BLOCK: u64 = 4 << 20;

impl SourceFolder {
    /// Checks that the folder has exactly the tensors of `config`, each with the right shape and a weight type, in the
    /// shards that the index names. Returns what is wrong with the index about tensors that the model does not have.
    ///
    /// These are ignored: rotary frequencies and causal masks, which older files contain although they follow from the
    /// configuration; a `lm_head.weight` that repeats a tied embedding bit for bit; and tensors of any shape and
    /// type with one of the [`ModelConfig::ignored_prefixes`], which the forward pass does not use.
    ///
    /// # Errors
    /// [`SourceError::MissingShard`], [`SourceError::IndexMismatch`], [`SourceError::Mismatch`] with every difference,
    /// [`SourceError::Quantized`], [`SourceError::Prefix`], [`SourceError::Io`].
    pub fn check(&self, config: &ModelConfig) -> Result<Vec<String>, SourceError> {
        let mut plan = expected_tensors(config);
        let warnings = self.check_index(&plan)?;
        let mut findings = Vec::new();
        for info in self.tensors() {
            match plan.remove(&info.name) {
                Some(expected) => findings.extend(compare(info, expected)),
                None if is_derived_buffer(&info.name) => {}
                None if config
                    .ignored_prefixes
                    .iter()
                    .any(|part| info.name.starts_with(part)) => {}
                None if config.head.tied && info.name == "lm_head.weight" => {
                    findings.extend(self.compare_head(info, config)?);
                }
                None => findings.push(Finding::Unexpected {
                    name: info.name.clone(),
                    found: info.shape.clone(),
                }),
            }
        }
        let missing = plan
            .into_iter()
            .map(|(name, expected)| Finding::Missing { name, expected });
        findings.extend(missing);
        match findings.is_empty() {
            true => Ok(warnings),
            false => Err(diagnose(self.dir().to_owned(), findings)),
        }
    }

    /// Compares the index with the shards. Only the tensors of the model must be where the index says; the others are
    /// not needed.
    fn check_index(&self, plan: &BTreeMap<String, Vec<usize>>) -> Result<Vec<String>, SourceError> {
        let Some((path, index)) = self.index() else {
            return Ok(Vec::new());
        };
        let mut unneeded = Vec::new();
        for (name, shard) in index.tensors() {
            let found = self.tensor(name).map(|info| self.shard_name(info));
            if found == Some(shard) {
                continue;
            }
            if !plan.contains_key(name) {
                unneeded.push(name);
            } else if !self.files().any(|file| file.ends_with(shard)) {
                return Err(SourceError::MissingShard {
                    path: path.to_owned(),
                    shard: shard.to_owned(),
                });
            } else if let Some(found) = found {
                return Err(SourceError::IndexMismatch {
                    path: path.to_owned(),
                    name: name.to_owned(),
                    found: found.to_owned(),
                    expected: shard.to_owned(),
                });
            }
        }
        let unindexed = self.tensors().map(|info| info.name.as_str());
        let unindexed = unindexed.filter(|name| index.shard(name).is_none());
        let (needed, others): (Vec<&str>, Vec<&str>) =
            unindexed.partition(|name| plan.contains_key(*name));
        if let Some(name) = needed.first() {
            let info = self.tensor(name);
            return Err(SourceError::IndexMismatch {
                path: path.to_owned(),
                name: (*name).to_owned(),
                found: info
                    .map_or("no shard", |info| self.shard_name(info))
                    .to_owned(),
                expected: "no shard".to_owned(),
            });
        }
        unneeded.extend(others);
        let (shown, count) = (unneeded.first(), unneeded.len());
        let warning = shown.map(|name| {
            format!(
                "{}: the index and the shards disagree about {count} of the tensors that the model does not have \
                 (such as {name}); they are ignored",
                path.display()
            )
        });
        Ok(warning.into_iter().collect())
    }

    /// The finding if the head of a tied model does not repeat its embedding.
    fn compare_head(
        &self,
        head: &TensorInfo,
        config: &ModelConfig,
    ) -> Result<Option<Finding>, SourceError> {
        let name = config.head.weight.as_str();
        let Some(embedding) = self.tensor(name) else {
            return Ok(None); // reported as missing by the caller
        };
        let mut same = head.dtype == embedding.dtype && head.shape == embedding.shape;
        if same && !(self.file_of(head).1 && self.file_of(embedding).1) {
            return Ok(None); // not comparable until both shards are present
        }
        let mut start = 0;
        while same && start < head.bytes {
            let bytes = BLOCK.min(head.bytes - start);
            let part = |info| self.read_part(info, start, bytes, Vec::new());
            same = part(head)?.bytes == part(embedding)?.bytes;
            start += bytes;
        }
        let (name, embedding) = (head.name.clone(), name.to_owned());
        Ok((!same).then_some(Finding::UntiedHead { name, embedding }))
    }
}

/// The tensor names of an index compared with those of the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexComparison {
    /// Names and shapes of planned tensors that are not in the index.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Tensors of the index that are neither planned nor ignored.
    pub unexpected: Vec<String>,
    /// Tensors that are not planned and that [`SourceFolder::check`] ignores: derived buffers and a repeated head.
    /// Whether a `lm_head.weight` really repeats the embedding is only known after reading both. Tensors with one
    /// of the [`ModelConfig::ignored_prefixes`] are listed as unexpected.
    pub ignored: Vec<String>,
}

impl Index {
    /// Compares the tensor names of the index with the plan of `config`.
    pub fn compare_with_plan(&self, config: &ModelConfig) -> IndexComparison {
        let mut plan = expected_tensors(config);
        let mut comparison = IndexComparison::default();
        for name in self.names() {
            if plan.remove(name).is_some() {
                continue;
            }
            let repeats_embedding = config.head.tied && name == "lm_head.weight";
            let list = match repeats_embedding || is_derived_buffer(name) {
                true => &mut comparison.ignored,
                false => &mut comparison.unexpected,
            };
            list.push(name.to_owned());
        }
        comparison.missing = plan.into_iter().collect();
        comparison
    }
}

/// Whether a tensor of older files follows from the configuration: rotary frequencies and causal masks.
fn is_derived_buffer(name: &str) -> bool {
    let buffers = [
        ".rotary_emb.inv_freq",
        ".attention.bias",
        ".attention.masked_bias",
        ".attn.bias",
        ".attn.masked_bias",
    ];
    buffers.iter().any(|buffer| name.ends_with(buffer))
}

/// Full name and shape of every tensor of the model, as the checkpoint stores it.
pub fn expected_tensors(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut plan: BTreeMap<_, _> = config
        .non_layer_plan()
        .into_iter()
        .map(|spec| (spec.name, spec.shape))
        .collect();
    for layer in config.layer_plans() {
        let tensors = layer.source_tensors();
        plan.extend(tensors.map(|spec| (spec.name, spec.shape)));
    }
    plan
}

/// The one error for all findings. A kind of checkpoint that explains most of them is named instead of listing them.
fn diagnose(path: PathBuf, findings: Vec<Finding>) -> SourceError {
    let unexpected = || {
        findings.iter().filter_map(|finding| match finding {
            Finding::Unexpected { name, .. } => Some(name.as_str()),
            _ => None,
        })
    };
    let missing: Vec<&str> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Missing { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let types = findings.iter().filter_map(|finding| match finding {
        Finding::Type { name, found } => Some((name.as_str(), found.to_string())),
        _ => None,
    });
    let is_packed = |name: &&str| {
        let parts = QUANTIZED_PARTS.iter();
        parts.clone().any(|part| name.ends_with(part))
    };
    let packed = unexpected().filter(is_packed);
    let packed = packed.map(|name| (name, "a part of a quantized matrix".to_owned()));
    let mut quantized = packed.chain(types);
    if let Some((name, found)) = quantized.next() {
        return SourceError::Quantized {
            path,
            name: name.to_owned(),
            found,
            count: 1 + quantized.count(),
        };
    }
    if let Some((found, expected)) = wrong_prefix(&missing, &unexpected().collect::<Vec<_>>()) {
        return SourceError::Prefix {
            path,
            found,
            expected,
            count: missing.len(),
        };
    }
    SourceError::Mismatch { path, findings }
}

/// The prefix that the names of the checkpoint have, and the one that they should have, if that explains at least half of
/// the missing tensors.
fn wrong_prefix(missing: &[&str], unexpected: &[&str]) -> Option<(String, String)> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let by_end: BTreeMap<&str, &str> = missing
        .iter()
        .flat_map(|name| ends(name).map(|end| (end, *name)))
        .collect();
    for name in unexpected {
        // The longest common end, at a dot.
        let common = ends(name).find_map(|end| Some((end, *by_end.get(end)?)));
        if let Some((end, planned)) = common {
            let prefixes = (
                &name[..name.len() - end.len()],
                &planned[..planned.len() - end.len()],
            );
            if !prefixes.0.contains(|c: char| c.is_ascii_digit()) {
                *counts.entry(prefixes).or_default() += 1;
            }
        }
    }
    let ((found, expected), count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (2 * count >= missing.len()).then(|| (found.to_owned(), expected.to_owned()))
}

/// The parts of a name that begin at its start or after a dot, the longest first, without the last two.
fn ends(name: &str) -> impl Iterator<Item = &str> {
    let starts = name.match_indices('.').map(|(dot, _)| dot + 1);
    let ends = [0].into_iter().chain(starts).map(|start| &name[start..]);
    ends.filter(|end| end.contains('.'))
}

fn compare(info: &TensorInfo, expected: Vec<usize>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = || info.name.clone();
    if info.shape != expected {
        findings.push(Finding::Shape {
            name: name(),
            found: info.shape.clone(),
            expected,
        });
    }
    if !info.dtype.is_weight() {
        findings.push(Finding::Type {
            name: name(),
            found: info.dtype,
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_prefix_is_recognised_in_both_directions() {
        let planned = [
            "model.embed_tokens.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
            "model.norm.weight",
        ];
        for (found, expected) in [
            ("language_model.model.", "model."),
            ("", "model."),
            ("model.language_model.", "model."),
            ("transformer.", "model."),
        ] {
            let names = planned.map(|name| format!("{found}{}", &name[6..]));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (from, to) = wrong_prefix(&planned, &names).expect("a prefix");
            let renamed = |name: &&str| name.strip_prefix(&from).map(|rest| format!("{to}{rest}"));
            let renamed: Vec<String> = names.iter().filter_map(renamed).collect();
            assert_eq!(renamed, planned, "{found} for {expected}: {from} for {to}");
        }
        assert_eq!(wrong_prefix(&planned, &["a.b", "c.d.e"]), None);
        assert_eq!(wrong_prefix(&planned, &[]), None);
    }
}
