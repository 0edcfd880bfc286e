//! Comparison of the tensors of a folder, or of an index alone, with the plan of the configured model.

use std::collections::BTreeMap;

use super::error::{Finding, SourceError};
use super::folder::{SourceFolder, TensorInfo};
use super::index::Index;
use crate::config::ModelConfig;

/// Bytes per step when two tensors are compared.
const BLOCK: u64 = 4 << 20;

impl SourceFolder {
    /// Checks that the folder has exactly the tensors of `config`, each with the right shape and a weight type.
    ///
    /// These are ignored: rotary frequencies and causal masks, which older files contain although they follow from the
    /// configuration; a `lm_head.weight` that repeats a tied embedding bit for bit; and tensors of any shape and
    /// type with one of the [`ModelConfig::ignored_prefixes`], which the forward pass does not use.
    ///
    /// # Errors
    /// [`SourceError::Mismatch`] with every difference, [`SourceError::Io`].
    pub fn check(&self, config: &ModelConfig) -> Result<(), SourceError> {
        let mut plan = expected_tensors(config);
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
        if findings.is_empty() {
            Ok(())
        } else {
            Err(SourceError::Mismatch {
                path: self.dir().to_owned(),
                findings,
            })
        }
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
