//! `model.safetensors.index.json`: which shard has which tensor. It can be read without any shard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::error::SourceError;
use super::header::check_printable;

/// Largest index that is read, in bytes.
const MAX_INDEX: u64 = 100_000_000;

/// The index as stored in the file.
#[derive(Debug, Deserialize)]
struct IndexWire {
    #[serde(default)]
    metadata: serde_json::Value,
    weight_map: BTreeMap<String, String>,
}

/// The index, validated: every tensor has a shard, and every shard is a plain file name.
#[derive(Debug)]
pub struct Index {
    map: BTreeMap<String, String>,
    /// Total size of all tensors in bytes, if the index has it.
    pub total_size: Option<u64>,
}

/// Reads the index at `path`.
///
/// # Errors
/// [`SourceError::Io`], [`SourceError::IndexJson`], [`SourceError::Name`], [`SourceError::ShardPath`].
pub fn read(path: &Path) -> Result<Index, SourceError> {
    let bytes = uc_input::read(path, MAX_INDEX).map_err(|source| SourceError::Io {
        path: path.to_owned(),
        source,
    })?;
    let wire: IndexWire =
        serde_json::from_slice(&bytes).map_err(|source| SourceError::IndexJson {
            path: path.to_owned(),
            source,
        })?;
    for (name, shard) in &wire.weight_map {
        check_printable(name, path)?;
        check_printable(shard, path)?;
        if !is_plain_file_name(shard) {
            let (path, name, shard) = (path.to_owned(), name.clone(), shard.clone());
            return Err(SourceError::ShardPath { path, name, shard });
        }
    }
    // Some writers store it as a float.
    let total_size = wire.metadata.get("total_size").and_then(|size| {
        let float = || size.as_f64().filter(|x| *x >= 0.0 && *x < 1e18);
        size.as_u64().or_else(|| float().map(|x| x as u64))
    });
    Ok(Index {
        map: wire.weight_map,
        total_size,
    })
}

/// Whether `shard` is a file name without directories, so that joining it to a folder stays in that folder.
fn is_plain_file_name(shard: &str) -> bool {
    let mut parts = Path::new(shard).components();
    let single = matches!(parts.next(), Some(Component::Normal(part)) if part == shard);
    single && parts.next().is_none()
}

impl Index {
    /// The shards, each once, sorted by name.
    pub fn file_names(&self) -> BTreeSet<&str> {
        self.map.values().map(String::as_str).collect()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Every tensor's name with the file name of its shard, in order of the tensor names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &str)> {
        let map = self.map.iter();
        map.map(|(name, shard)| (name.as_str(), shard.as_str()))
    }

    /// The shard that has a tensor.
    pub fn shard(&self, name: &str) -> Option<&str> {
        self.map.get(name).map(String::as_str)
    }
}
