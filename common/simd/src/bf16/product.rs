//! Products of panels.
//!
//! Safety: the unsafe operations are calls of functions compiled for an instruction set, guarded by a check that the processor supports
//! it, their accesses to slices whose lengths are checked before, and sums in memory that one product initializes and the next adds to.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::pack::{
    BLOCK_PAIRS, PANEL, Pairs, Square, pack_rows, pack_square, panel_len, transposed,
};
use crate::amx::has_amx;

/// Whether this processor multiplies panels.
pub fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        crate::has_avx512() && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Pairs of components of a part of a product by tiles. The sums of a part are read and written once; a left operand of a few panels fits
/// into the second-level cache with a panel of the right one.
const TILES_PART: usize = 512;
/// Most pairs of components of a part of a product by vectors, and of one that is added.
const PART: usize = 512;
const ADDED_PART: usize = 256;

/// Tiles of the vectors of a panel.
const TILES: usize = PANEL / BLOCK_PAIRS;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// The dot products of AVX512-BF16.
    Vectors,
    /// The tiles of AMX.
    Tiles,
}

impl Unit {
    fn fastest() -> Self {
        assert!(has_bf16_products(), "the processor has no AVX512-BF16");
        if has_amx() {
            Unit::Tiles
        } else {
            Unit::Vectors
        }
    }
}

/// Vectors of a left operand that suit this processor, whole panels of them. Tiles multiply faster than the right operand comes from memory:
/// it is read half as often for twice the vectors.
pub fn left_vectors() -> usize {
    if has_amx() { 2 * PANEL } else { PANEL }
}

/// The left operand of a product, in the form that this processor multiplies.
#[derive(Debug)]
pub struct Left<'a> {
    /// Its vectors, [`PANEL`] in each.
    panels: Vec<Form<'a>>,
    /// Pairs of components of a vector.
    length: usize,
}

#[derive(Debug)]
enum Form<'a> {
    Panel(Cow<'a, [Pairs]>),
    /// The blocks of the panels whose sum the operand is, as tiles of 16 vectors: part by part; in each, the tiles of the first 16 vectors,
    /// then those of the next and of the last; and of these, panel by panel.
    Tiles(Vec<Square>),
}

impl<'a> Left<'a> {
    /// The rows of `x: [rows, width]`, rounded to bfloat16.
    ///
    /// # Panics
    /// If [`has_bf16_products`] is false, or there are no columns.
    pub fn from_rows(x: &[f32], width: usize) -> Self {
        Self::of_rows(x, width, |x| Form::of_rows(Unit::fastest(), x, width))
    }

    /// The rows of `x: [rows, width]` as the sum of three matrices in bfloat16. It takes three times as long to multiply them; the products
    /// are as exact as those in f32.
    ///
    /// # Panics
    /// If [`has_amx`] is false, or there are no columns.
    pub fn from_exact_rows(x: &[f32], width: usize) -> Self {
        assert!(has_amx(), "the processor has no AMX");
        Self::of_rows(x, width, |x| Form::tiles_of_rows(x, width, 3))
    }

    fn of_rows(x: &[f32], width: usize, form: impl Fn(&[f32]) -> Form<'a>) -> Self {
        Left {
            panels: x.chunks(PANEL * width).map(form).collect(),
            length: panel_len(width),
        }
    }

    /// The vectors of panels that have this length.
    ///
    /// # Panics
    /// If [`has_bf16_products`] is false, or a panel does not consist of whole blocks ([`panel_len`]).
    pub fn from_panels(panels: &'a [Pairs], length: usize) -> Self {
        Self::panels_for(Unit::fastest(), panels, length)
    }

    fn panels_for(unit: Unit, panels: &'a [Pairs], length: usize) -> Self {
        assert!(length.is_multiple_of(BLOCK_PAIRS), "not whole blocks");
        let panels = panels.chunks(length.max(1));
        Left {
            panels: panels.map(|panel| Form::of_panel(unit, panel)).collect(),
            length,
        }
    }

    /// `dst[i, j] += Σ left[i, k] · right[j, k]` over the components `k` of the vectors, for `i < rows`, `j < cols`, where `right` is as
    /// many panels of the same length as `cols` vectors take. Rows of `dst` begin `stride` values apart. Sums have a fixed order.
    ///
    /// # Panics
    /// If the operand has fewer than `rows` vectors, the panels differ in length, or `dst` is too small.
    pub fn add_products(&self, dst: &mut [f32], stride: usize, size: [usize; 2], right: &[Pairs]) {
        // SAFETY: the values are initialized and stay so, because the product writes numbers only.
        let dst = unsafe { &mut *(std::ptr::from_mut(dst) as *mut [MaybeUninit<f32>]) };
        self.products::<true>(dst, stride, size, right);
    }

