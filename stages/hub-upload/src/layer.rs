//! One layer: checked and sent. One that goes from here afterwards is committed and found in the remote tree first; one
//! that stays lies in the repository's storage until `pack` commits it with others.

use serde::{Deserialize, Serialize};
use uc_hub::LocalFile;
use uc_pack::{Digest, LayerEntry, LayerFile};
use uc_store::sha::Sha256Digest;
use uc_store::stage::Job;

use crate::remote::Remote;
use crate::{Refused, read_json, write_json};

/// A layer that the repository's storage held, by its digest, when this was written. The commit, if there was one, is
/// among the job's figures: it is another one each time, and what was sent is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteLayer {
    remote_layer_version: u32,
    /// The repository, `owner/name`.
    pub repository: String,
    /// Its branch.
    pub branch: String,
    /// Its name.
    pub file: String,
    /// Its size.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Digest,
}

/// Writes `remote-layer`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let layer = job.layer()?;
    let record: LayerEntry = read_json(&job.input("layer-record")?)?;
    let path = job.input("pack-layer")?;
    check(LayerFile::open(&path)?, &record)?;

    // A layer begins with a magic that ends in a zero: the Hub takes it for binary however small it is, keeps it in large
    // file storage and knows it by its SHA-256.
    let digest = Sha256Digest(record.sha256.0);
    let file = LocalFile::known(&record.file, &path, record.size, digest)?;
    let kept = job.plan().artifacts.get("pack-layer");
    let kept = kept.is_none_or(|artifact| !artifact.temporary);
    let remote = Remote::open(job)?;
    if kept {
        // The commit can wait until it is worth its while.
        remote.store(&[file])?;
    } else {
        let commit = remote.bring(&format!("Layer {layer}"), &[file])?;
        remote.job().metric("commit", commit.to_string());
    }
    let written = RemoteLayer {
        remote_layer_version: 1,
        repository: remote.name(),
        branch: remote.branch().to_owned(),
        file: record.file,
        size: record.size,
        sha256: record.sha256,
    };
    drop(remote);
    write_json(job, "remote-layer", &written)
}

/// Recomputes everything that the record says: the file's digest and that of every tensor that it reconstructs.
fn check(file: LayerFile, record: &LayerEntry) -> anyhow::Result<()> {
    let known = |name: &str| {
        let linear = record.linears.iter().find(|linear| linear.name == name);
        linear.map(|linear| linear.source_sha256)
    };
    let found = LayerEntry::measure(&file, &record.prefix, known)?;
    if found == *record {
        return Ok(());
    }
    let described = |entry: &LayerEntry| {
        let tensors = entry.linears.len() + entry.exact.len();
        format!("SHA-256 {} with {tensors} tensors", entry.sha256)
    };
    Err(Refused::NotAsRecorded {
        file: file.origin().into(),
        found: described(&found),
        expected: described(record),
    }
    .into())
}
