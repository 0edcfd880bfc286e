//! Plain UTF-8 in blocks: byte order marks, other encodings, decompression with a limit.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{Compression, io};
use crate::text::error::{MAX_EXPANSION, TextError};

/// Bytes that are read at a time.
const BLOCK: usize = 256 << 10;
/// Bytes at the beginning that are searched for the zero bytes of a wider encoding.
const PROBE: usize = 4096;
/// The byte order mark of UTF-8.
const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];
/// Bytes that every compressed text may have.
const BASE: u64 = 64 << 20;

/// A text file, decompressed.
pub struct Reader {
    inner: Box<dyn Read>,
    /// Bytes that may still be read, and their limit; none for a file that is not compressed.
    left: Option<(u64, u64)>,
}

/// Opens a text file.
pub fn open(path: &Path, compression: Compression) -> Result<Reader, TextError> {
    let file = uc_input::open(path).map_err(io(path))?;
    let size = file.metadata().map_err(io(path))?.len();
    let limit = expansion_limit(size);
    let buffered = |file: File| BufReader::with_capacity(BLOCK, file);
    Ok(match compression {
        Compression::None => Reader {
            inner: Box::new(file),
            left: None,
        },
        Compression::Gzip => Reader {
            inner: Box::new(flate2::bufread::MultiGzDecoder::new(buffered(file))),
            left: Some((limit, limit)),
        },
        Compression::Zstd => Reader {
            inner: Box::new(
                zstd::stream::read::Decoder::with_buffer(buffered(file)).map_err(io(path))?,
            ),
            left: Some((limit, limit)),
        },
    })
}

/// Bytes of text that a compressed file of `size` bytes may hold.
pub fn expansion_limit(size: u64) -> u64 {
    BASE.saturating_add(size.saturating_mul(MAX_EXPANSION))
}

impl Reader {
    /// Fills `block` as far as the file reaches.
    fn fill(&mut self, path: &Path, block: &mut [u8]) -> Result<usize, TextError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io(path)(error)),
            }
        }
        if let Some((left, limit)) = &mut self.left {
            *left = left
                .checked_sub(filled as u64)
                .ok_or(TextError::Expansion {
                    path: path.to_owned(),
                    limit: *limit,
                })?;
        }
        Ok(filled)
    }
}

/// Hands the text to `consumer` in blocks that end between characters; an empty file gives one empty block.
pub fn read(
    path: &Path,
    mut reader: Reader,
    consumer: &mut dyn FnMut(&str) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let mut block = vec![0; BLOCK];
    let mut kept = 0; // bytes of a character that the last block cut
    let mut offset = 0u64; // of the block in the text
    let mut is_first = true;
    loop {
        let count = kept + reader.fill(path, &mut block[kept..])?;
        let is_last = count < BLOCK;
        let mut start = 0;
        if is_first {
            refuse_wide(path, &block[..count])?;
            start = if block[..count].starts_with(&MARK) {
                MARK.len()
            } else {
                0
            };
        }
        let bytes = &block[start..count];
        let valid = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.valid_up_to();
                if error.error_len().is_some() || is_last {
                    return Err(TextError::NotUtf8 {
                        path: path.to_owned(),
                        offset: offset + (start + valid) as u64,
                    });
                }
                std::str::from_utf8(&bytes[..valid]).unwrap_or_default()
            }
        };
        if !valid.is_empty() || is_first {
            consumer(valid)?;
        }
        if is_last {
            return Ok(());
        }
        let end = start + valid.len();
        offset += end as u64;
        block.copy_within(end..count, 0);
        kept = count - end;
        is_first = false;
    }
}

/// Refuses UTF-16 and UTF-32: by their byte order mark, or by the zero bytes that they have in text of western languages.
fn refuse_wide(path: &Path, bytes: &[u8]) -> Result<(), TextError> {
    let probe = &bytes[..bytes.len().min(PROBE)];
    let zeros = |phase: usize| {
        let lane = probe.iter().skip(phase).step_by(4);
        (4 * lane.filter(|&&byte| byte == 0).count()) as f64 / probe.len().max(1) as f64
    };
    let lanes = [zeros(0), zeros(1), zeros(2), zeros(3)];
    let is_zero = lanes.map(|share| share > 0.3);
    let found = match probe {
        [0xFF, 0xFE, 0, 0, ..] => Some(("UTF-32 (by its byte order mark)", "UTF-32")),
        [0, 0, 0xFE, 0xFF, ..] => Some(("UTF-32 (by its byte order mark)", "UTF-32")),
        [0xFF, 0xFE, ..] => Some(("UTF-16, little-endian (by its byte order mark)", "UTF-16")),
        [0xFE, 0xFF, ..] => Some(("UTF-16, big-endian (by its byte order mark)", "UTF-16")),
        _ if probe.len() < 4 => None,
        _ => match is_zero {
            [false, true, false, true] => {
                Some(("UTF-16, little-endian (by its zero bytes)", "UTF-16LE"))
            }
            [true, false, true, false] => {
                Some(("UTF-16, big-endian (by its zero bytes)", "UTF-16BE"))
            }
            [false, true, true, true] => {
                Some(("UTF-32, little-endian (by its zero bytes)", "UTF-32LE"))
            }
            [true, true, true, false] => {
                Some(("UTF-32, big-endian (by its zero bytes)", "UTF-32BE"))
            }
            _ => None,
        },
    };
    match found {
        None => Ok(()),
        Some((found, from)) => Err(TextError::WideEncoding {
            path: path.to_owned(),
            found,
            from,
        }),
    }
}
