//! Exports as GGUF, the format of llama.cpp: one file with metadata, tokenizer and tensors.
//!
//! Owns the choice of element types, which is that of llama.cpp's converter, and the layout of the file. `architecture` says
//! what llama.cpp computes, `names` where tensors go, `tokenizer` the vocabulary, `values` the bytes of the header, and
//! `file` reads such files again.

mod architecture;
mod file;
mod names;
mod tokenizer;
mod values;

use std::collections::BTreeMap;

use uc_pack::Pack;

use crate::catalog::{Catalog, Location, PackTensor};
use crate::encoding::{Encoding, Q8_0_BLOCK};
use crate::error::{ExportError, unsupported};
use crate::layout::{Layout, OutputFile, Placement, RowOrder, Segment};

pub use file::GgufFile;
use names::{Home, Homes};
use values::{Descriptor, Value};

/// The element type of the matrices of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// Blocks of 32 values of 8 bits with a common scale.
    Q8_0,
}

impl GgufType {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// llama.cpp's number for a file of mostly this type.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }
}

/// The code of an element type in a file.
fn type_code(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F32 | Encoding::AsStored(_) => 0,
        Encoding::F16 => 1,
        Encoding::Q8_0 => 8,
        Encoding::Bf16 => 30,
    }
}

/// Tensors that llama.cpp wants in float32, by the part of their name after the layer.
const FLOAT32: [&str; 3] = [
    "ffn_gate_inp.weight",
    "position_embd.weight",
    "ssm_conv1d.weight",
];

/// The type of a tensor of this name and shape, by the rules of llama.cpp's converter.
fn encoding(name: &str, shape: &[u64], element: GgufType) -> Encoding {
    let is_float32 = shape.len() <= 1
        || name.ends_with("_norm.weight")
        || !name.ends_with(".weight")
        || FLOAT32.iter().any(|end| name.ends_with(end));
    let columns = shape.last().copied().unwrap_or(1);
    match element {
        _ if is_float32 => Encoding::F32,
        GgufType::F32 => Encoding::F32,
        GgufType::Bf16 => Encoding::Bf16,
        GgufType::Q8_0 if columns.is_multiple_of(Q8_0_BLOCK) => Encoding::Q8_0,
        GgufType::F16 | GgufType::Q8_0 => Encoding::F16,
    }
}

/// The homes of all tensors of a catalog, in its order.
fn homes(catalog: &Catalog, pairs: bool) -> Result<Vec<Vec<Home>>, ExportError> {
    let config = &catalog.config;
    let non_layer = names::non_layer(config);
    let layers = config.layers.iter().enumerate();
    let layers: Vec<Homes> = layers
        .map(|(index, layer)| names::layer(layer, index, pairs))
        .collect();
    let find = |tensor: &PackTensor| {
        let homes = match tensor.location {
            Location::NonLayer { .. } => &non_layer,
            Location::Linear { layer, .. } | Location::Exact { layer, .. } => {
                &layers[layer as usize]
            }
        };
        let homes = homes.get(&tensor.local).cloned();
        homes
            .ok_or_else(|| unsupported("tensor", &tensor.name, "one that llama.cpp has a name for"))
    };
    catalog.tensors.iter().map(find).collect()
}

/// Shape in the file of the rows `home` of a tensor.
fn shape(tensor: &PackTensor, home: &Home) -> Vec<u64> {
    // Dimensions of 1 within, as those of a convolution, are left out.
    let inner = tensor.shape.iter().enumerate();
    let inner = inner
        .filter(|(at, size)| *at == 0 || **size != 1)
        .map(|(_, size)| *size);
    let mut shape: Vec<u64> = inner.collect();
    if let Some(rows) = &home.rows {
        shape[0] = rows.end - rows.start;
    }
    let count = home.expert.map(|(_, count)| count);
    count.into_iter().chain(shape).collect()
}

/// The tensors of the file that hold the tensors of a catalog, and of each of them its number and type, by name.
fn descriptors(
    catalog: &Catalog,
    homes: &[Vec<Home>],
    element: GgufType,
) -> (Vec<Descriptor>, BTreeMap<String, (usize, Encoding)>) {
    let (mut descriptors, mut numbers) = (Vec::new(), BTreeMap::new());
    for (tensor, homes) in catalog.tensors.iter().zip(homes) {
        for home in homes {
            if numbers.contains_key(&home.tensor) {
                continue;
            }
            let shape = shape(tensor, home);
            let encoding = encoding(&home.tensor, &shape, element);
            numbers.insert(home.tensor.clone(), (descriptors.len(), encoding));
            let columns = shape.last().copied().unwrap_or(1);
            let rows: u64 = shape.iter().rev().skip(1).product();
            descriptors.push(Descriptor {
                name: home.tensor.clone(),
                shape,
                type_code: type_code(encoding),
                bytes: rows * encoding.bytes(columns),
            });
        }
    }
    (descriptors, numbers)
}

