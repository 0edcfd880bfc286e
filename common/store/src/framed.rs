//! Frames: typed binary values that are checked before they are decoded. A file is one frame, or a sequence of frames that
//! can be read independently.
//!
//! ```text
//! offset  bytes  content
//! 0       8      magic, one per kind of file
//! 8       4      version, u32 little-endian
//! 12      1      compression of the body: 0 none, 1 zstd
//! 13      3      zero
//! 16      8      length of the body before compression, u64 little-endian
//! 24      8      length of the body as stored, u64 little-endian
//! 32      32     SHA-256 of the body as stored
//! 64      …      body: bincode 2, standard configuration
//! ```
//! This is the only module that uses bincode; see docs/decisions/0003-bincode.md.

mod journal;
mod snapshot;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::AtomicFile;
use crate::error::StoreError;
use crate::sha::{Sha256Digest, hash_bytes};

pub use journal::Journal;
pub use snapshot::Snapshot;
pub(crate) use snapshot::check_digest;

/// Bytes before the body.
const HEADER: usize = 64;
/// Largest file that is read whole, bytes: a body that does not compress is a little larger than its limit.
const MAX_STORED: u64 = 8 << 30;

/// A kind of framed file.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// The first eight bytes of the frame.
    pub magic: [u8; 8],
    /// The version that is written; files of any other version are refused.
    pub version: u32,
    /// Name of the kind of file in errors.
    pub what: &'static str,
    /// Largest size of the body before compression, in bytes.
    pub max_body: u64,
    /// zstd level, or `None` to store the body uncompressed.
    pub zstd_level: Option<i32>,
}

impl Frame {
    /// Encodes a value as a frame.
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
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&hash_bytes(&body).0);
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// Decodes the value of a frame, after all checks.
    pub fn decode<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        path: &Utf8Path,
    ) -> Result<T, StoreError> {
        let bad = |found: String, expected: String| {
            StoreError::malformed(path, self.what, found, expected)
        };
        let header = self.check(bytes, path)?;
        let body = &bytes[HEADER..];
        let plain = match header.compression {
            0 => std::borrow::Cow::Borrowed(body),
            _ => std::borrow::Cow::Owned(
                decompress(body, header.length).map_err(StoreError::io("decompress", path))?,
            ),
        };
        if plain.len() as u64 != header.length {
            return Err(bad(
                format!("a body of {} bytes", plain.len()),
                format!("{} bytes", header.length),
            ));
        }
        let (value, used) = bincode::serde::decode_from_slice(&plain, bincode::config::standard())
            .map_err(|error| bad(error.to_string(), "a decodable body".into()))?;
        if used != plain.len() {
            return Err(bad(
                format!("{} bytes after the value", plain.len() - used),
                "none".into(),
            ));
        }
        Ok(value)
    }

    /// Checks that the bytes are one whole frame whose body has the digest of its header.
    fn check(&self, bytes: &[u8], path: &Utf8Path) -> Result<Header, StoreError> {
        let header = Header::parse(self, bytes, path)?;
        let body = &bytes[HEADER..];
        if body.len() as u64 != header.stored {
            let found = format!("a stored body of {} bytes", body.len());
            let expected = format!("{} bytes", header.stored);
            return Err(StoreError::malformed(path, self.what, found, expected));
        }
        let found = hash_bytes(body);
        if found != header.sha256 {
            return Err(StoreError::Hash {
                path: path.to_owned(),
                found,
                expected: header.sha256,
            });
        }
        Ok(header)
    }

    /// Appends a value to an open file, which the caller commits.
    pub fn write<T: Serialize>(&self, file: &mut AtomicFile, value: &T) -> Result<(), StoreError> {
        let bytes = self.encode(value, file.target())?;
        file.append(&bytes)
    }

    /// Reads the value of a file of one frame.
    pub fn read<T: DeserializeOwned>(&self, path: &Utf8Path) -> Result<T, StoreError> {
        let bytes = uc_input::read(path, MAX_STORED).map_err(StoreError::io("read", path))?;
        self.decode(&bytes, path)
    }
}

/// The header of a frame.
struct Header {
    compression: u8,
    length: u64,
    stored: u64,
    sha256: Sha256Digest,
}

impl Header {
    fn parse(frame: &Frame, bytes: &[u8], path: &Utf8Path) -> Result<Self, StoreError> {
        let bad = |found: String, expected: String| {
            StoreError::malformed(path, frame.what, found, expected)
        };
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(bad(
                format!("{} bytes", bytes.len()),
                format!("at least {HEADER} bytes"),
            ));
        };
        if header[..8] != frame.magic {
            return Err(bad(
                format!("magic {}", hex::encode(&header[..8])),
                format!("magic {}", hex::encode(frame.magic)),
            ));
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
        if version > frame.version {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                what: frame.what,
                found: version,
                supported: frame.version,
            });
        }
        if version < frame.version {
            return Err(bad(
                format!("version {version}"),
                format!("version {}", frame.version),
            ));
        }
        let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8"));
        let length = u64_at(16);
        if length > frame.max_body {
            return Err(bad(
                format!("a body of {length} bytes"),
                format!("at most {}", frame.max_body),
            ));
        }
        let compression = header[12];
        if compression > 1 || header[13..16] != [0; 3] {
            let found = format!("compression {}", hex::encode(&header[12..16]));
            return Err(bad(found, "0 or 1".into()));
        }
        Ok(Self {
            compression,
            length,
            stored: u64_at(24),
            sha256: Sha256Digest(header[32..HEADER].try_into().expect("32 bytes")),
        })
    }
}

/// A file of frames of one kind, which are read one at a time.
#[derive(Debug)]
pub struct FramedFile {
    frame: Frame,
    path: Utf8PathBuf,
    file: File,
    /// The offsets of the frames, and the end of the last one.
    bounds: Vec<u64>,
}

