//! Products of decoded levels with the activations of any number of tokens.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use uc_simd::{Kernel, dispatch};

#[cfg(target_arch = "x86_64")]
use super::Quantized;
use super::{Activations, LANES, Missing, Values};
use crate::packed::PANEL;
#[cfg(target_arch = "x86_64")]
use crate::packed::{Out, Outlier, Packed, Piece};
#[cfg(target_arch = "x86_64")]
use crate::packed::{amx, avx2, avx512};
#[cfg(target_arch = "x86_64")]
use crate::twelve_bits::Panel;

/// Largest level that is multiplied as a whole: 256 times a signed byte and another one.
const LARGEST_LEVEL: i16 = 127 * 256 + 127;

/// The memory of products.
#[derive(Default)]
pub(super) struct Memory {
    /// [rows, tokens] sums of products in integers.
    sums: Vec<i32>,
    /// What is missing to levels above [`LARGEST_LEVEL`].
    missing: Vec<Missing>,
    /// [wide rows, tokens] sums of products that need more than 32 bits.
    wide: Vec<i64>,
    /// Made by the first product of tiles.
    #[cfg(target_arch = "x86_64")]
    tiles: Option<Box<amx::Memory>>,
}

#[cfg(target_arch = "x86_64")]
impl Memory {
    /// That of tiles.
    pub(super) fn tiles(&mut self) -> &mut amx::Memory {
        self.tiles.get_or_insert_default()
    }
}

/// The panels that are decoded before tiles multiply them, [`amx::PANELS`] at a time.
#[cfg(target_arch = "x86_64")]
fn batches(panels: usize) -> impl Iterator<Item = Range<usize>> {
    let first = (0..panels).step_by(amx::PANELS);
    first.map(move |first| first..panels.min(first + amx::PANELS))
}

/// Adds to `out: [rows, tokens]` the products of a strip by tiles.
#[cfg(target_arch = "x86_64")]
pub(super) fn add_strip(
    packed: &Packed,
    strip: usize,
    x: &Quantized,
    memory: &mut Memory,
    out: &mut [f32],
) {
    for panels in batches(packed.panels()) {
        for (slot, panel) in panels.clone().enumerate() {
            memory.tiles().decode(slot, packed.piece(strip, panel));
        }
        for (slot, panel) in panels.enumerate() {
            let piece = packed.piece(strip, panel);
            x.panel(panel).add_decoded(slot, piece, memory, out);
        }
    }
}

/// Adds to `out: [rows, tokens]` the products of rows in twelve bits by tiles.
#[cfg(target_arch = "x86_64")]
pub(super) fn add_twelve_bits<'a>(
    rows: impl Fn(usize) -> Panel<'a>,
    x: &Quantized,
    memory: &mut Memory,
    out: &mut [f32],
) {
    for panels in batches(x.panels()) {
        for (slot, panel) in panels.clone().enumerate() {
            memory.tiles().divide_twelve_bits(slot, rows(panel));
        }
        for (slot, panel) in panels.enumerate() {
            let x = x.panel(panel);
            let (tokens, scales) = (x.tiles().expect("integers for tiles"), x.sixteenfold());
            memory
                .tiles()
                .add_twelve_bits(slot, tokens, [&scales, x.scales], out);
        }
    }
}

