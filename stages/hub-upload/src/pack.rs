//! Uploads the rest of the pack, the manifest last, and compares the remote tree with the manifest.

use anyhow::Context;
use camino::Utf8Path;
use serde::Serialize;
use uc_hub::{LocalFile, differences};
use uc_pack::manifest::{FileEntry, NonLayerEntry};
use uc_pack::{DIGEST_FILE, Digest, MANIFEST_FILE, Manifest};
use uc_store::sha::Sha256Digest;
use uc_store::stage::Job;

use crate::layer::RemoteLayer;
use crate::readme::Card;
use crate::remote::{self, Remote, Repository};
use crate::{UploadError, read_json, write_json};

/// Layers in one commit. The Hub limits the number of commits per hour, but a failed commit of many files costs more.
const LAYERS_PER_COMMIT: usize = 8;
/// The file name of the model card in a repository.
const CARD_FILE: &str = "README.md";
/// The file name of the model card beside a README.md that it cannot be joined to.
const CARD_BESIDE: &str = "ULTRACOMPRESS.md";
/// Largest README.md that the card is joined to, bytes.
const MAX_README: u64 = 4 << 20;
/// The file that the Hub itself adds to a repository.
const GIT_ATTRIBUTES: &str = ".gitattributes";

/// The record of a repository that holds the whole pack.
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
    let repository = remote::read_repository(job)?;
    check_non_layer(&folder, &manifest)?;
    let mut description = Vec::new();
    for file in manifest.files.iter().chain([&non_layer_file(&manifest)]) {
        description.push(checked_file(&folder, file)?);
    }
    let (card, work_dir) = (job.input("model-card")?, job.work_dir()?);
    let layers = layer_files(job, &folder, &manifest, &repository)?;
    let names = [MANIFEST_FILE, DIGEST_FILE];
    let manifest_files = names.map(|name| LocalFile::from_path(name, &folder.join(name)));
    let manifest_files = manifest_files.into_iter().collect::<Result<Vec<_>, _>>()?;

    let remote = Remote::open(job)?;
    description.push(card_file(&remote, &card, &work_dir)?);
    remote.push("Non-layer tensors, description and card", &description)?;
    commit_layers(&remote, &layers)?;
    remote.push("Manifest", &manifest_files)?;
    let files = [description, layers, manifest_files].concat();
    let (commit, tree) = remote.tree()?;
    remote.check_tree(&commit, &tree, &files)?;
    let is_in_pack = |path: &String| files.iter().any(|file| file.path == *path);
    let paths = tree.iter().map(|file| &file.path);
    for path in paths
        .filter(|path| !is_in_pack(path) && ![GIT_ATTRIBUTES, CARD_FILE].contains(&path.as_str()))
    {
        tracing::warn!(
            path,
            "the repository also holds this file, which is not part of the pack"
        );
    }
    let remote_pack = RemotePack {
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
    job.metric("commit", remote_pack.commit.clone());
    write_json(job, "remote-pack", &remote_pack)
}

/// The model card as it is uploaded. A README.md that the repository already has is kept: the card is joined to it, or put beside
/// it if that is not possible.
fn card_file(
    remote: &Remote<'_, '_>,
    card: &Utf8Path,
    work_dir: &Utf8Path,
) -> anyhow::Result<LocalFile> {
    let ours = LocalFile::from_path(CARD_FILE, card)?;
    let (commit, tree) = remote.tree()?;
    let Some(present) = tree.iter().find(|file| file.path == CARD_FILE) else {
        return Ok(ours);
    };
    if differences(&tree, std::slice::from_ref(&ours))?.is_empty() {
        return Ok(ours);
    }
    let joined = if present.size > MAX_README {
        Err("it is too large")
    } else {
        let copy = work_dir.join("README.theirs.md");
        remote.download(&commit, present, &copy)?;
        let theirs = uc_input::read_text(&copy, MAX_README);
        if theirs
            .as_ref()
            .is_ok_and(|text| Card::parse(text).is_some())
        {
            return Ok(ours); // an earlier card, to which nobody has added anything
        }
        let card = Card::parse(&uc_input::read_text(card, MAX_README)?);
        let card = card.context("the model card has another form than the stage writes")?;
        theirs.map_or(Err("it is not text"), |theirs| card.join(&theirs))
    };
    let repository = remote.name();
    match joined {
        Ok(text) => {
            let path = work_dir.join(CARD_FILE);
            uc_store::atomic::write_bytes(&path, text.as_bytes())?;
            let message = format!(
                "{CARD_FILE} of {repository} is kept; the model card stands between markers in it"
            );
            remote.job().note(message);
            Ok(LocalFile::from_path(CARD_FILE, &path)?)
        }
        Err(reason) => {
            let message = format!(
                "{CARD_FILE} of {repository} is kept unchanged, because {reason}; the model card is {CARD_BESIDE}"
            );
            remote.job().note(message);
            Ok(LocalFile::from_path(CARD_BESIDE, card)?)
        }
    }
}

