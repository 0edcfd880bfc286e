//! layer_NNN.uc: the coded linears and the exact tensors of one layer.
//!
//! Owns the writer, and the reader that validates everything before use and then decodes and reconstructs the linears. A
//! layer may hold more weights than fit in memory, so both hold one linear at a time, and [`LayerFile::reconstruct_pieces`]
//! only some of its rows. The byte layout is in the crate's documentation. This module neither quantizes nor writes to disk.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use uc_codec::contexts::LayerTables;
use uc_codec::{CodecError, LowRank, TensorCode, rans, reconstruct, unpack_small};

use crate::LAYER_ALIGNMENT;
use crate::check::check_unique;
use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::{ReadAt, check_zero};

mod header;
mod pieces;
mod writer;

use header::{Header, ParsedLinear};
pub use pieces::{Contents, Piece, PieceBuffers, Pieces};
pub use writer::{LayerCoder, Linears, encode_layer};

/// Largest number of weights of a linear that is decoded as a whole.
const MAX_WHOLE_WEIGHTS: usize = 1 << 34;

/// Linears that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHeader {
    /// Name of the input.
    pub input: String,
    /// Inputs.
    pub cols: usize,
    /// `[cols]` packed column logarithms, see `uc_codec::steps`.
    packed: Vec<u8>,
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
    /// The tensor step.
    pub step: f32,
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

impl ReadAt for LayerBytes {
    fn length(&self) -> u64 {
        match self {
            Self::InMemory(bytes) => bytes.len() as u64,
            Self::OnDisk(_, length) => *length,
        }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::InMemory(bytes) => bytes.read_exact_at(buffer, offset),
            Self::OnDisk(file, _) => file.read_exact_at(buffer, offset),
        }
    }
}

impl LayerBytes {
    /// The bytes of a range, which must lie within the file.
    fn read(&self, range: Range<u64>, origin: &str) -> Result<Vec<u8>, PackError> {
        let count = (range.end - range.start) as usize;
        let mut bytes = reserve(count, origin)?;
        bytes.resize(count, 0);
        self.read_exact_at(&mut bytes, range.start)
            .map_err(error::io(origin))?;
        Ok(bytes)
    }
}

/// Room for `count` values. Too little memory is an error and not the end of the process: the number comes from a file.
fn reserve<T>(count: usize, origin: &str) -> Result<Vec<T>, PackError> {
    let mut values = Vec::new();
    let reserved = values.try_reserve_exact(count);
    reserved.map_err(|_| error::io(origin)(io::ErrorKind::OutOfMemory.into()))?;
    Ok(values)
}

/// Reads a range of a layer file sequentially.
struct RangeReader<'a> {
    bytes: &'a LayerBytes,
    range: Range<u64>,
}

