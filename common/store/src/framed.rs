//! The framed file: a typed binary checkpoint that is checked before it is decoded.
//!
//! ```text
//! offset  bytes  content
//! 0       8      magic, one per kind of file
//! 8       4      version, u32 little-endian
//! 12      1      compression of the body: 0 none, 1 zstd
//! 13      3      zero
//! 16      8      length of the body before compression, u64 little-endian
//! 24      32     SHA-256 of the body as stored
//! 56      …      body: bincode 2, standard configuration
//! ```
//! This is the only module that uses bincode; see docs/decisions/0003-bincode.md.

use std::io::Read;

use camino::Utf8Path;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::AtomicFile;
use crate::error::StoreError;
use crate::sha::{Sha256Digest, hash_bytes};

/// Bytes before the body.
const HEADER: usize = 56;

/// A kind of framed file.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// First eight bytes of the file.
    pub magic: [u8; 8],
    /// Version that is written; newer ones are refused, older ones too unless the kind says otherwise.
    pub version: u32,
    /// What the file is called in errors.
    pub what: &'static str,
    /// Largest body before compression, bytes.
    pub max_body: u64,
    /// zstd level, or `None` for a body that compression does not make smaller.
    pub zstd_level: Option<i32>,
}

/// The checkpoint of stage `quantize`. Indices stand in one byte each before compression; on the four layers of the
/// embedded model at 5 bits zstd at level 1 made 799758 bytes 512213 (0.64).
pub const CODES: Frame = Frame {
    magic: *b"UCCODES\0",
    version: 1,
    what: "codes checkpoint",
    max_body: 1 << 36,
    zstd_level: Some(1),
};

/// The checkpoint of stage `overlay-fit`.
pub const OVERLAY: Frame = Frame {
    magic: *b"UCOVRLY\0",
    what: "overlay checkpoint",
    ..CODES
};

impl Frame {
    /// The file's bytes for a value.
    pub fn encode<T: Serialize>(&self, value: &T, path: &Utf8Path) -> Result<Vec<u8>, StoreError> {
        let plain = bincode::serde::encode_to_vec(value, bincode::config::standard())
            .map_err(|error| StoreError::io("encode", path)(std::io::Error::other(error)))?;
        let length = plain.len() as u64;
        let (flag, body) = match self.zstd_level {
            None => (0u8, plain),
            Some(level) => {
                let packed = zstd::bulk::compress(&plain, level)
                    .map_err(StoreError::io("compress", path))?;
                (1, packed)
            }
        };
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&[flag, 0, 0, 0]);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&hash_bytes(&body).0);
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The value in a file's bytes; every check comes before decoding.
    pub fn decode<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        path: &Utf8Path,
    ) -> Result<T, StoreError> {
        let bad = |found: String, expected: String| {
            StoreError::malformed(path, self.what, found, expected)
        };
        if bytes.len() < HEADER {
            return Err(bad(
                format!("{} bytes", bytes.len()),
                format!("at least {HEADER} bytes"),
            ));
        }
        let (header, body) = bytes.split_at(HEADER);
        if header[..8] != self.magic {
            return Err(bad(
                format!("magic {}", hex::encode(&header[..8])),
                format!("magic {}", hex::encode(self.magic)),
            ));
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
        if version > self.version {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                what: self.what,
                found: version,
                supported: self.version,
            });
        }
        if version < self.version {
            return Err(bad(
                format!("version {version}"),
                format!("version {}", self.version),
            ));
        }
        let length = u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"));
        if length > self.max_body {
            return Err(bad(
                format!("a body of {length} bytes"),
                format!("at most {}", self.max_body),
            ));
        }
        let expected = Sha256Digest(header[24..56].try_into().expect("32 bytes"));
        let found = hash_bytes(body);
        if found != expected {
            return Err(StoreError::Hash {
                path: path.to_owned(),
                found,
                expected,
            });
        }
        let plain = match (header[12], &header[13..16]) {
            (0, [0, 0, 0]) => std::borrow::Cow::Borrowed(body),
            (1, [0, 0, 0]) => std::borrow::Cow::Owned(
                decompress(body, length).map_err(StoreError::io("decompress", path))?,
            ),
            (flag, _) => return Err(bad(format!("compression {flag}"), "0 or 1".into())),
        };
        if plain.len() as u64 != length {
            return Err(bad(
                format!("a body of {} bytes", plain.len()),
                format!("{length} bytes"),
            ));
        }
        let (value, used) = bincode::serde::decode_from_slice(&plain, bincode::config::standard())
            .map_err(|error| bad(error.to_string(), "a decodable body".into()))?;
        if used != plain.len() {
            return Err(bad(
                format!("{} bytes left over", plain.len() - used),
                "none".into(),
            ));
        }
        Ok(value)
    }

    /// Writes a value into an open file, to be committed by its owner.
    pub fn write<T: Serialize>(&self, file: &mut AtomicFile, value: &T) -> Result<(), StoreError> {
        let bytes = self.encode(value, file.target())?;
        file.append(&bytes)
    }

    /// Reads a value from disk.
    pub fn read<T: DeserializeOwned>(&self, path: &Utf8Path) -> Result<T, StoreError> {
        let bytes = std::fs::read(path).map_err(StoreError::io("read", path))?;
        self.decode(&bytes, path)
    }
}

