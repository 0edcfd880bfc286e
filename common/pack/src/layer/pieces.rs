//! Reconstruction of a linear in pieces of rows.
//!
//! Memory depends on the width of the linear and on the rank of its overlay, not on its number of rows and not on what the
//! header claims. One thread works on a linear; several linears are reconstructed at the same time by several threads.

use std::ops::Range;

use uc_codec::rans::{self, LogarithmSet, PieceDecoder};
use uc_codec::reconstruct::PieceReconstructor;
use uc_codec::{CodecError, PackedReader, unpack_small};

use super::header::ParsedLinear;
use super::{LayerBytes, LayerFile, codec_error};
use crate::error::{self, PackError};
use crate::wire::ReadAt;

/// Approximate number of weights of a piece: indices and weights stay in the second-level cache. A piece has at least one row.
const PIECE_WEIGHTS: usize = 1 << 16;

/// The buffers of a reconstruction. They are reused from linear to linear.
#[derive(Debug, Default)]
pub struct PieceBuffers {
    /// `[cols]` logarithms of the columns.
    columns: Vec<u8>,
    piece: Scratch,
}

/// The buffers of a piece.
#[derive(Debug, Default)]
struct Scratch {
    /// [rows, cols] indices.
    q: Vec<i16>,
    /// [rows, cols] weights.
    weights: Vec<u16>,
    /// `[rows]`
    row_logs: Vec<u8>,
    /// `[rows]`
    row_steps: Vec<u8>,
    /// [rows, rank]
    u: Vec<u16>,
    /// Bytes of the overlay's factors.
    factors: Vec<u8>,
    /// Bytes of a tile that are read but not decoded.
    window: Window,
}

/// Some whole rows of a linear.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Number of the first row.
    pub first_row: usize,
    /// [rows, cols] weights, bfloat16; empty if they were not asked for.
    pub weights: &'a [u16],
    /// [rows, cols] indices.
    pub q: &'a [i16],
    /// `[rows]` see [`uc_codec::TensorCode::row_log2_eighths`].
    pub row_log2_eighths: &'a [u8],
    /// `[rows]` see [`uc_codec::TensorCode::row_step_log2_eighths`].
    pub row_step_log2_eighths: &'a [u8],
}

/// What pieces contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Everything.
    Weights,
    /// Everything but weights, which cost time.
    Indices,
}

/// Why a piece fails: the codec's error gets the names of file and tensor.
enum Failure {
    Codec(CodecError),
    Io(std::io::Error),
}

impl From<CodecError> for Failure {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl LayerFile {
    /// Decodes linear `index` in pieces of whole rows. Takes a few MB whatever the size of the linear, and
    /// `4 · rank · cols` bytes for an overlay. Linears of one shape have the same pieces.
    ///
    /// # Errors
    /// `Io`, and `Codec` if the linear is damaged.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn pieces<'a>(
        &'a self,
        index: usize,
        contents: Contents,
        buffers: &'a mut PieceBuffers,
    ) -> Result<Pieces<'a>, PackError> {
        let linear = &self.header.linears[index];
        let pieces = Pieces::new(self, linear, contents, buffers);
        pieces.map_err(|failure| failure.of(self, linear))
    }

    /// As [`LayerFile::pieces`], for the rows of one tile, see [`LayerFile::tile_rows`]. Tiles are independent of each other.
    ///
    /// # Errors
    /// `Io`, and `Codec` if the linear is damaged.
    ///
    /// # Panics
    /// If there is no such linear or tile.
    pub fn tile_pieces<'a>(
        &'a self,
        index: usize,
        tile: usize,
        contents: Contents,
        buffers: &'a mut PieceBuffers,
    ) -> Result<Pieces<'a>, PackError> {
        let linear = &self.header.linears[index];
        let pieces = Pieces::new(self, linear, contents, buffers);
        pieces
            .and_then(|pieces| pieces.of_tile(tile))
            .map_err(|failure| failure.of(self, linear))
    }

    /// Rows of the tiles of linear `index`; the last may have fewer.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn tile_rows(&self, index: usize) -> usize {
        let header = &self.header.linears[index].header;
        rans::tile_rows(header.rows, header.cols) as usize
    }

    /// As [`LayerFile::pieces`]; passes the weights from the first row to the last to `sink`: bfloat16 `[rows, cols]`.
    ///
    /// # Errors
    /// `Io`, and `Codec` if the linear is damaged; `sink` may have received weights by then.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn reconstruct_pieces(
        &self,
        index: usize,
        buffers: &mut PieceBuffers,
        sink: &mut dyn FnMut(&[u16]),
    ) -> Result<(), PackError> {
        let mut pieces = self.pieces(index, Contents::Weights, buffers)?;
        while let Some(piece) = pieces.next_piece()? {
            sink(piece.weights);
        }
        Ok(())
    }

    /// `[cols]` logarithms of the columns of linear `index`, see [`uc_codec::TensorCode::column_log2_eighths`].
    ///
    /// # Errors
    /// `Codec` if they are damaged.
    ///
    /// # Panics
    /// If there is no such linear.
    pub fn column_log2_eighths(&self, index: usize) -> Result<Vec<u8>, PackError> {
        let linear = &self.header.linears[index];
        self.columns(linear)
            .map_err(|source| codec_error(&self.origin, &linear.header.name, source))
    }

    fn columns(&self, linear: &ParsedLinear) -> Result<Vec<u8>, CodecError> {
        let packed = &self.header.groups[linear.header.group].packed;
        unpack_small(packed, linear.header.cols)
    }
}