impl Read for RangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end - self.range.start;
        let count = left.min(buffer.len() as u64) as usize;
        self.bytes
            .read_exact_at(&mut buffer[..count], self.range.start)?;
        self.range.start += count as u64;
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
        let file = uc_input::open(path.as_ref()).map_err(error::io(&origin))?;
        Self::from_file(file, &origin)
    }

    /// Parses an open file; `origin` names it in errors.
    ///
    /// # Errors
    /// `Io` and those of [`LayerFile::from_bytes`].
    pub fn from_file(file: File, origin: &str) -> Result<Self, PackError> {
        let length = file.metadata().map_err(error::io(origin))?.len();
        Self::parse(LayerBytes::OnDisk(file, length), origin)
    }

    /// Parses the bytes of a layer file; `origin` names them in errors.
    ///
    /// # Errors
    /// `Magic`, `Version`, `Truncated`, `Invalid`, `Codec`.
    pub fn from_bytes(bytes: Vec<u8>, origin: &str) -> Result<Self, PackError> {
        Self::parse(LayerBytes::InMemory(bytes), origin)
    }

    fn parse(bytes: LayerBytes, origin: &str) -> Result<Self, PackError> {
        let mut header = Header::parse(&bytes, origin)?;
        locate_payloads(&mut header, &bytes, origin)?;
        Ok(Self {
            bytes,
            origin: origin.to_owned(),
            linear_headers: header.linears.iter().map(|l| l.header.clone()).collect(),
            header,
        })
    }

    /// The same file with all its bytes in memory.
    ///
    /// # Errors
    /// `Io`.
    pub fn into_memory(self) -> Result<Self, PackError> {
        let bytes = self.bytes.read(0..self.bytes.length(), &self.origin)?;
        Ok(Self {
            bytes: LayerBytes::InMemory(bytes),
            ..self
        })
    }

    /// Bytes in memory, if they are there.
    pub fn bytes_in_memory(&self) -> usize {
        match &self.bytes {
            LayerBytes::InMemory(bytes) => bytes.len(),
            LayerBytes::OnDisk(..) => 0,
        }
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
        let range = 0..self.bytes.length();
        let bytes = &self.bytes;
        Digest::hash_reader(RangeReader { bytes, range }).map_err(error::io(&self.origin))
    }

    /// Name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The groups of linears that share an input.
    pub fn groups(&self) -> &[GroupHeader] {
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
    /// # Errors
    /// `Io`.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn exact_bytes(&self, index: usize) -> Result<Vec<u8>, PackError> {
        let range = self.header.exact_ranges[index].clone();
        self.bytes.read(range, &self.origin)
    }

    /// A reader of the values of exact tensor `index`, for tensors that do not fit in memory.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn exact_reader(&self, index: usize) -> impl Read + '_ {
        let range = self.header.exact_ranges[index].clone();
        let bytes = &self.bytes;
        RangeReader { bytes, range }
    }

    /// Bytes of the entropy-coded indices of linear `index`.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn payload_bytes(&self, index: usize) -> u64 {
        let payload = &self.header.linears[index].payload;
        payload.end - payload.start
    }

    /// The context tables of the entropy coder.
    pub(crate) fn tables(&self) -> &LayerTables {
        &self.header.tables
    }

    /// Decodes linear `index`.
    ///
    /// # Errors
    /// `Io` (also if the linear does not fit in memory), and `Codec` if the payload is damaged.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn codes(&self, index: usize) -> Result<TensorCode, PackError> {
        let linear = &self.header.linears[index];
        let (rows, cols) = (linear.header.rows, linear.header.cols);
        let weights = rows.saturating_mul(cols);
        if weights > MAX_WHOLE_WEIGHTS {
            let what = format!("weights of {}", linear.header.name);
            let expected = format!("at most {MAX_WHOLE_WEIGHTS}");
            return Err(invalid(&self.origin, what, weights, expected));
        }
        // The decoder allocates as many indices; this asks first whether there is memory for them.
        drop(reserve::<i16>(weights, &self.origin)?);
        let codec = |source| codec_error(&self.origin, &linear.header.name, source);
        let packed = &self.header.groups[linear.header.group].packed;
        let column_log2_eighths = unpack_small(packed, cols).map_err(codec)?;
        let row_step_log2_eighths = unpack_small(&linear.row_steps, rows).map_err(codec)?;
        let mut row_log2_eighths = unpack_small(&linear.row_sums, rows).map_err(codec)?;
        for (log, step) in row_log2_eighths.iter_mut().zip(&row_step_log2_eighths) {
            *log = log.wrapping_sub(*step);
        }
        let payload = self.bytes.read(linear.payload.clone(), &self.origin)?;
        let starts = linear.tile_lengths.iter().scan(0, |end, &length| {
            *end += u64::from(length);
            Some(*end - u64::from(length))
        });
        let tile_offsets: Vec<u64> = starts.collect();
        let q = rans::decode(
            rows,
            cols,
            &row_log2_eighths,
            &column_log2_eighths,
            &self.header.tables,
            rans::tile_rows(rows, cols),
            &tile_offsets,
            &payload,
        )
        .map_err(codec)?;
        Ok(TensorCode {
            rows,
            cols,
            step: linear.header.step,
            column_log2_eighths,
            row_log2_eighths,
            row_step_log2_eighths,
            q,
            overlay: self.overlay_of(linear)?,
        })
    }

    /// The overlay of linear `index`, if it has one: checked factors.
    ///
    /// # Errors
    /// `Io`, and `Codec` if a factor is not finite.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn overlay(&self, index: usize) -> Result<Option<LowRank>, PackError> {
        self.overlay_of(&self.header.linears[index])
    }

    /// The overlay of a linear, if it has one.
    fn overlay_of(&self, linear: &ParsedLinear) -> Result<Option<LowRank>, PackError> {
        let LinearHeader {
            rows, cols, rank, ..
        } = linear.header;
        if rank == 0 {
            return Ok(None);
        }
        let u = self.read_words(linear.overlay, rows * rank)?;
        let v = self.read_words(linear.overlay + 2 * (rows * rank) as u64, rank * cols)?;
        let overlay = LowRank { rank, u, v };
        overlay
            .validate(rows, cols)
            .map_err(|source| codec_error(&self.origin, &linear.header.name, source))?;
        Ok(Some(overlay))
    }

    /// `count` bfloat16 values from an offset in the file.
    fn read_words(&self, offset: u64, count: usize) -> Result<Vec<u16>, PackError> {
        let bytes = self
            .bytes
            .read(offset..offset + 2 * count as u64, &self.origin)?;
        let words = bytes.chunks_exact(2);
        Ok(words
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect())
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

/// Sets the range of each linear's payload and adds it to the linear's bytes. Checks the padding and the length of the
/// file.
fn locate_payloads(header: &mut Header, bytes: &LayerBytes, origin: &str) -> Result<(), PackError> {
    let mut offset = header.length;
    for linear in &mut header.linears {
        let start = offset.next_multiple_of(LAYER_ALIGNMENT as u64);
        let end = start.saturating_add(linear.payload.end - linear.payload.start);
        if end > bytes.length() {
            return Err(PackError::Truncated {
                origin: origin.to_owned(),
                what: "payload".to_owned(),
                offset,
                needed: end - offset,
                available: bytes.length().saturating_sub(offset),
            });
        }
        check_zero(&bytes.read(offset..start, origin)?, "payload", origin)?;
        linear.payload = start..end;
        linear.header.bytes += end - offset;
        offset = end;
    }
    if offset != bytes.length() {
        let found = format!("{} bytes", bytes.length());
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
