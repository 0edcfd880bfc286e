//! Checks one layer and uploads it.
//!
//! A layer whose local file will be deleted after the upload is committed at once, and the remote tree is checked. A
//! layer that is kept stays uncommitted in the repository's storage until `pack` commits it together with others.

use serde::{Deserialize, Serialize};
use uc_hub::LocalFile;
use uc_pack::{Digest, LayerEntry, LayerFile};
use uc_store::sha::Sha256Digest;
use uc_store::stage::Job;

use crate::remote::Remote;
use crate::{UploadError, read_json, write_json};

/// The record of an uploaded layer: the repository's storage held it under this digest when the record was written.
///
/// The commit, if there was one, is a metric of the job and not part of this record, because it differs from run to run
/// while the uploaded content does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteLayer {
    remote_layer_version: u32,
    /// The repository, `owner/name`.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// The name of the layer file.
    pub file: String,
    /// The size of the file in bytes.
    pub size: u64,
    /// The SHA-256 of the file.
    pub sha256: Digest,
}

/// Writes `remote-layer`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let layer = job.layer()?;
    let record: LayerEntry = read_json(&job.input("layer-record")?)?;
    let path = job.input("pack-layer")?;
    check(LayerFile::open(&path)?, &record)?;

    // A layer file starts with a magic number that ends in a zero byte. The Hub therefore treats even a small one as binary,
    // keeps it in large file storage and identifies it by its SHA-256.
    let digest = Sha256Digest(record.sha256.0);
    let file = LocalFile::with_digest(&record.file, &path, record.size, digest)?;
    let artifact = job.plan().artifacts.get("pack-layer");
    let is_kept = artifact.is_none_or(|artifact| !artifact.temporary);
    let remote = Remote::open(job)?;
    if is_kept {
        // `pack` commits several layers at once.
        remote.upload_without_commit(&[file])?;
    } else {
        let commit = remote.push(&format!("Layer {layer}"), &[file])?;
        remote.job().metric("commit", commit.to_string());
    }
    let remote_layer = RemoteLayer {
        remote_layer_version: 1,
        repository: remote.name(),
        branch: remote.branch().to_owned(),
        file: record.file,
        size: record.size,
        sha256: record.sha256,
    };
    drop(remote);
    write_json(job, "remote-layer", &remote_layer)
}

/// Recomputes every value of the record: the digest of the file and that of each tensor that it reconstructs.
fn check(file: LayerFile, record: &LayerEntry) -> anyhow::Result<()> {
    let source_sha256 = |name: &str| {
        let linear = record.linears.iter().find(|linear| linear.name == name);
        linear.map(|linear| linear.source_sha256)
    };
    let found = LayerEntry::measure(&file, &record.prefix, source_sha256)?;
    if found == *record {
        return Ok(());
    }
    let describe = |entry: &LayerEntry| {
        let tensors = entry.linears.len() + entry.exact.len();
        format!("SHA-256 {} with {tensors} tensors", entry.sha256)
    };
    Err(UploadError::NotAsRecorded {
        file: file.origin().into(),
        found: describe(&found),
        expected: describe(record),
    }
    .into())
}
