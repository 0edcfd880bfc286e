//! The tensors of a pack by name: descriptors, and values decoded into a buffer of the caller.
//!
//! Every tensor that is handed out has been compared with the manifest's digest, so a layer file need not be hashed as a whole
//! before one tensor of it is used. Any number of threads may read at the same time. Knows nothing of Python.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use uc_pack::layer::PieceBuffers;
use uc_pack::{CONFIG_FILE, Digest, ExactDtype, LayerFile, NonLayerFile, Pack, PackError};

use crate::layout::{self, SourceTensor};

/// Layer files that are kept open, with their headers.
const OPEN_LAYERS: usize = 8;
/// Most bytes of a config.json.
const MAX_CONFIG: u64 = 4 << 20;

/// A tensor in one of the two arrangements.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    /// Full name.
    pub(crate) name: String,
    /// Element type.
    pub(crate) dtype: ExactDtype,
    /// Dimensions, outermost first.
    pub(crate) shape: Vec<u64>,
    values: Values,
}

/// Where the values of a tensor are.
#[derive(Debug, Clone)]
enum Values {
    /// Linear of a layer.
    Linear { layer: u32, index: usize },
    /// Exact tensor of a layer.
    Exact { layer: u32, index: usize },
    /// Tensor outside the layers.
    NonLayer { index: usize },
    /// Tensors of the pack, by position, one after another.
    Stacked(Vec<usize>),
    /// The transpose of a tensor of the pack, which is a matrix.
    Transposed(usize),
}

impl Tensor {
    /// Bytes of all values.
    pub(crate) fn byte_len(&self) -> usize {
        let elements: u64 = self.shape.iter().product();
        (elements * self.dtype.width()) as usize
    }
}

