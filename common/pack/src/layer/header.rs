//! The header of a layer file: everything before the payloads.
//!
//! Parses and validates untrusted bytes, in memory that the bytes of the header bound, whatever sizes they claim: logarithms
//! stay packed, overlay factors and exact tensors stay in the file. Accepts packed logarithms only in the encoding that the
//! writer produces, so that equal content has equal bytes.

use std::ops::Range;

use uc_codec::contexts::LayerTables;
use uc_codec::{check_packed, largest_packed, rans};

use super::{GroupHeader, LinearHeader, check_names, codec_error};
use crate::error::{PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::{Cursor, ReadAt};
use crate::{
    LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS, MAX_LAYERS, MAX_LINEARS, MAX_RANK,
    MAX_ROWS, MAX_TABLES, check_magic,
};

/// The parsed header. Logarithms stay packed: a few bytes can stand for millions of them.
#[derive(Debug)]
pub(super) struct Header {
    /// Position of the layer in the model.
    pub(super) layer: u32,
    /// Context tables of the entropy coder.
    pub(super) tables: LayerTables,
    pub(super) groups: Vec<GroupHeader>,
    pub(super) linears: Vec<ParsedLinear>,
    pub(super) exact: Vec<ExactDecl>,
    /// `[exact]` range of each exact tensor's values in the file.
    pub(super) exact_ranges: Vec<Range<u64>>,
    /// Bytes of the header.
    pub(super) length: u64,
}

/// A parsed linear.
#[derive(Debug)]
pub(super) struct ParsedLinear {
    /// The part that callers see. Its `bytes` are those of the descriptor until the payload has been located.
    pub(super) header: LinearHeader,
    /// `[rows]` packed sums of both logarithms of a row.
    pub(super) row_sums: Vec<u8>,
    /// `[rows]` packed logarithms of the rows' steps.
    pub(super) row_steps: Vec<u8>,
    /// `[tiles]` length of each tile.
    pub(super) tile_lengths: Vec<u32>,
    /// Offset in the file of the overlay's factors U [rows, rank] and V [rank, cols].
    pub(super) overlay: u64,
    /// Range of the payload in the file. It begins at 0 until the payload has been located.
    pub(super) payload: Range<u64>,
}

impl Header {
    /// Parses the header of a file.
    pub(super) fn parse(bytes: &dyn ReadAt, origin: &str) -> Result<Self, PackError> {
        let mut cursor = Cursor::new(bytes, origin);
        check_magic(&mut cursor, LAYER_MAGIC, "layer", origin)?;
        let counts = Counts::take(&mut cursor, origin)?;
        let tables = LayerTables::from_bytes(&cursor.section("tables", MAX_TABLES)?)
            .map_err(|source| codec_error(origin, "(tables)", source))?;
        let mut groups = Vec::new();
        for _ in 0..counts.groups {
            let input = cursor.name("group")?;
            let cols = take_dimension(&mut cursor, MAX_COLUMNS, "columns", origin)?;
            let packed = take_logarithms(&mut cursor, cols, &input, origin)?;
            groups.push(GroupHeader {
                input,
                cols,
                packed,
            });
        }
        let mut linears = Vec::new();
        for _ in 0..counts.linears {
            linears.push(take_linear(&mut cursor, &groups, origin)?);
        }
        let (mut exact, mut exact_ranges) = (Vec::new(), Vec::new());
        for _ in 0..counts.exact {
            let decl = ExactDecl::take(&mut cursor, origin)?;
            exact_ranges.push(cursor.skip(decl.byte_len(origin)?, &decl.name)?);
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
            exact_ranges,
            length: cursor.position(),
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

/// `count` logarithms of the tensor or input `name`: length u32, then the packed form, which is checked but not unpacked.
fn take_logarithms(
    cursor: &mut Cursor<'_>,
    count: usize,
    name: &str,
    origin: &str,
) -> Result<Vec<u8>, PackError> {
    let packed = cursor.section("logarithms", largest_packed(count))?;
    check_packed(&packed, count).map_err(|source| codec_error(origin, name, source))?;
    Ok(packed)
}

/// A linear's descriptor.
fn take_linear(
    cursor: &mut Cursor<'_>,
    groups: &[GroupHeader],
    origin: &str,
) -> Result<ParsedLinear, PackError> {
    let start = cursor.position();
    let name = cursor.name("linear")?;
    let rows = take_dimension(cursor, MAX_ROWS, "rows", origin)?;
    let group = usize::from(cursor.u16("group")?);
    let Some(cols) = groups.get(group).map(|group| group.cols) else {
        let limit = format!("below {}", groups.len());
        return Err(invalid(origin, format!("group of {name}"), group, limit));
    };
    let rank = usize::from(cursor.u16("rank")?);
    if rank as u64 > MAX_RANK {
        let limit = format!("at most {MAX_RANK}");
        return Err(invalid(origin, format!("rank of {name}"), rank, limit));
    }
    let step = cursor.f32("step")?;
    // The file holds the sums of both logarithms of a row; see the writer.
    let row_sums = take_logarithms(cursor, rows, &name, origin)?;
    let row_steps = take_logarithms(cursor, rows, &name, origin)?;
    let tiles = rows.div_ceil(rans::tile_rows(rows, cols) as usize);
    let least = rans::least_tile_bytes(cols);
    let (mut tile_lengths, mut payload_length) = (Vec::new(), 0);
    for _ in 0..tiles {
        let length = cursor.u32("tile length")?;
        if u64::from(length) < least {
            let what = format!("length of a tile of {name}");
            return Err(invalid(origin, what, length, format!("at least {least}")));
        }
        tile_lengths.push(length);
        payload_length += u64::from(length);
    }
    let factors = 2 * rank as u64 * (rows + cols) as u64;
    let overlay = cursor.skip(factors, "overlay factors")?.start;
    let header = LinearHeader {
        name,
        rows,
        cols,
        group,
        rank,
        step,
        bytes: cursor.position() - start,
    };
    Ok(ParsedLinear {
        header,
        row_sums,
        row_steps,
        tile_lengths,
        overlay,
        payload: 0..payload_length,
    })
}
