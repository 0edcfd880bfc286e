//! Reads a GGUF file: its header, and the tensors of a model under their names in the pack.
//!
//! A file may come from anyone: counts, lengths and offsets are compared with the size of the file before they are used.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use uc_model::ModelConfig;
use uc_store::StoreError;

use super::names::{self, Home};
use super::values::{ALIGNMENT, MAGIC, VERSION, code};
use super::{architecture, type_code};
use crate::encoding::Encoding;
use crate::error::ExportError;

/// Longest header that is read, bytes: the largest vocabularies take a few MB.
const MAX_HEADER: u64 = 256 << 20;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    path: Utf8PathBuf,
    file: File,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tensor {
    /// Dimensions, outermost first.
    shape: Vec<u64>,
    encoding: Encoding,
    /// Offset in the file.
    offset: u64,
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// `Store`, `Malformed`.
    pub fn open(path: &Utf8Path) -> Result<Self, ExportError> {
        let file = uc_input::open(path).map_err(StoreError::io("open", path))?;
        let size = file
            .metadata()
            .map_err(StoreError::io("inspect", path))?
            .len();
        let mut head = vec![0; size.min(MAX_HEADER) as usize];
        file.read_exact_at(&mut head, 0)
            .map_err(StoreError::io("read", path))?;
        let mut cursor = Cursor {
            path,
            bytes: &head,
            at: 0,
        };
        let tensors = cursor.header(size)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            tensors,
        })
    }

    /// The values of a tensor of a layer, or outside the layers, by its name in the pack: in the pack's shape and order.
    ///
    /// # Errors
    /// `Unsupported` if the file holds no such model, `Malformed`, `Store`.
    pub fn read(
        &self,
        config: &ModelConfig,
        layer: Option<usize>,
        name: &str,
    ) -> Result<Vec<f32>, ExportError> {
        let pairs = architecture::find(config)?.pairs;
        let homes = match layer {
            Some(index) => names::layer(&config.layers[index], index, pairs),
            None => names::non_layer(config),
        };
        let homes = homes.get(name).map(Vec::as_slice).unwrap_or_default();
        if homes.is_empty() {
            return Err(self.malformed(
                name,
                "no place for this tensor",
                "one of the model's tensors",
            ));
        }
        let mut values = Vec::new();
        for home in homes {
            values.extend(self.read_home(home)?);
        }
        Ok(values)
    }

    fn read_home(&self, home: &Home) -> Result<Vec<f32>, ExportError> {
        let tensor = self.tensors.get(&home.tensor);
        let tensor =
            tensor.ok_or_else(|| self.malformed(&home.tensor, "none", "a tensor of this name"))?;
        let mut shape = tensor.shape.as_slice();
        let mut offset = tensor.offset;
        if let Some((index, count)) = home.expert {
            let Some((_, rest)) = shape.split_first().filter(|(found, _)| **found == count) else {
                return Err(self.malformed(
                    &home.tensor,
                    format!("{shape:?}"),
                    format!("{count} matrices"),
                ));
            };
            shape = rest;
            offset += index * bytes(tensor.encoding, rest);
        }
        let mut data = vec![0; bytes(tensor.encoding, shape) as usize];
        let read = self.file.read_exact_at(&mut data, offset);
        read.map_err(StoreError::io("read", &self.path))?;
        let mut values = tensor.encoding.decode(&data).unwrap_or_default();
        home.adjustment.undo(&mut values);
        let rows = shape.first().copied().unwrap_or(1);
        let columns = values.len() as u64 / rows;
        let mut ordered = Vec::with_capacity(values.len());
        for row in 0..rows {
            let at = home.order.target(row) * columns;
            let row = values.get(at as usize..(at + columns) as usize);
            ordered.extend(row.ok_or_else(|| {
                self.malformed(&home.tensor, format!("{rows} rows"), "whole heads")
            })?);
        }
        Ok(ordered)
    }

    fn malformed(&self, what: &str, found: impl ToString, expected: impl ToString) -> ExportError {
        malformed(&self.path, what, found, expected)
    }
}

