//! layer_NNN.uc: the coded linears and the exact tensors of one layer.
//!
//! Owns: the writer, the reader that validates everything before use, and the way from a file to codes and weights.
//! Both hold one linear at a time. The byte layout is in the crate's documentation. It neither quantizes nor writes to disk.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use uc_codec::contexts::LayerTables;
use uc_codec::{CodecError, LowRank, TensorCode, pack_small, rans, reconstruct, unpack_small};

use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::{Cursor, check_name, check_zero};
use crate::{
    LAYER_ALIGNMENT, LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS, MAX_LAYERS,
    MAX_LINEARS, MAX_RANK, MAX_ROWS, check_magic,
};

mod writer;

pub use writer::{LayerCoder, Linears, encode_layer};

/// Bytes of a layer file that are read at first.
const FIRST_READ: u64 = 1 << 20;

/// Linears that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnGroup {
    /// Name of the input.
    pub input: String,
    /// [cols], see `uc_codec::steps`.
    pub column_log2_eighths: Vec<u8>,
}

/// What is known of a linear without decoding it.
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
    /// Bytes that the file spends on this linear alone: descriptor, logarithms, factors, padding and payload.
    pub bytes: u64,
}

/// Names of linears and exact tensors are distinct, since they are names of one model's tensors.
fn check_names<'a>(
    linears: impl Iterator<Item = &'a String>,
    exact: impl Iterator<Item = &'a String>,
    origin: &str,
) -> Result<(), PackError> {
    let mut seen = HashSet::new();
    for name in linears.chain(exact) {
        if !seen.insert(name) {
            return Err(invalid(origin, "tensor names", name, "every name once"));
        }
    }
    Ok(())
}

/// A linear whose descriptor was parsed.
#[derive(Debug)]
struct Parsed {
    header: LinearHeader,
    step: f32,
    row_log2_eighths: Vec<u8>,
    row_step_log2_eighths: Vec<u8>,
    tile_offsets: Vec<u64>,
    overlay: Option<LowRank>,
    payload: Range<u64>,
}

/// Where the bytes of a layer file lie.
#[derive(Debug)]
enum Bytes {
    /// In memory.
    Held(Vec<u8>),
    /// On disk; read when they are asked for.
    OnDisk(File, u64),
}

impl Bytes {
    fn len(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::OnDisk(_, length) => *length,
        }
    }

    /// The bytes of a range that lies in the file.
    fn read(&self, range: Range<u64>, origin: &str) -> Result<Vec<u8>, PackError> {
        match self {
            Self::Held(bytes) => Ok(bytes[range.start as usize..range.end as usize].to_vec()),
            Self::OnDisk(file, _) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start)
                    .map_err(error::io(origin))?;
                Ok(bytes)
            }
        }
    }
}

/// Reads a file from a place on, whatever place others have it at.
struct ReadFrom<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadFrom<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A parsed layer file: every field was checked, indices are read and decoded on demand.
#[derive(Debug)]
pub struct LayerFile {
    bytes: Bytes,
    origin: String,
    front: Front,
}

/// What stands before the payloads.
#[derive(Debug)]
struct Front {
    layer: u32,
    tables: LayerTables,
    groups: Vec<ColumnGroup>,
    headers: Vec<LinearHeader>,
    linears: Vec<Parsed>,
    exact: Vec<ExactDecl>,
    exact_bytes: Vec<Vec<u8>>,
    length: u64,
}

impl Front {
    /// Parses the front, of which `bytes` may lack the end: then the error is `Truncated`.
    fn parse(bytes: &[u8], origin: &str) -> Result<Self, PackError> {
        let mut cursor = Cursor::new(bytes, origin);
        check_magic(&mut cursor, LAYER_MAGIC, "layer", origin)?;
        let counts = Counts::take(&mut cursor, origin)?;
        let length = cursor.u32("length of the tables")?;
        let tables = LayerTables::from_bytes(cursor.take(length.into(), "tables")?)
            .map_err(|source| codec_error(origin, "(tables)", source))?;
        let mut groups = Vec::new();
        for _ in 0..counts.groups {
            let input = cursor.name("group")?;
            let cols = take_dimension(&mut cursor, MAX_COLUMNS, "columns", origin)?;
            groups.push(ColumnGroup {
                column_log2_eighths: take_small(&mut cursor, cols, &input, origin)?,
                input,
            });
        }
        let mut linears = Vec::new();
        for _ in 0..counts.linears {
            linears.push(take_linear(&mut cursor, &groups, origin)?);
        }
        let (mut exact, mut exact_bytes) = (Vec::new(), Vec::new());
        for _ in 0..counts.exact {
            let decl = ExactDecl::take(&mut cursor, origin)?;
            exact_bytes.push(cursor.take(decl.byte_len(origin)?, &decl.name)?.to_vec());
            exact.push(decl);
        }
        check_names(
            linears.iter().map(|l| &l.header.name),
            exact.iter().map(|e| &e.name),
            origin,
        )?;
        Ok(Self {
            layer: counts.layer,
            tables,
            groups,
            headers: Vec::new(),
            linears,
            exact,
            exact_bytes,
            length: cursor.at() as u64,
        })
    }
}

