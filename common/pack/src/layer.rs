//! layer_NNN.uc: the coded linears and the exact tensors of one layer.
//!
//! Owns: the writer, the reader that validates everything before use, and the way from a file to codes and weights.
//! The byte layout is in the crate's documentation. It neither quantizes nor writes to disk.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use uc_codec::classes::LayerTables;
use uc_codec::{CodecError, LowRank, TensorCode, pack_small, rans, reconstruct, unpack_small};

use crate::error::{self, PackError, invalid};
use crate::exact::{ExactDecl, ExactTensor};
use crate::wire::{Cursor, check_name, narrow, padding_to, put_name};
use crate::{
    FORMAT_VERSION, LAYER_ALIGNMENT, LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS,
    MAX_LAYERS, MAX_LINEARS, MAX_RANK, MAX_ROWS, check_magic,
};

/// Everything that a layer file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerContents<'a> {
    /// Position of the layer in the model.
    pub layer: u32,
    /// Inputs and the column logarithms that their linears share.
    pub groups: Vec<ColumnGroup>,
    /// The coded matrices.
    pub linears: Vec<Linear<'a>>,
    /// The exact tensors.
    pub extras: Cow<'a, [ExactTensor]>,
}

/// Linears that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnGroup {
    /// Name of the input.
    pub input: String,
    /// [cols], see `uc_codec::steps`.
    pub column_log: Vec<u8>,
}

/// A coded matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear<'a> {
    /// Name relative to the layer's prefix.
    pub name: String,
    /// Index of its group.
    pub group: usize,
    /// Its code; `column_log` equals the group's.
    pub code: Cow<'a, TensorCode>,
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

/// The bytes of a layer file.
///
/// # Errors
/// `Invalid` for what exceeds a limit or contradicts itself, `Codec`.
pub fn encode_layer(contents: &LayerContents<'_>) -> Result<Vec<u8>, PackError> {
    let origin = format!("layer {}", contents.layer);
    let origin = origin.as_str();
    let codes: Vec<&TensorCode> = contents
        .linears
        .iter()
        .map(|linear| &*linear.code)
        .collect();
    let codec = |tensor: &str| {
        let tensor = tensor.to_owned();
        move |source| PackError::Codec {
            origin: origin.to_owned(),
            tensor,
            source,
        }
    };
    let tables = LayerTables::build(&codes).map_err(codec("(all)"))?;
    let table_bytes = tables.to_bytes();

    let mut out = LAYER_MAGIC.to_vec();
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend(
        narrow::<u16>(
            contents.layer as usize,
            MAX_LAYERS - 1,
            "layer index",
            origin,
        )?
        .to_le_bytes(),
    );
    out.extend(
        narrow::<u16>(
            contents.groups.len(),
            MAX_GROUPS,
            "number of groups",
            origin,
        )?
        .to_le_bytes(),
    );
    out.extend(
        narrow::<u16>(
            contents.linears.len(),
            MAX_LINEARS,
            "number of linears",
            origin,
        )?
        .to_le_bytes(),
    );
    out.extend(
        narrow::<u16>(
            contents.extras.len(),
            MAX_EXACT_TENSORS,
            "number of extras",
            origin,
        )?
        .to_le_bytes(),
    );
    out.extend([0; 2]);
    out.extend(narrow::<u32>(table_bytes.len(), u32::MAX.into(), "tables", origin)?.to_le_bytes());
    out.extend(&table_bytes);
    for group in &contents.groups {
        put_name(&mut out, &group.input, "group", origin)?;
        put_dimension(
            &mut out,
            group.column_log.len(),
            MAX_COLUMNS,
            "columns",
            origin,
        )?;
        put_small(&mut out, &group.column_log, origin)?;
    }
    let mut payloads = Vec::with_capacity(contents.linears.len());
    for linear in &contents.linears {
        check_linear(contents, linear, origin)?;
        let encoded = rans::encode(&linear.code, &tables).map_err(codec(&linear.name))?;
        put_linear(&mut out, linear, &encoded, origin)?;
        payloads.push(encoded.payload);
    }
    for extra in contents.extras.iter() {
        let decl = extra.decl();
        decl.put(&mut out, origin)?;
        let expected = decl.byte_len(origin)?;
        if extra.bytes.len() as u64 != expected {
            let found = format!("{} bytes", extra.bytes.len());
            return Err(invalid(
                origin,
                &extra.name,
                found,
                format!("{expected} bytes"),
            ));
        }
        out.extend(&extra.bytes);
    }
    for payload in payloads {
        out.resize(
            out.len() + padding_to(out.len() as u64, LAYER_ALIGNMENT) as usize,
            0,
        );
        out.extend(payload);
    }
    check_names(
        contents.linears.iter().map(|l| &l.name),
        contents.extras.iter().map(|e| &e.name),
        origin,
    )?;
    Ok(out)
}

