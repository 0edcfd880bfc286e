//! Comparison of a folder's tensors, or of an index alone, with the plan of the configured model.

use std::collections::BTreeMap;

use super::{Finding, Index, SourceError, SourceFolder, TensorInfo};
use crate::config::ModelConfig;

/// Bytes compared at a time.
const BLOCK: u64 = 4 << 20;

impl SourceFolder {
    /// Checks that the folder has exactly the tensors of `config`, each with the right shape and a
    /// weight type. Tolerated: rotary frequencies and causal masks, which older files carry and which follow
    /// from the configuration; a `lm_head.weight` that repeats a tied embedding bit for bit; and, skipped in any
    /// shape and type, the layers that predict further tokens where the configuration says that there are some
    /// ([`ModelConfig::beside`]): a plain forward pass does not use them.
    ///
    /// # Errors
    /// [`SourceError::Mismatch`] with every difference, [`SourceError::Io`].
    pub fn check(&self, config: &ModelConfig) -> Result<(), SourceError> {
        let mut plan = planned(config);
        let mut findings = Vec::new();
        for info in self.tensors() {
            match plan.remove(&info.name) {
                Some(expected) => findings.extend(compare(info, expected)),
                None if follows_from_config(&info.name) => {}
                None if config.beside.iter().any(|part| info.name.starts_with(part)) => {}
                None if config.head.tied && info.name == "lm_head.weight" => {
                    findings.extend(self.compare_head(info, config)?);
                }
                None => findings.push(Finding::LeftOver {
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
                path: self.dir.clone(),
                findings,
            })
        }
    }

    /// Whether the head of a tied model repeats its embedding.
    fn compare_head(
        &self,
        head: &TensorInfo,
        config: &ModelConfig,
    ) -> Result<Option<Finding>, SourceError> {
        let name = config.head.weight.as_str();
        let Some(embedding) = self.tensor(name) else {
            return Ok(None); // reported as missing
        };
        let mut same = head.dtype == embedding.dtype && head.shape == embedding.shape;
        if same && !(self.file_of(head).1 && self.file_of(embedding).1) {
            return Ok(None); // compared by whoever opens the folder with both
        }
        let mut start = 0;
        while same && start < head.bytes {
            let bytes = BLOCK.min(head.bytes - start);
            let part = |info| self.read_part(info, start, bytes, Vec::new());
            same = part(head)?.bytes == part(embedding)?.bytes;
            start += bytes;
        }
        let (name, embedding) = (head.name.clone(), name.to_owned());
        Ok((!same).then_some(Finding::OtherHead { name, embedding }))
    }
}

/// How the names of an index and those of the plan agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Planned, with shape, but not in the index.
    pub missing: Vec<(String, Vec<usize>)>,
    /// In the index, but neither planned nor tolerated.
    pub left_over: Vec<String>,
    /// Not planned and tolerated as in [`SourceFolder::check`]. Whether a `lm_head.weight` repeats the embedding shows only
    /// when both are read.
    pub tolerated: Vec<String>,
}

impl Index {
    /// Compares the names of the index with those of the plan of `config`.
    pub fn agreement(&self, config: &ModelConfig) -> Agreement {
        let mut plan = planned(config);
        let mut found = Agreement::default();
        for name in self.names() {
            if plan.remove(name).is_some() {
                continue;
            }
            let repeats = config.head.tied && name == "lm_head.weight";
            let list = match repeats || follows_from_config(name) {
                true => &mut found.tolerated,
                false => &mut found.left_over,
            };
            list.push(name.to_owned());
        }
        found.missing = plan.into_iter().collect();
        found
    }
}

/// Whether a tensor of older files repeats what the configuration says: rotary frequencies and causal masks.
fn follows_from_config(name: &str) -> bool {
    let buffers = [
        ".rotary_emb.inv_freq",
        ".attention.bias",
        ".attention.masked_bias",
        ".attn.bias",
        ".attn.masked_bias",
    ];
    buffers.iter().any(|buffer| name.ends_with(buffer))
}

/// Full name and shape of every tensor of the model, as the source's files hold it.
pub fn planned(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
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
