//! SHA-256 digests as a type, and the digests of files.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use camino::Utf8Path;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::error::StoreError;

/// Bytes read at a time while hashing.
const CHUNK: usize = 1 << 20;

/// A SHA-256 digest; displayed and serialized as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Sha256Digest(pub [u8; 32]);

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Sha256Digest {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest incrementally and counts the bytes.
#[derive(Debug, Clone, Default)]
pub struct Hasher {
    state: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Adds data.
    pub fn update(&mut self, data: &[u8]) {
        self.state.update(data);
        self.bytes += data.len() as u64;
    }

    /// Digest and number of bytes.
    pub fn finish(self) -> (Sha256Digest, u64) {
        (Sha256Digest(self.state.finalize().into()), self.bytes)
    }
}

/// Digest of a byte slice.
pub fn hash_bytes(data: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(data).into())
}

/// Digest and size of a file, read once in chunks.
pub fn hash_file(path: &Utf8Path) -> Result<(Sha256Digest, u64), StoreError> {
    let mut file = uc_input::open(path).map_err(StoreError::io("open", path))?;
    let mut hasher = Hasher::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&chunk[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path)(error)),
        }
    }
}

/// Checks a file against its recorded size and digest.
pub fn verify_file(path: &Utf8Path, size: u64, expected: &Sha256Digest) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(path).map_err(StoreError::io("open", path))?;
    if metadata.len() != size {
        return Err(StoreError::Size {
            path: path.to_owned(),
            found: metadata.len(),
            expected: size,
        });
    }
    let (found, _) = hash_file(path)?;
    if found != *expected {
        return Err(StoreError::Hash {
            path: path.to_owned(),
            found,
            expected: *expected,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_matches_the_published_vector_and_parses_back() {
        let digest = hash_bytes(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Sha256Digest>().expect("hex"), digest);
        let json = serde_json::to_string(&digest).expect("string");
        assert_eq!(
            serde_json::from_str::<Sha256Digest>(&json).expect("digest"),
            digest
        );
        assert!(serde_json::from_str::<Sha256Digest>("\"zz\"").is_err());
    }

    #[test]
    fn a_file_is_verified_by_size_and_digest() {
        let folder = tempfile::tempdir().expect("folder");
        let path = Utf8Path::from_path(folder.path()).expect("utf-8").join("f");
        crate::atomic::write_bytes(&path, b"abc").expect("written");
        let digest = hash_bytes(b"abc");
        verify_file(&path, 3, &digest).expect("same");
        assert!(matches!(
            verify_file(&path, 4, &digest),
            Err(StoreError::Size { .. })
        ));
        let other = hash_bytes(b"abd");
        assert!(matches!(
            verify_file(&path, 3, &other),
            Err(StoreError::Hash { .. })
        ));
    }
}
