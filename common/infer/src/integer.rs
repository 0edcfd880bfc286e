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

mod quantized;

pub(crate) use quantized::{LARGEST, Quantized};

use uc_codec::trellis::BLOCK_ROWS;
use uc_simd::{Kernel, dispatch, prefetch};

use crate::packed::{Cursor, MARK_ROWS, Outlier, PANEL, Packed};
#[cfg(target_arch = "x86_64")]
use crate::packed::{avx2, avx512};
use crate::streamed::LevelRows;
use crate::twelve_bits;

/// Outliers in a line of the caches.
const OUTLIERS_OF_LINE: usize = 64 / size_of::<Outlier>();
/// Tokens of an interleaved vector.
pub(crate) const LANES: usize = 16;
/// From this number of tokens on, activations are interleaved.
const INTERLEAVED_TOKENS: usize = 9;
/// Rows that are decoded before they are multiplied, for several tokens.
pub(crate) const CHUNK_ROWS: usize = 16;

/// The memory of a task.
pub(crate) struct Scratch {
    /// `[CHUNK_ROWS]`
    levels: Vec<[i16; PANEL]>,
    /// [rows, tokens] sums of products in integers.
    sums: Vec<i32>,
    /// [rows, tokens] what is added to the sums of some rows.
    more: Vec<i64>,
    /// The rows to which something is added.
    touched: Vec<u8>,
    is_touched: [bool; BLOCK_ROWS],
    /// [touched rows, tokens] their results.
    joined: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch {
            levels: Vec::new(),
            sums: Vec::new(),
            more: Vec::new(),
            touched: Vec::new(),
            is_touched: [false; BLOCK_ROWS],
            joined: Vec::new(),
        }
    }
}

impl Scratch {
    /// Makes room for the sums of some rows, and returns their number.
    fn prepare(&mut self, tokens: usize) -> usize {
        let rows = match tokens {
            1 => BLOCK_ROWS,
            _ => CHUNK_ROWS,
        };
        self.sums.resize(rows * tokens, 0);
        self.more.resize(rows * tokens, 0);
        rows
    }
}

/// Adds to `out: [rows, tokens]` the products of rows from a mark of a block on, before the steps of rows: `Σ s_P · f32(S_P)`.
pub(crate) fn products(
    packed: &Packed,
    [block, mark]: [usize; 2],
    x: &Quantized,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let tokens = x.tokens();
    let chunk_rows = scratch.prepare(tokens);
    let marks = mark..mark + (out.len() / tokens).div_ceil(MARK_ROWS);
    for panel_index in 0..packed.panels() {
        let panel = packed.panel(block, panel_index);
        let mut cursor = panel.cursor(mark);
        let mut outliers = panel.outliers(marks.clone());
        // They are apart from the fields, in small pieces, and would come late otherwise.
        for line in (0..outliers.len()).step_by(OUTLIERS_OF_LINE) {
            prefetch(outliers, line);
        }
        let x = x.panel(panel_index);
        let mut row = mark * MARK_ROWS;
        for out in out.chunks_mut(chunk_rows * tokens) {
            let first = row;
            row += out.len() / tokens;
            x.products(&mut cursor, scratch, out.len() / tokens);
            let count = match tokens {
                // All rows of the task.
                1 => outliers.len(),
                _ => outliers.partition_point(|outlier| usize::from(outlier.row) < row),
            };
            let (of_rows, rest) = outliers.split_at(count);
            outliers = rest;
            x.add_outliers(of_rows, first, scratch);
            scratch.join(x.scales, out);
        }
    }
}

