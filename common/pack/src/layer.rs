//! layer_NNN.uc: the coded linears and the exact tensors of one layer.
//!
//! Owns the writer, and the reader that validates everything before use and then decodes and reconstructs the linears. A
//! layer may hold more weights than fit in memory, so both hold one linear at a time. The byte layout is in the crate's
//! documentation. This module neither quantizes nor writes to disk.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use uc_codec::{CodecError, TensorCode, rans, reconstruct};

use crate::LAYER_ALIGNMENT;
use crate::check::check_unique;
use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::check_zero;

mod header;
mod writer;

use header::Header;
pub use writer::{LayerCoder, Linears, encode_layer};

/// Number of bytes of a layer file that are read first; the header is usually no longer than this.
const FIRST_READ: u64 = 1 << 20;

/// Linears that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnGroup {
    /// Name of the input.
    pub input: String,
    /// `[cols]` column logarithms, see `uc_codec::steps`.
    pub column_log2_eighths: Vec<u8>,
}

/// The part of a linear's header that callers need.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearHeader {
    /// Name relative to the layer's prefix.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Index of its group.
    pub group: usize,
    /// Rank of the overlay, 0 for none.
    pub rank: usize,
    /// Bytes of the file that belong to this linear alone: descriptor, row logarithms, overlay factors, padding and payload.
    pub bytes: u64,
}

/// Checks that the names of linears and exact tensors are distinct: they are names of tensors of one model.
fn check_names<'a>(
    linears: impl Iterator<Item = &'a String>,
    exact: impl Iterator<Item = &'a String>,
    origin: &str,
) -> Result<(), PackError> {
    let names = linears.chain(exact).map(String::as_str);
    check_unique(origin, "tensor names", names)
}

fn codec_error(origin: &str, tensor: &str, source: CodecError) -> PackError {
    PackError::Codec {
        origin: origin.to_owned(),
        tensor: tensor.to_owned(),
        source,
    }
}

/// The bytes of a layer file.
#[derive(Debug)]
enum LayerBytes {
    /// The whole file in memory.
    InMemory(Vec<u8>),
    /// A file on disk and its length; ranges are read on demand.
    OnDisk(File, u64),
}

impl LayerBytes {
    fn len(&self) -> u64 {
        match self {
            Self::InMemory(bytes) => bytes.len() as u64,
            Self::OnDisk(_, length) => *length,
        }
    }

    /// The bytes of a range, which must lie within the file.
    fn read(&self, range: Range<u64>, origin: &str) -> Result<Vec<u8>, PackError> {
        match self {
            Self::InMemory(bytes) => Ok(bytes[range.start as usize..range.end as usize].to_vec()),
            Self::OnDisk(file, _) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start)
                    .map_err(error::io(origin))?;
                Ok(bytes)
            }
        }
    }
}

/// Reads a file sequentially by position, independently of the file's own cursor.
struct PositionedReader<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for PositionedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A parsed layer file. Its header has been checked; payloads are read and decoded on demand.
#[derive(Debug)]
pub struct LayerFile {
    bytes: LayerBytes,
    origin: String,
    header: Header,
    /// Copies of the headers in `header.linears`.
    linear_headers: Vec<LinearHeader>,
}

