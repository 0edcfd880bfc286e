//! A file on disk that is to be uploaded: what it is, and whether it still is that.

use std::fs::File;
use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use uc_store::StoreError;
use uc_store::sha::{Sha256Digest, hash_file};

use crate::digest::{self, FileId};
use crate::error::HubError;
use crate::name::is_safe_path;

/// A file to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Its path in the repository.
    pub path: String,
    /// Where it is on disk.
    pub source: Utf8PathBuf,
    /// Its size.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Sha256Digest,
}

impl LocalFile {
    /// Reads size and digest of a file.
    ///
    /// # Errors
    /// [`HubError::Name`] for a path that a repository cannot hold; [`HubError::Store`].
    pub fn read(path: &str, source: &Utf8Path) -> Result<Self, HubError> {
        let (sha256, size) = hash_file(source)?;
        Self::known(path, source, size, sha256)
    }

    /// With size and digest that are known already, from a manifest say.
    ///
    /// # Errors
    /// [`HubError::Name`] for a path that a repository cannot hold.
    pub fn known(
        path: &str,
        source: &Utf8Path,
        size: u64,
        sha256: Sha256Digest,
    ) -> Result<Self, HubError> {
        if !is_safe_path(path) || path == ".git" || path.starts_with(".git/") {
            return Err(HubError::Name {
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

    /// Whether the file is what the Hub describes by `size` and `id`; reads it only for a git blob id.
    pub(crate) fn is(&self, size: u64, id: &FileId) -> Result<bool, HubError> {
        if size != self.size {
            return Ok(false);
        }
        Ok(match id {
            FileId::Sha256(sha256) => *sha256 == self.sha256,
            FileId::Blob(_) => digest::of_file(&self.source, self.size, id)? == *id,
        })
    }

    pub(crate) fn open(&self) -> Result<File, HubError> {
        let file = File::open(&self.source).map_err(StoreError::io("open", &self.source))?;
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

    pub(crate) fn beginning(&self, bytes: u64) -> Result<Vec<u8>, HubError> {
        let mut data = Vec::new();
        let read = self.open()?.take(bytes).read_to_end(&mut data);
        read.map_err(StoreError::io("read", &self.source))?;
        Ok(data)
    }

    /// The whole of a small file, if it still is what it was.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, HubError> {
        let data = self.beginning(self.size)?;
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
