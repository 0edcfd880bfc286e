//! The tensors of a pack with the model that they belong to: what a format distributes over its files.
//!
//! Owns the list of tensors and the reading of one of them in pieces of rows, during which its digest is computed. Knows no
//! format.

use std::io::Read;
use std::path::Path;

use uc_model::ModelConfig;
use uc_model::spec::Stored;
use uc_pack::layer::PieceBuffers;
use uc_pack::{CONFIG_FILE, Digest, ExactDtype, LayerFile, NonLayerFile, Pack};
use uc_store::StoreError;
use uc_store::sha::Hasher;

use crate::error::{ExportError, unsupported};

/// Approximate number of values of a piece of an exact tensor.
const PIECE_VALUES: u64 = 1 << 16;
/// Largest `config.json` that is read, bytes.
const MAX_CONFIG: u64 = uc_input::SMALL_JSON;

/// Where a pack holds a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// A coded linear of a layer, by its index in the layer file.
    Linear {
        /// The layer.
        layer: u32,
        /// Index in the file.
        index: usize,
    },
    /// An exact tensor of a layer, by its index in the layer file.
    Exact {
        /// The layer.
        layer: u32,
        /// Index in the file.
        index: usize,
    },
    /// A tensor outside the layers, by its index in the file.
    NonLayer {
        /// Index in the file.
        index: usize,
    },
}

/// A tensor of a pack.
#[derive(Debug, Clone, PartialEq)]
pub struct PackTensor {
    /// Full name: that of the source, except for one matrix of a tensor with all experts.
    pub name: String,
    /// Name within the layer; the full name for a tensor outside the layers.
    pub local: String,
    /// Where it is.
    pub location: Location,
    /// Element type as reconstructed: bfloat16 for a linear.
    pub dtype: ExactDtype,
    /// Dimensions, outermost first; `[rows, columns]` for a linear.
    pub shape: Vec<u64>,
    /// Digest of the values.
    pub sha256: Digest,
    /// How the source stores it.
    pub stored: Stored,
}

impl PackTensor {
    /// Values of one row, the innermost dimension; 1 for a scalar.
    pub fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.shape.iter().rev().skip(1).product()
    }

    /// Number of values.
    pub fn values(&self) -> u64 {
        self.rows() * self.columns()
    }
}

/// The tensors of a pack, and the description of its model.
#[derive(Debug)]
pub struct Catalog {
    /// The model.
    pub config: ModelConfig,
    /// The text of config.json.
    pub config_text: Vec<u8>,
    /// The tensors: first those outside the layers, then layer by layer.
    pub tensors: Vec<PackTensor>,
}

/// The description of the model in a pack.
///
/// # Errors
/// `Store` if config.json cannot be read, `Config` if it is not that of a known model.
pub fn model_config(pack: &Pack) -> Result<(ModelConfig, Vec<u8>), ExportError> {
    let path = pack.path(CONFIG_FILE);
    let text = uc_input::read(&path, MAX_CONFIG).map_err(|source| StoreError::Io {
        action: "read",
        path: path.display().to_string().into(),
        source,
    })?;
    let has_tensor = pack.manifest().name_search();
    let config = ModelConfig::from_json(&text, Path::new(CONFIG_FILE), &has_tensor)?;
    Ok((config, text))
}

impl Catalog {
    /// The tensors of a pack whose names and shapes have been compared with its configuration.
    ///
    /// # Errors
    /// Those of [`model_config`], and `Unsupported` if a linear is none of the model's.
    pub fn of(pack: &Pack) -> Result<Self, ExportError> {
        let (config, config_text) = model_config(pack)?;
        let manifest = pack.manifest();
        let mut tensors = Vec::new();
        for (index, entry) in manifest.non_layer.tensors.iter().enumerate() {
            tensors.push(PackTensor {
                name: entry.name.clone(),
                local: entry.name.clone(),
                location: Location::NonLayer { index },
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                sha256: entry.sha256,
                stored: Stored::Whole,
            });
        }
        for (layer, entry) in (0..).zip(&manifest.layers) {
            let plan = config.layer_plan(layer as usize);
            for (index, linear) in entry.linears.iter().enumerate() {
                let planned = plan.linear(&linear.name).ok_or_else(|| {
                    unsupported(
                        format!("linear of layer {layer}"),
                        &linear.name,
                        "a linear of the model that config.json describes",
                    )
                })?;
                tensors.push(PackTensor {
                    name: format!("{}{}", entry.prefix, linear.name),
                    local: linear.name.clone(),
                    location: Location::Linear { layer, index },
                    dtype: ExactDtype::BF16,
                    shape: linear.shape.to_vec(),
                    sha256: linear.reconstructed_sha256,
                    stored: planned.stored.clone(),
                });
            }
            for (index, exact) in entry.exact.iter().enumerate() {
                tensors.push(PackTensor {
                    name: format!("{}{}", entry.prefix, exact.name),
                    local: exact.name.clone(),
                    location: Location::Exact { layer, index },
                    dtype: exact.dtype,
                    shape: exact.shape.clone(),
                    sha256: exact.sha256,
                    stored: Stored::Whole,
                });
            }
        }
        Ok(Self {
            config,
            config_text,
            tensors,
        })
    }

