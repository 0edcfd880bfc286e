//! What a file is: SHA-256 for files in large file storage, the id of a git blob for the others.

use std::fmt;
use std::io::Read;

use camino::Utf8Path;
use sha1::{Digest, Sha1};
use uc_store::StoreError;
use uc_store::sha::{Hasher, Sha256Digest};

use crate::name::BlobId;

/// The Hub's word for the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// SHA-256 of the bytes: a file in large file storage.
    Sha256(Sha256Digest),
    /// The git blob: a file in the git repository itself.
    Blob(BlobId),
}

impl FileId {
    /// What kind of digest it is.
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

/// An id that grows with the data.
pub(crate) enum Running {
    Sha256(Hasher),
    Blob(Sha1),
}

impl Running {
    /// Of the same kind as `id`, for `size` bytes to come.
    pub(crate) fn like(id: &FileId, size: u64) -> Self {
        match id {
            FileId::Sha256(_) => Self::Sha256(Hasher::default()),
            FileId::Blob(_) => Self::Blob(blob_header(size)),
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

fn blob_header(size: u64) -> Sha1 {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {size}\0"));
    hasher
}

/// The id of a file on disk, of the same kind as `like`.
pub(crate) fn of_file(path: &Utf8Path, size: u64, like: &FileId) -> Result<FileId, StoreError> {
    let mut running = Running::like(like, size);
    let mut file = std::fs::File::open(path).map_err(StoreError::io("open", path))?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(running.finish()),
            Ok(read) => running.update(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path)(error)),
        }
    }
}

/// The git blob id of bytes.
pub fn blob_id(data: &[u8]) -> BlobId {
    let mut hasher = blob_header(data.len() as u64);
    hasher.update(data);
    BlobId(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_ids_are_gits() {
        // `printf 'hello\n' | git hash-object --stdin`
        let expected = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(blob_id(b"hello\n").to_string(), expected);
        assert_eq!(
            blob_id(b"").to_string(),
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
        );
    }
}
