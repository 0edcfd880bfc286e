//! From coded linears to the bytes of a layer file.
//!
//! A layer may hold more weights than memory does: linears come one after another, and come again for each pass over
//! them. The first pass counts indices for the tables, the second codes for the lengths that stand before the payloads,
//! the third codes once more and writes. Coding is so much faster than finding the indices that keeping payloads
//! elsewhere in between is not worth its trouble.

use std::borrow::Cow;
use std::io::Write;

use uc_codec::contexts::{LayerTables, TableBuilder};
use uc_codec::layer::CodedLinear;
use uc_codec::{pack_small, rans};

use super::{ColumnGroup, check_names, codec_error};
use crate::error::{self, PackError, invalid};
use crate::exact::ExactTensor;
use crate::wire::{narrow, padding_to, put_name};
use crate::{
    FORMAT_VERSION, LAYER_ALIGNMENT, LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS,
    MAX_LAYERS, MAX_LINEARS, MAX_RANK, MAX_ROWS,
};

/// The coded linears of a layer in the order of its plan, wherever they lie.
pub trait Linears {
    /// What can go wrong on the way to one.
    type Error: From<PackError>;

    /// How many there are.
    fn count(&self) -> usize;

    /// The linear at a place below [`Linears::count`].
    ///
    /// # Errors
    /// Where it cannot be had.
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

/// A layer file of which everything is known but the payloads themselves.
#[derive(Debug)]
pub struct LayerCoder {
    origin: String,
    tables: LayerTables,
    /// Everything before the payloads.
    front: Vec<u8>,
    /// Bytes of each linear's payload.
    payloads: Vec<u64>,
}

impl LayerCoder {
    /// Counts and codes the linears of a layer. Linears that read the same input and have the same column logarithms
    /// share a group.
    ///
    /// # Errors
    /// `Invalid` for what exceeds a limit or contradicts itself, `Codec`; those of `linears`.
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
        let front = front(layer, &tables, &descriptors, exact, &origin)?;
        Ok(Self {
            origin,
            tables,
            front,
            payloads: descriptors.payloads,
        })
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        let place = |at: u64, payload: &u64| at + padding_to(at, LAYER_ALIGNMENT) + payload;
        self.payloads.iter().fold(self.front.len() as u64, place)
    }

    /// Writes the file of the same linears.
    ///
    /// # Errors
    /// `Io` with what `sink` says, `Codec`, `Invalid` where a linear is not the one that was counted; those of `linears`.
    pub fn write<L: Linears + ?Sized>(
        &self,
        linears: &L,
        sink: &mut impl Write,
    ) -> Result<(), L::Error> {
        let mut put = |bytes: &[u8]| sink.write_all(bytes).map_err(error::io(&self.origin));
        put(&self.front)?;
        let mut at = self.front.len() as u64;
        for (index, &expected) in self.payloads.iter().enumerate() {
            let linear = linears.linear(index)?;
            let encoded = rans::encode(&linear.code, &self.tables)
                .map_err(|source| codec_error(&self.origin, &linear.name, source))?;
            let found = encoded.payload.len() as u64;
            if found != expected {
                let what = format!("payload of {}", linear.name);
                return Err(invalid(&self.origin, what, found, expected.to_string()).into());
            }
            let padding = padding_to(at, LAYER_ALIGNMENT);
            put(&[0; LAYER_ALIGNMENT][..padding as usize])?;
            put(&encoded.payload)?;
            at += padding + found;
        }
        Ok(())
    }
}

/// The bytes of the file of a layer whose linears are in memory.
///
/// # Errors
/// As [`LayerCoder::new`].
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

/// What stands before the payloads, as far as it depends on the linears.
#[derive(Default)]
struct Descriptors {
    groups: Vec<ColumnGroup>,
    names: Vec<String>,
    bytes: Vec<u8>,
    payloads: Vec<u64>,
}