    /// The tensors of a layer, or those outside the layers, with their indices in [`Catalog::tensors`].
    pub fn part(&self, layer: Option<u32>) -> impl Iterator<Item = (usize, &PackTensor)> {
        let belongs = move |tensor: &PackTensor| match tensor.location {
            Location::NonLayer { .. } => layer.is_none(),
            Location::Linear { layer: of, .. } | Location::Exact { layer: of, .. } => {
                layer == Some(of)
            }
        };
        let all = self.tensors.iter().enumerate();
        all.filter(move |(_, tensor)| belongs(tensor))
    }
}

/// The open file of a part of a pack.
#[derive(Debug)]
pub enum PartFile {
    /// The file of a layer.
    Layer(Box<LayerFile>),
    /// The file of the tensors outside the layers.
    NonLayer(NonLayerFile),
}

impl PartFile {
    /// Opens the file of a layer, or that of the tensors outside the layers.
    ///
    /// # Errors
    /// Those of [`Pack::layer`] and [`Pack::non_layer`].
    pub fn open(pack: &Pack, layer: Option<u32>) -> Result<Self, ExportError> {
        Ok(match layer {
            Some(layer) => Self::Layer(Box::new(pack.layer(layer)?)),
            None => Self::NonLayer(pack.non_layer()?),
        })
    }

    /// Passes the values of a tensor to `sink` in pieces of whole rows, little-endian, and checks their digest at the end.
    /// After `sink` has failed it is not called again.
    ///
    /// # Errors
    /// `Pack`, `Store`, `Digest` with the tensor's name, and the error of `sink`.
    pub fn read(
        &self,
        tensor: &PackTensor,
        buffers: &mut PieceBuffers,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let (mut hasher, mut failed) = (Hasher::default(), None);
        let mut take = |bytes: &[u8]| {
            hasher.update(bytes);
            if failed.is_none() {
                failed = sink(bytes).err();
            }
        };
        match (self, tensor.location) {
            (Self::Layer(file), Location::Linear { index, .. }) => {
                let mut bytes = Vec::new();
                file.reconstruct_pieces(index, buffers, &mut |words| {
                    bytes.clear();
                    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
                    take(&bytes);
                })?;
            }
            (Self::Layer(file), Location::Exact { index, .. }) => {
                read_rows(tensor, file.exact_reader(index), &mut take)?;
            }
            (Self::NonLayer(file), Location::NonLayer { index }) => {
                read_rows(tensor, file.reader(index)?, &mut take)?;
            }
            _ => unreachable!("a tensor is read from the file of its part"),
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let found = Digest(hasher.finish().0.0);
        if found != tensor.sha256 {
            return Err(ExportError::Digest {
                tensor: tensor.name.clone(),
                found: found.to_string(),
                expected: tensor.sha256.to_string(),
            });
        }
        Ok(())
    }
}

/// Reads an exact tensor in pieces of whole rows.
fn read_rows(
    tensor: &PackTensor,
    mut reader: impl Read,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), ExportError> {
    let row = tensor.columns() * tensor.dtype.width();
    let rows_at_once = (PIECE_VALUES / tensor.columns()).max(1);
    let mut left = tensor.rows();
    let mut bytes = Vec::new();
    while left > 0 {
        let rows = left.min(rows_at_once);
        bytes.resize((rows * row) as usize, 0);
        let read = reader.read_exact(&mut bytes);
        read.map_err(|source| StoreError::Io {
            action: "read",
            path: tensor.name.as_str().into(),
            source,
        })?;
        take(&bytes);
        left -= rows;
    }
    Ok(())
}
