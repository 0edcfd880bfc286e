//! The writer of layer files.
//!
//! A layer may hold more weights than fit in memory, so the linears are read one at a time, in three passes. The first
//! pass counts symbols for the context tables. The second encodes every linear to determine the lengths that the header
//! records. The third encodes again and writes. Entropy coding is much faster than quantization, so encoding twice
//! costs little and is simpler than storing the payloads between the passes.

use std::borrow::Cow;
use std::io::Write;

use uc_codec::contexts::{LayerTables, TableBuilder};
use uc_codec::layer::CodedLinear;
use uc_codec::{pack_small, rans};

use super::{check_names, codec_error};
use crate::error::{self, PackError, invalid};
use crate::exact::ExactTensor;
use crate::wire::{narrow, padding_to, put_name};
use crate::{
    FORMAT_VERSION, LAYER_ALIGNMENT, LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS,
    MAX_LAYERS, MAX_LINEARS, MAX_RANK, MAX_ROWS,
};

/// The coded linears of a layer in the order of its plan, in memory or on disk.
pub trait Linears {
    /// The error of reading a linear.
    type Error: From<PackError>;

    /// Number of linears.
    fn count(&self) -> usize;

    /// Linear `index`, which must be below [`Linears::count`].
    ///
    /// # Errors
    /// If the linear cannot be read.
    fn linear(&self, index: usize) -> Result<Cow<'_, CodedLinear>, Self::Error>;
}

impl Linears for [CodedLinear] {
    type Error = PackError;

    fn count(&self) -> usize {
        self.len()
    }

    fn linear(&self, index: usize) -> Result<Cow<'_, CodedLinear>, PackError> {
        Ok(Cow::Borrowed(&self[index]))
    }
}

/// A layer file that is complete except for its payloads.
#[derive(Debug)]
pub struct LayerCoder {
    origin: String,
    tables: LayerTables,
    /// The file's header: everything before the payloads.
    header: Vec<u8>,
    /// `[linears]` length of each payload in bytes.
    payload_lengths: Vec<u64>,
}

impl LayerCoder {
    /// Builds the context tables and the header of a layer. Linears that read the same input and have the same column
    /// logarithms share a group.
    ///
    /// # Errors
    /// `Invalid` if a value exceeds a limit or contradicts another, `Codec`, and the errors of `linears`.
    pub fn new<L: Linears + ?Sized>(
        layer: u32,
        linears: &L,
        exact: &[ExactTensor],
    ) -> Result<Self, L::Error> {
        let origin = format!("layer {layer}");
        let mut builder = TableBuilder::default();
        for index in 0..linears.count() {
            let linear = linears.linear(index)?;
            let counted = builder.add(&linear.code);
            counted.map_err(|source| codec_error(&origin, &linear.name, source))?;
        }
        let tables = builder.build();
        let mut descriptors = Descriptors::default();
        for index in 0..linears.count() {
            descriptors.add(&*linears.linear(index)?, &tables, &origin)?;
        }
        let header = encode_header(layer, &tables, &descriptors, exact, &origin)?;
        Ok(Self {
            origin,
            tables,
            header,
            payload_lengths: descriptors.payload_lengths,
        })
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        let append = |end: u64, payload: &u64| end + padding_to(end, LAYER_ALIGNMENT) + payload;
        let header = self.header.len() as u64;
        self.payload_lengths.iter().fold(header, append)
    }

    /// Writes the file. `linears` must be those that [`LayerCoder::new`] was given.
    ///
    /// # Errors
    /// `Io` with the error of `sink`, `Codec`, `Invalid` if a payload does not have the length found in
    /// [`LayerCoder::new`], and the errors of `linears`.
    pub fn write<L: Linears + ?Sized>(
        &self,
        linears: &L,
        sink: &mut impl Write,
    ) -> Result<(), L::Error> {
        let mut put = |bytes: &[u8]| sink.write_all(bytes).map_err(error::io(&self.origin));
        put(&self.header)?;
        let mut end = self.header.len() as u64;
        for (index, &expected) in self.payload_lengths.iter().enumerate() {
            let linear = linears.linear(index)?;
            let encoded = rans::encode(&linear.code, &self.tables)
                .map_err(|source| codec_error(&self.origin, &linear.name, source))?;
            let found = encoded.payload.len() as u64;
            if found != expected {
                let what = format!("payload length of {}", linear.name);
                return Err(invalid(&self.origin, what, found, expected.to_string()).into());
            }
            let padding = padding_to(end, LAYER_ALIGNMENT);
            put(&[0; LAYER_ALIGNMENT][..padding as usize])?;
            put(&encoded.payload)?;
            end += padding + found;
        }
        Ok(())
    }
}

/// Encodes a layer whose linears are in memory.
///
/// # Errors
/// Those of [`LayerCoder::new`] and [`LayerCoder::write`].
pub fn encode_layer(
    layer: u32,
    linears: &[CodedLinear],
    exact: &[ExactTensor],
) -> Result<Vec<u8>, PackError> {
    let coder = LayerCoder::new(layer, linears, exact)?;
    let mut bytes = Vec::with_capacity(coder.length() as usize);
    coder.write(linears, &mut bytes)?;
    Ok(bytes)
}

/// Linears that read the same input.
struct ColumnGroup {
    /// Name of the input.
    input: String,
    /// `[cols]` column logarithms, see `uc_codec::steps`.
    column_log2_eighths: Vec<u8>,
}

/// The parts of the header that depend on the linears.
#[derive(Default)]
struct Descriptors {
    groups: Vec<ColumnGroup>,
    names: Vec<String>,
    /// The linears' descriptors as written.
    bytes: Vec<u8>,
    /// `[linears]` length of each payload in bytes.
    payload_lengths: Vec<u64>,
}