impl LayerFile {
    /// Parses a file; of its payloads nothing is read before a linear is asked for.
    ///
    /// # Errors
    /// `Io` and those of [`LayerFile::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let file = File::open(path.as_ref()).map_err(error::io(&origin))?;
        let length = file.metadata().map_err(error::io(&origin))?.len();
        Self::parse(Bytes::OnDisk(file, length), &origin)
    }

    /// Parses the bytes of a layer file; `origin` names them in errors.
    ///
    /// # Errors
    /// `Magic`, `Version`, `Truncated`, `Invalid`, `Codec`.
    pub fn from_bytes(bytes: Vec<u8>, origin: &str) -> Result<Self, PackError> {
        Self::parse(Bytes::Held(bytes), origin)
    }

    fn parse(bytes: Bytes, origin: &str) -> Result<Self, PackError> {
        // The length of the front shows only when it was parsed: a longer and longer beginning is tried.
        let mut tried = FIRST_READ.min(bytes.len());
        let mut front = loop {
            match Front::parse(&bytes.read(0..tried, origin)?, origin) {
                Err(PackError::Truncated { .. }) if tried < bytes.len() => {
                    tried = tried.saturating_mul(4).min(bytes.len());
                }
                parsed => break parsed?,
            }
        };
        let mut at = front.length;
        for linear in &mut front.linears {
            let start = at.next_multiple_of(LAYER_ALIGNMENT as u64);
            let end = start.saturating_add(linear.payload.end - linear.payload.start);
            if end > bytes.len() {
                return Err(PackError::Truncated {
                    origin: origin.to_owned(),
                    what: "payload".to_owned(),
                    offset: at,
                    needed: end - at,
                    available: bytes.len().saturating_sub(at),
                });
            }
            check_zero(&bytes.read(at..start, origin)?, "payload", origin)?;
            linear.payload = start..end;
            linear.header.bytes += end - at;
            at = end;
        }
        if at != bytes.len() {
            let found = format!("{} bytes", bytes.len());
            return Err(invalid(origin, "file length", found, format!("{at} bytes")));
        }
        let headers = front.linears.iter().map(|linear| linear.header.clone());
        front.headers = headers.collect();
        let origin = origin.to_owned();
        Ok(Self {
            bytes,
            origin,
            front,
        })
    }

    /// Position of the layer in the model.
    pub fn layer(&self) -> u32 {
        self.front.layer
    }

    /// Size and digest of the file.
    ///
    /// # Errors
    /// `Io`.
    pub fn digest(&self) -> Result<(u64, Digest), PackError> {
        match &self.bytes {
            Bytes::Held(bytes) => Ok((bytes.len() as u64, Digest::of(bytes))),
            Bytes::OnDisk(file, _) => {
                let whole = ReadFrom { file, at: 0 };
                Digest::of_reader(whole).map_err(error::io(&self.origin))
            }
        }
    }

    /// Name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The groups of linears that share an input.
    pub fn groups(&self) -> &[ColumnGroup] {
        &self.front.groups
    }

    /// The linears, in file order.
    pub fn linears(&self) -> &[LinearHeader] {
        &self.front.headers
    }

    /// The exact tensors, in file order.
    pub fn exact(&self) -> &[ExactDecl] {
        &self.front.exact
    }

    /// Bytes of exact tensor `index`.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn exact_bytes(&self, index: usize) -> &[u8] {
        &self.front.exact_bytes[index]
    }

    /// Decodes linear `index`.
    ///
    /// # Errors
    /// `Codec` where the payload is damaged.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn codes(&self, index: usize) -> Result<TensorCode, PackError> {
        let linear = &self.front.linears[index];
        let LinearHeader {
            name,
            rows,
            cols,
            group,
            ..
        } = &linear.header;
        let column_log2_eighths = &self.front.groups[*group].column_log2_eighths;
        let payload = self.bytes.read(linear.payload.clone(), &self.origin)?;
        let q = rans::decode(
            *rows,
            *cols,
            &linear.row_log2_eighths,
            column_log2_eighths,
            &self.front.tables,
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

    /// The weights that linear `index` stands for: bfloat16, `[rows, cols]`.
    ///
    /// # Errors
    /// As [`LayerFile::codes`].
    pub fn reconstruct(&self, index: usize) -> Result<Vec<u16>, PackError> {
        let code = self.codes(index)?;
        reconstruct::reconstruct(&code)
            .map_err(|source| codec_error(&self.origin, &self.front.headers[index].name, source))
    }
}

