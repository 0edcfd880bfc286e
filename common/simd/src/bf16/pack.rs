//! The packing of vectors into panels.
//!
//! Safety: the unsafe operations are calls of the function compiled for the instruction set, guarded by a check that the processor
//! supports it.
#![allow(unsafe_code)]

use super::{bf16_bits, bf16_value};
use crate::dispatch::{Kernel, dispatch};

/// Vectors of a panel.
pub const PANEL: usize = 48;

/// Pairs of components of a block: a panel holds whole blocks, the last one filled up with zeros.
pub(super) const BLOCK_PAIRS: usize = 16;

/// Two neighbouring components of the vectors of a panel: two bfloat16 numbers for each vector, the first in the lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Pairs(pub(super) [u32; PANEL]);

impl Pairs {
    /// Zeros.
    pub const ZERO: Self = Self([0; PANEL]);
}

/// 16 pairs of components of each of 16 vectors, as a tile of a left operand.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Square(pub(super) [[u32; BLOCK_PAIRS]; BLOCK_PAIRS]);

impl Square {
    pub(super) const ZERO: Self = Self([[0; BLOCK_PAIRS]; BLOCK_PAIRS]);
}

/// Length of a panel of vectors with so many components, in whole blocks of 16 pairs.
pub const fn panel_len(components: usize) -> usize {
    components.div_ceil(2 * BLOCK_PAIRS) * BLOCK_PAIRS
}

/// A value that can be packed into a panel.
pub trait ToBf16: Copy {
    /// The bits of the value, rounded to bfloat16.
    fn to_bf16(self) -> u16;
}

impl ToBf16 for f32 {
    #[inline(always)]
    fn to_bf16(self) -> u16 {
        bf16_bits(self)
    }
}

/// The bits of a bfloat16.
impl ToBf16 for u16 {
    #[inline(always)]
    fn to_bf16(self) -> u16 {
        self
    }
}

/// Two bfloat16 numbers, the first in the lower half.
#[inline(always)]
fn pair_of(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

struct PackColumns<'a, T> {
    x: &'a [T],
    rows: usize,
    stride: usize,
    first: usize,
    out: &'a mut [Pairs],
}

impl<T: ToBf16> Kernel for PackColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = PANEL.min(self.stride - self.first);
        for (pair, Pairs(out)) in self.out.iter_mut().enumerate() {
            let row = |row: usize| &self.x[row * self.stride + self.first..][..cols];
            let written = match self.rows.saturating_sub(2 * pair) {
                0 => 0,
                1 => {
                    let single = out.iter_mut().zip(row(2 * pair));
                    single.for_each(|(out, &low)| *out = low.to_bf16().into());
                    cols
                }
                _ => {
                    let pairs = row(2 * pair).iter().zip(row(2 * pair + 1));
                    let pairs = out.iter_mut().zip(pairs);
                    pairs.for_each(|(out, (&low, &high))| {
                        *out = pair_of(low.to_bf16(), high.to_bf16())
                    });
                    cols
                }
            };
            out[written..].fill(0);
        }
    }
}

/// Packs the columns `first..first + PANEL` of `x: [rows, stride]` into a panel of length `panel_len(rows)`. Columns beyond the last, and
/// the rows that complete the last block, are zero.
///
/// # Panics
/// If `first` is not a column, or `out` has another length.
pub fn pack_columns<T: ToBf16>(
    x: &[T],
    rows: usize,
    stride: usize,
    first: usize,
    out: &mut [Pairs],
) {
    assert!(first < stride && rows * stride <= x.len(), "panel outside");
    assert_eq!(out.len(), panel_len(rows), "length of the panel");
    dispatch(PackColumns {
        x,
        rows,
        stride,
        first,
        out,
    });
}

struct PackRows<'a, T> {
    x: &'a [T],
    width: usize,
    out: &'a mut [Pairs],
}

impl<T: ToBf16> Kernel for PackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (block, out) in self.out.chunks_exact_mut(BLOCK_PAIRS).enumerate() {
            for vectors in (0..PANEL).step_by(BLOCK_PAIRS) {
                let mut square = Square::ZERO;
                fill(
                    &mut square,
                    self.x,
                    self.width,
                    [vectors, block],
                    T::to_bf16,
                );
                for (Pairs(out), pairs) in out.iter_mut().zip(transposed(&square).0) {
                    out[vectors..][..BLOCK_PAIRS].copy_from_slice(&pairs);
                }
            }
        }
    }
}

/// Fills a square of zeros with a block of 16 pairs of the 16 rows of `x: [rows, width]` from `first` on. What lies beyond the last row or
/// column stays zero.
#[inline(always)]
fn fill<T: Copy>(
    square: &mut Square,
    x: &[T],
    width: usize,
    [first, block]: [usize; 2],
    to_bf16: impl Fn(T) -> u16,
) {
    let columns = 2 * BLOCK_PAIRS * block..width.min(2 * BLOCK_PAIRS * (block + 1));
    for (packed, row) in square.0.iter_mut().zip(x.chunks_exact(width).skip(first)) {
        let (pairs, last) = row[columns.clone()].as_chunks::<2>();
        for (out, &[low, high]) in packed.iter_mut().zip(pairs) {
            *out = pair_of(to_bf16(low), to_bf16(high));
        }
        if let [last] = last {
            packed[pairs.len()] = to_bf16(*last).into();
        }
    }
}

struct PackSquare<'a> {
    x: &'a [f32],
    width: usize,
    at: [usize; 3],
    square: &'a mut Square,
}

impl Kernel for PackSquare<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [part, first, block] = self.at;
        let at = [first, block];
        match part {
            0 => fill(self.square, self.x, self.width, at, part_of::<0>),
            1 => fill(self.square, self.x, self.width, at, part_of::<1>),
            _ => fill(self.square, self.x, self.width, at, part_of::<2>),
        }
    }
}