    /// As [`Left::add_products`], but sets values that need not be initialized: `dst[i, j] = Σ left[i, k] · right[j, k]`. All values of the
    /// product are written.
    ///
    /// # Panics
    /// As [`Left::add_products`], and if the panels are empty.
    pub fn products_uninit(
        &self,
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        size: [usize; 2],
        right: &[Pairs],
    ) {
        assert!(self.length > 0, "empty panels");
        self.products::<false>(dst, stride, size, right);
    }

    /// `dst` must be initialized if the products are added.
    fn products<const ADD: bool>(
        &self,
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        [rows, cols]: [usize; 2],
        right: &[Pairs],
    ) {
        assert_eq!(right.len(), cols.div_ceil(PANEL) * self.length, "panels");
        assert!(rows <= PANEL * self.panels.len(), "beyond the operand");
        let length = self.part::<ADD>();
        for start in (0..self.length).step_by(length) {
            let part = start..(start + length).min(self.length);
            for (column, right) in (0..cols).step_by(PANEL).zip(right.chunks(self.length)) {
                for (row, left) in (0..rows).step_by(PANEL).zip(&self.panels) {
                    let size = [PANEL.min(rows - row), PANEL.min(cols - column)];
                    let (dst, part) = (&mut dst[row * stride + column..], part.clone());
                    match ADD || start > 0 {
                        true => left.product::<true>(dst, stride, size, part, right),
                        // The first part initializes these values.
                        false => left.product::<false>(dst, stride, size, part, right),
                    }
                }
            }
        }
    }

    /// Pairs of components of a part.
    fn part<const ADD: bool>(&self) -> usize {
        match self.panels.first() {
            Some(Form::Tiles(_)) => TILES_PART,
            _ if ADD => ADDED_PART,
            _ => {
                let parts = self.length.div_ceil(PART).max(1);
                self.length.div_ceil(parts).next_multiple_of(BLOCK_PAIRS)
            }
        }
    }
}

impl<'a> Form<'a> {
    /// As [`Left::from_rows`], at most [`PANEL`] rows.
    fn of_rows(unit: Unit, x: &[f32], width: usize) -> Self {
        match unit {
            Unit::Vectors => {
                let mut panel = vec![Pairs::ZERO; panel_len(width)];
                pack_rows(x, width, &mut panel);
                Form::Panel(Cow::Owned(panel))
            }
            Unit::Tiles => Self::tiles_of_rows(x, width, 1),
        }
    }

    /// At most [`PANEL`] rows as tiles of so many parts in bfloat16.
    fn tiles_of_rows(x: &[f32], width: usize, parts: usize) -> Self {
        Self::tiles(panel_len(width), parts, |part, vectors, block, tile| {
            pack_square(x, width, [part, vectors, block], tile)
        })
    }

    /// As [`Left::from_panels`], one panel.
    fn of_panel(unit: Unit, panel: &'a [Pairs]) -> Self {
        match unit {
            Unit::Vectors => Form::Panel(Cow::Borrowed(panel)),
            Unit::Tiles => Form::tiles(panel.len(), 1, |_, vectors, block, tile| {
                let pairs = &panel[block * BLOCK_PAIRS..];
                for (row, Pairs(pairs)) in tile.0.iter_mut().zip(pairs) {
                    row.copy_from_slice(&pairs[vectors..][..BLOCK_PAIRS]);
                }
                *tile = transposed(tile);
            }),
        }
    }

    /// The tiles of so many panels of so many pairs. `pack(panel, vectors, block, tile)` fills the zeros of a tile with a block of 16 pairs
    /// of the 16 vectors from `vectors` on.
    fn tiles(
        length: usize,
        panels: usize,
        mut pack: impl FnMut(usize, usize, usize, &mut Square),
    ) -> Self {
        let blocks = length / BLOCK_PAIRS;
        let mut tiles = Vec::with_capacity(TILES * panels * blocks);
        for part in (0..blocks).step_by(TILES_PART / BLOCK_PAIRS) {
            for vectors in (0..PANEL).step_by(BLOCK_PAIRS) {
                for panel in 0..panels {
                    for block in part..blocks.min(part + TILES_PART / BLOCK_PAIRS) {
                        let mut tile = Square::ZERO;
                        pack(panel, vectors, block, &mut tile);
                        tiles.push(tile);
                    }
                }
            }
        }
        Form::Tiles(tiles)
    }