impl Failure {
    /// The error with the names of file and tensor.
    fn of(self, file: &LayerFile, linear: &ParsedLinear) -> PackError {
        match self {
            Self::Codec(source) => codec_error(&file.origin, &linear.header.name, source),
            Self::Io(source) => error::io(&file.origin)(source),
        }
    }
}

/// A linear that is decoded piece by piece.
pub struct Pieces<'a> {
    file: &'a LayerFile,
    linear: &'a ParsedLinear,
    decoder: PieceDecoder<'a>,
    reconstructor: PieceReconstructor,
    logarithms: RowLogarithms<'a>,
    scratch: &'a mut Scratch,
    contents: Contents,
    /// Number of the next row.
    row: usize,
    /// Row after the last piece.
    end: usize,
    /// Offset in the file of the first tile that has not been begun.
    offset: u64,
}

impl<'a> Pieces<'a> {
    fn new(
        file: &'a LayerFile,
        linear: &'a ParsedLinear,
        contents: Contents,
        buffers: &'a mut PieceBuffers,
    ) -> Result<Self, Failure> {
        buffers.columns = file.columns(linear)?;
        let PieceBuffers { columns, piece } = buffers;
        let columns: &'a [u8] = columns;
        let occurring = occurring_logarithms(linear)?;
        Ok(Self {
            file,
            linear,
            decoder: PieceDecoder::new(occurring, columns, &file.header.tables)?,
            reconstructor: reconstructor(file, linear, columns, &mut piece.factors)?,
            logarithms: RowLogarithms::new(linear)?,
            scratch: piece,
            contents,
            row: 0,
            end: linear.header.rows,
            offset: linear.payload.start,
        })
    }

    /// Only the pieces of a tile.
    fn of_tile(mut self, tile: usize) -> Result<Self, Failure> {
        let header = &self.linear.header;
        let tile_rows = rans::tile_rows(header.rows, header.cols) as usize;
        self.row = tile * tile_rows;
        self.end = header.rows.min(self.row + tile_rows);
        let before = &self.linear.tile_lengths[..tile];
        self.offset += before.iter().map(|&length| u64::from(length)).sum::<u64>();
        for _ in 0..self.row {
            self.logarithms.row()?;
        }
        Ok(self)
    }

    /// The next piece; none after the last one. After an error there is no next piece.
    ///
    /// # Errors
    /// `Io`, and `Codec` if the linear is damaged.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, PackError> {
        if self.row == self.end {
            return Ok(None);
        }
        let first_row = self.row;
        self.decode()
            .map_err(|failure| failure.of(self.file, self.linear))?;
        Ok(Some(Piece {
            first_row,
            weights: &self.scratch.weights,
            q: &self.scratch.q,
            row_log2_eighths: &self.scratch.row_logs,
            row_step_log2_eighths: &self.scratch.row_steps,
        }))
    }

    /// Decodes the next piece into the buffers.
    fn decode(&mut self) -> Result<(), Failure> {
        let header = &self.linear.header;
        let (rows, cols) = (header.rows, header.cols);
        let tile_rows = rans::tile_rows(rows, cols) as usize;
        let tile = self.row / tile_rows;
        let tile_end = rows.min((tile + 1) * tile_rows);
        if self.row.is_multiple_of(tile_rows) {
            self.begin_tile(self.linear.tile_lengths[tile])?;
        }
        let piece_rows = (PIECE_WEIGHTS / cols).max(1);
        let piece = self.row..tile_end.min(self.row + piece_rows);
        let count = piece.len();
        let scratch = &mut *self.scratch;
        self.logarithms
            .next(count, &mut scratch.row_logs, &mut scratch.row_steps)?;
        scratch.q.resize(count * cols, 0);
        let largest = self.decoder.largest_rows(count);
        let bytes = scratch.window.bytes(&self.file.bytes, largest)?;
        let used = self
            .decoder
            .rows(bytes, &scratch.row_logs, &mut scratch.q)?;
        scratch.window.consume(used);
        self.row = piece.end;
        match self.contents {
            Contents::Indices => scratch.weights.clear(),
            Contents::Weights => {
                scratch.weights.resize(count * cols, 0);
                read_u(self.file, self.linear, piece, scratch)?;
                self.reconstructor.rows(
                    &scratch.q,
                    &scratch.row_logs,
                    &scratch.row_steps,
                    &scratch.u,
                    &mut scratch.weights,
                )?;
            }
        }
        if self.row == tile_end {
            self.decoder.finish(scratch.window.left())?;
        }
        Ok(())
    }

    /// Begins a tile of this number of bytes.
    fn begin_tile(&mut self, length: u32) -> Result<(), Failure> {
        let end = self.offset + u64::from(length);
        let window = &mut self.scratch.window;
        window.start(self.offset..end);
        self.offset = end;
        let states = rans::least_tile_bytes(self.linear.header.cols) as usize;
        let used = self
            .decoder
            .begin(window.bytes(&self.file.bytes, states)?)?;
        window.consume(used);
        Ok(())
    }
}

