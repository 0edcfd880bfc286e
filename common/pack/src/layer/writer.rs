//! The writer of layer files.
//!
//! A layer may hold more weights than fit in memory, so indices are read tile by tile, in three passes. The first
//! pass counts symbols for the context tables. The second encodes every tile to determine the lengths that the header
//! records. The third encodes again and writes. Entropy coding is much faster than quantization, so encoding twice
//! costs little and is simpler than storing the payloads between the passes.
//!
//! All threads work on tiles, and one of them writes what the others have encoded. Memory: the indices of one tile for each thread
//! (at most `2·max(2^20, 256·cols)` bytes, and what reading them takes), and the bytes of three encoded tiles for each thread.

use std::borrow::Cow;
use std::io::Write;

use rayon::prelude::*;
use uc_codec::contexts::{LayerTables, TableBuilder};
use uc_codec::layer::{CodedLinear, LinearParameters};
use uc_codec::rans::TileEncoder;
use uc_codec::{CodecError, pack_small};

use super::{check_names, codec_error};
use crate::error::{self, PackError, invalid};
use crate::exact::ExactTensor;
use crate::wire::{narrow, padding_to, put_name};
use crate::{
    FORMAT_VERSION, LAYER_ALIGNMENT, LAYER_MAGIC, MAX_COLUMNS, MAX_EXACT_TENSORS, MAX_GROUPS,
    MAX_LAYERS, MAX_LINEARS, MAX_RANK, MAX_ROWS,
};

/// The coded linears of a layer in the order of its plan, in memory or on disk.
pub trait Linears: Sync {
    /// The error of reading a linear.
    type Error: From<PackError> + Send;

    /// Number of linears.
    fn count(&self) -> usize;

    /// Linear `index`, which must be below [`Linears::count`], but for its indices.
    ///
    /// # Errors
    /// If the linear cannot be read.
    fn parameters(&self, index: usize) -> Result<Cow<'_, LinearParameters>, Self::Error>;

    /// The indices of a tile of linear `index`, [rows, cols] for the rows of [`LinearParameters::tile`].
    ///
    /// # Errors
    /// If they cannot be read.
    fn indices(&self, index: usize, tile: usize) -> Result<Cow<'_, [i16]>, Self::Error>;
}

impl Linears for [CodedLinear] {
    type Error = PackError;

    fn count(&self) -> usize {
        self.len()
    }

    fn parameters(&self, index: usize) -> Result<Cow<'_, LinearParameters>, PackError> {
        Ok(Cow::Owned(self[index].parameters()))
    }

    fn indices(&self, index: usize, tile: usize) -> Result<Cow<'_, [i16]>, PackError> {
        let linear = &self[index];
        let validated = linear.code.validate();
        validated.map_err(|source| codec_error("layer", &linear.name, source))?;
        let indices = linear.tile_rows() * linear.code.cols;
        let tile = linear.code.q.chunks(indices.max(1)).nth(tile);
        Ok(Cow::Borrowed(tile.unwrap_or_default()))
    }
}

/// A tile of a linear, by their numbers.
#[derive(Debug, Clone, Copy)]
struct TileId {
    linear: usize,
    tile: usize,
}

/// What all tiles of a layer are read from.
struct Source<'a, L: ?Sized> {
    linears: &'a L,
    /// `[linears]`
    parameters: Vec<LinearParameters>,
    origin: &'a str,
}

impl<'a, L: Linears + ?Sized> Source<'a, L> {
    fn new(linears: &'a L, origin: &'a str) -> Result<Self, L::Error> {
        let mut parameters = Vec::with_capacity(linears.count());
        for index in 0..linears.count() {
            let linear = linears.parameters(index)?.into_owned();
            let valid = linear.code.check_parameters();
            valid.map_err(|source| codec_error(origin, &linear.name, source))?;
            parameters.push(linear);
        }
        Ok(Self {
            linears,
            parameters,
            origin,
        })
    }

    /// All tiles, in the order of the file.
    fn tiles(&self) -> Vec<TileId> {
        let linears = self.parameters.iter().enumerate();
        let tiles = linears.flat_map(|(linear, parameters)| {
            (0..parameters.tiles()).map(move |tile| TileId { linear, tile })
        });
        tiles.collect()
    }

    /// Passes the indices of a tile, and the logarithms of its rows and columns, to `work`.
    fn with_tile<T>(
        &self,
        TileId { linear, tile }: TileId,
        work: impl FnOnce(&[i16], &[u8], &[u8]) -> Result<T, CodecError>,
    ) -> Result<T, L::Error> {
        let parameters = &self.parameters[linear];
        let q = self.linears.indices(linear, tile)?;
        let rows = &parameters.code.row_log2_eighths[parameters.tile(tile)];
        let done = work(&q, rows, &parameters.code.column_log2_eighths);
        Ok(done.map_err(|source| codec_error(self.origin, &parameters.name, source))?)
    }

    /// The context tables of the layer.
    fn tables(&self) -> Result<LayerTables, L::Error> {
        let count = |mut builder: TableBuilder, tile: TileId| {
            self.with_tile(tile, |q, rows, columns| builder.add_rows(q, rows, columns))?;
            Ok(builder)
        };
        let merge = |mut left: TableBuilder, right: TableBuilder| {
            left.merge(right);
            Ok::<_, L::Error>(left)
        };
        let tiles = self.tiles().into_par_iter();
        let builder = tiles
            .try_fold(TableBuilder::default, count)
            .try_reduce(TableBuilder::default, merge)?;
        Ok(builder.build())
    }
}

