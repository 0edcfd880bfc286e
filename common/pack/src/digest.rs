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
        let mut hasher = Hasher::default();
        hasher.words(words);
        hasher.finish()
    }

    /// Number of bytes that a reader yields, and their digest.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn hash_reader(reader: impl Read) -> std::io::Result<(u64, Self)> {
        Self::hash_pieces(reader, &mut |_| {})
    }

    /// As [`Digest::hash_reader`]; `look` gets all bytes in pieces whose lengths are multiples of 8, except for the last.
    ///
    /// # Errors
    /// Those of the reader.
    pub(crate) fn hash_pieces(
        mut reader: impl Read,
        look: &mut dyn FnMut(&[u8]),
    ) -> std::io::Result<(u64, Self)> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; READ_BYTES];
        let (mut size, mut held) = (0, 0);
        loop {
            match reader.read(&mut buffer[held..]) {
                Ok(0) => break,
                Ok(count) => held += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if held == buffer.len() {
                hasher.update(&buffer);
                look(&buffer);
                size += held as u64;
                held = 0;
            }
        }
        hasher.update(&buffer[..held]);
        look(&buffer[..held]);
        Ok((size + held as u64, Self(hasher.finalize().into())))
    }

    /// Length and digest of a file.
    ///
    /// # Errors
    /// `Io` with the path.
    pub fn hash_file(path: &Path) -> Result<(u64, Self), PackError> {
        let origin = path.display().to_string();
        let file = uc_input::open(path).map_err(io(&origin))?;
        Self::hash_reader(file).map_err(io(&origin))
    }
}

/// Bytes that are read at once to be hashed.
const READ_BYTES: usize = 1 << 18;

/// Hashes a tensor that arrives in pieces.
#[derive(Debug, Default)]
pub struct Hasher {
    sha256: Sha256,
    buffer: Vec<u8>,
}

impl Hasher {
    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
    }

    /// Adds 16-bit values as little-endian bytes.
    pub fn words(&mut self, words: &[u16]) {
        for chunk in words.chunks(1 << 14) {
            self.buffer.clear();
            self.buffer
                .extend(chunk.iter().flat_map(|w| w.to_le_bytes()));
            self.sha256.update(&self.buffer);
        }
    }

    /// The digest of everything that was added.
    pub fn finish(self) -> Digest {
        Digest(self.sha256.finalize().into())
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
