//! The arithmetic `fast`: levels times activations in integers.
//!
//! For a row i of a linear, with the panels P of its columns ([`crate::packed`]):
//! ```text
//! a_j  = x_j · F(column logarithm j)                     the activation times the column's step, without the tensor's
//! s_P  = max |a_j| / 32512 over j in P                   the scale of a panel
//! A_j  = a_j / s_P, rounded to the nearest integer       16 bits
//! S_P  = Σ level_ij · A_j over j in P                    exact, in integers
//! y_i  = (step · row factor i) · Σ s_P · f32(S_P)        fused multiply-adds, in the order of the panels
//! ```
//! The integer sums do not depend on the order of their terms, so every instruction set and every way to divide the work gives
//! the same bits. The weights are `level · step` without the rounding to bfloat16 of the contract. An overlay is applied as two
//! products in f32.

#[cfg(target_arch = "x86_64")]
mod few_tokens;
mod quantized;
mod several;

#[cfg(target_arch = "x86_64")]
use few_tokens::TokenPanels;
pub(crate) use quantized::{Interleave, LARGEST, Quantized};

use uc_simd::{Kernel, dispatch};

use crate::packed::{Cursor, Outlier, PANEL, Packed, Piece, STRIP};
#[cfg(target_arch = "x86_64")]
use crate::packed::{amx, avx2, avx512};
use crate::streamed::LevelRows;
use crate::twelve_bits::Panel;

/// Tokens of an interleaved vector.
pub(crate) const LANES: usize = 16;
/// Up to this number of tokens the integers lie token after token, and where the processor has the instructions, levels are decoded and
/// multiplied in registers. Above it, tiles multiply where the processor has them, and vectors of interleaved tokens elsewhere.
const FEW_TOKENS: usize = 8;

/// Rows that are decoded before vectors multiply them.
const CHUNK_ROWS: usize = 16;

/// Rows of the streamed form that are decoded and multiplied together.
pub(crate) fn streamed_chunk_rows() -> usize {
    #[cfg(target_arch = "x86_64")]
    if amx::is_available() {
        return amx::PAIR_ROWS;
    }
    CHUNK_ROWS
}

/// The memory of a task.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[CHUNK_ROWS]`, or twice as many.
    levels: Vec<[i16; PANEL]>,
    sums: several::Memory,
}

/// What is missing to a level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missing {
    /// Row of those at hand.
    pub(crate) row: usize,
    /// Column within the panel.
    pub(crate) column: usize,
    /// The difference of the levels.
    pub(crate) difference: i32,
}

impl Missing {
    /// The same with the row counted from row `first`.
    fn relative_to(self, first: usize) -> Self {
        Missing {
            row: self.row - first,
            ..self
        }
    }
}

