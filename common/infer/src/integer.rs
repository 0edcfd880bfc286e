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
mod one_token;
mod quantized;
mod several;

pub(crate) use quantized::{Interleave, LARGEST, Quantized};

use uc_simd::{Kernel, dispatch, prefetch};

use crate::packed::{Cursor, Outlier, PANEL, Packed, Piece, STRIP};
#[cfg(target_arch = "x86_64")]
use crate::packed::{amx, avx2, avx512};
use crate::streamed::LevelRows;
use crate::twelve_bits;

/// Outliers in a line of the caches.
const OUTLIERS_OF_LINE: usize = 64 / size_of::<Outlier>();
/// Tokens of an interleaved vector.
pub(crate) const LANES: usize = 16;
/// From this number of tokens on, activations are interleaved.
const INTERLEAVED_TOKENS: usize = 9;
/// From this number of tokens on, tiles multiply where the processor has them.
const TILE_TOKENS: usize = 33;

/// Rows that are decoded before they are multiplied.
pub(crate) fn chunk_rows() -> usize {
    #[cfg(target_arch = "x86_64")]
    if amx::is_available() {
        return amx::ROWS;
    }
    16
}

/// The memory of a task.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[chunk_rows()]`
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

/// Adds to `out: [rows, tokens]` the products of rows from strip `first` on, before the steps of rows: `Σ s_P · f32(S_P)`.
pub(crate) fn products(
    packed: &Packed,
    first: usize,
    x: &Quantized,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    for (strip, out) in out.chunks_mut(STRIP * x.tokens()).enumerate() {
        for panel in 0..packed.panels() {
            let piece = packed.piece(first + strip, panel);
            // They are apart from the fields, in small pieces, and would come late otherwise.
            for line in (0..piece.outliers().len()).step_by(OUTLIERS_OF_LINE) {
                prefetch(piece.outliers(), line);
            }
            let x = x.panel(panel);
            #[cfg(target_arch = "x86_64")]
            if let Some(halves) = x.halves {
                one_token::add_products(x, halves, piece, out);
                continue;
            }
            add_rows(x, piece, scratch, out);
        }
    }
}

/// Adds to `out: [rows, tokens]` the products of the rows of a piece.
fn add_rows(x: Activations<'_>, piece: Piece<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    scratch.levels.resize(chunk_rows(), [0; PANEL]);
    let (mut cursor, mut outliers, mut row) = (piece.cursor(), piece.outliers(), 0);
    for out in out.chunks_mut(chunk_rows() * x.tokens()) {
        let levels = &mut scratch.levels[..out.len() / x.tokens()];
        let mut wide = 0;
        decode(&mut cursor, levels, &mut wide);
        let (first, end) = (row, row + levels.len());
        let (of_rows, rest) =
            outliers.split_at(outliers.partition_point(|outlier| usize::from(outlier.row) < end));
        let missing = of_rows.iter().map(|outlier| Missing {
            row: usize::from(outlier.row) - first,
            column: usize::from(outlier.column),
            difference: outlier.difference(),
        });
        x.add_products(levels, wide, missing, &mut scratch.sums, out);
        (outliers, row) = (rest, end);
    }
}

/// As [`products`], of rows that are decoded already: at most [`chunk_rows`].
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
    if let Some(halves) = x.halves() {
        return avx512::twelve_bit_products(rows, stride, halves, x.scales(), out);
    }
    let Scratch { levels, sums, .. } = scratch;
    let chunk = chunk_rows();
    levels.resize(2 * chunk, [0; PANEL]);
    let chunks = rows.chunks(chunk * stride);
    for (rows, out) in chunks.zip(out.chunks_mut(chunk * x.tokens())) {
        let count = rows.len() / stride;
        let (high, low) = levels.split_at_mut(chunk);
        let (high, low) = (&mut high[..count], &mut low[..count]);
        for panel in 0..x.panels() {
            twelve_bits::parts(rows, stride, panel, high, low);
            let x = x.panel(panel);
            let sixteenfold: Vec<f32> = x.scales.iter().map(|scale| 16.0 * scale).collect();
            let high_x = Activations {
                scales: &sixteenfold,
                ..x
            };
            high_x.add_products(high, 0, std::iter::empty(), sums, out);
            x.add_products(low, 0, std::iter::empty(), sums, out);
        }
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
    #[cfg(target_arch = "x86_64")]
    halves: Option<&'a avx512::Halves>,
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
}