/// As [`products`], of rows that are decoded already: at most [`CHUNK_ROWS`].
pub(crate) fn decoded_products(
    rows: &LevelRows,
    x: &Quantized,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let tokens = x.tokens();
    scratch.prepare(tokens);
    let mut outliers = rows.outliers.clone();
    outliers.sort_unstable();
    for (index, levels) in rows.panels.iter().enumerate() {
        let x = x.panel(index);
        x.decoded(levels, rows.wide[index], 0, scratch);
        for &(_, row, column, level) in outliers.iter().filter(|outlier| outlier.0 == index) {
            scratch.touch(row);
            let more = &mut scratch.more[row * tokens..(row + 1) * tokens];
            x.add(level, column, more);
        }
        scratch.join(x.scales, out);
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
    scratch.prepare(x.tokens());
    let mut levels = std::mem::take(&mut scratch.levels);
    levels.resize(2 * CHUNK_ROWS, [0; PANEL]);
    let chunks = rows.chunks(CHUNK_ROWS * stride);
    for (rows, out) in chunks.zip(out.chunks_mut(CHUNK_ROWS * x.tokens())) {
        let count = rows.len() / stride;
        let (high, low) = levels.split_at_mut(CHUNK_ROWS);
        let (high, low) = (&mut high[..count], &mut low[..count]);
        for panel in 0..x.panels() {
            twelve_bits::parts(rows, stride, panel, high, low);
            let x = x.panel(panel);
            let sixteenfold: Vec<f32> = x.scales.iter().map(|scale| 16.0 * scale).collect();
            x.decoded(high, 0, 0, scratch);
            scratch.join(&sixteenfold, out);
            x.decoded(low, 0, 0, scratch);
            scratch.join(x.scales, out);
        }
    }
    scratch.levels = levels;
}

impl Scratch {
    /// `out += scales · sums`, where something is added to the sums of some rows.
    fn join(&mut self, scales: &[f32], out: &mut [f32]) {
        let tokens = scales.len();
        self.joined.clear();
        for &row in &self.touched {
            let row = usize::from(row);
            let range = row * tokens..(row + 1) * tokens;
            let sums = self.sums[range.clone()]
                .iter()
                .zip(&mut self.more[range.clone()]);
            for (((sum, more), scale), out) in sums.zip(scales).zip(&out[range]) {
                let sum = i64::from(*sum) + std::mem::take(more);
                self.joined.push(scale.mul_add(sum as f32, *out));
            }
        }
        dispatch(Join {
            sums: &self.sums,
            scales,
            out,
        });
        let rows = self.touched.drain(..).zip(self.joined.chunks_exact(tokens));
        for (row, joined) in rows {
            let row = usize::from(row);
            self.is_touched[row] = false;
            out[row * tokens..(row + 1) * tokens].copy_from_slice(joined);
        }
    }

    /// Notes that something is added to the sums of a row.
    fn touch(&mut self, row: usize) {
        if !std::mem::replace(&mut self.is_touched[row], true) {
            self.touched.push(row as u8);
        }
    }
}

/// `out += scales · sums`.
struct Join<'a> {
    sums: &'a [i32],
    scales: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if let &[scale] = self.scales {
            for (out, sum) in self.out.iter_mut().zip(self.sums) {
                *out = scale.mul_add(*sum as f32, *out);
            }
            return;
        }
        let tokens = self.scales.len();
        let rows = self.out.chunks_exact_mut(tokens);
        for (out, sums) in rows.zip(self.sums.chunks_exact(tokens)) {
            for ((out, sum), scale) in out.iter_mut().zip(sums).zip(self.scales) {
                *out = scale.mul_add(*sum as f32, *out);
            }
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

/// The activations of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    /// `[tokens]`
    scales: &'a [f32],
    /// See [`Quantized`].
    values: &'a [i16],
    #[cfg(target_arch = "x86_64")]
    halves: Option<&'a avx512::Halves>,
}

impl Activations<'_> {
    fn tokens(&self) -> usize {
        self.scales.len()
    }

    /// The sums of the next rows. A row whose sums may not fit into 32 bits is touched.
    fn products(&self, cursor: &mut Cursor<'_>, scratch: &mut Scratch, rows: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(halves) = self.halves {
            let mut sums = std::mem::take(&mut scratch.sums);
            avx512::products(cursor, halves, &mut sums[..rows], &mut |row, levels| {
                scratch.touch(row);
                self.add_row(levels, &mut scratch.more[row..=row]);
            });
            scratch.sums = sums;
            return;
        }
        for first in (0..rows).step_by(CHUNK_ROWS) {
            let count = CHUNK_ROWS.min(rows - first);
            let mut levels = std::mem::take(&mut scratch.levels);
            levels.resize(CHUNK_ROWS, [0; PANEL]);
            let mut wide = 0u64;
            decode(cursor, &mut levels[..count], &mut wide);
            self.decoded(&levels[..count], wide, first, scratch);
            scratch.levels = levels;
        }
    }

    /// The sums of rows, of which row `first` is the first; the bits of `wide` tell which need more than 32 bits.
    fn decoded(&self, levels: &[[i16; PANEL]], wide: u64, first: usize, scratch: &mut Scratch) {
        let tokens = self.tokens();
        let range = first * tokens..(first + levels.len()) * tokens;
        self.sums(levels, &mut scratch.sums[range]);
        for row in (0..levels.len()).filter(|row| wide >> row & 1 == 1) {
            let range = (first + row) * tokens..(first + row + 1) * tokens;
            scratch.sums[range.clone()].fill(0);
            self.add_row(&levels[row], &mut scratch.more[range]);
            scratch.touch(first + row);
        }
    }

    /// Adds the outliers of rows, of which row `first` of the block is the first, to their sums.
    fn add_outliers(&self, outliers: &[Outlier], first: usize, scratch: &mut Scratch) {
        if let Ok(values) = <&[i16; PANEL]>::try_from(self.values) {
            return self.add_outliers_of_one(values, outliers, first as u8, scratch);
        }
        let tokens = self.tokens();
        for outlier in outliers {
            let row = usize::from(outlier.row) - first;
            let (level, column) = (outlier.difference(), usize::from(outlier.column));
            let range = row * tokens..(row + 1) * tokens;
            match scratch.is_touched[row] {
                true => self.add(level, column, &mut scratch.more[range]),
                // The whole sum of such a row fits into 32 bits, whatever its parts do.
                false => self.add(level, column, &mut scratch.sums[range]),
            }
        }
    }

    /// As [`Activations::add_outliers`], for one token.
    fn add_outliers_of_one(
        &self,
        values: &[i16; PANEL],
        outliers: &[Outlier],
        first: u8,
        scratch: &mut Scratch,
    ) {
        let sums: &mut [i32; BLOCK_ROWS] = scratch.sums.first_chunk_mut().expect("a block");
        let more: &mut [i64; BLOCK_ROWS] = scratch.more.first_chunk_mut().expect("a block");
        for outlier in outliers {
            let row = usize::from(outlier.row.wrapping_sub(first));
            let (level, x) = (outlier.difference(), values[usize::from(outlier.column)]);
            match scratch.is_touched[row] {
                true => more[row].add(level, x),
                false => sums[row].add(level, x),
            }
        }
    }

    /// Adds `level · activation` of a column to `sums: [tokens]`.
    fn add<S: Sum>(&self, level: i32, column: usize, sums: &mut [S]) {
        dispatch(AddColumn {
            x: *self,
            level,
            column,
            sums,
        });
    }

    /// Adds the products of a row to `sums: [tokens]`.
    fn add_row(&self, levels: &[i16; PANEL], sums: &mut [i64]) {
        dispatch(AddRow {
            x: *self,
            levels,
            sums,
        });
    }

    /// The sums of rows, `sums: [rows, tokens]`. Those that do not fit into 32 bits are meaningless.
    fn sums(&self, levels: &[[i16; PANEL]], sums: &mut [i32]) {
        #[cfg(target_arch = "x86_64")]
        {
            let is_interleaved = self.tokens() >= INTERLEAVED_TOKENS;
            if avx512::is_available() {
                return match is_interleaved {
                    true => avx512::interleaved_sums(levels, self.values, self.tokens(), sums),
                    false => avx512::sums(levels, self.values.as_chunks().0, sums),
                };
            }
            if avx2::is_available() {
                return match is_interleaved {
                    true => avx2::interleaved_sums(levels, self.values, self.tokens(), sums),
                    false => avx2::sums(levels, self.values.as_chunks().0, sums),
                };
            }
        }
        dispatch(Sums {
            x: *self,
            levels,
            sums,
        });
    }
}

