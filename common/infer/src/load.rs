//! From a pack to a model: reads every tensor once, checks its digest, and turns linears into their resident form.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use uc_model::ModelConfig;
use uc_pack::digest::Hasher;
use uc_pack::layer::{Contents, PieceBuffers};
use uc_pack::manifest::{ExactEntry, LayerEntry};
use uc_pack::{CONFIG_FILE, Digest, ExactDtype, LayerFile, NonLayerFile, Pack};

use crate::arithmetic::{Arithmetic, MemoryForm};
use crate::coded::CodedBuilder;
use crate::columns::Columns;
use crate::error::InferError;
use crate::huge_pages;
use crate::matrix::{Dense, Matrix};
use crate::model::Model;
use crate::source::Source;
use crate::streamed::Streamed;

/// Whether what is read is compared with the manifest's digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Every tensor and the configuration.
    Digests,
    /// Sizes and structure only.
    Structure,
}

/// How a pack is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// What is compared with the manifest.
    pub checks: Checks,
    /// The arithmetic of the products with compressed linears.
    pub arithmetic: Arithmetic,
    /// How compressed linears are kept.
    pub memory: MemoryForm,
}

/// Loads the model of a pack, on the threads of the current pool. With [`Checks::Digests`], the SHA-256 of every tensor that the
/// model uses, as reconstructed here, is compared with the manifest.
///
/// # Errors
/// [`InferError::Pack`], [`InferError::Config`], [`InferError::Layers`], [`InferError::NoTensor`], [`InferError::Tensor`],
/// [`InferError::Digest`].
pub fn load(pack: &Pack, options: LoadOptions) -> Result<Model, InferError> {
    let checks = options.checks;
    let config = config(pack, checks)?;
    let found = pack.manifest().layers.len();
    if found != config.layers.len() {
        return Err(InferError::Layers {
            origin: pack.path("").display().to_string(),
            found,
            expected: config.layers.len(),
        });
    }
    let non_layer = NonLayer {
        file: pack.non_layer()?,
        entries: by_name(&pack.manifest().non_layer.tensors),
        origin: pack.path(uc_pack::NON_LAYER_FILE).display().to_string(),
        checks,
    };
    let LoadOptions {
        arithmetic, memory, ..
    } = options;
    Model::new(config, arithmetic, memory, &non_layer, |index| {
        PackedLayer::open(pack, index, options)
    })
}

/// The description of the pack's model.
fn config(pack: &Pack, checks: Checks) -> Result<ModelConfig, InferError> {
    let bytes = file(pack, CONFIG_FILE, checks)?;
    let has_tensor = pack.manifest().name_search();
    let path = pack.path(CONFIG_FILE);
    Ok(ModelConfig::from_json(&bytes, &path, &has_tensor)?)
}

/// The bytes of one of the pack's small files, checked against the manifest.
///
/// # Errors
/// [`InferError::NoFile`] if the manifest does not name the file, [`InferError::Io`], [`InferError::Digest`].
pub fn file(pack: &Pack, name: &str, checks: Checks) -> Result<Vec<u8>, InferError> {
    let path = pack.path(name);
    let bytes = uc_input::read(&path, uc_input::LARGE_JSON).map_err(|source| InferError::Io {
        path: path.clone(),
        source,
    })?;
    let entry = pack.manifest().files.iter().find(|file| file.name == name);
    let entry = entry.ok_or_else(|| InferError::NoFile {
        origin: pack.path(uc_pack::MANIFEST_FILE).display().to_string(),
        file: name.to_owned(),
    })?;
    if checks == Checks::Digests {
        compare(
            &path.display().to_string(),
            Digest::hash_bytes(&bytes),
            entry.sha256,
        )?;
    }
    Ok(bytes)
}

/// Loads the pack's tokenizer, whose file is compared with the manifest.
///
/// # Errors
/// Those of [`file`], [`InferError::Text`].
pub fn tokenizer(pack: &Pack, checks: Checks) -> Result<uc_model::Tokenizer, InferError> {
    file(pack, "tokenizer.json", checks)?;
    Ok(uc_model::Tokenizer::load(&pack.path(""))?)
}

