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
#[cfg(target_arch = "x86_64")]
use super::{tiles, vectors};
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
pub(super) const TILES: usize = PANEL / BLOCK_PAIRS;

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

/// Vectors of a left operand that suit this processor, whole panels of them. Tiles multiply faster than the right operand comes from
/// memory: it is read half as often for twice the vectors.
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

    /// As [`Left::add_products`], but sets values that need not be initialized: `dst[i, j] = Σ left[i, k] · right[j, k]`. All values of
    /// the product are written.
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
