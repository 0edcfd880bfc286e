//! An open model folder: its files, what each tensor is and where, and the reading of tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::contents;
use super::dtype::SourceDtype;
use super::error::SourceError;
use super::header;
use super::index::{self, Index};
use super::values::{HalfType, WeightValues};
use crate::plan::LayerPlan;
use crate::spec::Stored;

/// Name of the single weight file.
pub(super) const SINGLE: &str = "model.safetensors";
/// Name of the index of a sharded model.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Suffix of the file that holds a shard's header.
const HEADER: &str = ".header";

/// Path of the header file of a shard. With it, the shard itself may be absent.
pub fn header_path(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(HEADER);
    name.into()
}

/// What a tensor is and where it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: SourceDtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Index in [`SourceFolder::files`] of the file that has it.
    file: usize,
    /// Offset of its first byte in that file.
    offset: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// A tensor as stored on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// The file it was read from, for errors.
    pub path: PathBuf,
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: SourceDtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Little-endian elements in row-major order.
    pub bytes: Vec<u8>,
}

/// An open model folder.
#[derive(Debug)]
pub struct SourceFolder {
    dir: PathBuf,
    /// The index and its path, if there is one and no single file.
    index: Option<(PathBuf, Index)>,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
    /// The shards, by index in `files`, of which only the header was read.
    headers: BTreeSet<usize>,
}

impl SourceFolder {
    /// Opens the weights of the model folder `dir` and validates every header. As in other loaders, a
    /// `model.safetensors` takes precedence over an index. Whether the tensors are where the index says, and whether
    /// all shards are there, is checked for the tensors of a model by [`SourceFolder::check`].
    ///
    /// # Errors
    /// [`SourceError`], with a variant for every way in which the files can be invalid.
    pub fn open(dir: &Path) -> Result<SourceFolder, SourceError> {
        let mut folder = SourceFolder {
            dir: dir.to_owned(),
            index: None,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            headers: BTreeSet::new(),
        };
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if exists(&single) {
            folder.add_file(single)?;
        } else if index.exists() {
            let shards = index::read(&index)?;
            for name in shards.file_names() {
                let path = dir.join(name);
                if exists(&path) {
                    folder.add_file(path)?;
                }
            }
            folder.index = Some((index, shards));
        } else {
            return Err(SourceError::NoWeights {
                path: dir.to_owned(),
                found: contents::weights(dir),
            });
        }
        Ok(folder)
    }

    /// Reads the header of a shard and adds its tensors. A header of its own is read only if the shard is absent, so that
    /// it can never replace what the shard says.
    fn add_file(&mut self, path: PathBuf) -> Result<(), SourceError> {
        let io = |source| SourceError::Io {
            path: path.clone(),
            source,
        };
        let number = self.files.len();
        let entries = match path.exists() {
            true => {
                let file = uc_input::open(&path).map_err(io)?;
                let size = file.metadata().map_err(io)?.len();
                header::read(&file, size, &path)?
            }
            false => {
                let header = header_path(&path);
                let file = uc_input::open(&header).map_err(|source| SourceError::Io {
                    path: header.clone(),
                    source,
                })?;
                self.headers.insert(number);
                header::read_alone(&file, &header)?
            }
        };
        for entry in entries {
            if let Some(earlier) = self.tensors.get(&entry.name) {
                return Err(SourceError::DuplicateTensor {
                    path,
                    name: entry.name,
                    other: self.files[earlier.file].clone(),
                });
            }
            let header::Entry {
                name,
                dtype,
                shape,
                offset,
                bytes,
            } = entry;
            let info = TensorInfo {
                name: name.clone(),
                dtype,
                shape,
                file: number,
                offset,
                bytes,
            };
            self.tensors.insert(name, info);
        }
        self.files.push(path);
        Ok(())
    }

    /// The index and its path, if the folder has one that is used.
    pub(super) fn index(&self) -> Option<(&Path, &Index)> {
        let index = self.index.as_ref();
        index.map(|(path, index)| (path.as_path(), index))
    }

    /// The shards of which only the header is there, with the header's path.
    pub fn shards_without_data(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        let paths = self
            .headers
            .iter()
            .map(|&number| self.files[number].as_path());
        paths.map(|path| (path, header_path(path)))
    }

    /// File name of the shard that has a tensor.
    pub(super) fn shard_name(&self, info: &TensorInfo) -> &str {
        self.files[info.file]
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The weight files in order, followed by the index file if there is one.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let index = self.index().map(|(path, _)| path);
        self.files.iter().map(PathBuf::as_path).chain(index)
    }