/// Where the tensors go, and what llama.cpp does otherwise than the model.
///
/// # Errors
/// `Unsupported` for a model or a tokenizer that llama.cpp does not know; those of reading the tokenizer.
pub fn layout(
    pack: &Pack,
    catalog: &Catalog,
    element: GgufType,
) -> Result<(Layout, Vec<String>), ExportError> {
    let architecture = architecture::find(&catalog.config)?;
    let described = architecture.describe(&catalog.config)?;
    let (tokenizer, tokenizer_notes) = tokenizer::describe(pack, catalog.config.vocab)?;
    let mut metadata = general(pack, architecture.name, element);
    for (key, value) in described.metadata {
        metadata.push((format!("{}.{key}", architecture.name), value));
    }
    metadata.extend(tokenizer);

    let homes = homes(catalog, architecture.pairs)?;
    let (mut descriptors, numbers) = descriptors(catalog, &homes, element);
    for (name, values) in &described.tensors {
        descriptors.push(Descriptor {
            name: (*name).to_owned(),
            shape: vec![values.len() as u64],
            type_code: type_code(Encoding::F32),
            bytes: 4 * values.len() as u64,
        });
    }
    let (header, offsets) = values::header(&metadata, &descriptors);
    let first_computed = descriptors.len() - described.tensors.len();
    let computed = described.tensors.iter().zip(&offsets[first_computed..]);
    let computed = computed.map(|((_, values), offset)| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        (*offset, bytes.collect())
    });
    let end = offsets
        .iter()
        .zip(&descriptors)
        .map(|(offset, tensor)| offset + tensor.bytes)
        .max();
    let file = OutputFile {
        name: format!(
            "{}-{}.gguf",
            file_stem(&pack.manifest().source.name),
            element.name()
        ),
        computed: computed.collect(),
        size: end
            .unwrap_or(header.len() as u64)
            .next_multiple_of(values::ALIGNMENT),
        header,
    };
    let placements = catalog.tensors.iter().zip(&homes).map(|(tensor, homes)| {
        let places: Vec<_> = homes
            .iter()
            .map(|home| {
                let (number, encoding) = numbers[&home.tensor];
                (home, offsets[number], encoding)
            })
            .collect();
        placement(tensor, &places)
    });
    let layout = Layout {
        files: vec![file],
        placements: placements.collect(),
    };
    let notes = described.notes.into_iter().chain(tokenizer_notes).collect();
    Ok((layout, notes))
}

/// The metadata that every file has.
fn general(pack: &Pack, architecture: &str, element: GgufType) -> Vec<(String, Value)> {
    let manifest = pack.manifest();
    let fingerprint = pack.fingerprint().to_string();
    let mut metadata = vec![
        ("general.architecture", Value::from(architecture)),
        ("general.type", "model".into()),
        ("general.name", manifest.source.name.as_str().into()),
        ("general.file_type", element.file_type().into()),
        ("general.quantization_version", 2.into()),
        (
            "ultracompress.pack_fingerprint",
            fingerprint.as_str().into(),
        ),
    ];
    if let Some(name) = manifest.source.hub_name() {
        metadata.extend([
            ("general.base_model.count", 1.into()),
            ("general.base_model.0.name", name.into()),
        ]);
    }
    metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// The last part of a model's name, as far as it can be part of a file name.
fn file_stem(name: &str) -> String {
    let last = name
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let stem: String = last.chars().filter(is_allowed).collect();
    match stem.trim_start_matches('.') {
        "" => "model".into(),
        stem => stem.to_owned(),
    }
}

/// The placement of a tensor in the one file; `places` are its homes with the offset and type of their tensors.
fn placement(tensor: &PackTensor, places: &[(&Home, u64, Encoding)]) -> Placement {
    let (first, _, encoding) = places[0];
    // Of a bias, every value is a row: its values have the order of the rows of its matrix.
    let (rows, columns) = match first.order {
        RowOrder::Kept => (tensor.rows(), tensor.columns()),
        _ => (tensor.shape[0], tensor.values() / tensor.shape[0]),
    };
    let row_bytes = encoding.bytes(columns);
    let segments = places.iter().map(|(home, offset, _)| {
        let part = home.rows.clone().unwrap_or(0..rows);
        let expert = home.expert.map_or(0, |(index, _)| index);
        Segment {
            offset: offset + expert * (part.end - part.start) * row_bytes,
            rows: part,
            file: 0,
        }
    });
    Placement {
        rows,
        columns,
        segments: segments.collect(),
        order: first.order,
        transposed: false,
        adjustment: first.adjustment,
        encoding,
    }
}
