//! The whole pack: what is not there yet, the manifest last, and the comparison that ends it.

use anyhow::Context;
use camino::Utf8Path;
use serde::Serialize;
use uc_hub::{LocalFile, differences};
use uc_pack::manifest::{FileEntry, NonLayerEntry};
use uc_pack::{DIGEST_FILE, Digest, MANIFEST_FILE, Manifest};
use uc_store::sha::Sha256Digest;
use uc_store::stage::Job;

use crate::layer::RemoteLayer;
use crate::remote::{self, Remote, Repository};
use crate::{Refused, read_json, write_json};

/// Layers in one commit: the Hub takes a limited number of commits an hour, and a failed one of many files costs more.
const LAYERS_PER_COMMIT: usize = 8;
/// The card's name in a repository.
const CARD: &str = "README.md";
/// What the Hub itself puts into a repository.
const OF_THE_HUB: &str = ".gitattributes";

/// Where the pack is, once the repository holds everything.
#[derive(Debug, Serialize)]
struct RemotePack {
    remote_pack_version: u32,
    endpoint: String,
    repository: String,
    branch: String,
    commit: String,
    pack_fingerprint: String,
    files: usize,
    bytes: u64,
}

/// Writes `remote-pack`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let manifest_path = job.input("manifest")?;
    let folder = manifest_path
        .parent()
        .context("the manifest has no folder")?
        .to_owned();
    let (manifest, fingerprint) = Manifest::read(&folder)?;
    let repository = remote::repository(job)?;
    check_scaffold(&folder, &manifest)?;
    let mut description = Vec::new();
    for file in manifest.files.iter().chain([&non_layer(&manifest)]) {
        description.push(checked(&folder, file)?);
    }
    description.push(LocalFile::read(CARD, &job.input("model-card")?)?);
    let layers = layers(job, &folder, &manifest, &repository)?;
    let names = [MANIFEST_FILE, DIGEST_FILE];
    let last = names.map(|name| LocalFile::read(name, &folder.join(name)));
    let last = last.into_iter().collect::<Result<Vec<_>, _>>()?;

    let remote = Remote::open(job)?;
    remote.bring("Scaffold, description and card", &description)?;
    commit_layers(&remote, &layers)?;
    remote.bring("Manifest", &last)?;
    let files = [description, layers, last].concat();
    let (commit, tree) = remote.tree()?;
    remote.accept(&commit, &tree, &files)?;
    let ours = |path: &String| files.iter().any(|file| file.path == *path);
    let others = tree.iter().map(|file| &file.path);
    for path in others.filter(|path| !ours(path) && *path != OF_THE_HUB) {
        tracing::warn!(
            path,
            "the repository also holds this file, which is not of the pack"
        );
    }
    let outcome = RemotePack {
        remote_pack_version: 1,
        endpoint: remote.endpoint().into(),
        repository: repository.repository,
        branch: repository.branch,
        commit: commit.to_string(),
        pack_fingerprint: fingerprint.to_string(),
        files: files.len(),
        bytes: files.iter().map(|file| file.size).sum(),
    };
    drop(remote);
    job.metric("commit", outcome.commit.clone());
    write_json(job, "remote-pack", &outcome)
}

/// The scaffold as one of the pack's files.
fn non_layer(manifest: &Manifest) -> FileEntry {
    let NonLayerEntry {
        file, size, sha256, ..
    } = &manifest.non_layer;
    FileEntry {
        name: file.clone(),
        size: *size,
        sha256: *sha256,
    }
}

/// Every tensor of the scaffold is what the manifest says.
fn check_scaffold(folder: &Utf8Path, manifest: &Manifest) -> anyhow::Result<()> {
    let recorded = &manifest.non_layer;
    let path = folder.join(&recorded.file);
    let found = NonLayerEntry::measure(&path)?;
    if found == *recorded {
        return Ok(());
    }
    Err(Refused::NotAsRecorded {
        file: path.into(),
        found: format!("SHA-256 {}", found.sha256),
        expected: format!("SHA-256 {}", recorded.sha256),
    }
    .into())
}

/// A file of the pack, if it is what the manifest says.
fn checked(folder: &Utf8Path, recorded: &FileEntry) -> anyhow::Result<LocalFile> {
    let file = LocalFile::read(&recorded.name, &folder.join(&recorded.name))?;
    let found = (file.size, Digest(file.sha256.0));
    let expected = (recorded.size, recorded.sha256);
    if found == expected {
        return Ok(file);
    }
    let described = |(size, sha256): (u64, Digest)| format!("{size} bytes, SHA-256 {sha256}");
    Err(Refused::NotAsRecorded {
        file: file.source.into(),
        found: described(found),
        expected: described(expected),
    }
    .into())
}

/// The layers of the manifest, each of them one that was sent.
fn layers(
    job: &Job<'_>,
    folder: &Utf8Path,
    manifest: &Manifest,
    repository: &Repository,
) -> anyhow::Result<Vec<LocalFile>> {
    let mut layers = Vec::new();
    for entry in &manifest.layers {
        let path = job.input_at("remote-layer", entry.index)?;
        let sent: RemoteLayer = read_json(&path)?;
        let found = (
            (&sent.repository, &sent.branch),
            (&sent.file, sent.size, sent.sha256),
        );
        let expected = (
            (&repository.repository, &repository.branch),
            (&entry.file, entry.size, entry.sha256),
        );
        if found != expected {
            return Err(Refused::NotAsRecorded {
                file: path.into(),
                found: format!("{found:?}"),
                expected: format!("{expected:?}"),
            }
            .into());
        }
        let (path, digest) = (folder.join(&entry.file), Sha256Digest(entry.sha256.0));
        layers.push(LocalFile::known(&entry.file, &path, entry.size, digest)?);
    }
    Ok(layers)
}

/// Commits the layers that the branch lacks. Those that lie in storage are not sent again, those that the repository has
/// lost are.
fn commit_layers(remote: &Remote<'_, '_>, layers: &[LocalFile]) -> anyhow::Result<()> {
    let (_, tree) = remote.tree()?;
    let lacking = differences(&tree, layers)?;
    let is_lacking = |file: &&LocalFile| lacking.iter().any(|gap| gap.path == file.path);
    let lacking: Vec<&LocalFile> = layers.iter().filter(is_lacking).collect();
    let gone = lacking.iter().filter(|file| !file.source.exists());
    let paths: Vec<String> = gone.map(|file| file.path.clone()).collect();
    if !paths.is_empty() {
        let repository = remote.name();
        return Err(Refused::Gone { repository, paths }.into());
    }
    for files in lacking.chunks(LAYERS_PER_COMMIT) {
        let (first, last) = (&files[0].path, &files[files.len() - 1].path);
        let files: Vec<LocalFile> = files
            .iter()
            .map(|file| {
                checked(
                    file.source.parent().context("a layer without a folder")?,
                    &FileEntry {
                        name: file.path.clone(),
                        size: file.size,
                        sha256: Digest(file.sha256.0),
                    },
                )
            })
            .collect::<anyhow::Result<_>>()?;
        remote.bring(&format!("{first} to {last}"), &files)?;
    }
    Ok(())
}
