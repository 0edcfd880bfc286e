//! Products of matrices rounded to bfloat16, with sums in f32, by the dot products of AVX512-BF16: twice the multiply-adds of f32.
//!
//! Operands are packed into panels first: [`PANEL`] vectors, two of their components side by side, as the instruction reads them. The
//! vectors are the rows of a matrix ([`pack_rows`]) or its columns ([`pack_columns`]). The product of two bfloat16 numbers is exact in f32,
//! so rounding the operands is all that is lost against a product in f32. Processors without the instruction multiply operands rounded by
//! [`round_to_bf16`] in f32.
//!
//! Safety: the unsafe operations are calls of the function compiled for the instruction set, guarded by a check that the processor
//! supports it, its accesses to slices whose lengths are checked before, and sums in memory that one product initializes and the next
//! adds to.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use crate::dispatch::{Kernel, dispatch};

/// Vectors of a panel.
pub const PANEL: usize = 48;

/// Rows of the sums that the kernel keeps in registers.
#[cfg(target_arch = "x86_64")]
const TILE_ROWS: usize = 8;

/// Whether this processor multiplies panels.
pub fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        crate::has_avx512() && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The bits of the bfloat16 nearest to `value`, ties to even. Overflow gives an infinity; a NaN stays a NaN (its quiet bit is set, so
/// that truncating the payload cannot turn it into an infinity).
#[inline(always)]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let nan = bits | 0x0040_0000;
    ((if value.is_nan() { nan } else { rounded }) >> 16) as u16
}

struct Round<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &value) in self.1.iter_mut().zip(self.0) {
            *out = f32::from_bits(u32::from(bf16_bits(value)) << 16);
        }
    }
}

/// `out <- values`, rounded to bfloat16.
pub fn round_to_bf16(values: &[f32], out: &mut [f32]) {
    dispatch(Round(values, out));
}

struct Expand<'a>(&'a [u16], &'a mut [f32]);

impl Kernel for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &bits) in self.1.iter_mut().zip(self.0) {
            *out = f32::from_bits(u32::from(bits) << 16);
        }
    }
}

/// `out <- values`, from the bits of bfloat16.
pub fn expand_bf16(values: &[u16], out: &mut [f32]) {
    dispatch(Expand(values, out));
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

/// Two values rounded to bfloat16, the first in the lower half.
#[inline(always)]
fn pair_of<T: ToBf16>(low: T, high: T) -> u32 {
    u32::from(low.to_bf16()) | u32::from(high.to_bf16()) << 16
}

struct PackColumns<'a, T> {
    x: &'a [T],
    rows: usize,
    stride: usize,
    first: usize,
    out: &'a mut [u32],
}

impl<T: ToBf16> Kernel for PackColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = PANEL.min(self.stride - self.first);
        for (pair, out) in self.out.chunks_exact_mut(PANEL).enumerate() {
            let row = |row: usize| &self.x[row * self.stride + self.first..][..cols];
            let low = row(2 * pair);
            if 2 * pair + 1 < self.rows {
                let pairs = out.iter_mut().zip(low.iter().zip(row(2 * pair + 1)));
                pairs.for_each(|(out, (&low, &high))| *out = pair_of(low, high));
            } else {
                let single = out.iter_mut().zip(low);
                single.for_each(|(out, &low)| *out = low.to_bf16().into());
            }
            out[cols..].fill(0);
        }
    }
}

/// Packs the columns `first..first + PANEL` of `x: [rows, stride]` into a panel, `[rows / 2 rounded up, PANEL]`. Columns beyond the
/// last, and the row that completes the last pair, are zero.
///
/// # Panics
/// If `first` is not a column, or `out` has another length.
pub fn pack_columns<T: ToBf16>(x: &[T], rows: usize, stride: usize, first: usize, out: &mut [u32]) {
    assert!(first < stride && rows * stride <= x.len(), "panel outside");
    assert_eq!(out.len(), rows.div_ceil(2) * PANEL, "length of the panel");
    dispatch(PackColumns {
        x,
        rows,
        stride,
        first,
        out,
    });
}