/// Part `PART` of a value as a sum of parts in bfloat16: what is left after the parts before it, rounded. The differences are exact.
#[inline(always)]
fn part_of<const PART: usize>(value: f32) -> u16 {
    let mut rest = value;
    for _ in 0..PART {
        rest -= bf16_value(bf16_bits(rest));
    }
    bf16_bits(rest)
}

/// As [`fill`], with a part of the values as sums of three parts in bfloat16: `at` are part, first row and block.
pub(super) fn pack_square(x: &[f32], width: usize, at: [usize; 3], square: &mut Square) {
    dispatch(PackSquare {
        x,
        width,
        at,
        square,
    });
}

/// Packs the rows of `x: [rows, width]`, at most [`PANEL`], into a panel of length `panel_len(width)`. Rows beyond the last, and the
/// columns that complete the last block, are zero.
///
/// # Panics
/// If there are more rows, or no columns, or `out` has another length.
pub fn pack_rows<T: ToBf16>(x: &[T], width: usize, out: &mut [Pairs]) {
    assert!(x.len() <= PANEL * width, "panel outside");
    assert_eq!(out.len(), panel_len(width), "length of the panel");
    dispatch(PackRows { x, width, out });
}

/// The square with its rows and columns exchanged.
#[inline(always)]
pub(super) fn transposed(square: &Square) -> Square {
    #[cfg(target_arch = "x86_64")]
    if crate::has_avx512() {
        // SAFETY: the processor has AVX-512.
        return unsafe { x86::transposed(square) };
    }
    Square(std::array::from_fn(|row| {
        std::array::from_fn(|column| square.0[column][row])
    }))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
        _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    use std::mem::transmute;

    use super::Square;

    /// First and third, or second and fourth 128 bits of two vectors.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;

    /// The square with its rows and columns exchanged: first within blocks of 4 by 4 values, then the blocks.
    #[target_feature(enable = "avx512f")]
    pub(super) fn transposed(square: &Square) -> Square {
        // SAFETY: both are 1024 bytes, and every pattern of bits is a value of both.
        let rows: [__m512i; 16] = unsafe { transmute(*square) };
        let mut columns = rows;
        let mut blocks = rows;
        for (out, rows) in blocks.chunks_exact_mut(4).zip(rows.chunks_exact(4)) {
            let low = [0, 2].map(|i| _mm512_unpacklo_epi32(rows[i], rows[i + 1]));
            let high = [0, 2].map(|i| _mm512_unpackhi_epi32(rows[i], rows[i + 1]));
            out[0] = _mm512_unpacklo_epi64(low[0], low[1]);
            out[1] = _mm512_unpackhi_epi64(low[0], low[1]);
            out[2] = _mm512_unpacklo_epi64(high[0], high[1]);
            out[3] = _mm512_unpackhi_epi64(high[0], high[1]);
        }
        for i in 0..4 {
            let [first, second, third, fourth] = [0, 4, 8, 12].map(|row| blocks[row + i]);
            let even = [
                _mm512_shuffle_i32x4::<EVEN>(first, second),
                _mm512_shuffle_i32x4::<EVEN>(third, fourth),
            ];
            let odd = [
                _mm512_shuffle_i32x4::<ODD>(first, second),
                _mm512_shuffle_i32x4::<ODD>(third, fourth),
            ];
            columns[i] = _mm512_shuffle_i32x4::<EVEN>(even[0], even[1]);
            columns[4 + i] = _mm512_shuffle_i32x4::<EVEN>(odd[0], odd[1]);
            columns[8 + i] = _mm512_shuffle_i32x4::<ODD>(even[0], even[1]);
            columns[12 + i] = _mm512_shuffle_i32x4::<ODD>(odd[0], odd[1]);
        }
        // SAFETY: as above.
        unsafe { transmute(columns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_parts_in_bfloat16_make_the_value() {
        for bits in (0..10_000).map(|i| 0x2000_0000 + i * 0x1_d0d7) {
            let whole = f32::from_bits(bits);
            let parts = [
                part_of::<0>(whole),
                part_of::<1>(whole),
                part_of::<2>(whole),
            ];
            let [first, second, third] = parts.map(bf16_value);
            assert_eq!(first + (second + third), whole);
        }
    }

    #[test]
    fn rows_are_packed_as_the_columns_of_the_transpose() {
        for (rows, width) in [(1, 1), (PANEL, 130), (37, 71), (16, 64)] {
            let x: Vec<f32> = (0..rows * width).map(|i| i as f32 / 7.0).collect();
            let bits: Vec<u16> = x.iter().map(|&value| bf16_bits(value)).collect();
            let transposed: Vec<f32> = (0..rows * width)
                .map(|i| x[i % rows * width + i / rows])
                .collect();
            let mut panels = [(); 3].map(|()| vec![Pairs([u32::MAX; PANEL]); panel_len(width)]);
            pack_rows(&x, width, &mut panels[0]);
            pack_rows(&bits, width, &mut panels[1]);
            pack_columns(&transposed, width, rows, 0, &mut panels[2]);
            assert_eq!(panels[0], panels[1]);
            assert_eq!(panels[0], panels[2]);
            for (pair, Pairs(pairs)) in panels[0].iter().enumerate() {
                for (row, &found) in pairs.iter().enumerate() {
                    let bits = |column: usize| match row < rows && column < width {
                        true => u32::from(bits[row * width + column]),
                        false => 0,
                    };
                    let expected = bits(2 * pair) | bits(2 * pair + 1) << 16;
                    assert_eq!(found, expected, "{row} {pair}");
                }
            }
        }
    }
}