fn put_dimension(
    out: &mut Vec<u8>,
    side: usize,
    most: u64,
    what: &str,
    origin: &str,
) -> Result<(), PackError> {
    if side == 0 {
        return Err(invalid(origin, what, 0, format!("1 to {most}")));
    }
    out.extend(narrow::<u32>(side, most, what, origin)?.to_le_bytes());
    Ok(())
}

/// Small integers: length u32, then the packed form.
fn put_small(out: &mut Vec<u8>, values: &[u8], origin: &str) -> Result<(), PackError> {
    let packed = pack_small(values);
    out.extend(narrow::<u32>(packed.len(), u32::MAX.into(), "logarithms", origin)?.to_le_bytes());
    out.extend(packed);
    Ok(())
}

fn check_linear(
    contents: &LayerContents<'_>,
    linear: &Linear<'_>,
    origin: &str,
) -> Result<(), PackError> {
    let group = contents.groups.get(linear.group).ok_or_else(|| {
        let expected = format!("below {}", contents.groups.len());
        invalid(
            origin,
            format!("group of {}", linear.name),
            linear.group,
            expected,
        )
    })?;
    if group.column_log != linear.code.column_log {
        let what = format!("column logarithms of {}", linear.name);
        return Err(invalid(origin, what, "others", "those of its group"));
    }
    Ok(())
}

/// Name, rows, group, rank, step, packed row logarithms with the row step logarithms added, packed row step logarithms,
/// length of each tile, factors of the overlay.
fn put_linear(
    out: &mut Vec<u8>,
    linear: &Linear<'_>,
    encoded: &rans::EncodedTensor,
    origin: &str,
) -> Result<(), PackError> {
    let code = &linear.code;
    put_name(out, &linear.name, "linear", origin)?;
    put_dimension(out, code.rows, MAX_ROWS, "rows", origin)?;
    out.extend(narrow::<u16>(linear.group, MAX_GROUPS, "group", origin)?.to_le_bytes());
    let rank = code.overlay.as_ref().map_or(0, |overlay| overlay.rank);
    out.extend(narrow::<u16>(rank, MAX_RANK, "rank", origin)?.to_le_bytes());
    out.extend(code.step.to_le_bytes());
    // The width of a row in its own steps follows the step; the sum of both is smoother.
    let sums = code.row_log.iter().zip(&code.row_step_log);
    let sums: Vec<u8> = sums.map(|(log, step)| log.wrapping_add(*step)).collect();
    put_small(out, &sums, origin)?;
    put_small(out, &code.row_step_log, origin)?;
    let ends = encoded
        .tile_offsets
        .iter()
        .skip(1)
        .copied()
        .chain([encoded.payload.len() as u64]);
    for (start, end) in encoded.tile_offsets.iter().zip(ends) {
        let length = (end - start) as usize;
        out.extend(narrow::<u32>(length, u32::MAX.into(), "tile length", origin)?.to_le_bytes());
    }
    if let Some(overlay) = &code.overlay {
        out.extend(
            overlay
                .u
                .iter()
                .chain(&overlay.v)
                .flat_map(|word| word.to_le_bytes()),
        );
    }
    Ok(())
}