/// Pairs of a row that are packed before those of the next row: their places in the panel stay in the first-level cache.
const PAIRS_OF_ROW: usize = 32;

struct PackRows<'a, T> {
    x: &'a [T],
    width: usize,
    out: &'a mut [u32],
}

impl<T: ToBf16> Kernel for PackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.x.len() / self.width;
        for (block, out) in self.out.chunks_mut(PAIRS_OF_ROW * PANEL).enumerate() {
            let first = block * 2 * PAIRS_OF_ROW;
            if rows < PANEL {
                out.fill(0);
            }
            for (index, row) in self.x.chunks_exact(self.width).enumerate() {
                let values = &row[first..self.width.min(first + 2 * PAIRS_OF_ROW)];
                let (pairs, last) = values.as_chunks::<2>();
                let mut buffer = [0; PAIRS_OF_ROW];
                let buffer = &mut buffer[..pairs.len()];
                for (out, &[low, high]) in buffer.iter_mut().zip(pairs) {
                    *out = pair_of(low, high);
                }
                let (places, end) = out.as_chunks_mut::<PANEL>().0.split_at_mut(pairs.len());
                for (place, &pair) in places.iter_mut().zip(&*buffer) {
                    place[index] = pair;
                }
                if let ([last], [place]) = (last, end) {
                    place[index] = last.to_bf16().into();
                }
            }
        }
    }
}

/// Packs the rows of `x: [rows, width]`, at most [`PANEL`], into a panel, `[width / 2 rounded up, PANEL]`. Rows beyond the last, and the
/// column that completes the last pair, are zero.
///
/// # Panics
/// If there are more rows, or no columns, or `out` has another length.
pub fn pack_rows<T: ToBf16>(x: &[T], width: usize, out: &mut [u32]) {
    assert!(x.len() <= PANEL * width, "panel outside");
    assert_eq!(out.len(), width.div_ceil(2) * PANEL, "length of the panel");
    dispatch(PackRows { x, width, out });
}

/// `dst[i, j] += Σ left[i, k] · right[j, k]` over the components `k` of the vectors of two panels, for `i < rows`, `j < cols`. Rows of
/// `dst` begin `stride` values apart. Sums have a fixed order.
///
/// # Panics
/// If [`has_bf16_products`] is false, the panels differ in length, or `dst` is too small.
pub fn add_panel_product(
    dst: &mut [f32],
    stride: usize,
    size: [usize; 2],
    left: &[u32],
    right: &[u32],
) {
    // SAFETY: the values are initialized and stay so, because the product writes numbers only.
    let dst = unsafe { &mut *(std::ptr::from_mut(dst) as *mut [MaybeUninit<f32>]) };
    panel_product::<true>(dst, stride, size, left, right);
}

/// Most pairs of components whose products are summed before they are added to the sums: two panels of them fit into the second-level
/// cache.
const PAIRS: usize = 512;

/// `dst[i, j] = Σ left[i, k] · right[j, k]` for `i < rows`, `j < cols`, where `left` is a panel and `right` as many of the same length as
/// `cols` vectors take. Rows of `dst` begin `stride` values apart; they need not be initialized, and all values of the product are written.
/// Sums have a fixed order.
///
/// # Panics
/// If [`has_bf16_products`] is false, the panels differ in length or are empty, or `dst` is too small.
pub fn panel_products_uninit(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    [rows, cols]: [usize; 2],
    left: &[u32],
    right: &[u32],
) {
    assert!(!left.is_empty(), "empty panels");
    assert_eq!(right.len(), cols.div_ceil(PANEL) * left.len(), "panels");
    let parts = left.len().div_ceil(PAIRS * PANEL);
    let length = (left.len() / PANEL).div_ceil(parts) * PANEL;
    for start in (0..left.len()).step_by(length) {
        let part = start..(start + length).min(left.len());
        for (panel, right) in right.chunks_exact(left.len()).enumerate() {
            let column = panel * PANEL;
            let size = [rows, PANEL.min(cols - column)];
            let (left, right) = (&left[part.clone()], &right[part.clone()]);
            match start {
                0 => panel_product::<false>(&mut dst[column..], stride, size, left, right),
                // The first part has initialized these values.
                _ => panel_product::<true>(&mut dst[column..], stride, size, left, right),
            }
        }
    }
}

