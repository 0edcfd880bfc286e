//! A file on disk that is to be uploaded: its size, its digest, and reads that detect a change.

use std::fs::File;
use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use uc_store::StoreError;
use uc_store::sha::{Sha256Digest, hash_file};

use crate::digest::{self, FileId};
use crate::error::HubError;
use crate::repo::is_safe_path;

/// A file to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Its path in the repository.
    pub path: String,
    /// Its path on disk.
    pub source: Utf8PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its content.
    pub sha256: Sha256Digest,
}

impl LocalFile {
    /// Reads a file to compute its size and digest.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] for a path that a repository cannot hold; [`HubError::Store`] if reading fails.
    pub fn from_path(path: &str, source: &Utf8Path) -> Result<Self, HubError> {
        let (sha256, size) = hash_file(source)?;
        Self::with_digest(path, source, size, sha256)
    }

    /// Uses a size and a digest that the caller already knows, for example from a manifest.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] for a path that a repository cannot hold.
    pub fn with_digest(
        path: &str,
        source: &Utf8Path,
        size: u64,
        sha256: Sha256Digest,
    ) -> Result<Self, HubError> {
        if !is_safe_path(path) || path == ".git" || path.starts_with(".git/") {
            return Err(HubError::InvalidName {
                what: "path in the repository",
                found: path.into(),
                expected: "folders and a name between single slashes, without `.`, `..` and `.git`",
            });
        }
        Ok(Self {
            path: path.into(),
            source: source.to_owned(),
            size,
            sha256,
        })
    }

    /// Whether the file has this size and id. Reads the file only if `id` is a git blob id.
    pub(crate) fn matches(&self, size: u64, id: &FileId) -> Result<bool, HubError> {
        if size != self.size {
            return Ok(false);
        }
        Ok(match id {
            FileId::Sha256(sha256) => *sha256 == self.sha256,
            FileId::Blob(_) => digest::hash_file_like(&self.source, self.size, id)? == *id,
        })
    }

    /// Opens the file and checks that its size has not changed.
    pub(crate) fn open(&self) -> Result<File, HubError> {
        let file = uc_input::open(&self.source).map_err(StoreError::io("open", &self.source))?;
        let metadata = file.metadata();
        let found = metadata
            .map_err(StoreError::io("inspect", &self.source))?
            .len();
        if found != self.size {
            return Err(HubError::LocalChanged {
                path: self.source.clone(),
                found: format!("{found} bytes"),
                expected: format!("{} bytes", self.size),
            });
        }
        Ok(file)
    }

    /// The first `bytes` bytes, or the whole file if it is shorter.
    pub(crate) fn read_prefix(&self, bytes: u64) -> Result<Vec<u8>, HubError> {
        let mut data = Vec::new();
        let read = self.open()?.take(bytes).read_to_end(&mut data);
        read.map_err(StoreError::io("read", &self.source))?;
        Ok(data)
    }

    /// The whole content, checked against the digest.
    pub(crate) fn read_verified(&self) -> Result<Vec<u8>, HubError> {
        let data = self.read_prefix(self.size)?;
        let found = uc_store::sha::hash_bytes(&data);
        if found != self.sha256 {
            return Err(HubError::LocalChanged {
                path: self.source.clone(),
                found: format!("SHA-256 {found}"),
                expected: format!("SHA-256 {}", self.sha256),
            });
        }
        Ok(data)
    }
}
