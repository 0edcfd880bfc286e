//! External inputs of a run: the model's files, the texts, and the shards of a model of the Hub that are fetched on demand.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::{Per, Plan, StagePlan, Unit};
use crate::sha::Sha256Digest;

/// Name of the external input that is the model.
pub const SOURCE: &str = "source";

/// The source model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// Name of the folder.
    pub name: String,
    /// Absolute folder.
    pub path: Utf8PathBuf,
    /// Number of transformer layers.
    pub layers: u32,
    /// Weights in the linears of all layers.
    pub linear_parameters: u64,
    /// Weights of the whole model.
    pub total_parameters: u64,
    /// Its origin, if it is a model of the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubSource>,
}

/// A model of the Hub, pinned to a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `owner/name`.
    pub repository: String,
    /// The requested branch, tag or commit.
    pub revision: String,
    /// The commit that the revision pointed to when the run was planned. All files are of this commit.
    pub commit: String,
}

/// An external input: files that are identified by the hashes they had when the run was planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// The files, in a fixed order.
    pub files: Vec<ExternalFile>,
    /// Digest of names, sizes and hashes of the files; the SHA-256 of the file if there is only one.
    pub digest: Sha256Digest,
}

/// An external file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalFile {
    /// Absolute path.
    pub path: Utf8PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the file when the run was planned.
    pub sha256: Sha256Digest,
    /// Time of its last change (ctime) when the run was planned, in nanoseconds since 1970. If it differs, the file is
    /// hashed again.
    pub mtime_ns: i64,
    /// The content of a shard that is fetched on demand. Such a file may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardContent>,
}

/// What a shard of the source holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardContent {
    /// Layers of which it holds a tensor.
    pub layers: Vec<u32>,
    /// Whether it holds a tensor of the embeddings, the final norm or the head.
    pub non_layer: bool,
    /// Digest of the shard's header, which lies beside the shard as `NAME.header` and takes its place while it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Sha256Digest>,
}

/// Which tensors of the source a job reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// Those of its layer.
    Layer,
    /// Embeddings, final norm and head.
    NonLayer,
}

impl Plan {
    /// The shards that are fetched on demand, with the position of their files in the external input `source`.
    pub fn shards(&self) -> impl Iterator<Item = (usize, &ExternalFile)> {
        let files = self
            .externals
            .get(SOURCE)
            .into_iter()
            .flat_map(|source| &source.files);
        files.enumerate().filter(|(_, file)| file.shard.is_some())
    }

    /// The stage that fetches shards.
    pub fn fetcher(&self) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.per == Per::Shard)
    }

    /// The shards fetched on demand that a job reads.
    pub fn shards_of(&self, stage: &StagePlan, unit: Unit) -> Vec<usize> {
        let holds = |file: &ExternalFile| match (stage.weights, unit.layer(), &file.shard) {
            (Some(Weights::NonLayer), _, Some(shard)) => shard.non_layer,
            (Some(Weights::Layer), Some(layer), Some(shard)) => shard.layers.contains(&layer),
            _ => false,
        };
        let needed = self.shards().filter(|(_, file)| holds(file));
        needed.map(|(number, _)| number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::small_plan;
    use crate::sha::hash_bytes;

    #[test]
    fn a_job_reads_the_shards_that_hold_its_layer_or_the_non_layer_tensors() {
        let mut plan = small_plan();
        let file = |name: &str, shard: Option<(&[u32], bool)>| ExternalFile {
            path: name.into(),
            size: 1,
            sha256: hash_bytes(name.as_bytes()),
            mtime_ns: 0,
            shard: shard.map(|(layers, non_layer)| ShardContent {
                layers: layers.to_vec(),
                non_layer,
                header: None,
            }),
        };
        let source = plan.externals.get_mut(SOURCE).expect("source");
        source.files = vec![
            file("config.json", None),
            file("1", Some((&[0], true))),
            file("2", Some((&[0, 1], false))),
            file("3", Some((&[], false))),
        ];
        let mut stage = plan.stages[0].clone();
        let shards = |plan: &Plan, stage: &StagePlan, unit| plan.shards_of(stage, unit);
        assert!(shards(&plan, &stage, Unit::Layer(0)).is_empty());
        stage.weights = Some(Weights::Layer);
        assert_eq!(shards(&plan, &stage, Unit::Layer(0)), [1, 2]);
        assert_eq!(shards(&plan, &stage, Unit::Layer(1)), [2]);
        stage.weights = Some(Weights::NonLayer);
        assert_eq!(shards(&plan, &stage, Unit::Run), [1]);
        assert_eq!(
            plan.shards().map(|(number, _)| number).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert!(plan.fetcher().is_none());
        stage.per = Per::Shard;
        plan.stages.push(stage);
        assert!(
            plan.fetcher()
                .is_some_and(|stage| stage.units(9).is_empty())
        );
    }
}