impl Activations<'_> {
    /// `out += scales · sums` of the products of rows, `out: [rows, tokens]`. `missing` is what is added to some levels; the bits of
    /// `wide` tell which rows have sums that need more than 32 bits. The levels change.
    pub(super) fn add_products(
        self,
        levels: &mut [[i16; PANEL]],
        mut wide: u64,
        missing: impl Iterator<Item = Missing>,
        memory: &mut Memory,
        out: &mut [f32],
    ) {
        memory.missing.clear();
        for missing in missing {
            let level = &mut levels[missing.row][missing.column];
            let whole = i32::from(*level) + missing.difference;
            match i16::try_from(whole) {
                Ok(whole) if whole <= LARGEST_LEVEL => *level = whole,
                _ => {
                    wide |= 1 << missing.row;
                    memory.missing.push(missing);
                }
            }
        }
        if wide == 0 {
            return self.add_narrow(levels, memory, out);
        }
        let tokens = self.tokens();
        let rows = |levels: &[_]| (0..levels.len()).filter(move |row| wide >> row & 1 == 1);
        let mut sums = std::mem::take(&mut memory.wide);
        sums.clear();
        for row in rows(levels) {
            self.wide_sums(&levels[row], memory, &mut sums);
            // Its narrow sums are then 0 and add nothing.
            levels[row].fill(0);
            let first = sums.len() - tokens;
            let sums = &mut sums[first..];
            for missing in memory.missing.iter().filter(|missing| missing.row == row) {
                for (token, sum) in sums.iter_mut().enumerate() {
                    let x = self.value(token, missing.column);
                    *sum += i64::from(missing.difference) * i64::from(x);
                }
            }
        }
        self.add_narrow(levels, memory, out);
        for (row, sums) in rows(levels).zip(sums.chunks_exact(tokens)) {
            let out = &mut out[row * tokens..(row + 1) * tokens];
            for ((out, &sum), scale) in out.iter_mut().zip(sums).zip(self.scales) {
                *out = scale.mul_add(sum as f32, *out);
            }
        }
        memory.wide = sums;
    }

    /// As [`Activations::add_products`], for the rows of a piece that were decoded into slot `slot` of the memory of tiles.
    #[cfg(target_arch = "x86_64")]
    fn add_decoded(self, slot: usize, piece: Piece<'_>, memory: &mut Memory, out: &mut [f32]) {
        let (x, tokens) = (self.tiles().expect("integers for tiles"), self.tokens());
        let rows = out.len() / tokens;
        let joined = Out::Joined(self.scales, &mut *out);
        memory.tiles().add_decoded(slot, rows, x, joined);
        // Their products use slot 0, which is no longer needed.
        for (row, mut levels) in memory.tiles().wide_rows(slot).to_vec() {
            let missing = piece.outliers().iter().map(Outlier::missing);
            let missing = missing.filter(|missing| missing.row == row);
            let missing = missing.map(|missing| missing.relative_to(row));
            let out = &mut out[row * tokens..(row + 1) * tokens];
            self.add_products(std::slice::from_mut(&mut levels), 1, missing, memory, out);
        }
    }

    /// The integer of a token and column.
    fn value(&self, token: usize, column: usize) -> i16 {
        match self.values {
            Values::Plain(values) => values[token][column],
            Values::Interleaved(values) => {
                let vector = &values[token / LANES * LANES * PANEL..];
                vector[column / 2 * 2 * LANES + 2 * (token % LANES) + column % 2]
            }
            #[cfg(target_arch = "x86_64")]
            Values::Tiles(tiles) => tiles[token / LANES].value(token % LANES, column),
        }
    }

    /// Appends the sums of a row, whatever its levels: those of its high and low bytes, each of which fits into 32 bits.
    fn wide_sums(&self, levels: &[i16; PANEL], memory: &mut Memory, sums: &mut Vec<i64>) {
        let high = levels.map(|level| level >> 8);
        let low = levels.map(|level| level & 255);
        let tokens = self.tokens();
        let mut parts = std::mem::take(&mut memory.sums);
        parts.resize(2 * tokens, 0);
        self.sums(&[high, low], memory, &mut parts);
        let (high, low) = parts.split_at(tokens);
        let both = high.iter().zip(low);
        sums.extend(both.map(|(&high, &low)| 256 * i64::from(high) + i64::from(low)));
        memory.sums = parts;
    }

    /// As [`Activations::add_products`], if all sums fit into 32 bits.
    fn add_narrow(&self, levels: &[[i16; PANEL]], memory: &mut Memory, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            let joined = Out::Joined(self.scales, &mut *out);
            if let Some(x) = self.tiles() {
                return memory.tiles().levels(levels, x, joined);
            }
            if let Values::Interleaved(x) = self.values {
                if avx512::is_available() {
                    return avx512::interleaved_sums(levels, x, self.shape(), joined);
                }
                if avx2::is_available() {
                    return avx2::interleaved_sums(levels, x, self.shape(), joined);
                }
            }
        }
        let mut sums = std::mem::take(&mut memory.sums);
        sums.resize(out.len(), 0);
        self.sums(levels, memory, &mut sums);
        dispatch(Join {
            sums: &sums,
            scales: self.scales,
            out,
        });
        memory.sums = sums;
    }

    /// The sums of rows, `sums: [rows, tokens]`. Those that do not fit into 32 bits are meaningless.
    fn sums(&self, levels: &[[i16; PANEL]], memory: &mut Memory, sums: &mut [i32]) {
        #[cfg(target_arch = "x86_64")]
        match self.values {
            Values::Tiles(_) => {
                let x = self.tiles().expect("integers for tiles");
                return memory.tiles().levels(levels, x, Out::Sums(sums));
            }
            Values::Interleaved(x) if avx512::is_available() => {
                return avx512::interleaved_sums(levels, x, self.shape(), Out::Sums(sums));
            }
            Values::Interleaved(x) if avx2::is_available() => {
                return avx2::interleaved_sums(levels, x, self.shape(), Out::Sums(sums));
            }
            Values::Plain(x) if avx512::is_available() => return avx512::sums(levels, x, sums),
            Values::Plain(x) if avx2::is_available() => return avx2::sums(levels, x, sums),
            _ => {}
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = memory;
        dispatch(Sums {
            x: *self,
            levels,
            sums,
        });
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
        match x.values {
            Values::Plain(tokens) => {
                for (sums, levels) in rows {
                    for (sum, values) in sums.iter_mut().zip(tokens) {
                        *sum = product(levels, values);
                    }
                }
            }
            Values::Interleaved(values) => {
                for (sums, levels) in rows {
                    let vectors = values.chunks_exact(LANES * PANEL);
                    for (sums, vector) in sums.chunks_mut(LANES).zip(vectors) {
                        let found = interleaved_product(levels, vector);
                        sums.copy_from_slice(&found[..sums.len()]);
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Values::Tiles(_) => {
                for (sums, levels) in rows {
                    for (token, sum) in sums.iter_mut().enumerate() {
                        *sum = product(levels, &std::array::from_fn(|j| x.value(token, j)));
                    }
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::Columns;
    use crate::integer::quantized::{Layout, Quantized};

    #[test]
    fn sums_of_any_size_are_those_of_the_definition_on_every_instruction_set() {
        let number = |i: usize| ((i as i64 * 7919 + 13) * 104_729) % 65_521;
        let x: Vec<f32> = (0..150 * PANEL).map(|i| number(i) as f32).collect();
        for of in [
            (1, PANEL),
            (5, PANEL),
            (16, PANEL),
            (16, 67),
            (37, 40),
            (150, 256),
        ]
        .into_iter()
        .flat_map(|(tokens, cols)| Layout::all(tokens).map(move |layout| (tokens, cols, layout)))
        .flat_map(|of| [(of, 256), (of, 128)])
        {
            let ((tokens, cols, layout), divisor) = of;
            let x = &x[..tokens * cols];
            let x = Quantized::with_layout(layout, x, &Columns::new(&vec![0; cols]));
            let x = x.panel(0);
            // Narrow rows, a wide one, and one with a level of more than 16 bits.
            let row = |row: usize| std::array::from_fn(|j| number(31 * row + j) as i16 / 256);
            let mut levels: Vec<[i16; PANEL]> = (0..19).map(row).collect();
            levels[3] = std::array::from_fn(|j| number(j) as i16);
            // Of bytes, or half of them beyond a byte.
            levels[17] = std::array::from_fn(|j| number(j) as i16 / divisor);
            let missing = [(5, 9, 700), (7, 30, 32_700), (11, 255, 70_000)];
            let missing = missing.map(|(row, column, difference)| Missing {
                row,
                column,
                difference,
            });
            let (mut portable, mut sums) = (vec![0; 2 * tokens], vec![0; 2 * tokens]);
            let memory = &mut Memory::default();
            x.sums(&levels[..2], memory, &mut sums);
            Sums {
                x,
                levels: &levels[..2],
                sums: &mut portable,
            }
            .run();
            assert_eq!(sums, portable);
            let mut expected = Vec::new();
            for (row, levels) in levels.iter().enumerate() {
                for (token, scale) in x.scales.iter().enumerate() {
                    let level = |column: usize| {
                        let more = missing
                            .iter()
                            .filter(|m| (m.row, m.column) == (row, column));
                        let more: i32 = more.map(|missing| missing.difference).sum();
                        i64::from(i32::from(levels[column]) + more)
                    };
                    let products = (0..PANEL).map(|j| level(j) * i64::from(x.value(token, j)));
                    expected.push(scale.mul_add(products.sum::<i64>() as f32, 1.0));
                }
            }
            let mut found = vec![1.0; expected.len()];
            x.add_products(&mut levels, 1 << 3, missing.into_iter(), memory, &mut found);
            assert_eq!(found, expected, "{tokens} {cols} {layout:?}");
        }
    }
}