/// A sum of products in integers.
trait Sum {
    /// Adds a product.
    fn add(&mut self, level: i32, x: i16);
}

impl Sum for i32 {
    /// It may wrap.
    #[inline(always)]
    fn add(&mut self, level: i32, x: i16) {
        *self = self.wrapping_add(level.wrapping_mul(x.into()));
    }
}

impl Sum for i64 {
    #[inline(always)]
    fn add(&mut self, level: i32, x: i16) {
        *self += i64::from(level) * i64::from(x);
    }
}

struct AddColumn<'a, 'b, S> {
    x: Activations<'a>,
    level: i32,
    column: usize,
    sums: &'b mut [S],
}

impl<S: Sum> Kernel for AddColumn<'_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.x.tokens() < INTERLEAVED_TOKENS {
            let tokens = self.x.values.as_chunks::<PANEL>().0;
            for (sum, values) in self.sums.iter_mut().zip(tokens) {
                sum.add(self.level, values[self.column]);
            }
            return;
        }
        let vectors = self.x.values.chunks_exact(LANES * PANEL);
        for (sums, vector) in self.sums.chunks_mut(LANES).zip(vectors) {
            let pair = &vector.as_chunks::<{ 2 * LANES }>().0[self.column / 2];
            for (sum, values) in sums.iter_mut().zip(pair.as_chunks::<2>().0) {
                sum.add(self.level, values[self.column % 2]);
            }
        }
    }
}