impl Descriptors {
    /// Name, rows, group, rank, step, packed row logarithms with the row step logarithms added, packed row step
    /// logarithms, length of each tile, factors of the overlay.
    fn add(
        &mut self,
        linear: &CodedLinear,
        tables: &LayerTables,
        origin: &str,
    ) -> Result<(), PackError> {
        let code = &linear.code;
        let encoded = rans::encode(code, tables)
            .map_err(|source| codec_error(origin, &linear.name, source))?;
        let group = self.group(linear);
        let out = &mut self.bytes;
        put_name(out, &linear.name, "linear", origin)?;
        put_dimension(out, code.rows, MAX_ROWS, "rows", origin)?;
        out.extend(narrow::<u16>(group, MAX_GROUPS, "group", origin)?.to_le_bytes());
        let rank = code.overlay.as_ref().map_or(0, |overlay| overlay.rank);
        out.extend(narrow::<u16>(rank, MAX_RANK, "rank", origin)?.to_le_bytes());
        out.extend(code.step.to_le_bytes());
        // The width of a row in its own steps follows the step; the sum of both is smoother.
        let sums = code
            .row_log2_eighths
            .iter()
            .zip(&code.row_step_log2_eighths);
        let sums: Vec<u8> = sums.map(|(log, step)| log.wrapping_add(*step)).collect();
        put_small(out, &sums, origin)?;
        put_small(out, &code.row_step_log2_eighths, origin)?;
        let length = encoded.payload.len() as u64;
        let ends = encoded.tile_offsets.iter().skip(1).copied().chain([length]);
        for (start, end) in encoded.tile_offsets.iter().zip(ends) {
            let tile = (end - start) as usize;
            out.extend(narrow::<u32>(tile, u32::MAX.into(), "tile length", origin)?.to_le_bytes());
        }
        if let Some(overlay) = &code.overlay {
            let words = overlay.u.iter().chain(&overlay.v);
            out.extend(words.flat_map(|word| word.to_le_bytes()));
        }
        self.names.push(linear.name.clone());
        self.payloads.push(length);
        Ok(())
    }

    /// The group of a linear; a new one where none is like it.
    fn group(&mut self, linear: &CodedLinear) -> usize {
        let same = |group: &ColumnGroup| {
            group.input == linear.input
                && group.column_log2_eighths == linear.code.column_log2_eighths
        };
        self.groups.iter().position(same).unwrap_or_else(|| {
            self.groups.push(ColumnGroup {
                input: linear.input.clone(),
                column_log2_eighths: linear.code.column_log2_eighths.clone(),
            });
            self.groups.len() - 1
        })
    }
}

/// Everything before the payloads.
fn front(
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
    for (count, most, what) in counts {
        out.extend(narrow::<u16>(count, most, what, origin)?.to_le_bytes());
    }
    out.extend([0; 2]);
    let table_bytes = tables.to_bytes();
    out.extend(narrow::<u32>(table_bytes.len(), u32::MAX.into(), "tables", origin)?.to_le_bytes());
    out.extend(&table_bytes);
    for group in &linears.groups {
        put_name(&mut out, &group.input, "group", origin)?;
        let columns = group.column_log2_eighths.len();
        put_dimension(&mut out, columns, MAX_COLUMNS, "columns", origin)?;
        put_small(&mut out, &group.column_log2_eighths, origin)?;
    }
    out.extend(&linears.bytes);
    for extra in exact {
        let decl = extra.decl();
        decl.put(&mut out, origin)?;
        let (found, expected) = (extra.bytes.len() as u64, decl.byte_len(origin)?);
        if found != expected {
            let found = format!("{found} bytes");
            let expected = format!("{expected} bytes");
            return Err(invalid(origin, &extra.name, found, expected));
        }
        out.extend(&extra.bytes);
    }
    let exact = exact.iter().map(|extra| &extra.name);
    check_names(linears.names.iter(), exact, origin)?;
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