    /// The product with a part of one panel, added or written. The values of `dst` must be initialized if it is added.
    fn product<const ADD: bool>(
        &self,
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        [rows, cols]: [usize; 2],
        part: Range<usize>,
        right: &[Pairs],
    ) {
        assert!(rows <= PANEL && cols <= PANEL.min(stride), "beyond a panel");
        if [rows, cols] == [PANEL; 2] {
            return self.whole_product::<ADD>(dst, stride, PANEL, part, right);
        }
        let mut whole = [MaybeUninit::new(0.0); PANEL * PANEL];
        self.whole_product::<false>(&mut whole, PANEL, rows, part, right);
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

    /// As [`Form::product`], for all columns, and for at least `rows` rows.
    #[cfg(target_arch = "x86_64")]
    fn whole_product<const ADD: bool>(
        &self,
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        rows: usize,
        part: Range<usize>,
        right: &[Pairs],
    ) {
        match self {
            Form::Panel(panel) => {
                let (left, right) = (&panel[part.clone()], &right[part]);
                // SAFETY: there are panels on processors that multiply them only.
                unsafe { vectors::product::<ADD>(dst, stride, rows, left, right) };
            }
            Form::Tiles(tiles) => {
                let of_block = tiles.len() / (right.len() / BLOCK_PAIRS);
                let blocks = part.start / BLOCK_PAIRS..part.end / BLOCK_PAIRS;
                let left = &tiles[of_block * blocks.start..of_block * blocks.end];
                // SAFETY: there are tiles on processors that multiply them only.
                unsafe { tiles::product::<ADD>(dst, stride, left, &right[part]) };
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn whole_product<const ADD: bool>(
        &self,
        _: &mut [MaybeUninit<f32>],
        _: usize,
        _: usize,
        _: Range<usize>,
        _: &[Pairs],
    ) {
        unreachable!("has_bf16_products() is false");
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::{
        __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::{MaybeUninit, transmute};

    use super::super::pack::{PANEL, Pairs};

    /// Rows of the sums that the kernel keeps in registers.
    const ROWS: usize = 8;
    /// Values of f32 in a register.
    const LANES: usize = 16;

    /// The products of at least `rows` vectors of a panel with all of another, written to rows of `dst` or added to them.
    ///
    /// # Safety
    /// The processor has AVX512-BF16. `dst` is initialized if the products are added.
    pub(super) unsafe fn product<const ADD: bool>(
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        rows: usize,
        left: &[Pairs],
        right: &[Pairs],
    ) {
        assert!(rows <= PANEL && (PANEL - 1) * stride + PANEL <= dst.len());
        for first in (0..rows).step_by(ROWS) {
            // SAFETY: rows `first..first + ROWS` lie inside a panel and, by the assertion, inside `dst`, which is initialized if it is read.
            unsafe { some_rows::<ADD>(&mut dst[first * stride..], stride, first, left, right) };
        }
    }

    /// The products of the `ROWS` vectors of a panel from `first` on with all of another.
    ///
    /// # Safety
    /// The processor has AVX512-BF16. `first + ROWS` is at most `PANEL`; `dst` holds `PANEL` values at each of the first `ROWS` multiples of
    /// `stride`, initialized if the products are added.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn some_rows<const ADD: bool>(
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        first: usize,
        left: &[Pairs],
        right: &[Pairs],
    ) {
        let mut sums = [[_mm512_setzero_ps(); PANEL / LANES]; ROWS];
        for (Pairs(left), Pairs(right)) in left.iter().zip(right) {
            // SAFETY: inside the pair of each vector of a panel.
            let columns: [__m512bh; PANEL / LANES] = std::array::from_fn(|part| unsafe {
                transmute(_mm512_loadu_si512(right.as_ptr().add(part * LANES).cast()))
            });
            for row in 0..ROWS {
                // SAFETY: as above, by the caller's promise about `first`.
                let pair: __m512bh =
                    unsafe { transmute(_mm512_set1_epi32(*left.as_ptr().add(first + row) as i32)) };
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

#[cfg(target_arch = "x86_64")]
mod tiles {
    use std::arch::asm;
    use std::mem::MaybeUninit;

    use super::super::pack::{BLOCK_PAIRS, PANEL, Pairs, Square};
    use super::TILES;
    use crate::amx::{FULL_TILES, TILE_ROW_BYTES};

    /// A row of the tiles of a product that is not added to anything.
    static ZEROS: [f32; PANEL] = [0.0; PANEL];

    /// The products of all vectors of a part of a left operand with all of a part of a panel, written to `dst` or added to it: nine tiles of
    /// sums, six for the first 32 rows and three for the others. The loads of a step, of 8 cycles each from the first-level cache, take less
    /// time than its products of 16 cycles.
    ///
    /// # Safety
    /// The processor has AMX. `dst` is initialized if the products are added.
    pub(super) unsafe fn product<const ADD: bool>(
        dst: &mut [MaybeUninit<f32>],
        stride: usize,
        left: &[Square],
        right: &[Pairs],
    ) {
        let blocks = right.len() / BLOCK_PAIRS;
        assert!((PANEL - 1) * stride + PANEL <= dst.len(), "too small");
        assert!(
            blocks > 0 && right.len() == blocks * BLOCK_PAIRS,
            "no blocks"
        );
        let tiles = left.len() / TILES;
        assert!(tiles > 0 && tiles.is_multiple_of(blocks), "no tiles");
        assert_eq!(left.len(), TILES * tiles, "tiles");
        let row = size_of_val(&dst[..stride]);
        let (from, from_row) = match ADD {
            true => (dst.as_ptr().cast::<f32>(), row),
            false => (ZEROS.as_ptr(), 0),
        };
        // SAFETY: `left` has `tiles` tiles, a multiple of `blocks`, for each 16 rows, and `right` has `blocks` blocks; the sums are 48 values
        // in each of 48 rows of `dst`, as the first assertion says, or are first read from `ZEROS`, which has as many. The tiles are
        // configured and released here.
        unsafe {
            asm!(
                "ldtilecfg [{end}]",
                "mov {end}, {second}",
                // The first 32 rows, in tmm0 to tmm5.
                "tileloadd tmm0, [{from} + {from_row}]",
                "tileloadd tmm1, [{from} + {from_row} + 64]",
                "tileloadd tmm2, [{from} + {from_row} + 128]",
                "mov {at}, {from_row}",
                "shl {at}, 4",
                "add {from}, {at}",
                "tileloadd tmm3, [{from} + {from_row}]",
                "tileloadd tmm4, [{from} + {from_row} + 64]",
                "tileloadd tmm5, [{from} + {from_row} + 128]",
                "add {from}, {at}",
                "2:",
                "mov {at}, {right}",
                "mov {block}, {blocks}",
                "3:",
                "tileloadd tmm6, [{left} + {left_row}]",
                "tileloadd tmm7, [{at} + {right_row}]",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tileloadd tmm7, [{at} + {right_row} + 64]",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tileloadd tmm7, [{at} + {right_row} + 128]",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tileloadd tmm6, [{second} + {left_row}]",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "tileloadd tmm7, [{at} + {right_row} + 64]",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "tileloadd tmm7, [{at} + {right_row}]",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "add {left}, {tile}",
                "add {second}, {tile}",
                "add {at}, {block_bytes}",
                "dec {block}",
                "jnz 3b",
                "cmp {left}, {end}",
                "jne 2b",
                "mov {at}, {row}",
                "shl {at}, 4",
                "tilestored [{dst} + {row}], tmm0",
                "tilestored [{dst} + {row} + 64], tmm1",
                "tilestored [{dst} + {row} + 128], tmm2",
                "add {dst}, {at}",
                "tilestored [{dst} + {row}], tmm3",
                "tilestored [{dst} + {row} + 64], tmm4",
                "tilestored [{dst} + {row} + 128], tmm5",
                "add {dst}, {at}",
                // The last 16 rows, in tmm0 to tmm2. `second` has come to their tiles, which end as far after it as `end` is before.
                "tileloadd tmm0, [{from} + {from_row}]",
                "tileloadd tmm1, [{from} + {from_row} + 64]",
                "tileloadd tmm2, [{from} + {from_row} + 128]",
                "neg {end}",
                "lea {end}, [{end} + 2*{second}]",
                "4:",
                "mov {at}, {right}",
                "mov {block}, {blocks}",
                "5:",
                "tileloadd tmm6, [{second} + {left_row}]",
                "tileloadd tmm3, [{at} + {right_row}]",
                "tdpbf16ps tmm0, tmm6, tmm3",
                "tileloadd tmm4, [{at} + {right_row} + 64]",
                "tdpbf16ps tmm1, tmm6, tmm4",
                "tileloadd tmm5, [{at} + {right_row} + 128]",
                "tdpbf16ps tmm2, tmm6, tmm5",
                "add {second}, {tile}",
                "add {at}, {block_bytes}",
                "dec {block}",
                "jnz 5b",
                "cmp {second}, {end}",
                "jne 4b",
                "tilestored [{dst} + {row}], tmm0",
                "tilestored [{dst} + {row} + 64], tmm1",
                "tilestored [{dst} + {row} + 128], tmm2",
                "tilerelease",
                left = inout(reg) left.as_ptr() => _,
                second = inout(reg) left[tiles..].as_ptr() => _,
                end = inout(reg) &raw const FULL_TILES => _,
                right = in(reg) right.as_ptr(),
                dst = inout(reg) dst.as_mut_ptr() => _,
                row = in(reg) row,
                from = inout(reg) from => _,
                from_row = in(reg) from_row,
                blocks = in(reg) blocks,
                left_row = in(reg) TILE_ROW_BYTES,
                right_row = in(reg) size_of::<Pairs>(),
                block = out(reg) _,
                at = out(reg) _,
                tile = const size_of::<Square>(),
                block_bytes = const BLOCK_PAIRS * size_of::<Pairs>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::pack_columns;
    use super::super::round_to_bf16;
    use super::*;

    /// The units of this processor.
    fn units() -> Vec<Unit> {
        let vectors = has_bf16_products().then_some(Unit::Vectors);
        let tiles = has_amx().then_some(Unit::Tiles);
        vectors.into_iter().chain(tiles).collect()
    }

    /// The product of `left` with panels of the `cols` columns of `x: [rows, cols]`: set, and added to 1.
    fn products(left: &Left<'_>, x: &[f32], size: [usize; 2], cols: usize) -> [Vec<f32>; 2] {
        let rows = x.len() / cols;
        let mut right = vec![Pairs::ZERO; panel_len(rows) * cols.div_ceil(PANEL)];
        for (panel, out) in right.chunks_exact_mut(panel_len(rows)).enumerate() {
            pack_columns(x, rows, cols, panel * PANEL, out);
        }
        let stride = cols + 3;
        let mut set = vec![MaybeUninit::new(7.0); 4 * PANEL * stride];
        left.products_uninit(&mut set, stride, size, &right);
        // SAFETY: all were initialized.
        let set = set.into_iter().map(|value| unsafe { value.assume_init() });
        let mut added = vec![1.0; 4 * PANEL * stride];
        left.add_products(&mut added, stride, size, &right);
        [set.collect(), added]
    }

    #[test]
    fn a_product_is_that_of_the_rows_with_the_columns() {
        for (rows, inner, cols, is_exact) in [
            (48, 1, 2, false),
            (48, 7, 48, false),
            (5, 64, 52, false),
            (150, 2100, 96, false),
            (48, 70, 100, true),
            (81, 2100, 96, true),
        ] {
            let number = |i: usize| (i * 7919 % 1013) as f32 / 300.0 - 1.5;
            let values = |count| -> Vec<f32> { (0..count).map(number).collect() };
            let (x, y) = (values(rows * inner), values(inner * cols));
            let rounded = |values: &[f32]| {
                let mut out = vec![0.0; values.len()];
                round_to_bf16(values, &mut out);
                out
            };
            let left = if is_exact { x.clone() } else { rounded(&x) };
            let right = rounded(&y);
            let length = panel_len(inner);
            let mut panels = vec![Pairs::ZERO; length * rows.div_ceil(PANEL)];
            for (out, x) in panels.chunks_mut(length).zip(x.chunks(PANEL * inner)) {
                pack_rows(x, inner, out);
            }
            let operands = units().into_iter().flat_map(|unit| {
                let of_panels = Left::panels_for(unit, &panels, length);
                let of_rows = Left::of_rows(&x, inner, |x| Form::of_rows(unit, x, inner));
                [of_panels, of_rows]
            });
            let exact = (is_exact && has_amx()).then(|| Left::from_exact_rows(&x, inner));
            let operands: Vec<Left<'_>> = if is_exact {
                exact.into_iter().collect()
            } else {
                operands.collect()
            };
            for operand in operands {
                let [set, added] = products(&operand, &y, [rows, cols], cols);
                for at in 0..set.len() {
                    let (i, j) = (at / (cols + 3), at % (cols + 3));
                    if i >= rows || j >= cols {
                        assert_eq!((set[at], added[at]), (7.0, 1.0), "[{i}, {j}]");
                        continue;
                    }
                    let term =
                        |k: usize| f64::from(left[i * inner + k]) * f64::from(right[k * cols + j]);
                    let sum: f64 = (0..inner).map(term).sum();
                    let errors = [f64::from(set[at]) - sum, f64::from(added[at]) - 1.0 - sum];
                    let bound = 3e-7 * inner.max(30) as f64;
                    assert!(
                        errors.iter().all(|error| error.abs() < bound),
                        "[{i}, {j}] of {inner} components: {errors:?}"
                    );
                }
            }
        }
    }
}
