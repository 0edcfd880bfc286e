//! The content id of a file: SHA-256 for files in large file storage (LFS), the git blob id for all others.

use std::fmt;
use std::io::Read;

use camino::Utf8Path;
use sha1::{Digest, Sha1};
use uc_store::StoreError;
use uc_store::sha::{Hasher, Sha256Digest};

use crate::git_id::BlobId;

/// The digest by which the Hub identifies the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// SHA-256 of the content: a file in large file storage.
    Sha256(Sha256Digest),
    /// The git blob id: a file in the git repository itself.
    Blob(BlobId),
}

impl FileId {
    /// The kind of digest, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Blob(_) => "git blob",
        }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Blob(id) => id.fmt(f),
        }
    }
}

/// Computes a [`FileId`] incrementally.
pub(crate) enum FileHasher {
    Sha256(Hasher),
    Blob(Sha1),
}

impl FileHasher {
    /// A hasher for the same kind of digest as `id`. `size` is the size of the whole content in bytes.
    pub(crate) fn new_like(id: &FileId, size: u64) -> Self {
        match id {
            FileId::Sha256(_) => Self::Sha256(Hasher::default()),
            FileId::Blob(_) => Self::Blob(blob_hasher(size)),
        }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(data),
            Self::Blob(hasher) => hasher.update(data),
        }
    }

    pub(crate) fn finish(self) -> FileId {
        match self {
            Self::Sha256(hasher) => FileId::Sha256(hasher.finish().0),
            Self::Blob(hasher) => FileId::Blob(BlobId(hasher.finalize().into())),
        }
    }
}

/// A hasher that has consumed the header of a git blob.
fn blob_hasher(size: u64) -> Sha1 {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {size}\0"));
    hasher
}

/// The id of a file on disk, of the same kind as `like`.
pub(crate) fn hash_file_like(
    path: &Utf8Path,
    size: u64,
    like: &FileId,
) -> Result<FileId, StoreError> {
    let mut hasher = FileHasher::new_like(like, size);
    let mut file = uc_input::open(path).map_err(StoreError::io("open", path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path)(error)),
        }
    }
}

/// The git blob id of `data`.
pub fn blob_id(data: &[u8]) -> BlobId {
    let mut hasher = blob_hasher(data.len() as u64);
    hasher.update(data);
    BlobId(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_ids_equal_those_of_git() {
        // `printf 'hello\n' | git hash-object --stdin`
        let expected = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(blob_id(b"hello\n").to_string(), expected);
        assert_eq!(
            blob_id(b"").to_string(),
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
        );
    }
}