/// A layer file that is complete except for its payloads.
#[derive(Debug)]
pub struct LayerCoder {
    origin: String,
    tables: LayerTables,
    /// The file's header: everything before the payloads.
    header: Vec<u8>,
    /// `[linears]` lengths of the tiles in bytes.
    tile_lengths: Vec<Vec<u64>>,
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
        let source = Source::new(linears, &origin)?;
        let tables = source.tables()?;
        let encoder = TileEncoder::new(&tables);
        let length = |tile| {
            let encoded = source.with_tile(tile, |q, rows, cols| encoder.encode(q, rows, cols))?;
            Ok((tile, encoded.len() as u64))
        };
        let lengths = source.tiles().into_par_iter().map(length);
        let lengths: Vec<_> = lengths.collect::<Result<_, L::Error>>()?;
        let mut tile_lengths = vec![Vec::new(); source.parameters.len()];
        for (tile, length) in lengths {
            tile_lengths[tile.linear].push(length);
        }
        let mut descriptors = Descriptors::default();
        for (linear, lengths) in source.parameters.iter().zip(&tile_lengths) {
            descriptors.add(linear, lengths, &origin)?;
        }
        let header = encode_header(layer, &tables, &descriptors, exact, &origin)?;
        Ok(Self {
            origin,
            tables,
            header,
            tile_lengths,
        })
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        let append = |end: u64, tiles: &Vec<u64>| {
            end + padding_to(end, LAYER_ALIGNMENT) + tiles.iter().sum::<u64>()
        };
        let header = self.header.len() as u64;
        self.tile_lengths.iter().fold(header, append)
    }

    /// Writes the file. `linears` must be those that [`LayerCoder::new`] was given.
    ///
    /// # Errors
    /// `Io` with the error of `sink`, `Codec`, `Invalid` if a tile does not have the length found in
    /// [`LayerCoder::new`], and the errors of `linears`.
    pub fn write<L: Linears + ?Sized>(
        &self,
        linears: &L,
        sink: &mut (impl Write + Send),
    ) -> Result<(), L::Error> {
        let source = Source::new(linears, &self.origin)?;
        let encoder = TileEncoder::new(&self.tables);
        let encode = |&tile: &TileId| {
            let encoded = source.with_tile(tile, |q, rows, cols| encoder.encode(q, rows, cols))?;
            self.check_length(&source, tile, encoded.len() as u64)?;
            Ok((tile, encoded))
        };
        let mut output = Output {
            sink,
            origin: &self.origin,
            end: 0,
        };
        output.put(&self.header)?;
        let tiles = source.tiles();
        let mut encoded: Vec<(TileId, Vec<u8>)> = Vec::new();
        for window in tiles.chunks(2 * rayon::current_num_threads()) {
            let encode = || window.par_iter().map(encode).collect::<Result<_, _>>();
            let (next, written) = rayon::join(encode, || output.put_tiles(&encoded));
            written?;
            encoded = next.map_err(|error: L::Error| error)?;
        }
        Ok(output.put_tiles(&encoded)?)
    }

    /// Refuses a tile whose length is not the one found before.
    fn check_length<L: ?Sized>(
        &self,
        source: &Source<'_, L>,
        TileId { linear, tile }: TileId,
        found: u64,
    ) -> Result<(), PackError> {
        let expected = self.tile_lengths.get(linear).and_then(|of| of.get(tile));
        if expected == Some(&found) {
            return Ok(());
        }
        let what = format!(
            "length of tile {tile} of {}",
            source.parameters[linear].name
        );
        let expected = expected.map_or_else(|| "no such tile".into(), u64::to_string);
        Err(invalid(&self.origin, what, found, expected))
    }
}

/// The file that is being written.
struct Output<'a, W> {
    sink: &'a mut W,
    origin: &'a str,
    /// Bytes so far.
    end: u64,
}

impl<W: Write> Output<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        let written = self.sink.write_all(bytes);
        written.map_err(error::io(self.origin))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Puts tiles, the first of every linear at a multiple of the alignment.
    fn put_tiles(&mut self, tiles: &[(TileId, Vec<u8>)]) -> Result<(), PackError> {
        for (id, bytes) in tiles {
            if id.tile == 0 {
                let padding = padding_to(self.end, LAYER_ALIGNMENT);
                self.put(&[0; LAYER_ALIGNMENT][..padding as usize])?;
            }
            self.put(bytes)?;
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
}

impl Descriptors {
    /// Appends a linear's descriptor: name, rows, group, rank, step, packed row sums, packed row step logarithms, length
    /// of each tile, overlay factors.
    fn add(
        &mut self,
        linear: &LinearParameters,
        tile_lengths: &[u64],
        origin: &str,
    ) -> Result<(), PackError> {
        let group = self.group_index(linear);
        let code = &linear.code;
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
        for &length in tile_lengths {
            let length = length as usize;
            let length = narrow::<u32>(length, u32::MAX.into(), "tile length", origin)?;
            out.extend(length.to_le_bytes());
        }
        if let Some(overlay) = &code.overlay {
            let factors = overlay.u.iter().chain(&overlay.v);
            out.extend(factors.flat_map(|bits| bits.to_le_bytes()));
        }
        self.names.push(linear.name.clone());
        Ok(())
    }

    /// Index of the group that a linear belongs to. Adds a group if none matches.
    fn group_index(&mut self, linear: &LinearParameters) -> usize {
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