fn codec_error(origin: &str, tensor: &str, source: CodecError) -> PackError {
    PackError::Codec {
        origin: origin.to_owned(),
        tensor: tensor.to_owned(),
        source,
    }
}

/// The counts of the fixed part.
struct Counts {
    layer: u32,
    groups: u16,
    linears: u16,
    exact: u16,
}

impl Counts {
    fn take(cursor: &mut Cursor<'_>, origin: &str) -> Result<Self, PackError> {
        let mut bounded = |what: &str, limit: u64| {
            let found = cursor.u16(what)?;
            if u64::from(found) > limit {
                return Err(invalid(origin, what, found, format!("at most {limit}")));
            }
            Ok(found)
        };
        let layer = u32::from(bounded("layer index", MAX_LAYERS - 1)?);
        let groups = bounded("number of groups", MAX_GROUPS)?;
        let linears = bounded("number of linears", MAX_LINEARS)?;
        let exact = bounded("number of exact tensors", MAX_EXACT_TENSORS)?;
        bounded("reserved field", 0)?;
        Ok(Self {
            layer,
            groups,
            linears,
            exact,
        })
    }
}

fn take_dimension(
    cursor: &mut Cursor<'_>,
    most: u64,
    what: &str,
    origin: &str,
) -> Result<usize, PackError> {
    let side = u64::from(cursor.u32(what)?);
    if side == 0 || side > most {
        return Err(invalid(origin, what, side, format!("1 to {most}")));
    }
    Ok(side as usize)
}

fn take_small(
    cursor: &mut Cursor<'_>,
    count: usize,
    what: &str,
    origin: &str,
) -> Result<Vec<u8>, PackError> {
    let length = cursor.u32("length of logarithms")?;
    let packed = cursor.take(length.into(), "logarithms")?;
    let values = unpack_small(packed, count).map_err(|source| codec_error(origin, what, source))?;
    // One way to write each thing: the writer's.
    if pack_small(&values) != packed {
        return Err(invalid(
            origin,
            format!("logarithms of {what}"),
            "another form",
            "the shortest form",
        ));
    }
    Ok(values)
}

fn take_linear(
    cursor: &mut Cursor<'_>,
    groups: &[ColumnGroup],
    origin: &str,
) -> Result<Parsed, PackError> {
    let start = cursor.at();
    let name = cursor.name("linear")?;
    check_name(&name, "linear", origin)?;
    let rows = take_dimension(cursor, MAX_ROWS, "rows", origin)?;
    let group = usize::from(cursor.u16("group")?);
    let cols = match groups.get(group) {
        Some(found) => found.column_log2_eighths.len(),
        None => {
            return Err(invalid(
                origin,
                format!("group of {name}"),
                group,
                format!("below {}", groups.len()),
            ));
        }
    };
    let rank = usize::from(cursor.u16("rank")?);
    if rank as u64 > MAX_RANK {
        return Err(invalid(
            origin,
            format!("rank of {name}"),
            rank,
            format!("at most {MAX_RANK}"),
        ));
    }
    let step = cursor.f32("step")?;
    let mut row_log2_eighths = take_small(cursor, rows, &name, origin)?;
    let row_step_log2_eighths = take_small(cursor, rows, &name, origin)?;
    for (log, step) in row_log2_eighths.iter_mut().zip(&row_step_log2_eighths) {
        *log = log.wrapping_sub(*step);
    }
    let tiles = rows.div_ceil(rans::tile_rows(rows, cols) as usize);
    let (mut tile_offsets, mut end) = (Vec::new(), 0u64);
    for _ in 0..tiles {
        tile_offsets.push(end);
        end += u64::from(cursor.u32("tile length")?);
    }
    let overlay = match rank {
        0 => None,
        _ => Some(LowRank {
            rank,
            u: take_words(cursor, rows * rank)?,
            v: take_words(cursor, rank * cols)?,
        }),
    };
    if let Some(overlay) = &overlay {
        overlay
            .validate(rows, cols)
            .map_err(|source| codec_error(origin, &name, source))?;
    }
    let bytes = (cursor.at() - start) as u64;
    let payload = 0..end; // its length; placed after the exact
    let header = LinearHeader {
        name,
        rows,
        cols,
        group,
        rank,
        bytes,
    };
    Ok(Parsed {
        header,
        step,
        row_log2_eighths,
        row_step_log2_eighths,
        tile_offsets,
        overlay,
        payload,
    })
}

fn take_words(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<u16>, PackError> {
    let bytes = cursor.take(2 * count as u64, "overlay factors")?;
    Ok(bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect())
}

#[cfg(test)]
mod tests;
