//! Exports as safetensors: the tensors of the source under their names, in shards, with an index.
//!
//! A linear is stored as the source stores it: transposed where the source does, and as a slice of the tensor with all experts.
//! Owns the division into shards, their headers and the index. Alignment of the data: 8 bytes, by spaces after the header.

use std::collections::BTreeMap;

use serde_json::json;
use uc_model::spec::Stored;
use uc_pack::ExactDtype;

use crate::catalog::{Catalog, PackTensor};
use crate::encoding::{Adjustment, Encoding};
use crate::layout::{Layout, OutputFile, Placement, RowOrder, Segment};

/// Largest shard, bytes of tensors: the usual 5 GB. A larger tensor has a shard of its own.
pub const SHARD_BYTES: u64 = 5_000_000_000;
/// Name of the only file, if one is enough.
const SINGLE: &str = "model.safetensors";
/// Name of the index of shards.
pub const INDEX: &str = "model.safetensors.index.json";
/// Alignment of the data after the header, bytes.
const ALIGNMENT: usize = 8;

/// A tensor of the export.
struct Tensor {
    name: String,
    dtype: ExactDtype,
    shape: Vec<u64>,
    bytes: u64,
}

/// Where the tensors go, and the index if there are several files.
pub fn layout(catalog: &Catalog, shard_bytes: u64) -> (Layout, Option<Vec<u8>>) {
    let (tensors, homes) = tensors(catalog);
    let shards = shards(&tensors, shard_bytes);
    let names = file_names(shards.len());
    let mut files = Vec::with_capacity(shards.len());
    // Per tensor: file and offset in it.
    let mut places = Vec::with_capacity(tensors.len());
    for (file, (name, shard)) in names.iter().zip(&shards).enumerate() {
        let tensors = &tensors[shard.clone()];
        let header = header(tensors);
        let mut offset = header.len() as u64;
        for tensor in tensors {
            places.push((file, offset));
            offset += tensor.bytes;
        }
        files.push(OutputFile {
            name: name.clone(),
            header,
            computed: Vec::new(),
            size: offset,
        });
    }
    let placements = catalog.tensors.iter().zip(&homes);
    let placements = placements
        .map(|(tensor, &home)| placement(tensor, places[home]))
        .collect();
    let index = (files.len() > 1).then(|| index(&tensors, &places, &names));
    (Layout { files, placements }, index)
}

/// The tensors as the source has them, and for each tensor of the pack the one that it is or is a part of.
fn tensors(catalog: &Catalog) -> (Vec<Tensor>, Vec<usize>) {
    let (mut tensors, mut homes) = (Vec::new(), Vec::new());
    let mut by_name = BTreeMap::new();
    for tensor in &catalog.tensors {
        let (name, shape) = source_tensor(tensor);
        let home = *by_name.entry(name.clone()).or_insert_with(|| {
            let bytes = shape.iter().product::<u64>() * tensor.dtype.width();
            tensors.push(Tensor {
                name,
                dtype: tensor.dtype,
                shape,
                bytes,
            });
            tensors.len() - 1
        });
        homes.push(home);
    }
    (tensors, homes)
}

/// Full name and shape of the source's tensor that holds a tensor of the pack.
fn source_tensor(tensor: &PackTensor) -> (String, Vec<u64>) {
    match &tensor.stored {
        Stored::Whole => (tensor.name.clone(), tensor.shape.clone()),
        Stored::Transposed => {
            let shape = tensor.shape.iter().rev().copied().collect();
            (tensor.name.clone(), shape)
        }
        Stored::Slice {
            tensor: whole,
            count,
            ..
        } => {
            let prefix = tensor.name.strip_suffix(&tensor.local).unwrap_or_default();
            let shape = [*count as u64].into_iter().chain(tensor.shape.clone());
            (format!("{prefix}{whole}"), shape.collect())
        }
    }
}

/// The place of a tensor of the pack in the tensor of the source that begins at `offset` of file `file`.
fn placement(tensor: &PackTensor, (file, offset): (usize, u64)) -> Placement {
    let encoding = Encoding::AsStored(tensor.dtype);
    let (mut rows, mut columns) = (tensor.rows(), tensor.columns());
    let transposed = tensor.stored == Stored::Transposed;
    if transposed {
        (rows, columns) = (columns, rows);
    }
    let offset = match &tensor.stored {
        Stored::Slice { index, .. } => offset + *index as u64 * rows * encoding.bytes(columns),
        _ => offset,
    };
    Placement {
        rows,
        columns,
        segments: vec![Segment {
            rows: 0..rows,
            file,
            offset,
        }],
        order: RowOrder::Kept,
        transposed,
        adjustment: Adjustment::None,
        encoding,
    }
}

/// The tensors of each shard.
fn shards(tensors: &[Tensor], shard_bytes: u64) -> Vec<std::ops::Range<usize>> {
    let (mut shards, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + tensor.bytes > shard_bytes {
            shards.push(first..index);
            (first, bytes) = (index, 0);
        }
        bytes += tensor.bytes;
    }
    shards.push(first..tensors.len());
    shards
}

/// The names that transformers gives to so many shards.
fn file_names(count: usize) -> Vec<String> {
    match count {
        1 => vec![SINGLE.to_owned()],
        _ => (1..=count)
            .map(|number| format!("model-{number:05}-of-{count:05}.safetensors"))
            .collect(),
    }
}

/// Length and JSON of a shard's header.
fn header(tensors: &[Tensor]) -> Vec<u8> {
    // Sorted by name, and the fields of an entry in the order that they are written here: the bytes do not depend on how a
    // library orders its maps.
    let mut entries = BTreeMap::from([("__metadata__", json!({ "format": "pt" }))]);
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes;
        let entry = json!({
            "data_offsets": [offset, end],
            "dtype": tensor.dtype,
            "shape": tensor.shape,
        });
        entries.insert(tensor.name.as_str(), entry);
        offset = end;
    }
    let mut json = serde_json::to_vec(&entries).expect("strings and integers only");
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

/// The index: which shard holds which tensor.
fn index(tensors: &[Tensor], places: &[(usize, u64)], names: &[String]) -> Vec<u8> {
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    let places = tensors.iter().zip(places);
    let map: BTreeMap<&str, &str> = places
        .map(|(tensor, &(file, _))| (tensor.name.as_str(), names[file].as_str()))
        .collect();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    let mut text = serde_json::to_vec_pretty(&index).expect("strings and integers only");
    text.push(b'\n');
    text
}
