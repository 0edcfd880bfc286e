//! The header of a layer file: everything before the payloads.
//!
//! Parses and validates untrusted bytes. It accepts packed logarithms only in the encoding that the writer produces, so
//! that equal content has equal bytes.

use std::ops::Range;

use uc_codec::contexts::LayerTables;
use uc_codec::{LowRank, pack_small, rans, unpack_small};

use super::{ColumnGroup, LinearHeader, check_names, codec_error};
use crate::error::{PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::Cursor;
use crate::{
    LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS, MAX_LAYERS, MAX_LINEARS, MAX_RANK,
    MAX_ROWS, check_magic,
};

/// The parsed header.
#[derive(Debug)]
pub(super) struct Header {
    /// Position of the layer in the model.
    pub(super) layer: u32,
    /// Context tables of the entropy coder.
    pub(super) tables: LayerTables,
    pub(super) groups: Vec<ColumnGroup>,
    pub(super) linears: Vec<ParsedLinear>,
    pub(super) exact: Vec<ExactDecl>,
    /// `[exact]` the values of each exact tensor.
    pub(super) exact_bytes: Vec<Vec<u8>>,
    /// Bytes of the header.
    pub(super) length: u64,
}

/// A parsed linear.
#[derive(Debug)]
pub(super) struct ParsedLinear {
    /// The part that callers see. Its `bytes` are those of the descriptor until the payload has been located.
    pub(super) header: LinearHeader,
    /// The tensor step.
    pub(super) step: f32,
    /// `[rows]`
    pub(super) row_log2_eighths: Vec<u8>,
    /// `[rows]`
    pub(super) row_step_log2_eighths: Vec<u8>,
    /// `[tiles]` offset of each tile in the payload.
    pub(super) tile_offsets: Vec<u64>,
    pub(super) overlay: Option<LowRank>,
    /// Range of the payload in the file. It begins at 0 until the payload has been located.
    pub(super) payload: Range<u64>,
}

impl Header {
    /// Parses a header from a prefix of the file. The error is `Truncated` if the prefix does not hold all of it.
    pub(super) fn parse(prefix: &[u8], origin: &str) -> Result<Self, PackError> {
        let mut cursor = Cursor::new(prefix, origin);
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
                column_log2_eighths: take_logarithms(&mut cursor, cols, &input, origin)?,
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
            linears,
            exact,
            exact_bytes,
            length: cursor.position() as u64,
        })
    }
}

/// The counts in the fixed part of the header.
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

/// A dimension of a matrix, from 1 to `limit`.
fn take_dimension(
    cursor: &mut Cursor<'_>,
    limit: u64,
    what: &str,
    origin: &str,
) -> Result<usize, PackError> {
    let size = u64::from(cursor.u32(what)?);
    if size == 0 || size > limit {
        return Err(invalid(origin, what, size, format!("1 to {limit}")));
    }
    Ok(size as usize)
}

/// `count` logarithms of the tensor or input `name`: length u32, then the packed form.
fn take_logarithms(
    cursor: &mut Cursor<'_>,
    count: usize,
    name: &str,
    origin: &str,
) -> Result<Vec<u8>, PackError> {
    let length = cursor.u32("length of logarithms")?;
    let packed = cursor.take(length.into(), "logarithms")?;
    let values = unpack_small(packed, count).map_err(|source| codec_error(origin, name, source))?;
    // Other encodings of the same values are rejected, so that equal content has equal bytes.
    if pack_small(&values) != packed {
        return Err(invalid(
            origin,
            format!("logarithms of {name}"),
            "another encoding",
            "the shortest encoding",
        ));
    }
    Ok(values)
}

/// A linear's descriptor.
fn take_linear(
    cursor: &mut Cursor<'_>,
    groups: &[ColumnGroup],
    origin: &str,
) -> Result<ParsedLinear, PackError> {
    let start = cursor.position();
    let name = cursor.name("linear")?;
    let rows = take_dimension(cursor, MAX_ROWS, "rows", origin)?;
    let group = usize::from(cursor.u16("group")?);
    let Some(column_group) = groups.get(group) else {
        let limit = format!("below {}", groups.len());
        return Err(invalid(origin, format!("group of {name}"), group, limit));
    };
    let cols = column_group.column_log2_eighths.len();
    let rank = usize::from(cursor.u16("rank")?);
    if rank as u64 > MAX_RANK {
        let limit = format!("at most {MAX_RANK}");
        return Err(invalid(origin, format!("rank of {name}"), rank, limit));
    }
    let step = cursor.f32("step")?;
    // The file holds the sums of both logarithms of a row; see the writer.
    let mut row_log2_eighths = take_logarithms(cursor, rows, &name, origin)?;
    let row_step_log2_eighths = take_logarithms(cursor, rows, &name, origin)?;
    for (log, step) in row_log2_eighths.iter_mut().zip(&row_step_log2_eighths) {
        *log = log.wrapping_sub(*step);
    }
    let tiles = rows.div_ceil(rans::tile_rows(rows, cols) as usize);
    let (mut tile_offsets, mut payload_length) = (Vec::new(), 0u64);
    for _ in 0..tiles {
        tile_offsets.push(payload_length);
        payload_length += u64::from(cursor.u32("tile length")?);
    }
    let overlay = take_overlay(cursor, rows, cols, rank)?;
    if let Some(overlay) = &overlay {
        overlay
            .validate(rows, cols)
            .map_err(|source| codec_error(origin, &name, source))?;
    }
    let header = LinearHeader {
        name,
        rows,
        cols,
        group,
        rank,
        bytes: (cursor.position() - start) as u64,
    };
    Ok(ParsedLinear {
        header,
        step,
        row_log2_eighths,
        row_step_log2_eighths,
        tile_offsets,
        overlay,
        payload: 0..payload_length,
    })
}

/// The factors of an overlay, none for rank 0.
fn take_overlay(
    cursor: &mut Cursor<'_>,
    rows: usize,
    cols: usize,
    rank: usize,
) -> Result<Option<LowRank>, PackError> {
    if rank == 0 {
        return Ok(None);
    }
    Ok(Some(LowRank {
        rank,
        u: take_bf16(cursor, rows * rank)?,
        v: take_bf16(cursor, rank * cols)?,
    }))
}

fn take_bf16(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<u16>, PackError> {
    let bytes = cursor.take(2 * count as u64, "overlay factors")?;
    Ok(bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect())
}