/// Adds to `out: [rows, tokens]` the products of rows from strip `first` on, before the steps of rows: `Σ s_P · f32(S_P)`.
pub(crate) fn products(
    packed: &Packed,
    first: usize,
    x: &Quantized,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    for (strip, out) in out.chunks_mut(STRIP * x.tokens()).enumerate() {
        #[cfg(target_arch = "x86_64")]
        if x.has_tiles() {
            several::add_strip(packed, first + strip, x, &mut scratch.sums, out);
            continue;
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = x.token_panels() {
            few_tokens::add_strip(packed, first + strip, x, panels, out);
            continue;
        }
        for panel in 0..packed.panels() {
            let piece = packed.piece(first + strip, panel);
            piece.prefetch_outliers();
            add_rows(x.panel(panel), piece, scratch, out);
        }
    }
}

/// Adds to `out: [rows, tokens]` the products of the rows of a piece.
fn add_rows(x: Activations<'_>, piece: Piece<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    scratch.levels.resize(CHUNK_ROWS, [0; PANEL]);
    let (mut cursor, mut outliers, mut row) = (piece.cursor(), piece.outliers(), 0);
    for out in out.chunks_mut(CHUNK_ROWS * x.tokens()) {
        let levels = &mut scratch.levels[..out.len() / x.tokens()];
        let mut wide = 0;
        decode(&mut cursor, levels, &mut wide);
        let (first, end) = (row, row + levels.len());
        let (of_rows, rest) =
            outliers.split_at(outliers.partition_point(|outlier| usize::from(outlier.row) < end));
        let missing = of_rows.iter().map(Outlier::missing);
        let missing = missing.map(|missing| missing.relative_to(first));
        x.add_products(levels, wide, missing, &mut scratch.sums, out);
        (outliers, row) = (rest, end);
    }
}

/// As [`products`], of rows that are decoded already: at most [`streamed_chunk_rows`].
pub(crate) fn decoded_products(
    rows: &mut LevelRows,
    x: &Quantized,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    for (index, levels) in rows.panels.iter_mut().enumerate() {
        let missing = rows.outliers.iter().filter(|outlier| outlier.0 == index);
        let missing = missing.map(|&(_, missing)| missing);
        let x = x.panel(index);
        x.add_products(levels, rows.wide[index], missing, &mut scratch.sums, out);
    }
}

/// As [`products`], of rows `[_, stride]` of [`crate::twelve_bits`].
pub(crate) fn twelve_bit_products(
    rows: &[u8],
    stride: usize,
    x: &Quantized,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    match x.token_panels() {
        Some(TokenPanels::Avx512(panels)) => {
            return avx512::twelve_bit_products(rows, stride, panels, x.scales(), out);
        }
        Some(TokenPanels::Avx2(panels)) => {
            return avx2::twelve_bit_products(rows, stride, panels, x.scales(), out);
        }
        None => {}
    }
    let chunk = x.chunk_rows();
    let chunks = rows.chunks(chunk * stride);
    for (rows, out) in chunks.zip(out.chunks_mut(chunk * x.tokens())) {
        let panel = |index| Panel {
            rows,
            stride,
            index,
        };
        #[cfg(target_arch = "x86_64")]
        if x.has_tiles() {
            several::add_twelve_bits(panel, x, &mut scratch.sums, out);
            continue;
        }
        for index in 0..x.panels() {
            x.panel(index).add_twelve_bits(panel(index), scratch, out);
        }
    }
}

impl Activations<'_> {
    /// Adds to `out: [rows, tokens]` the products of a panel of rows, those of the high and then those of the low parts.
    fn add_twelve_bits(self, panel: Panel<'_>, scratch: &mut Scratch, out: &mut [f32]) {
        let Scratch { levels, sums } = scratch;
        levels.resize(2 * CHUNK_ROWS, [0; PANEL]);
        let (high, low) = levels.split_at_mut(CHUNK_ROWS);
        let (high, low) = (&mut high[..panel.count()], &mut low[..panel.count()]);
        panel.parts(high, low);
        let sixteenfold = self.sixteenfold();
        let of_high = Activations {
            scales: &sixteenfold,
            ..self
        };
        of_high.add_products(high, 0, std::iter::empty(), sums, out);
        self.add_products(low, 0, std::iter::empty(), sums, out);
    }

    /// The scales of the products with high parts.
    fn sixteenfold(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| 16.0 * scale).collect()
    }
}

/// Decodes the next rows; the bits of `wide` tell which need more than 32 bits.
pub(crate) fn decode(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::is_available() {
            return avx512::decode(cursor, levels, wide);
        }
        if avx2::is_available() {
            return avx2::decode(cursor, levels, wide);
        }
    }
    decode_plain(cursor, levels, wide);
}

/// As [`decode`], for any row on any processor.
pub(crate) fn decode_plain(cursor: &mut Cursor<'_>, levels: &mut [[i16; PANEL]], wide: &mut u64) {
    dispatch(Decode {
        cursor,
        levels,
        wide,
    });
}

struct Decode<'a, 'b> {
    cursor: &'a mut Cursor<'b>,
    levels: &'a mut [[i16; PANEL]],
    wide: &'a mut u64,
}

impl Kernel for Decode<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (row, levels) in self.levels.iter_mut().enumerate() {
            if self.cursor.next_row(levels) {
                *self.wide |= 1 << row;
            }
        }
    }
}

/// The integers of a panel, in the order that its products take them.
#[derive(Clone, Copy)]
enum Values<'a> {
    /// `[tokens, PANEL]`
    Plain(&'a [[i16; PANEL]]),
    /// `[tokens / LANES, PANEL / 2, LANES, 2]`
    Interleaved(&'a [i16]),
    /// `[tokens / LANES]`
    #[cfg(target_arch = "x86_64")]
    Tiles(&'a [amx::TokenTiles]),
}

/// The activations of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    /// `[tokens]`
    scales: &'a [f32],
    values: Values<'a>,
    /// Columns of the panel; the rest is padding, 0.
    columns: usize,
}

impl Activations<'_> {
    fn tokens(&self) -> usize {
        self.scales.len()
    }

    /// `[tokens, columns]`
    #[cfg(target_arch = "x86_64")]
    fn shape(&self) -> [usize; 2] {
        [self.tokens(), self.columns]
    }

    /// The activations as tiles take them, if they are laid out for tiles.
    #[cfg(target_arch = "x86_64")]
    fn tiles(&self) -> Option<amx::Tokens<'_>> {
        match self.values {
            Values::Tiles(vectors) => Some(amx::Tokens {
                vectors,
                count: self.tokens(),
                columns: self.columns,
            }),
            _ => None,
        }
    }
}
