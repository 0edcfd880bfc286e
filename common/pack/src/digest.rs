//! SHA-256 digests.
//!
//! Owns [`Digest`], whose only text form is 64 lower-case hexadecimal characters, and the hashing of bytes, readers and
//! files.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{PackError, io};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Digest of bytes in memory.
    pub fn hash_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Digest of 16-bit values as little-endian bytes. Reconstructed tensors are hashed in this form.
    pub fn hash_words(words: &[u16]) -> Self {
        let mut hasher = Sha256::new();
        let mut buffer = Vec::with_capacity(2 << 14);
        for chunk in words.chunks(1 << 14) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|w| w.to_le_bytes()));
            hasher.update(&buffer);
        }
        Self(hasher.finalize().into())
    }

    /// Number of bytes that a reader yields, and their digest. Reads 1 MiB at a time.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn hash_reader(mut reader: impl Read) -> std::io::Result<(u64, Self)> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok((size, Self(hasher.finalize().into()))),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Length and digest of a file.
    ///
    /// # Errors
    /// `Io` with the path.
    pub fn hash_file(path: &Path) -> Result<(u64, Self), PackError> {
        let origin = path.display().to_string();
        let file = std::fs::File::open(path).map_err(io(&origin))?;
        Self::hash_reader(file).map_err(io(&origin))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let malformed =
            || format!("SHA-256 {text:?}: expected 64 lower-case hexadecimal characters");
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| malformed())?;
        let digest = Self(bytes);
        if digest.to_string() == text {
            Ok(digest)
        } else {
            Err(malformed())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_equal_the_published_test_vector_and_one_another() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::hash_bytes(b"abc").to_string(), abc);
        assert_eq!(
            Digest::hash_reader(&b"abc"[..]).unwrap(),
            (3, Digest::hash_bytes(b"abc"))
        );
        let words: Vec<u16> = (0..40_000u32).map(|i| (i * 77) as u16).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(Digest::hash_words(&words), Digest::hash_bytes(&bytes));
    }

    #[test]
    fn only_64_lower_case_hexadecimal_characters_are_a_digest() {
        let good = "ab".repeat(32);
        assert!(Digest::try_from(good.clone()).is_ok());
        for bad in [
            "",
            "ab",
            &good.to_uppercase(),
            &format!("{good}00"),
            &"zz".repeat(32),
        ] {
            assert!(Digest::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