fn compare(what: &str, found: Digest, expected: Digest) -> Result<(), InferError> {
    if found == expected {
        return Ok(());
    }
    Err(InferError::Digest {
        what: what.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

fn by_name(entries: &[ExactEntry]) -> BTreeMap<&str, &ExactEntry> {
    let named = entries.iter().map(|entry| (entry.name.as_str(), entry));
    named.collect()
}

/// The values of an exact tensor in a layer file or outside the layers, which `reader` gives. They are read in pieces, so that a
/// large tensor is in memory once.
fn dense(
    tensor: &str,
    mut reader: impl Read,
    entry: &ExactEntry,
    shape: &[usize],
    checks: Checks,
) -> Result<Dense, InferError> {
    let wrong = |found: String, expected: String| InferError::Tensor {
        tensor: tensor.to_owned(),
        found,
        expected,
    };
    let expected: Vec<u64> = shape.iter().map(|&dimension| dimension as u64).collect();
    if entry.shape != expected {
        let (found, expected) = (format!("{:?}", entry.shape), format!("{expected:?}"));
        return Err(wrong(found, expected));
    }
    let count = shape.iter().product();
    let mut hasher = (checks == Checks::Digests).then(Hasher::default);
    let mut read = |bytes: &mut [u8]| {
        reader.read_exact(bytes).map_err(|source| InferError::Io {
            path: tensor.into(),
            source,
        })?;
        if let Some(hasher) = &mut hasher {
            hasher.bytes(bytes);
        }
        Ok(())
    };
    let values = match entry.dtype {
        ExactDtype::F32 => Dense::F32(values(count, &mut read, f32::from_le_bytes)?),
        ExactDtype::F16 => Dense::F16(values(count, &mut read, half::f16::from_le_bytes)?),
        ExactDtype::BF16 => Dense::Bf16(values(count, &mut read, half::bf16::from_le_bytes)?),
        other => return Err(wrong(format!("{other:?}"), "F32, F16 or BF16".to_owned())),
    };
    if let Some(hasher) = hasher {
        compare(tensor, hasher.finish(), entry.sha256)?;
    }
    Ok(values)
}

/// `count` values of `N` bytes each.
fn values<T, const N: usize>(
    count: usize,
    read: &mut dyn FnMut(&mut [u8]) -> Result<(), InferError>,
    value: fn([u8; N]) -> T,
) -> Result<Vec<T>, InferError> {
    /// Values that are read at the same time.
    const PIECE: usize = 1 << 18;
    let mut values = huge_pages::with_capacity(count);
    let mut bytes = vec![0; N * count.min(PIECE)];
    while values.len() < count {
        let bytes = &mut bytes[..N * PIECE.min(count - values.len())];
        read(bytes)?;
        values.extend(bytes.as_chunks().0.iter().map(|&bytes| value(bytes)));
    }
    Ok(values)
}

/// The tensors outside the layers.
struct NonLayer<'a> {
    file: NonLayerFile,
    entries: BTreeMap<&'a str, &'a ExactEntry>,
    origin: String,
    checks: Checks,
}

impl Source for NonLayer<'_> {
    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, InferError> {
        let values = self.exact(name, &[rows, cols])?;
        Ok(Matrix::Dense { values, cols })
    }

    fn exact(&self, name: &str, shape: &[usize]) -> Result<Dense, InferError> {
        let entry = self.entries.get(name).ok_or_else(|| InferError::NoTensor {
            origin: self.origin.clone(),
            tensor: name.to_owned(),
        })?;
        let tensor = format!("{}: {name}", self.origin);
        dense(
            &tensor,
            self.file.read_values(name)?,
            entry,
            shape,
            self.checks,
        )
    }
}

/// The tensors of a layer.
struct PackedLayer<'a> {
    file: Arc<LayerFile>,
    entry: &'a LayerEntry,
    /// Index in the file, by name.
    linears: BTreeMap<&'a str, usize>,
    /// Index in the file, by name.
    exact: BTreeMap<&'a str, usize>,
    /// For each group of linears that read one input.
    columns: Vec<Option<Columns>>,
    options: LoadOptions,
}