/// An opened pack.
pub(crate) struct Tensors {
    pack: Pack,
    /// As the pack stores them.
    stored: Vec<Tensor>,
    stored_by_name: HashMap<String, usize>,
    /// As the source checkpoint arranges them; made on first use.
    source: OnceLock<Vec<Tensor>>,
    layers: Mutex<VecDeque<Arc<LayerFile>>>,
    non_layer: OnceLock<NonLayerFile>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tensors {
    /// Opens the pack in `dir`.
    ///
    /// # Errors
    /// Those of [`Pack::open`].
    pub(crate) fn open(dir: &Path) -> Result<Self, PackError> {
        let pack = Pack::open(dir)?;
        let mut stored = Vec::new();
        for layer in &pack.manifest().layers {
            for (index, linear) in layer.linears.iter().enumerate() {
                stored.push(Tensor {
                    name: format!("{}{}", layer.prefix, linear.name),
                    dtype: ExactDtype::BF16,
                    shape: linear.shape.to_vec(),
                    values: Values::Linear {
                        layer: layer.index,
                        index,
                    },
                });
            }
            for (index, exact) in layer.exact.iter().enumerate() {
                stored.push(Tensor {
                    name: format!("{}{}", layer.prefix, exact.name),
                    dtype: exact.dtype,
                    shape: exact.shape.clone(),
                    values: Values::Exact {
                        layer: layer.index,
                        index,
                    },
                });
            }
        }
        for (index, exact) in pack.manifest().non_layer.tensors.iter().enumerate() {
            stored.push(Tensor {
                name: exact.name.clone(),
                dtype: exact.dtype,
                shape: exact.shape.clone(),
                values: Values::NonLayer { index },
            });
        }
        let names = stored.iter().enumerate();
        Ok(Self {
            stored_by_name: names.map(|(i, t)| (t.name.clone(), i)).collect(),
            pack,
            stored,
            source: OnceLock::new(),
            layers: Mutex::default(),
            non_layer: OnceLock::new(),
        })
    }

    /// The pack.
    pub(crate) fn pack(&self) -> &Pack {
        &self.pack
    }

    /// The tensors as the pack stores them: linears are `[outputs, inputs]`.
    pub(crate) fn stored(&self) -> &[Tensor] {
        &self.stored
    }

    /// The tensors under the names and in the shapes of the source checkpoint.
    ///
    /// # Errors
    /// `Io` and `Digest` for config.json, `Invalid` if it does not describe this pack.
    pub(crate) fn source(&self) -> Result<&[Tensor], PackError> {
        if let Some(tensors) = self.source.get() {
            return Ok(tensors);
        }
        let tensors = self.arrange()?;
        Ok(self.source.get_or_init(|| tensors))
    }

    fn arrange(&self) -> Result<Vec<Tensor>, PackError> {
        let path = self.pack.path(CONFIG_FILE);
        let origin = path.display().to_string();
        let config = uc_input::open_without_link(&path)
            .and_then(|file| uc_input::read_from(file, MAX_CONFIG))
            .map_err(|source| PackError::Io {
                origin: origin.clone(),
                source,
            })?;
        let (found, expected) = (
            Digest::hash_bytes(&config),
            self.pack.manifest().source.config_sha256,
        );
        if found != expected {
            return Err(PackError::Digest {
                origin,
                what: "the file".to_owned(),
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        let invalid = |what: String, expected: &str| PackError::Invalid {
            origin: origin.clone(),
            what: "tensors of the model".to_owned(),
            found: what,
            expected: expected.to_owned(),
        };
        let has_tensor = self.pack.manifest().name_search();
        let rearranged = layout::rearranged(&config, &has_tensor)
            .map_err(|message| invalid(message, "a configuration that this program reads"))?;
        let mut moved: HashMap<usize, usize> = HashMap::new();
        let mut arranged = Vec::with_capacity(rearranged.len());
        for tensor in rearranged {
            let parts = tensor.parts.iter();
            let parts = parts.map(|name| self.stored_by_name.get(name).copied());
            let parts: Option<Vec<usize>> = parts.collect();
            let parts = parts.filter(|parts| self.fits(&tensor, parts));
            let parts = parts.ok_or_else(|| {
                invalid(
                    format!("no parts of {}", tensor.name),
                    "the pack of this model",
                )
            })?;
            moved.extend(parts.iter().map(|part| (*part, arranged.len())));
            arranged.push(Some(Tensor {
                name: tensor.name,
                dtype: ExactDtype::BF16,
                shape: tensor.shape,
                values: match tensor.transposed {
                    true => Values::Transposed(parts[0]),
                    false => Values::Stacked(parts),
                },
            }));
        }
        // A rearranged tensor stands where its first part stands in the pack.
        let mut tensors = Vec::with_capacity(self.stored.len());
        for (i, tensor) in self.stored.iter().enumerate() {
            match moved.get(&i) {
                None => tensors.push(tensor.clone()),
                Some(&position) => tensors.extend(arranged[position].take()),
            }
        }
        Ok(tensors)
    }

    /// Whether the parts have as many values as the source's tensor, all of one shape.
    fn fits(&self, tensor: &SourceTensor, parts: &[usize]) -> bool {
        let shape = &self.stored[parts[0]].shape;
        let same = parts.iter().all(|part| &self.stored[*part].shape == shape);
        let values: u64 = shape.iter().product::<u64>() * parts.len() as u64;
        same && values == tensor.shape.iter().product::<u64>()
    }

    /// Decodes a tensor into `out`, which has its length in bytes: row-major, little-endian.
    ///
    /// # Errors
    /// `Io`, `Codec`, and `Digest` if the values are not those that the manifest records.
    pub(crate) fn read(&self, tensor: &Tensor, out: &mut [u8]) -> Result<(), PackError> {
        let manifest = self.pack.manifest();
        match &tensor.values {
            Values::Linear { layer, index } => {
                let file = self.layer(*layer)?;
                let mut filled = 0;
                let mut sink = |weights: &[u16]| {
                    let target = &mut out[filled..filled + 2 * weights.len()];
                    let (target, _) = target.as_chunks_mut::<2>();
                    for (bytes, weight) in target.iter_mut().zip(weights) {
                        *bytes = weight.to_le_bytes();
                    }
                    filled += 2 * weights.len();
                };
                file.reconstruct_pieces(*index, &mut PieceBuffers::default(), &mut sink)?;
                let entry = &manifest.layers[*layer as usize].linears[*index];
                compare(file.origin(), &tensor.name, out, entry.reconstructed_sha256)
            }
            Values::Exact { layer, index } => {
                let file = self.layer(*layer)?;
                let read = file.exact_reader(*index).read_exact(out);
                read.map_err(io(file.origin()))?;
                let entry = &manifest.layers[*layer as usize].exact[*index];
                compare(file.origin(), &tensor.name, out, entry.sha256)
            }
            Values::NonLayer { index } => {
                let file = self.non_layer()?;
                let path = self.pack.path(uc_pack::NON_LAYER_FILE);
                let origin = path.display().to_string();
                file.reader(*index)?.read_exact(out).map_err(io(&origin))?;
                let entry = &manifest.non_layer.tensors[*index];
                compare(&origin, &tensor.name, out, entry.sha256)
            }
            Values::Stacked(parts) => {
                let length = out.len() / parts.len();
                for (part, out) in parts.iter().zip(out.chunks_exact_mut(length)) {
                    self.read(&self.stored[*part], out)?;
                }
                Ok(())
            }
            Values::Transposed(part) => {
                let part = &self.stored[*part];
                let mut stored = vec![0; part.byte_len()];
                self.read(part, &mut stored)?;
                transpose(&stored, part.shape[1] as usize, out);
                Ok(())
            }
        }
    }

    /// The file of a layer, from among those that are open or opened now.
    fn layer(&self, layer: u32) -> Result<Arc<LayerFile>, PackError> {
        let mut open = lock(&self.layers);
        if let Some(position) = open.iter().position(|file| file.layer() == layer) {
            let file = open.remove(position).expect("a position of the queue");
            open.push_back(Arc::clone(&file));
            return Ok(file);
        }
        drop(open);
        let file = Arc::new(self.pack.layer_unhashed(layer)?);
        let mut open = lock(&self.layers);
        if open.len() >= OPEN_LAYERS {
            open.pop_front();
        }
        open.push_back(Arc::clone(&file));
        Ok(file)
    }

    fn non_layer(&self) -> Result<&NonLayerFile, PackError> {
        if let Some(file) = self.non_layer.get() {
            return Ok(file);
        }
        let file = self.pack.non_layer()?;
        Ok(self.non_layer.get_or_init(|| file))
    }
}

fn io(origin: &str) -> impl FnOnce(std::io::Error) -> PackError + '_ {
    move |source| PackError::Io {
        origin: origin.to_owned(),
        source,
    }
}

/// Compares the values of a tensor with the recorded digest.
fn compare(origin: &str, name: &str, values: &[u8], expected: Digest) -> Result<(), PackError> {
    let found = Digest::hash_bytes(values);
    if found == expected {
        return Ok(());
    }
    Err(PackError::Digest {
        origin: origin.to_owned(),
        what: name.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// Rows of the target that are written together: two of their cache lines for each value of a row that is read.
const TRANSPOSED_ROWS: usize = 32;

/// Writes the transpose of `values: [rows, cols]`, of 2 bytes each, to `out: [cols, rows]`.
fn transpose(values: &[u8], cols: usize, out: &mut [u8]) {
    let (values, _) = values.as_chunks::<2>();
    let (out, _) = out.as_chunks_mut::<2>();
    let rows = values.len() / cols;
    for first in (0..cols).step_by(TRANSPOSED_ROWS) {
        for row in 0..rows {
            for col in first..cols.min(first + TRANSPOSED_ROWS) {
                out[col * rows + row] = values[row * cols + col];
            }
        }
    }
}
