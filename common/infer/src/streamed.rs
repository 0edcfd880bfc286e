//! The streamed form of a linear: the entropy-coded tiles of its pack, which are decoded each time they are used.
//!
//! A linear takes the bytes that it has in the pack. A use decodes every tile once for all tokens of the batch, in pieces that stay
//! in the caches, so its cost is that of entropy decoding, whatever the number of tokens.

use std::sync::Arc;

use uc_codec::trellis::LevelReader;
use uc_pack::LayerFile;
use uc_pack::layer::{Contents, Piece, PieceBuffers};

use crate::columns::Columns;
use crate::integer::Missing;
use crate::packed::{PANEL, fits_narrow};

/// A linear of a layer file in memory, every tile of which has been decoded once.
#[derive(Debug)]
pub(crate) struct Streamed {
    file: Arc<LayerFile>,
    /// Number of the linear.
    index: usize,
}

/// Some rows of levels, in the order of the columns of the runtime.
#[derive(Debug, Default)]
pub(crate) struct LevelRows {
    /// [panels, rows]
    pub(crate) panels: Vec<Vec<[i16; PANEL]>>,
    /// For each panel, the bits of the rows whose sums may not fit into 32 bits.
    pub(crate) wide: Vec<u64>,
    /// Panels and levels that do not fit into 16 bits, which are 0 here.
    pub(crate) outliers: Vec<(usize, Missing)>,
    /// `[cols]` levels of a row, in the order of the source.
    row: Vec<i32>,
}

impl Streamed {
    /// Linear `index` of a file in memory.
    pub(crate) fn new(file: Arc<LayerFile>, index: usize) -> Self {
        assert!(file.bytes_in_memory() > 0, "a file in memory");
        Streamed { file, index }
    }

    /// Rows of a tile; the last may have fewer.
    pub(crate) fn tile_rows(&self) -> usize {
        self.file.tile_rows(self.index)
    }

    /// Bytes in memory: what the linear has in the pack.
    pub(crate) fn bytes(&self) -> usize {
        self.file.linears()[self.index].bytes as usize
    }

    /// Passes the weights of a tile to `sink`, in pieces [rows, cols]: bfloat16, in the order of the source.
    pub(crate) fn weights(
        &self,
        tile: usize,
        buffers: &mut PieceBuffers,
        sink: &mut dyn FnMut(&[u16]),
    ) {
        self.pieces(tile, Contents::Weights, buffers, &mut |piece| {
            sink(piece.weights);
        });
    }

    /// Passes the levels of a tile to `sink`, `rows` at a time.
    pub(crate) fn levels(
        &self,
        tile: usize,
        rows: usize,
        columns: &Columns,
        buffers: &mut PieceBuffers,
        sink: &mut dyn FnMut(&mut LevelRows, usize),
    ) {
        let cols = columns.len();
        let mut reader = LevelReader::new(cols);
        let mut found = LevelRows::default();
        self.pieces(tile, Contents::Indices, buffers, &mut |piece| {
            let chunks = piece.q.chunks(rows * cols);
            for (q, logs) in chunks.zip(piece.row_log2_eighths.chunks(rows)) {
                found.read(q, logs, columns, &mut reader);
                sink(&mut found, logs.len());
            }
        });
    }

    /// Passes the pieces of a tile to `sink`.
    fn pieces(
        &self,
        tile: usize,
        contents: Contents,
        buffers: &mut PieceBuffers,
        sink: &mut dyn FnMut(&Piece<'_>),
    ) {
        let decoded = "a tile that has been decoded before, from the same bytes";
        let pieces = self.file.tile_pieces(self.index, tile, contents, buffers);
        let mut pieces = pieces.expect(decoded);
        while let Some(piece) = pieces.next_piece().expect(decoded) {
            sink(&piece);
        }
    }
}

impl LevelRows {
    /// Takes the levels of the next rows.
    fn read(&mut self, q: &[i16], logs: &[u8], columns: &Columns, reader: &mut LevelReader) {
        let cols = columns.len();
        let panels = cols.div_ceil(PANEL);
        self.panels.resize_with(panels, Vec::new);
        for panel in &mut self.panels {
            panel.resize(logs.len(), [0; PANEL]);
        }
        self.row.resize(cols, 0);
        self.wide.clear();
        self.wide.resize(panels, 0);
        self.outliers.clear();
        for (row, (q, log)) in q.chunks_exact(cols).zip(logs).enumerate() {
            reader.row(q, *log, &mut self.row);
            for (panel, order) in columns.order.chunks(PANEL).enumerate() {
                let levels = &mut self.panels[panel][row];
                let mut largest = 0;
                for (level, &column) in levels.iter_mut().zip(order) {
                    let found = self.row[column as usize];
                    largest |= (found ^ (found >> 31)) as u32;
                    *level = found as i16;
                }
                self.wide[panel] |= u64::from(!fits_narrow(largest)) << row;
                if largest > i16::MAX as u32 {
                    for (place, (level, &column)) in levels.iter_mut().zip(order).enumerate() {
                        let found = self.row[column as usize];
                        if i32::from(*level) != found {
                            *level = 0;
                            let missing = Missing {
                                row,
                                column: place,
                                difference: found,
                            };
                            self.outliers.push((panel, missing));
                        }
                    }
                }
            }
        }
    }
}