impl Descriptors {
    /// Appends a linear's descriptor: name, rows, group, rank, step, packed row sums, packed row step logarithms, length
    /// of each tile, overlay factors.
    fn add(
        &mut self,
        linear: &CodedLinear,
        tables: &LayerTables,
        origin: &str,
    ) -> Result<(), PackError> {
        let code = &linear.code;
        let encoded = rans::encode(code, tables)
            .map_err(|source| codec_error(origin, &linear.name, source))?;
        let group = self.group_index(linear);
        let out = &mut self.bytes;
        put_name(out, &linear.name, "linear", origin)?;
        put_dimension(out, code.rows, MAX_ROWS, "rows", origin)?;
        out.extend(narrow::<u16>(group, MAX_GROUPS, "group", origin)?.to_le_bytes());
        let rank = code.overlay.as_ref().map_or(0, |overlay| overlay.rank);
        out.extend(narrow::<u16>(rank, MAX_RANK, "rank", origin)?.to_le_bytes());
        out.extend(code.step.to_le_bytes());
        // A row with larger steps has smaller indices. The sum of both logarithms varies less from row to row, so the
        // sums take fewer bits.
        let sums = code
            .row_log2_eighths
            .iter()
            .zip(&code.row_step_log2_eighths);
        let sums: Vec<u8> = sums.map(|(log, step)| log.wrapping_add(*step)).collect();
        put_logarithms(out, &sums, origin)?;
        put_logarithms(out, &code.row_step_log2_eighths, origin)?;
        let length = encoded.payload.len() as u64;
        let ends = encoded.tile_offsets.iter().skip(1).copied().chain([length]);
        for (start, end) in encoded.tile_offsets.iter().zip(ends) {
            let tile = (end - start) as usize;
            out.extend(narrow::<u32>(tile, u32::MAX.into(), "tile length", origin)?.to_le_bytes());
        }
        if let Some(overlay) = &code.overlay {
            let factors = overlay.u.iter().chain(&overlay.v);
            out.extend(factors.flat_map(|bits| bits.to_le_bytes()));
        }
        self.names.push(linear.name.clone());
        self.payload_lengths.push(length);
        Ok(())
    }

    /// Index of the group that a linear belongs to. Adds a group if none matches.
    fn group_index(&mut self, linear: &CodedLinear) -> usize {
        let matches = |group: &ColumnGroup| {
            group.input == linear.input
                && group.column_log2_eighths == linear.code.column_log2_eighths
        };
        self.groups.iter().position(matches).unwrap_or_else(|| {
            self.groups.push(ColumnGroup {
                input: linear.input.clone(),
                column_log2_eighths: linear.code.column_log2_eighths.clone(),
            });
            self.groups.len() - 1
        })
    }
}

/// Everything before the payloads.
fn encode_header(
    layer: u32,
    tables: &LayerTables,
    linears: &Descriptors,
    exact: &[ExactTensor],
    origin: &str,
) -> Result<Vec<u8>, PackError> {
    let mut out = LAYER_MAGIC.to_vec();
    out.extend(FORMAT_VERSION.to_le_bytes());
    let counts = [
        (layer as usize, MAX_LAYERS - 1, "layer index"),
        (linears.groups.len(), MAX_GROUPS, "number of groups"),
        (linears.names.len(), MAX_LINEARS, "number of linears"),
        (exact.len(), MAX_EXACT_TENSORS, "number of exact tensors"),
    ];
    for (count, limit, what) in counts {
        out.extend(narrow::<u16>(count, limit, what, origin)?.to_le_bytes());
    }
    out.extend([0; 2]);
    let table_bytes = tables.to_bytes();
    out.extend(narrow::<u32>(table_bytes.len(), u32::MAX.into(), "tables", origin)?.to_le_bytes());
    out.extend(&table_bytes);
    for group in &linears.groups {
        put_name(&mut out, &group.input, "group", origin)?;
        let columns = group.column_log2_eighths.len();
        put_dimension(&mut out, columns, MAX_COLUMNS, "columns", origin)?;
        put_logarithms(&mut out, &group.column_log2_eighths, origin)?;
    }
    out.extend(&linears.bytes);
    for tensor in exact {
        let decl = tensor.decl();
        decl.put(&mut out, origin)?;
        let (found, expected) = (tensor.bytes.len() as u64, decl.byte_len(origin)?);
        if found != expected {
            let found = format!("{found} bytes");
            let expected = format!("{expected} bytes");
            return Err(invalid(origin, &tensor.name, found, expected));
        }
        out.extend(&tensor.bytes);
    }
    let exact_names = exact.iter().map(|tensor| &tensor.name);
    check_names(linears.names.iter(), exact_names, origin)?;
    Ok(out)
}

/// A dimension of a matrix, from 1 to `limit`.
fn put_dimension(
    out: &mut Vec<u8>,
    size: usize,
    limit: u64,
    what: &str,
    origin: &str,
) -> Result<(), PackError> {
    if size == 0 {
        return Err(invalid(origin, what, 0, format!("1 to {limit}")));
    }
    out.extend(narrow::<u32>(size, limit, what, origin)?.to_le_bytes());
    Ok(())
}

/// Logarithms: length u32, then the packed form.
fn put_logarithms(out: &mut Vec<u8>, values: &[u8], origin: &str) -> Result<(), PackError> {
    let packed = pack_small(values);
    out.extend(narrow::<u32>(packed.len(), u32::MAX.into(), "logarithms", origin)?.to_le_bytes());
    out.extend(packed);
    Ok(())
}