struct AddRow<'a, 'b> {
    x: Activations<'a>,
    levels: &'b [i16; PANEL],
    sums: &'b mut [i64],
}

impl Kernel for AddRow<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.x.tokens() < INTERLEAVED_TOKENS {
            let tokens = self.x.values.as_chunks::<PANEL>().0;
            for (sum, values) in self.sums.iter_mut().zip(tokens) {
                let products = self.levels.iter().zip(values);
                let products = products.map(|(&level, &x)| i32::from(level) * i32::from(x));
                *sum += products.map(i64::from).sum::<i64>();
            }
            return;
        }
        let vectors = self.x.values.chunks_exact(LANES * PANEL);
        for (sums, vector) in self.sums.chunks_mut(LANES).zip(vectors) {
            let mut found = [0i64; LANES];
            let pairs = vector.as_chunks::<{ 2 * LANES }>().0;
            for (pair, levels) in pairs.iter().zip(self.levels.as_chunks::<2>().0) {
                let [first, second] = levels.map(i32::from);
                for lane in 0..LANES {
                    // Two products of at most 2^15 · 32512 fit into 32 bits.
                    let sum =
                        first * i32::from(pair[2 * lane]) + second * i32::from(pair[2 * lane + 1]);
                    found[lane] += i64::from(sum);
                }
            }
            for (sum, found) in sums.iter_mut().zip(found) {
                *sum += found;
            }
        }
    }
}

struct Sums<'a> {
    x: Activations<'a>,
    levels: &'a [[i16; PANEL]],
    sums: &'a mut [i32],
}

impl Kernel for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Sums { x, levels, sums } = self;
        let rows = sums.chunks_exact_mut(x.tokens()).zip(levels);
        if x.tokens() < INTERLEAVED_TOKENS {
            let tokens = x.values.as_chunks::<PANEL>().0;
            for (sums, levels) in rows {
                for (sum, values) in sums.iter_mut().zip(tokens) {
                    *sum = product(levels, values);
                }
            }
            return;
        }
        for (sums, levels) in rows {
            let vectors = x.values.chunks_exact(LANES * PANEL);
            for (sums, vector) in sums.chunks_mut(LANES).zip(vectors) {
                let found = interleaved_product(levels, vector);
                sums.copy_from_slice(&found[..sums.len()]);
            }
        }
    }
}

/// Sum of products; it may wrap.
#[inline(always)]
fn product(levels: &[i16; PANEL], values: &[i16; PANEL]) -> i32 {
    let mut sum = 0i32;
    for (&level, &value) in levels.iter().zip(values) {
        sum = sum.wrapping_add(i32::from(level) * i32::from(value));
    }
    sum
}

/// Sums of products for the tokens of a vector; they may wrap.
#[inline(always)]
fn interleaved_product(levels: &[i16; PANEL], vector: &[i16]) -> [i32; LANES] {
    let mut sums = [0i32; LANES];
    let pairs = vector.as_chunks::<{ 2 * LANES }>().0;
    for (pair, levels) in pairs.iter().zip(levels.as_chunks::<2>().0) {
        let [first, second] = levels.map(i32::from);
        for lane in 0..LANES {
            let product = (first * i32::from(pair[2 * lane]))
                .wrapping_add(second * i32::from(pair[2 * lane + 1]));
            sums[lane] = sums[lane].wrapping_add(product);
        }
    }
    sums
}