/// Decompresses at most `limit` bytes and notices when there would be more.
fn decompress(body: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    zstd::Decoder::new(body)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Frame = Frame {
        magic: *b"UCTEST\0\0",
        version: 2,
        what: "test frame",
        max_body: 1 << 20,
        zstd_level: None,
    };

    fn both() -> [Frame; 2] {
        [
            PLAIN,
            Frame {
                zstd_level: Some(1),
                ..PLAIN
            },
        ]
    }

    #[test]
    fn values_come_back() {
        let value: (String, Vec<i16>) = ("x".into(), (0..500).map(|i| i % 7 - 3).collect());
        for frame in both() {
            let bytes = frame.encode(&value, Utf8Path::new("f")).expect("encoded");
            let found: (String, Vec<i16>) =
                frame.decode(&bytes, Utf8Path::new("f")).expect("decoded");
            assert_eq!(found, value);
        }
    }

    #[test]
    fn other_magic_versions_and_limits_are_refused() {
        let path = Utf8Path::new("f");
        let bytes = PLAIN.encode(&vec![1u8; 100], path).expect("encoded");
        let read = |frame: Frame| frame.decode::<Vec<u8>>(&bytes, path).expect_err("refused");
        assert!(
            read(Frame {
                magic: *b"OTHERMAG",
                ..PLAIN
            })
            .to_string()
            .contains("magic")
        );
        assert!(matches!(
            read(Frame {
                version: 1,
                ..PLAIN
            }),
            StoreError::Newer { found: 2, .. }
        ));
        assert!(
            read(Frame {
                version: 3,
                ..PLAIN
            })
            .to_string()
            .contains("version 2")
        );
        assert!(
            read(Frame {
                max_body: 10,
                ..PLAIN
            })
            .to_string()
            .contains("at most 10")
        );
    }

    proptest! {
        #[test]
        fn every_flipped_byte_and_every_truncation_is_found(at in 0usize..400, bit in 0u8..8) {
            let value: Vec<u32> = (0..40).collect();
            for frame in both() {
                let bytes = frame.encode(&value, Utf8Path::new("f")).expect("encoded");
                let at = at % bytes.len();
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                prop_assert!(frame.decode::<Vec<u32>>(&flipped, Utf8Path::new("f")).is_err());
                prop_assert!(frame.decode::<Vec<u32>>(&bytes[..at], Utf8Path::new("f")).is_err());
            }
        }
    }
}