/// The row logarithms that occur in a linear.
fn occurring_logarithms(linear: &ParsedLinear) -> Result<LogarithmSet, CodecError> {
    let mut occurring = LogarithmSet::of(&[]);
    let mut logarithms = RowLogarithms::new(linear)?;
    for _ in 0..linear.header.rows {
        occurring.insert(logarithms.row()?.0);
    }
    Ok(occurring)
}

/// Reads V and prepares the reconstruction.
fn reconstructor(
    file: &LayerFile,
    linear: &ParsedLinear,
    columns: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<PieceReconstructor, Failure> {
    let header = &linear.header;
    let (rows, rank) = (header.rows as u64, header.rank);
    let mut v = Vec::new();
    let offset = linear.overlay + 2 * rows * rank as u64;
    let count = rank * columns.len();
    v.try_reserve_exact(count)
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
    read_words(&file.bytes, offset, count, buffer, &mut v)?;
    Ok(PieceReconstructor::new(header.step, columns, rank, &v)?)
}

/// Reads the rows of U that belong to a piece.
fn read_u(
    file: &LayerFile,
    linear: &ParsedLinear,
    piece: Range<usize>,
    scratch: &mut Scratch,
) -> Result<(), Failure> {
    let rank = linear.header.rank;
    scratch.u.clear();
    let offset = linear.overlay + 2 * (piece.start * rank) as u64;
    let (factors, u) = (&mut scratch.factors, &mut scratch.u);
    read_words(&file.bytes, offset, piece.len() * rank, factors, u)
}

/// Appends `count` words from an offset of the file.
fn read_words(
    bytes: &LayerBytes,
    mut offset: u64,
    mut count: usize,
    buffer: &mut Vec<u8>,
    words: &mut Vec<u16>,
) -> Result<(), Failure> {
    while count > 0 {
        let part = count.min(PIECE_WEIGHTS);
        buffer.resize(2 * part, 0);
        bytes.read_exact_at(buffer, offset)?;
        let pairs = buffer.chunks_exact(2);
        words.extend(pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
        offset += 2 * part as u64;
        count -= part;
    }
    Ok(())
}

/// Unpacks both logarithms of a linear's rows, row after row.
struct RowLogarithms<'a> {
    sums: PackedReader<'a>,
    steps: PackedReader<'a>,
}

impl<'a> RowLogarithms<'a> {
    fn new(linear: &'a ParsedLinear) -> Result<Self, CodecError> {
        let rows = linear.header.rows;
        Ok(Self {
            sums: PackedReader::new(&linear.row_sums, rows)?,
            steps: PackedReader::new(&linear.row_steps, rows)?,
        })
    }

    /// The row logarithm and the step's logarithm of the next row.
    fn row(&mut self) -> Result<(u8, u8), CodecError> {
        let (sum, step) = (self.sums.value()?, self.steps.value()?);
        Ok((sum.wrapping_sub(step), step))
    }

    /// Those of the next `count` rows.
    fn next(
        &mut self,
        count: usize,
        logs: &mut Vec<u8>,
        steps: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        logs.clear();
        steps.clear();
        for _ in 0..count {
            let (log, step) = self.row()?;
            logs.push(log);
            steps.push(step);
        }
        Ok(())
    }
}

/// A part of a tile: the bytes that are read and not yet decoded.
#[derive(Debug, Default)]
struct Window {
    buffer: Vec<u8>,
    /// The bytes of `buffer` that are not yet decoded.
    held: Range<usize>,
    /// The bytes of the tile in the file that are not yet read.
    unread: Range<u64>,
}

/// Bytes that a window reads at once, if the tile has as many.
const READ_AHEAD: usize = 1 << 19;

impl Window {
    /// Turns to another tile.
    fn start(&mut self, tile: Range<u64>) {
        self.held = 0..0;
        self.unread = tile;
    }

    /// The next bytes of the tile: at least `least`, or all that are left.
    fn bytes(&mut self, file: &LayerBytes, least: usize) -> Result<&[u8], Failure> {
        let unread = self.unread.end - self.unread.start;
        if self.held.len() < least && unread > 0 {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
            let room = least.max(READ_AHEAD) - self.held.len();
            let count = unread.min(room as u64) as usize;
            let end = self.held.end + count;
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            file.read_exact_at(&mut self.buffer[self.held.end..end], self.unread.start)?;
            self.unread.start += count as u64;
            self.held.end = end;
        }
        Ok(&self.buffer[self.held.clone()])
    }

    /// Drops the first `count` bytes.
    fn consume(&mut self, count: usize) {
        self.held.start += count;
    }

    /// Bytes of the tile that are not decoded.
    fn left(&self) -> u64 {
        self.held.len() as u64 + self.unread.end - self.unread.start
    }
}
