//! `model.safetensors.index.json`: which shard holds which tensor. It can be read without any shard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::{SourceError, SourceFolder};

/// Largest index that is read, in bytes.
const MAX_INDEX: u64 = 100_000_000;

/// The index as it is written.
#[derive(Debug, Deserialize)]
struct IndexWire {
    #[serde(default)]
    metadata: serde_json::Value,
    weight_map: BTreeMap<String, String>,
}

/// Tensor name to shard file name, every file name a plain one.
#[derive(Debug)]
pub struct Index {
    map: BTreeMap<String, String>,
    /// Bytes of all tensors, where the index says so.
    pub total_size: Option<u64>,
}

/// Reads the index at `path`.
///
/// # Errors
/// [`SourceError::Io`], [`SourceError::IndexTooLarge`], [`SourceError::IndexJson`], [`SourceError::ShardPath`].
pub fn read(path: &Path) -> Result<Index, SourceError> {
    let io = |source| SourceError::Io {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_INDEX {
        let path = path.to_owned();
        return Err(SourceError::IndexTooLarge {
            path,
            found: size,
            expected: MAX_INDEX,
        });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let wire: IndexWire =
        serde_json::from_slice(&bytes).map_err(|source| SourceError::IndexJson {
            path: path.to_owned(),
            source,
        })?;
    for (name, shard) in &wire.weight_map {
        if !is_plain(shard) {
            let (path, name, shard) = (path.to_owned(), name.clone(), shard.clone());
            return Err(SourceError::ShardPath { path, name, shard });
        }
    }
    // Some writers have it as a float.
    let total_size = wire.metadata.get("total_size").and_then(|size| {
        let float = || size.as_f64().filter(|x| *x >= 0.0 && *x < 1e18);
        size.as_u64().or_else(|| float().map(|x| x as u64))
    });
    Ok(Index {
        map: wire.weight_map,
        total_size,
    })
}

/// A file name and nothing else, so that joining it to a folder stays in that folder.
fn is_plain(shard: &str) -> bool {
    let mut parts = Path::new(shard).components();
    let single = matches!(parts.next(), Some(Component::Normal(part)) if part == shard);
    single && parts.next().is_none()
}

impl Index {
    /// The shards, each once, in order of name.
    pub fn file_names(&self) -> BTreeSet<&str> {
        self.map.values().map(String::as_str).collect()
    }

    /// The tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The shard that holds a tensor.
    pub fn shard(&self, name: &str) -> Option<&str> {
        self.map.get(name).map(String::as_str)
    }

    /// Checks that index and opened shards have the same tensors in the same places.
    pub(super) fn compare(&self, path: &Path, folder: &SourceFolder) -> Result<(), SourceError> {
        let mismatch = |name: &str, found: &str, expected: &str| SourceError::IndexMismatch {
            path: path.to_owned(),
            name: name.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        for (name, shard) in &self.map {
            let found = folder
                .tensors
                .get(name)
                .map_or("no shard", |info| folder.shard(info.file));
            if found != shard {
                return Err(mismatch(name, found, shard));
            }
        }
        match folder
            .tensors
            .values()
            .find(|info| !self.map.contains_key(&info.name))
        {
            None => Ok(()),
            Some(extra) => Err(mismatch(&extra.name, folder.shard(extra.file), "no shard")),
        }
    }
}

impl SourceFolder {
    /// File name of shard number `file`.
    fn shard(&self, file: usize) -> &str {
        self.files[file]
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }
}