impl FramedFile {
    /// Opens a file and locates its frames by their headers.
    ///
    /// # Errors
    /// [`StoreError::Io`], the errors of an invalid header, and [`StoreError::Malformed`] if the last frame is incomplete.
    pub fn open(frame: Frame, path: &Utf8Path) -> Result<Self, StoreError> {
        let file = uc_input::open(path).map_err(StoreError::io("open", path))?;
        let size = file.metadata().map_err(StoreError::io("inspect", path))?;
        let size = size.len();
        let mut frames = Self {
            frame,
            path: path.to_owned(),
            file,
            bounds: vec![0],
        };
        while let Some(end) = frames.next_end(size)? {
            frames.bounds.push(end);
        }
        Ok(frames)
    }

    /// Where the frame after the last one ends in a file of `size` bytes, by its header; None at the end of the file.
    fn next_end(&self, size: u64) -> Result<Option<u64>, StoreError> {
        let at = *self.bounds.last().expect("never empty");
        if at >= size {
            return Ok(None);
        }
        let mut header = vec![0; HEADER.min((size - at) as usize)];
        let read = self.file.read_exact_at(&mut header, at);
        read.map_err(StoreError::io("read", &self.path))?;
        let stored = Header::parse(&self.frame, &header, &self.path)?.stored;
        let end = (at + HEADER as u64).saturating_add(stored);
        if end > size {
            let found = format!("{size} bytes");
            let expected = format!("at least {end} bytes");
            let what = self.frame.what;
            return Err(StoreError::malformed(&self.path, what, found, expected));
        }
        Ok(Some(end))
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether the file has no frames.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a frame.
    ///
    /// # Errors
    /// [`StoreError::Io`] and the errors of [`Frame::decode`].
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn get<T: DeserializeOwned>(&self, index: usize) -> Result<T, StoreError> {
        self.frame.decode(&self.bytes(index)?, &self.path)
    }

    /// The bytes of a frame.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn bytes(&self, index: usize) -> Result<Vec<u8>, StoreError> {
        let (start, end) = (self.bounds[index], self.bounds[index + 1]);
        let mut bytes = vec![0; (end - start) as usize];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(StoreError::io("read", &self.path))?;
        Ok(bytes)
    }
}

/// Decompresses at most `limit` bytes, or `limit + 1` if there are more, so that the caller can detect the excess.
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

    const UNCOMPRESSED: Frame = Frame {
        magic: *b"UCTEST\0\0",
        version: 2,
        what: "test frame",
        max_body: 1 << 20,
        zstd_level: None,
    };

    fn both() -> [Frame; 2] {
        [
            UNCOMPRESSED,
            Frame {
                zstd_level: Some(1),
                ..UNCOMPRESSED
            },
        ]
    }

    #[test]
    fn values_are_decoded_as_they_were_encoded() {
        let value: (String, Vec<i16>) = ("x".into(), (0..500).map(|i| i % 7 - 3).collect());
        for frame in both() {
            let bytes = frame.encode(&value, Utf8Path::new("f")).expect("encoded");
            let decoded: (String, Vec<i16>) =
                frame.decode(&bytes, Utf8Path::new("f")).expect("decoded");
            assert_eq!(decoded, value);
        }
    }

    #[test]
    fn other_magic_numbers_versions_and_larger_bodies_are_refused() {
        let path = Utf8Path::new("f");
        let bytes = UNCOMPRESSED.encode(&vec![1u8; 100], path).expect("encoded");
        let read = |frame: Frame| frame.decode::<Vec<u8>>(&bytes, path).expect_err("refused");
        assert!(
            read(Frame {
                magic: *b"OTHERMAG",
                ..UNCOMPRESSED
            })
            .to_string()
            .contains("magic")
        );
        assert!(matches!(
            read(Frame {
                version: 1,
                ..UNCOMPRESSED
            }),
            StoreError::Newer { found: 2, .. }
        ));
        assert!(
            read(Frame {
                version: 3,
                ..UNCOMPRESSED
            })
            .to_string()
            .contains("version 2")
        );
        assert!(
            read(Frame {
                max_body: 10,
                ..UNCOMPRESSED
            })
            .to_string()
            .contains("at most 10")
        );
    }

    #[test]
    fn frames_of_a_file_are_read_in_any_order_and_a_truncated_one_is_detected() {
        let keep = tempfile::tempdir().expect("folder");
        let path = Utf8Path::from_path(keep.path()).expect("utf-8").join("row");
        for frame in both() {
            let rows: Vec<Vec<u32>> = (0..4).map(|n| (0..n * 9).collect()).collect();
            let mut file = AtomicFile::create(&path).expect("made");
            for row in &rows {
                frame.write(&mut file, row).expect("written");
            }
            file.commit().expect("published");
            let opened = FramedFile::open(frame, &path).expect("opened");
            assert_eq!(opened.len(), 4);
            for index in [3, 0, 2, 1] {
                assert_eq!(opened.get::<Vec<u32>>(index).expect("read"), rows[index]);
            }
            let bytes = std::fs::read(&path).expect("read");
            for end in [bytes.len() - 1, HEADER + 3, HEADER - 1] {
                crate::atomic::write_bytes(&path, &bytes[..end]).expect("written");
                assert!(FramedFile::open(frame, &path).is_err(), "cut at {end}");
            }
            crate::atomic::write_bytes(&path, &[]).expect("written");
            assert!(FramedFile::open(frame, &path).expect("opened").is_empty());
        }
    }

    proptest! {
        #[test]
        fn every_flipped_bit_and_every_truncation_is_detected(at in 0usize..400, bit in 0u8..8) {
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