/// The values of `dst` must be initialized if the product is added.
fn panel_product<const ADD: bool>(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    [rows, cols]: [usize; 2],
    left: &[u32],
    right: &[u32],
) {
    assert!(has_bf16_products(), "the processor has no AVX512-BF16");
    assert_eq!(left.len(), right.len(), "panels differ");
    assert!(rows <= PANEL && cols <= PANEL.min(stride), "beyond a panel");
    if rows == PANEL && cols == PANEL {
        return tiles::<ADD>(dst, stride, PANEL, left, right);
    }
    let mut whole = [MaybeUninit::new(0.0); PANEL * PANEL];
    tiles::<false>(&mut whole, PANEL, rows, left, right);
    for row in 0..rows {
        let sums = dst[row * stride..][..cols].iter_mut();
        for (sum, added) in sums.zip(&whole[row * PANEL..]) {
            // SAFETY: `whole` was initialized, and `sum` is if the product is added to it, by the caller's promise.
            *sum = MaybeUninit::new(unsafe {
                match ADD {
                    true => sum.assume_init() + added.assume_init(),
                    false => added.assume_init(),
                }
            });
        }
    }
}

/// As [`panel_product`], for all columns, and for at least `rows` rows.
#[cfg(target_arch = "x86_64")]
fn tiles<const ADD: bool>(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    rows: usize,
    left: &[u32],
    right: &[u32],
) {
    assert!((PANEL - 1) * stride + PANEL <= dst.len(), "too small");
    for first in (0..rows).step_by(TILE_ROWS) {
        let left = left.get(first..).unwrap_or(&[]);
        // SAFETY: the caller has checked that the processor supports the instructions. The function reads `PANEL` values of each of
        // `right.len() / PANEL` rows of `right`, and `TILE_ROWS` values of each row of `left`, which ends `first` values later; it
        // writes `TILE_ROWS` rows of `PANEL` values of `dst`, which the assertion covers, and reads them only if they are initialized.
        unsafe { x86::tile::<ADD>(&mut dst[first * stride..], stride, left, right) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn tiles<const ADD: bool>(_: &mut [MaybeUninit<f32>], _: usize, _: usize, _: &[u32], _: &[u32]) {
    unreachable!("has_bf16_products() is false");
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::{MaybeUninit, transmute};

    use super::{PANEL, TILE_ROWS};

    /// Values of f32 in a register.
    const LANES: usize = 16;

    /// The products of `TILE_ROWS` columns of a panel with all columns of another, written to rows of `dst` or added to them.
    ///
    /// # Safety
    /// `left` holds `TILE_ROWS` values at every multiple of `PANEL` below `right.len()`, a multiple of `PANEL`; `dst` holds `PANEL` values
    /// at each of the first `TILE_ROWS` multiples of `stride`, initialized if the products are added.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn tile<const ADD: bool>(
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        left: &[u32],
        right: &[u32],
    ) {
        let mut sums = [[_mm512_setzero_ps(); PANEL / LANES]; TILE_ROWS];
        for at in (0..right.len()).step_by(PANEL) {
            let columns: [__m512bh; PANEL / LANES] = std::array::from_fn(|part| {
                // SAFETY: inside `right`, by the caller's promise.
                unsafe {
                    transmute(_mm512_loadu_si512(
                        right.as_ptr().add(at + part * LANES).cast(),
                    ))
                }
            });
            for row in 0..TILE_ROWS {
                // SAFETY: inside `left`, by the caller's promise.
                let pair: __m512bh =
                    unsafe { transmute(_mm512_set1_epi32(*left.as_ptr().add(at + row) as i32)) };
                for part in 0..PANEL / LANES {
                    sums[row][part] = _mm512_dpbf16_ps(sums[row][part], columns[part], pair);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (part, &sum) in sums.iter().enumerate() {
                // SAFETY: inside `dst`, and initialized if it is read, by the caller's promise.
                unsafe {
                    let at = dst.as_mut_ptr().add(row * stride + part * LANES).cast();
                    let sum = match ADD {
                        true => _mm512_add_ps(_mm512_loadu_ps(at), sum),
                        false => sum,
                    };
                    _mm512_storeu_ps(at, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        round_to_bf16(values, &mut out);
        out
    }

    #[test]
    fn values_are_rounded_to_the_nearest_even_neighbour() {
        let cases = [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (-1.0 - 1.01 / 256.0, -1.0 - 1.0 / 128.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ];
        for (value, expected) in cases {
            assert_eq!(rounded(&[value]), [expected], "{value}");
        }
        for bits in [0x7fff_ffff, 0x7f80_0001, 0xffff_ffff] {
            assert!(rounded(&[f32::from_bits(bits)])[0].is_nan());
        }
    }

    #[test]
    fn the_product_of_panels_is_that_of_the_rounded_columns() {
        if !has_bf16_products() {
            return;
        }
        for (rows, stride) in [(1, 50), (7, 96), (64, 100), (2100, 96)] {
            let number = |i: usize| (i * 7919 % 1013) as f32 / 300.0 - 1.5;
            let x: Vec<f32> = (0..rows * stride).map(number).collect();
            let values = rounded(&x);
            let panel = |first| {
                let mut out = vec![u32::MAX; rows.div_ceil(2) * PANEL];
                pack_columns(&x, rows, stride, first, &mut out);
                out
            };
            let (left, right) = (panel(0), panel(PANEL));
            let size = [PANEL, PANEL.min(stride - PANEL)];
            let mut found = vec![1.0; PANEL * stride];
            add_panel_product(&mut found, stride, size, &left, &right);
            let mut alone = vec![MaybeUninit::new(0.0); PANEL * stride];
            panel_products_uninit(&mut alone, stride, size, &left, &right);
            for i in 0..size[0] {
                for j in 0..stride {
                    let term = |k: usize| {
                        f64::from(values[k * stride + i] * values[k * stride + PANEL + j])
                    };
                    let sum: f64 = match j < size[1] {
                        true => (0..rows).map(term).sum(),
                        false => 0.0,
                    };
                    let error = (f64::from(found[i * stride + j]) - 1.0 - sum).abs();
                    assert!(
                        error < 1e-5 * rows.max(10) as f64,
                        "[{i}, {j}] of {rows} rows: {error:.1e}"
                    );
                    // SAFETY: all were initialized.
                    let alone = unsafe { alone[i * stride + j].assume_init() };
                    let error = (f64::from(alone) - sum).abs();
                    assert!(
                        error < 1e-5 * rows.max(10) as f64,
                        "[{i}, {j}] of {rows} rows alone: {error:.1e}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_packed_as_the_columns_of_the_transpose() {
        for (rows, width) in [(1, 1), (PANEL, 130), (37, 71)] {
            let x: Vec<f32> = (0..rows * width).map(|i| i as f32 / 7.0).collect();
            let bits: Vec<u16> = x.iter().map(|&value| bf16_bits(value)).collect();
            let transposed: Vec<f32> = (0..rows * width)
                .map(|i| x[i % rows * width + i / rows])
                .collect();
            let mut panels = [(); 3].map(|()| vec![u32::MAX; width.div_ceil(2) * PANEL]);
            pack_rows(&x, width, &mut panels[0]);
            pack_rows(&bits, width, &mut panels[1]);
            pack_columns(&transposed, width, rows, 0, &mut panels[2]);
            assert_eq!(panels[0], panels[1]);
            assert_eq!(panels[0], panels[2]);
        }
    }
}
