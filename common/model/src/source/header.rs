//! The header of one safetensors file: parsed with serde, then validated against the file.
//!
//! Format: u64 little-endian header length, the header (a JSON object of tensors, each with
//! `dtype`, `shape` and `data_offsets` counted from the end of the header, and an optional
//! `__metadata__`), then the data, every byte of which belongs to exactly one tensor.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::dtype::SourceDtype;
use super::error::SourceError;

/// Largest header that the format's own reader accepts, in bytes.
pub const MAX_HEADER: u64 = 100_000_000;

/// A tensor of one file, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: SourceDtype,
    pub shape: Vec<usize>,
    /// Offset of the first byte in the file.
    pub offset: u64,
    pub bytes: u64,
}

/// A tensor as the header describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryWire {
    dtype: SourceDtype,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's entries in file order. Duplicate names are kept so that they can be refused.
struct HeaderWire(Vec<(String, EntryWire)>);

impl<'de> Deserialize<'de> for HeaderWire {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = HeaderWire;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderWire, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(HeaderWire(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads and validates the header of `file`, which has `size` bytes; `path` is only used in errors.
pub(super) fn read(file: &File, size: u64, path: &Path) -> Result<Vec<Entry>, SourceError> {
    let io = |source| SourceError::Io {
        path: path.to_owned(),
        source,
    };
    let truncated = |expected| SourceError::TruncatedHeader {
        path: path.to_owned(),
        found: size,
        expected,
    };
    if size < 8 {
        return Err(truncated(8));
    }
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(io)?;
    let data = length_of(length, path)?;
    if size < data {
        return Err(truncated(data));
    }
    let mut header = vec![0; (data - 8) as usize];
    file.read_exact_at(&mut header, 8).map_err(io)?;
    entries(parse(&header, path)?, data, size, path)
}

/// Reads a file that contains only the header of a shard. The size of the shard follows from its tensors.
pub(super) fn read_alone(file: &File, path: &Path) -> Result<Vec<Entry>, SourceError> {
    let io = |source| SourceError::Io {
        path: path.to_owned(),
        source,
    };
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(io)?;
    let data = length_of(length, path)?;
    if size != data {
        return Err(SourceError::TruncatedHeader {
            path: path.to_owned(),
            found: size,
            expected: data,
        });
    }
    let mut header = vec![0; (data - 8) as usize];
    file.read_exact_at(&mut header, 8).map_err(io)?;
    let header = parse(&header, path)?;
    let ends = header.0.iter().map(|(_, wire)| wire.data_offsets.1);
    let size = data.saturating_add(ends.max().unwrap_or(0));
    entries(header, data, size, path)
}

/// Size of a header in bytes, including its length field, given that field, the first eight bytes of the file.
/// `path` is only used in errors.
pub fn length_of(first: [u8; 8], path: &Path) -> Result<u64, SourceError> {
    let length = u64::from_le_bytes(first);
    if length > MAX_HEADER {
        let (path, found) = (path.to_owned(), length);
        return Err(SourceError::HeaderTooLarge {
            path,
            found,
            expected: MAX_HEADER,
        });
    }
    Ok(8 + length)
}

fn parse(header: &[u8], path: &Path) -> Result<HeaderWire, SourceError> {
    serde_json::from_slice(header).map_err(|source| SourceError::HeaderJson {
        path: path.to_owned(),
        source,
    })
}

/// Validates the tensors of a shard of `size` bytes whose data begins at byte `data`.
fn entries(
    header: HeaderWire,
    data: u64,
    size: u64,
    path: &Path,
) -> Result<Vec<Entry>, SourceError> {
    let mut entries = header
        .0
        .into_iter()
        .map(|(name, wire)| check_entry(name, wire, data, size, path))
        .collect::<Result<Vec<_>, _>>()?;
    check_cover(&mut entries, data, size, path)?;
    check_names(&entries, path)?;
    Ok(entries)
}

/// Validates one tensor on its own: byte count and range.
fn check_entry(
    name: String,
    wire: EntryWire,
    data: u64,
    size: u64,
    path: &Path,
) -> Result<Entry, SourceError> {
    let EntryWire {
        dtype,
        shape,
        data_offsets: (begin, end),
    } = wire;
    check_printable(&name, path)?;
    let product = |total: u128, &dim: &u64| total.saturating_mul(u128::from(dim));
    let expected = shape.iter().fold(u128::from(dtype.size()), product);
    let found = i128::from(end) - i128::from(begin);
    if u128::try_from(found) != Ok(expected) {
        let path = path.to_owned();
        return Err(SourceError::ByteCount {
            path,
            name,
            dtype,
            shape,
            found,
            expected,
        });
    }
    let last = u128::from(data) + u128::from(end);
    if last > u128::from(size) {
        let path = path.to_owned();
        return Err(SourceError::OutOfRange {
            path,
            name,
            found: size,
            expected: last,
        });
    }
    let shape = shape.into_iter().map(|dim| dim as usize).collect();
    Ok(Entry {
        name,
        dtype,
        shape,
        offset: data + begin,
        bytes: end - begin,
    })
}

/// Sorts by offset and checks that the tensors cover the data without overlap or gap.
fn check_cover(
    entries: &mut [Entry],
    data: u64,
    size: u64,
    path: &Path,
) -> Result<(), SourceError> {
    entries.sort_by_key(|entry| (entry.offset, entry.bytes));
    let mut covered = data;
    let mut earlier: Option<&Entry> = None;
    let unclaimed = |from: u64, to: u64| SourceError::Unclaimed {
        path: path.to_owned(),
        offset: from - data,
        found: to - from,
    };
    for entry in entries.iter() {
        if entry.offset > covered {
            return Err(unclaimed(covered, entry.offset));
        }
        if let Some(other) = earlier.filter(|_| entry.offset < covered) {
            return Err(SourceError::Overlap {
                path: path.to_owned(),
                name: entry.name.clone(),
                other: other.name.clone(),
            });
        }
        covered = entry.offset + entry.bytes;
        earlier = Some(entry);
    }
    if covered < size {
        Err(unclaimed(covered, size))
    } else {
        Ok(())
    }
}

fn check_names(entries: &[Entry], path: &Path) -> Result<(), SourceError> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let (path, name) = (path.to_owned(), pair[0].to_owned());
            Err(SourceError::RepeatedName { path, name })
        }
    }
}

/// Refuses a name that would not appear in a message as it is.
pub(super) fn check_printable(name: &str, path: &Path) -> Result<(), SourceError> {
    match matches!(uc_input::printable(name), Cow::Borrowed(_)) {
        true => Ok(()),
        false => Err(SourceError::Name {
            path: path.to_owned(),
            name: name.to_owned(),
        }),
    }
}