/// Names of linears and extras are distinct, since they are names of one model's tensors.
fn check_names<'a>(
    linears: impl Iterator<Item = &'a String>,
    extras: impl Iterator<Item = &'a String>,
    origin: &str,
) -> Result<(), PackError> {
    let mut seen = HashSet::new();
    for name in linears.chain(extras) {
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
    row_log: Vec<u8>,
    row_step_log: Vec<u8>,
    tile_offsets: Vec<u64>,
    overlay: Option<LowRank>,
    payload: Range<usize>,
}

/// A parsed layer file: every field was checked, indices are decoded on demand.
#[derive(Debug)]
pub struct LayerFile {
    bytes: Vec<u8>,
    origin: String,
    layer: u32,
    tables: LayerTables,
    groups: Vec<ColumnGroup>,
    headers: Vec<LinearHeader>,
    linears: Vec<Parsed>,
    extras: Vec<ExactDecl>,
    extra_ranges: Vec<Range<usize>>,
}

impl LayerFile {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// `Io` and those of [`LayerFile::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let bytes = std::fs::read(path.as_ref()).map_err(error::io(&origin))?;
        Self::from_bytes(bytes, &origin)
    }

    /// Parses the bytes of a layer file; `origin` names them in errors.
    ///
    /// # Errors
    /// `Magic`, `Version`, `Truncated`, `Invalid`, `Codec`.
    pub fn from_bytes(bytes: Vec<u8>, origin: &str) -> Result<Self, PackError> {
        let mut cursor = Cursor::new(&bytes, origin);
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
                column_log: take_small(&mut cursor, cols, &input, origin)?,
                input,
            });
        }
        let mut linears = Vec::new();
        for _ in 0..counts.linears {
            linears.push(take_linear(&mut cursor, &groups, origin)?);
        }
        let (mut extras, mut extra_ranges) = (Vec::new(), Vec::new());
        for _ in 0..counts.extras {
            let decl = ExactDecl::take(&mut cursor, origin)?;
            let start = cursor.at();
            cursor.take(decl.byte_len(origin)?, &decl.name)?;
            extra_ranges.push(start..cursor.at());
            extras.push(decl);
        }
        for linear in &mut linears {
            let before = cursor.at();
            cursor.align(LAYER_ALIGNMENT, "payload")?;
            let start = cursor.at();
            cursor.take(linear.payload.len() as u64, "payload")?;
            linear.payload = start..cursor.at();
            linear.header.bytes += (cursor.at() - before) as u64;
        }
        cursor.finish("file length")?;
        check_names(
            linears.iter().map(|l| &l.header.name),
            extras.iter().map(|e| &e.name),
            origin,
        )?;
        let headers = linears.iter().map(|linear| linear.header.clone()).collect();
        let (origin, layer) = (origin.to_owned(), counts.layer);
        Ok(Self {
            bytes,
            origin,
            layer,
            tables,
            groups,
            headers,
            linears,
            extras,
            extra_ranges,
        })
    }

    /// Position of the layer in the model.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// Name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The groups of linears that share an input.
    pub fn groups(&self) -> &[ColumnGroup] {
        &self.groups
    }

    /// The linears, in file order.
    pub fn linears(&self) -> &[LinearHeader] {
        &self.headers
    }

    /// The exact tensors, in file order.
    pub fn extras(&self) -> &[ExactDecl] {
        &self.extras
    }

    /// Bytes of exact tensor `index`.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn extra_bytes(&self, index: usize) -> &[u8] {
        &self.bytes[self.extra_ranges[index].clone()]
    }

    /// Decodes linear `index`.
    ///
    /// # Errors
    /// `Codec` where the payload is damaged.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn codes(&self, index: usize) -> Result<TensorCode, PackError> {
        let linear = &self.linears[index];
        let LinearHeader {
            name,
            rows,
            cols,
            group,
            ..
        } = &linear.header;
        let column_log = &self.groups[*group].column_log;
        let q = rans::decode(
            *rows,
            *cols,
            &linear.row_log,
            column_log,
            &self.tables,
            rans::tile_rows(*rows, *cols),
            &linear.tile_offsets,
            &self.bytes[linear.payload.clone()],
        )
        .map_err(|source| codec_error(&self.origin, name, source))?;
        Ok(TensorCode {
            rows: *rows,
            cols: *cols,
            step: linear.step,
            column_log: column_log.clone(),
            row_log: linear.row_log.clone(),
            row_step_log: linear.row_step_log.clone(),
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
            .map_err(|source| codec_error(&self.origin, &self.headers[index].name, source))
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
    extras: u16,
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
        let extras = bounded("number of extras", MAX_EXACT_TENSORS)?;
        bounded("reserved field", 0)?;
        Ok(Self {
            layer,
            groups,
            linears,
            extras,
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
        Some(found) => found.column_log.len(),
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
    let mut row_log = take_small(cursor, rows, &name, origin)?;
    let row_step_log = take_small(cursor, rows, &name, origin)?;
    for (log, step) in row_log.iter_mut().zip(&row_step_log) {
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
    let payload = 0..usize::try_from(end).unwrap_or(usize::MAX); // its length; placed after the extras
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
        row_log,
        row_step_log,
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