/// Bytes of a tensor.
fn bytes(encoding: Encoding, shape: &[u64]) -> u64 {
    let rows: u64 = shape.iter().rev().skip(1).product();
    rows * encoding.bytes(shape.last().copied().unwrap_or(1))
}

fn malformed(
    path: &Utf8Path,
    what: &str,
    found: impl ToString,
    expected: impl ToString,
) -> ExportError {
    ExportError::Malformed {
        path: path.to_owned(),
        kind: "GGUF",
        what: uc_input::printable(what).into_owned(),
        found: uc_input::printable(&found.to_string()).into_owned(),
        expected: expected.to_string(),
    }
}

/// Reads a header.
struct Cursor<'a> {
    path: &'a Utf8Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn header(&mut self, size: u64) -> Result<BTreeMap<String, Tensor>, ExportError> {
        let magic = self.take(4)?;
        if magic != MAGIC {
            return Err(malformed(
                self.path,
                "first bytes",
                format!("{magic:?}"),
                "GGUF",
            ));
        }
        let version = self.u32()?;
        if version != VERSION {
            return Err(malformed(self.path, "version", version, VERSION));
        }
        let (tensors, values) = (self.u64()?, self.u64()?);
        let mut alignment = ALIGNMENT;
        for _ in 0..values {
            let key = self.text()?;
            let kind = self.u32()?;
            if key == "general.alignment" && kind == code::U32 {
                alignment = u64::from(self.u32()?).max(1);
            } else {
                self.skip(kind, 0)?;
            }
        }
        let mut found = Vec::new();
        for _ in 0..tensors {
            found.push(self.descriptor()?);
        }
        let start = (self.at as u64).next_multiple_of(alignment);
        let mut by_name = BTreeMap::new();
        for (name, mut tensor) in found {
            let end = tensor.offset.checked_add(start).and_then(|offset| {
                tensor.offset = offset;
                let values = tensor
                    .shape
                    .iter()
                    .try_fold(1u64, |n, size| n.checked_mul(*size))?;
                offset.checked_add(
                    values
                        .checked_mul(4)
                        .map(|_| bytes(tensor.encoding, &tensor.shape))?,
                )
            });
            if end.is_none_or(|end| end > size) {
                return Err(malformed(
                    self.path,
                    &name,
                    "data beyond the end of the file",
                    "data in it",
                ));
            }
            by_name.insert(name, tensor);
        }
        Ok(by_name)
    }

    fn descriptor(&mut self) -> Result<(String, Tensor), ExportError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(malformed(
                self.path,
                &name,
                dimensions,
                "at most 4 dimensions",
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        shape.reverse();
        let (found, offset) = (self.u32()?, self.u64()?);
        let known = [Encoding::F32, Encoding::F16, Encoding::Bf16, Encoding::Q8_0];
        let encoding = known.into_iter().find(|known| type_code(*known) == found);
        let encoding = encoding.ok_or_else(|| {
            malformed(
                self.path,
                &name,
                format!("type {found}"),
                "F32, F16, BF16 or Q8_0",
            )
        })?;
        let tensor = Tensor {
            shape,
            encoding,
            offset,
        };
        Ok((name, tensor))
    }

    /// Skips a value.
    fn skip(&mut self, kind: u32, depth: u32) -> Result<(), ExportError> {
        let width = match kind {
            code::U8 | code::I8 | code::BOOL => 1,
            code::U16 | code::I16 => 2,
            code::U32 | code::I32 | code::F32 => 4,
            code::U64 | code::I64 | code::F64 => 8,
            code::TEXT => return self.text().map(|_| ()),
            code::LIST if depth == 0 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                for _ in 0..count {
                    self.skip(kind, depth + 1)?;
                }
                return Ok(());
            }
            other => return Err(malformed(self.path, "type of a value", other, "0 to 12")),
        };
        self.take(width).map(|_| ())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], ExportError> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| self.at.checked_add(count));
        let range = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = range.ok_or_else(|| {
            malformed(
                self.path,
                "header",
                "a field beyond its end",
                "whole fields",
            )
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, ExportError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64, ExportError> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn text(&mut self) -> Result<String, ExportError> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}