/// The file entry of the non-layer tensors.
fn non_layer_file(manifest: &Manifest) -> FileEntry {
    let NonLayerEntry {
        file, size, sha256, ..
    } = &manifest.non_layer;
    FileEntry {
        name: file.clone(),
        size: *size,
        sha256: *sha256,
    }
}

/// Checks every non-layer tensor against the manifest.
fn check_non_layer(folder: &Utf8Path, manifest: &Manifest) -> anyhow::Result<()> {
    let recorded = &manifest.non_layer;
    let path = folder.join(&recorded.file);
    let found = NonLayerEntry::measure(&path)?;
    if found == *recorded {
        return Ok(());
    }
    Err(UploadError::NotAsRecorded {
        file: path.into(),
        found: format!("SHA-256 {}", found.sha256),
        expected: format!("SHA-256 {}", recorded.sha256),
    }
    .into())
}

/// A file of the pack, checked against the manifest.
fn checked_file(folder: &Utf8Path, recorded: &FileEntry) -> anyhow::Result<LocalFile> {
    let file = LocalFile::from_path(&recorded.name, &folder.join(&recorded.name))?;
    let found = (file.size, Digest(file.sha256.0));
    let expected = (recorded.size, recorded.sha256);
    if found == expected {
        return Ok(file);
    }
    let describe = |(size, sha256): (u64, Digest)| format!("{size} bytes, SHA-256 {sha256}");
    Err(UploadError::NotAsRecorded {
        file: file.source.into(),
        found: describe(found),
        expected: describe(expected),
    }
    .into())
}

/// The layer files of the manifest. Each must agree with the record of its upload.
fn layer_files(
    job: &Job<'_>,
    folder: &Utf8Path,
    manifest: &Manifest,
    repository: &Repository,
) -> anyhow::Result<Vec<LocalFile>> {
    let mut layers = Vec::new();
    for entry in &manifest.layers {
        let path = job.input_at("remote-layer", entry.index)?;
        let uploaded: RemoteLayer = read_json(&path)?;
        let found = (
            (&uploaded.repository, &uploaded.branch),
            (&uploaded.file, uploaded.size, uploaded.sha256),
        );
        let expected = (
            (&repository.repository, &repository.branch),
            (&entry.file, entry.size, entry.sha256),
        );
        if found != expected {
            return Err(UploadError::NotAsRecorded {
                file: path.into(),
                found: format!("{found:?}"),
                expected: format!("{expected:?}"),
            }
            .into());
        }
        let (path, digest) = (folder.join(&entry.file), Sha256Digest(entry.sha256.0));
        layers.push(LocalFile::with_digest(
            &entry.file,
            &path,
            entry.size,
            digest,
        )?);
    }
    Ok(layers)
}

/// Commits the layers that the branch lacks. Only layers that storage has lost are sent again.
fn commit_layers(remote: &Remote<'_, '_>, layers: &[LocalFile]) -> anyhow::Result<()> {
    let (_, tree) = remote.tree()?;
    let differences = differences(&tree, layers)?;
    let is_missing = |file: &&LocalFile| {
        differences
            .iter()
            .any(|difference| difference.path == file.path)
    };
    let missing: Vec<&LocalFile> = layers.iter().filter(is_missing).collect();
    let unavailable = missing.iter().filter(|file| !file.source.exists());
    let paths: Vec<String> = unavailable.map(|file| file.path.clone()).collect();
    if !paths.is_empty() {
        let repository = remote.name();
        return Err(UploadError::LayersMissing { repository, paths }.into());
    }
    for files in missing.chunks(LAYERS_PER_COMMIT) {
        let (first, last) = (&files[0].path, &files[files.len() - 1].path);
        let files: Vec<LocalFile> = files
            .iter()
            .map(|file| {
                checked_file(
                    file.source
                        .parent()
                        .context("the layer file has no folder")?,
                    &FileEntry {
                        name: file.path.clone(),
                        size: file.size,
                        sha256: Digest(file.sha256.0),
                    },
                )
            })
            .collect::<anyhow::Result<_>>()?;
        remote.push(&format!("{first} to {last}"), &files)?;
    }
    Ok(())
}