    /// The file that has a tensor, and whether the file exists now.
    pub fn file_of(&self, info: &TensorInfo) -> (&Path, bool) {
        let path = self.files[info.file].as_path();
        (path, path.exists())
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// The tensor `name`, if the folder has it.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Reads the tensor `name`.
    ///
    /// # Errors
    /// [`SourceError::NoTensor`], [`SourceError::Io`].
    pub fn read(&self, name: &str) -> Result<SourceTensor, SourceError> {
        let info = self.info(name)?;
        self.read_part(info, 0, info.bytes, info.shape.clone())
    }

    /// Reads rows `first .. first + count` of the leading dimension of the tensor `name`.
    ///
    /// # Errors
    /// [`SourceError::NoTensor`], [`SourceError::NoRows`], [`SourceError::Io`].
    pub fn read_rows(
        &self,
        name: &str,
        first: usize,
        count: usize,
    ) -> Result<SourceTensor, SourceError> {
        let info = self.info(name)?;
        let rows = info.shape.first().copied().unwrap_or(0);
        let last = first
            .checked_add(count)
            .filter(|&last| last <= rows && count > 0);
        if last.is_none() {
            let path = self.files[info.file].clone();
            return Err(SourceError::NoRows {
                path,
                name: name.to_owned(),
                first,
                count,
                rows,
            });
        }
        let row_bytes = info.bytes / rows as u64;
        let mut shape = info.shape.clone();
        shape[0] = count;
        self.read_part(
            info,
            first as u64 * row_bytes,
            count as u64 * row_bytes,
            shape,
        )
    }

    /// Reads the tensor `name`, converted to f32, refusing values that are not finite.
    ///
    /// # Errors
    /// As [`SourceFolder::read`] and [`SourceTensor::to_f32`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, SourceError> {
        self.read(name)?.to_f32()
    }

    /// Reads a tensor of a layer by its name in the plan. A linear is returned as `[rows, cols]`, however the files
    /// store it.
    ///
    /// # Errors
    /// As [`SourceFolder::read`].
    pub fn read_planned(&self, plan: &LayerPlan, name: &str) -> Result<SourceTensor, SourceError> {
        let full = |name: &str| format!("{}{name}", plan.prefix);
        let Some(linear) = plan.linear(name) else {
            return self.read(&full(name));
        };
        let mut tensor = match &linear.stored {
            Stored::Whole => return self.read(&full(name)),
            Stored::Transposed => {
                let mut tensor = self.read(&full(name))?;
                let size = tensor.dtype.size() as usize;
                tensor.bytes = transposed(&tensor.bytes, linear.rows, linear.cols, size);
                tensor
            }
            Stored::Slice { tensor, index, .. } => self.read_rows(&full(tensor), *index, 1)?,
        };
        tensor.name = full(name);
        tensor.shape = vec![linear.rows, linear.cols];
        Ok(tensor)
    }

    /// Element type of a tensor of a layer by its name in the plan, if the folder has it.
    pub fn planned_dtype(&self, plan: &LayerPlan, name: &str) -> Option<SourceDtype> {
        let stored = plan
            .linear(name)
            .map_or(name, |linear| linear.source_tensor().0);
        let info = self.tensor(&format!("{}{stored}", plan.prefix));
        info.map(|info| info.dtype)
    }

