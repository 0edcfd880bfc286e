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
    /// Decodes and reconstructs linear `index` from its first row to its last and passes the weights to `sink` in pieces of whole
    /// rows: bfloat16 `[rows, cols]`. Takes a few MB whatever the size of the linear, and `4 · rank · cols` bytes for an overlay.
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
        let linear = &self.header.linears[index];
        let pieces = Pieces { file: self, linear };
        pieces.run(buffers, sink).map_err(|failure| match failure {
            Failure::Codec(source) => codec_error(&self.origin, &linear.header.name, source),
            Failure::Io(source) => error::io(&self.origin)(source),
        })
    }
}

/// A linear of a file.
struct Pieces<'a> {
    file: &'a LayerFile,
    linear: &'a ParsedLinear,
}

impl Pieces<'_> {
    fn run(&self, buffers: &mut PieceBuffers, sink: &mut dyn FnMut(&[u16])) -> Result<(), Failure> {
        let header = &self.linear.header;
        let (rows, cols) = (header.rows, header.cols);
        let columns = unpack_small(&self.file.header.groups[header.group].packed, cols)?;
        let occurring = self.occurring_logarithms()?;
        let mut decoder = PieceDecoder::new(occurring, &columns, &self.file.header.tables)?;
        let mut reconstructor = self.reconstructor(&columns, buffers)?;
        let mut logarithms = RowLogarithms::new(self.linear)?;
        let tile_rows = rans::tile_rows(rows, cols) as usize;
        let piece_rows = (PIECE_WEIGHTS / cols).max(1);
        let mut offset = self.linear.payload.start;
        for (tile, &length) in self.linear.tile_lengths.iter().enumerate() {
            let tile = tile * tile_rows..rows.min((tile + 1) * tile_rows);
            let window = &mut buffers.window;
            window.start(offset..offset + u64::from(length));
            offset += u64::from(length);
            let states = rans::least_tile_bytes(cols) as usize;
            let used = decoder.begin(window.bytes(&self.file.bytes, states)?)?;
            window.consume(used);
            for first in tile.clone().step_by(piece_rows) {
                let piece = first..tile.end.min(first + piece_rows);
                let count = piece.len();
                logarithms.next(count, &mut buffers.row_logs, &mut buffers.row_steps)?;
                buffers.q.resize(count * cols, 0);
                buffers.weights.resize(count * cols, 0);
                let largest = decoder.largest_rows(count);
                let bytes = buffers.window.bytes(&self.file.bytes, largest)?;
                let used = decoder.rows(bytes, &buffers.row_logs, &mut buffers.q)?;
                buffers.window.consume(used);
                self.read_u(piece, buffers)?;
                reconstructor.rows(
                    &buffers.q,
                    &buffers.row_logs,
                    &buffers.row_steps,
                    &buffers.u,
                    &mut buffers.weights,
                )?;
                sink(&buffers.weights);
            }
            decoder.finish(buffers.window.left())?;
        }
        Ok(())
    }

    /// The row logarithms that occur.
    fn occurring_logarithms(&self) -> Result<LogarithmSet, CodecError> {
        let mut occurring = LogarithmSet::of(&[]);
        let mut logarithms = RowLogarithms::new(self.linear)?;
        for _ in 0..self.linear.header.rows {
            occurring.insert(logarithms.row()?.0);
        }
        Ok(occurring)
    }

    /// Reads V and prepares the reconstruction.
    fn reconstructor(
        &self,
        columns: &[u8],
        buffers: &mut PieceBuffers,
    ) -> Result<PieceReconstructor, Failure> {
        let header = &self.linear.header;
        let (rows, rank) = (header.rows as u64, header.rank);
        let mut v = Vec::new();
        let offset = self.linear.overlay + 2 * rows * rank as u64;
        let count = rank * columns.len();
        v.try_reserve_exact(count)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        read_words(
            &self.file.bytes,
            offset,
            count,
            &mut buffers.factors,
            &mut v,
        )?;
        let step = self.linear.step;
        Ok(PieceReconstructor::new(step, columns, rank, &v)?)
    }

    /// Reads the rows of U that belong to a piece.
    fn read_u(&self, piece: Range<usize>, buffers: &mut PieceBuffers) -> Result<(), Failure> {
        let rank = self.linear.header.rank;
        buffers.u.clear();
        let offset = self.linear.overlay + 2 * (piece.start * rank) as u64;
        let (factors, u) = (&mut buffers.factors, &mut buffers.u);
        read_words(&self.file.bytes, offset, piece.len() * rank, factors, u)
    }
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