impl<'a> PackedLayer<'a> {
    fn open(pack: &'a Pack, index: usize, options: LoadOptions) -> Result<Self, InferError> {
        // The file has the tensors of its entry, in this order: that is checked when it is opened.
        let mut file = pack.layer_unhashed(index as u32)?;
        if options.memory == MemoryForm::Streamed {
            file = file.into_memory()?;
        }
        let entry = &pack.manifest().layers[index];
        let linears = entry.linears.iter().map(|linear| linear.name.as_str());
        let exact = entry.exact.iter().map(|tensor| tensor.name.as_str());
        let mut columns: Vec<Option<Columns>> = vec![None; file.groups().len()];
        for (index, linear) in file.linears().iter().enumerate() {
            if columns[linear.group].is_none() {
                columns[linear.group] = Some(Columns::new(&file.column_log2_eighths(index)?));
            }
        }
        Ok(PackedLayer {
            columns,
            file: file.into(),
            entry,
            linears: linears.zip(0..).collect(),
            exact: exact.zip(0..).collect(),
            options,
        })
    }

    fn missing(&self, name: &str) -> InferError {
        InferError::NoTensor {
            origin: self.file.origin().to_owned(),
            tensor: name.to_owned(),
        }
    }

    /// Linear `index` in its resident form.
    fn linear(&self, index: usize) -> Result<Matrix, InferError> {
        let header = &self.file.linears()[index];
        let columns = self.columns[header.group].clone();
        let mut builder = CodedBuilder::new(
            header.rows,
            header.step,
            columns.expect("columns of every group that has linears"),
            self.file.overlay(index)?,
            self.options.arithmetic,
            match self.options.memory {
                MemoryForm::Resident => None,
                MemoryForm::Streamed => Some(Streamed::new(self.file.clone(), index)),
            },
        );
        let mut buffers = PieceBuffers::default();
        let mut hasher = Hasher::default();
        let contents = match self.options.checks {
            Checks::Digests => Contents::Weights,
            Checks::Structure => Contents::Indices,
        };
        let mut pieces = self.file.pieces(index, contents, &mut buffers)?;
        while let Some(piece) = pieces.next_piece()? {
            builder.rows(piece.q, piece.row_log2_eighths, piece.row_step_log2_eighths);
            hasher.words(piece.weights); // empty if they are not compared
        }
        if self.options.checks == Checks::Digests {
            let what = format!("{}: {}", self.file.origin(), header.name);
            let expected = self.entry.linears[index].reconstructed_sha256;
            compare(&what, hasher.finish(), expected)?;
        }
        Ok(Matrix::Coded(builder.finish()))
    }
}

impl Source for PackedLayer<'_> {
    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, InferError> {
        let Some(&index) = self.linears.get(name) else {
            // A router is stored exactly.
            let values = self.exact(name, &[rows, cols])?;
            return Ok(Matrix::Dense { values, cols });
        };
        let header = &self.file.linears()[index];
        if [header.rows, header.cols] != [rows, cols] {
            return Err(InferError::Tensor {
                tensor: format!("{}: {name}", self.file.origin()),
                found: format!("{:?}", [header.rows, header.cols]),
                expected: format!("{:?}", [rows, cols]),
            });
        }
        self.linear(index)
    }

    fn exact(&self, name: &str, shape: &[usize]) -> Result<Dense, InferError> {
        let index = *self.exact.get(name).ok_or_else(|| self.missing(name))?;
        let tensor = format!("{}: {name}", self.file.origin());
        dense(
            &tensor,
            self.file.exact_reader(index),
            &self.entry.exact[index],
            shape,
            self.options.checks,
        )
    }
}