    /// As [`SourceFolder::read_planned`], converted to f32, refusing values that are not finite.
    ///
    /// # Errors
    /// As [`SourceFolder::read_f32`].
    pub fn read_planned_f32(&self, plan: &LayerPlan, name: &str) -> Result<Vec<f32>, SourceError> {
        self.read_planned(plan, name)?.to_f32()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, SourceError> {
        self.tensors.get(name).ok_or_else(|| SourceError::NoTensor {
            path: self.dir.clone(),
            name: name.to_owned(),
        })
    }

    /// As [`SourceFolder::read_planned`], for rows `first .. first + count` of a linear of the plan: `[count, cols]`, however the
    /// files store it.
    ///
    /// # Errors
    /// [`SourceError::NoTensor`], also if the plan has no linear of this name or the tensor has another size than planned;
    /// [`SourceError::NoRows`], [`SourceError::Io`].
    pub fn read_planned_rows(
        &self,
        plan: &LayerPlan,
        name: &str,
        first: usize,
        count: usize,
    ) -> Result<SourceTensor, SourceError> {
        let full = format!("{}{name}", plan.prefix);
        let missing = || SourceError::NoTensor {
            path: self.dir.clone(),
            name: full.clone(),
        };
        let linear = plan.linear(name).ok_or_else(missing)?;
        let (stored, shape) = linear.source_tensor();
        let info = self.info(&format!("{}{stored}", plan.prefix))?;
        if info.shape != shape {
            return Err(missing());
        }
        let (rows, cols, size) = (linear.rows, linear.cols, info.dtype.size());
        if first.checked_add(count).is_none_or(|end| end > rows) {
            return Err(SourceError::NoRows {
                path: self.files[info.file].clone(),
                name: full,
                first,
                count,
                rows,
            });
        }
        let bytes = |elements: usize| elements as u64 * size;
        let data = match &linear.stored {
            Stored::Whole => {
                self.read_chunks(info, bytes(first * cols), bytes(count * cols), 0, 1)?
            }
            Stored::Slice { index, .. } => {
                let start = bytes((index * rows + first) * cols);
                self.read_chunks(info, start, bytes(count * cols), 0, 1)?
            }
            Stored::Transposed => {
                let chunks =
                    self.read_chunks(info, bytes(first), bytes(count), bytes(rows), cols)?;
                transposed(&chunks, count, cols, size as usize)
            }
        };
        Ok(SourceTensor {
            path: self.files[info.file].clone(),
            name: full,
            dtype: info.dtype,
            shape: vec![count, cols],
            bytes: data,
        })
    }

    /// Reads `bytes` bytes starting at byte `start` of a tensor. The range must lie within the tensor.
    pub(super) fn read_part(
        &self,
        info: &TensorInfo,
        start: u64,
        bytes: u64,
        shape: Vec<usize>,
    ) -> Result<SourceTensor, SourceError> {
        Ok(SourceTensor {
            path: self.files[info.file].clone(),
            name: info.name.clone(),
            dtype: info.dtype,
            shape,
            bytes: self.read_chunks(info, start, bytes, 0, 1)?,
        })
    }

    /// Reads `count` chunks of `bytes` bytes, the first one at byte `start` of a tensor and each `stride` bytes after the one
    /// before it. They must lie within the tensor.
    fn read_chunks(
        &self,
        info: &TensorInfo,
        start: u64,
        bytes: u64,
        stride: u64,
        count: usize,
    ) -> Result<Vec<u8>, SourceError> {
        let path = &self.files[info.file];
        let io = |source| SourceError::Io {
            path: path.clone(),
            source,
        };
        let file = uc_input::open(path).map_err(io)?;
        let mut data = vec![0; bytes as usize * count];
        let mut offset = info.offset + start;
        for chunk in data.chunks_exact_mut((bytes as usize).max(1)) {
            file.read_exact_at(chunk, offset).map_err(io)?;
            offset += stride;
        }
        Ok(data)
    }
}

/// Transposes `[cols, rows]` elements of `size` bytes to `[rows, cols]`.
fn transposed(bytes: &[u8], rows: usize, cols: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for col in 0..cols {
            let at = (col * rows + row) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

/// Whether a shard or its header is there.
fn exists(shard: &Path) -> bool {
    shard.exists() || header_path(shard).exists()
}

/// The names of the tensors of the folder `dir`. Empty if nothing can be read: opening the folder reports why.
pub(crate) fn tensor_names(dir: &Path) -> Vec<String> {
    if !exists(&dir.join(SINGLE))
        && let Ok(index) = index::read(&dir.join(INDEX))
    {
        return index.names().map(str::to_owned).collect();
    }
    let folder = SourceFolder::open(dir);
    folder.map_or_else(
        |_| Vec::new(),
        |folder| folder.tensors.into_keys().collect(),
    )
}

impl SourceTensor {
    /// The elements as f32. The conversion is exact for all three weight types.
    ///
    /// # Errors
    /// [`SourceError::NotFloat`] for other types, [`SourceError::NonFinite`] with the index of the
    /// first element that is infinite or not a number.
    pub fn to_f32(&self) -> Result<Vec<f32>, SourceError> {
        Ok(self.to_values()?.into_f32())
    }

    /// The elements, without a conversion if they have 16 bits.
    ///
    /// # Errors
    /// As [`SourceTensor::to_f32`].
    pub fn to_values(&self) -> Result<WeightValues, SourceError> {
        let (path, name) = (self.path.clone(), self.name.clone());
        let values = match self.dtype {
            SourceDtype::BF16 => WeightValues::from_half_bytes(HalfType::Bf16, &self.bytes),
            SourceDtype::F16 => WeightValues::from_half_bytes(HalfType::F16, &self.bytes),
            SourceDtype::F32 => {
                let (words, _) = self.bytes.as_chunks::<4>();
                WeightValues::F32(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
            }
            found => return Err(SourceError::NotFloat { path, name, found }),
        };
        match values.non_finite() {
            None => Ok(values),
            Some((index, found)) => Err(SourceError::NonFinite {
                path,
                name,
                index,
                found,
            }),
        }
    }

    /// Refuses a tensor in which every element is zero.
    ///
    /// # Errors
    /// [`SourceError::AllZero`].
    pub fn check_not_all_zero(&self) -> Result<(), SourceError> {
        // Also -0.0: its sign is the highest bit of the last byte.
        let width = self.dtype.size() as usize;
        let elements = self.bytes.chunks_exact(width);
        let is_zero = |element: &[u8]| {
            let (last, others) = element.split_last().expect("an element has a width");
            last & 0x7f == 0 && others.iter().all(|byte| *byte == 0)
        };
        if elements.len() == 0 || !elements.clone().all(is_zero) {
            return Ok(());
        }
        Err(SourceError::AllZero {
            path: self.path.clone(),
            name: self.name.clone(),
            count: elements.len(),
        })
    }
}