impl LayerFile {
    /// Opens and parses a file. A payload is read only when its linear is requested.
    ///
    /// # Errors
    /// `Io` and those of [`LayerFile::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let file = File::open(path.as_ref()).map_err(error::io(&origin))?;
        let length = file.metadata().map_err(error::io(&origin))?.len();
        Self::parse(LayerBytes::OnDisk(file, length), &origin)
    }

    /// Parses the bytes of a layer file; `origin` names them in errors.
    ///
    /// # Errors
    /// `Magic`, `Version`, `Truncated`, `Invalid`, `Codec`.
    pub fn from_bytes(bytes: Vec<u8>, origin: &str) -> Result<Self, PackError> {
        Self::parse(LayerBytes::InMemory(bytes), origin)
    }

    fn parse(bytes: LayerBytes, origin: &str) -> Result<Self, PackError> {
        let mut header = read_header(&bytes, origin)?;
        locate_payloads(&mut header, &bytes, origin)?;
        Ok(Self {
            bytes,
            origin: origin.to_owned(),
            linear_headers: header.linears.iter().map(|l| l.header.clone()).collect(),
            header,
        })
    }

    /// Position of the layer in the model.
    pub fn layer(&self) -> u32 {
        self.header.layer
    }

    /// Size and digest of the file.
    ///
    /// # Errors
    /// `Io`.
    pub fn digest(&self) -> Result<(u64, Digest), PackError> {
        match &self.bytes {
            LayerBytes::InMemory(bytes) => Ok((bytes.len() as u64, Digest::hash_bytes(bytes))),
            LayerBytes::OnDisk(file, _) => {
                let reader = PositionedReader { file, offset: 0 };
                Digest::hash_reader(reader).map_err(error::io(&self.origin))
            }
        }
    }

    /// Name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The groups of linears that share an input.
    pub fn groups(&self) -> &[ColumnGroup] {
        &self.header.groups
    }

    /// The linears, in file order.
    pub fn linears(&self) -> &[LinearHeader] {
        &self.linear_headers
    }

    /// The exact tensors, in file order.
    pub fn exact(&self) -> &[ExactDecl] {
        &self.header.exact
    }

    /// The values of exact tensor `index`.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn exact_bytes(&self, index: usize) -> &[u8] {
        &self.header.exact_bytes[index]
    }

    /// Decodes linear `index`.
    ///
    /// # Errors
    /// `Io`, and `Codec` if the payload is damaged.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn codes(&self, index: usize) -> Result<TensorCode, PackError> {
        let linear = &self.header.linears[index];
        let LinearHeader {
            name,
            rows,
            cols,
            group,
            ..
        } = &linear.header;
        let column_log2_eighths = &self.header.groups[*group].column_log2_eighths;
        let payload = self.bytes.read(linear.payload.clone(), &self.origin)?;
        let q = rans::decode(
            *rows,
            *cols,
            &linear.row_log2_eighths,
            column_log2_eighths,
            &self.header.tables,
            rans::tile_rows(*rows, *cols),
            &linear.tile_offsets,
            &payload,
        )
        .map_err(|source| codec_error(&self.origin, name, source))?;
        Ok(TensorCode {
            rows: *rows,
            cols: *cols,
            step: linear.step,
            column_log2_eighths: column_log2_eighths.clone(),
            row_log2_eighths: linear.row_log2_eighths.clone(),
            row_step_log2_eighths: linear.row_step_log2_eighths.clone(),
            q,
            overlay: linear.overlay.clone(),
        })
    }

    /// Decodes linear `index` and reconstructs its weights: bfloat16, `[rows, cols]`.
    ///
    /// # Errors
    /// Those of [`LayerFile::codes`].
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn reconstruct(&self, index: usize) -> Result<Vec<u16>, PackError> {
        let code = self.codes(index)?;
        reconstruct::reconstruct(&code)
            .map_err(|source| codec_error(&self.origin, &self.linear_headers[index].name, source))
    }
}

/// Reads and parses the header. Its length is not known in advance, so increasingly long prefixes of the file are
/// parsed until one holds the whole header.
fn read_header(bytes: &LayerBytes, origin: &str) -> Result<Header, PackError> {
    let mut prefix = FIRST_READ.min(bytes.len());
    loop {
        match Header::parse(&bytes.read(0..prefix, origin)?, origin) {
            Err(PackError::Truncated { .. }) if prefix < bytes.len() => {
                prefix = prefix.saturating_mul(4).min(bytes.len());
            }
            parsed => return parsed,
        }
    }
}

/// Sets the range of each linear's payload and adds it to the linear's bytes. Checks the padding and the length of the
/// file.
fn locate_payloads(header: &mut Header, bytes: &LayerBytes, origin: &str) -> Result<(), PackError> {
    let mut offset = header.length;
    for linear in &mut header.linears {
        let start = offset.next_multiple_of(LAYER_ALIGNMENT as u64);
        let end = start.saturating_add(linear.payload.end - linear.payload.start);
        if end > bytes.len() {
            return Err(PackError::Truncated {
                origin: origin.to_owned(),
                what: "payload".to_owned(),
                offset,
                needed: end - offset,
                available: bytes.len().saturating_sub(offset),
            });
        }
        check_zero(&bytes.read(offset..start, origin)?, "payload", origin)?;
        linear.payload = start..end;
        linear.header.bytes += end - offset;
        offset = end;
    }
    if offset != bytes.len() {
        let found = format!("{} bytes", bytes.len());
        return Err(invalid(
            origin,
            "file length",
            found,
            format!("{offset} bytes"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
