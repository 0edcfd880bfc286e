//! Dot products of rows of weights with activations, in one fixed order.
//!
//! A dot product of n elements is made in [`LANES`]` · `[`CHAINS`] partial sums: element k is added, by a fused multiply-add,
//! to sum `k mod 32`, in ascending order of k. The 32 sums are then added in a fixed tree. The order depends on n alone. How
//! many rows and tokens are computed at the same time changes only which registers hold the sums.

use uc_simd::{Kernel, LANES, bf16_value, dispatch};

/// Registers of partial sums per dot product.
const CHAINS: usize = 2;
/// Elements that are added in one step.
const STEP: usize = LANES * CHAINS;

/// An element of a row: f32, or bfloat16, which becomes f32 in the kernel.
pub(crate) trait Element: Copy + Default + Sync {
    /// The same value.
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_value(self.to_bits())
    }
}

/// `out[r][t] = <rows[r], x[t]>` for the rows `[R, cols]`, `x: [T, cols]`, `out: [R, T]`.
///
/// # Panics
/// If the lengths do not match.
pub(crate) fn products<E: Element>(rows: &[E], x: &[f32], cols: usize, out: &mut [f32]) {
    assert!(
        rows.len().is_multiple_of(cols) && x.len().is_multiple_of(cols),
        "whole rows"
    );
    assert_eq!(
        out.len(),
        rows.len() / cols * (x.len() / cols),
        "one product for each row and token"
    );
    dispatch(Products { rows, x, cols, out });
}

/// See [`products`].
struct Products<'a, E> {
    rows: &'a [E],
    x: &'a [f32],
    cols: usize,
    out: &'a mut [f32],
}

impl<E: Element> Kernel for Products<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let (rows, tokens) = (self.rows.len() / self.cols, self.x.len() / self.cols);
        // Blocks of 4 tokens, then of one; within them blocks of rows that fill the registers.
        let fours = tokens - tokens % 4;
        for token in (0..fours).step_by(4) {
            let pairs = rows - rows % 2;
            for row in (0..pairs).step_by(2) {
                self.block::<2, 4>(row, token);
            }
            for row in pairs..rows {
                self.block::<1, 4>(row, token);
            }
        }
        // One row after the other: several at a time are read more slowly than memory gives them.
        for token in fours..tokens {
            for row in 0..rows {
                self.block::<1, 1>(row, token);
            }
        }
    }
}

impl<E: Element> Products<'_, E> {
    /// The products of `R` rows from `row` on with `T` tokens from `token` on.
    #[inline(always)]
    fn block<const R: usize, const T: usize>(&mut self, row: usize, token: usize) {
        let (cols, tokens) = (self.cols, self.x.len() / self.cols);
        let rows: [&[E]; R] =
            std::array::from_fn(|r| &self.rows[(row + r) * cols..(row + r + 1) * cols]);
        let x: [&[f32]; T] =
            std::array::from_fn(|t| &self.x[(token + t) * cols..(token + t + 1) * cols]);
        let found = dots(rows, x);
        for (r, found) in found.iter().enumerate() {
            let at = (row + r) * tokens + token;
            self.out[at..at + T].copy_from_slice(found);
        }
    }
}

/// A vector register.
type Lanes = [f32; LANES];

/// The products of `R` rows with `T` vectors, all of one length.
#[inline(always)]
fn dots<E: Element, const R: usize, const T: usize>(
    rows: [&[E]; R],
    x: [&[f32]; T],
) -> [[f32; T]; R] {
    let mut sums = [[[[0.0; LANES]; CHAINS]; T]; R];
    let cols = rows[0].len();
    let whole = cols - cols % STEP;
    let steps = rows.map(|row| row[..whole].as_chunks::<STEP>().0);
    let x_steps = x.map(|x| x[..whole].as_chunks::<STEP>().0);
    for step in 0..whole / STEP {
        let rows = steps.map(|row| &row[step]);
        let x = x_steps.map(|x| &x[step]);
        sums = add_step(sums, rows, x);
    }
    if whole < cols {
        // Zeros change no sum, which is never -0.
        let rows = rows.map(|row| padded(&row[whole..]));
        let x = x.map(|x| padded(&x[whole..]));
        sums = add_step(sums, rows.each_ref(), x.each_ref());
    }
    sums.map(|row| row.map(total))
}

/// The sums after one more step.
#[inline(always)]
fn add_step<E: Element, const R: usize, const T: usize>(
    mut sums: [[[Lanes; CHAINS]; T]; R],
    rows: [&[E; STEP]; R],
    x: [&[f32; STEP]; T],
) -> [[[Lanes; CHAINS]; T]; R] {
    for chain in 0..CHAINS {
        for r in 0..R {
            let row: Lanes = std::array::from_fn(|lane| rows[r][chain * LANES + lane].widen());
            for t in 0..T {
                let x: &Lanes = x[t][chain * LANES..(chain + 1) * LANES]
                    .try_into()
                    .expect("a part of the step");
                sums[r][t][chain] = add(sums[r][t][chain], row, x);
            }
        }
    }
    sums
}

/// `sums + a · b`, fused.
#[inline(always)]
fn add(mut sums: Lanes, a: Lanes, b: &Lanes) -> Lanes {
    for lane in 0..LANES {
        sums[lane] = a[lane].mul_add(b[lane], sums[lane]);
    }
    sums
}

/// The elements and zeros after them.
#[inline(always)]
fn padded<E: Element>(elements: &[E]) -> [E; STEP] {
    let mut step = [E::default(); STEP];
    step[..elements.len()].copy_from_slice(elements);
    step
}

/// The sum of the partial sums.
#[inline(always)]
fn total(sums: [Lanes; CHAINS]) -> f32 {
    let mut lanes = sums[0];
    for lane in 0..LANES {
        lanes[lane] += sums[1][lane];
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// `<a, b>`, in the order of this module. For kernels, which are compiled for an instruction set.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dots([a], [b])[0][0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: one sum after the other.
    fn reference(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0.0f32; STEP];
        for (k, (a, b)) in a.iter().zip(b).enumerate() {
            sums[k % STEP] = a.mul_add(*b, sums[k % STEP]);
        }
        let mut width = STEP;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
        }
        sums[0]
    }

    fn numbers(count: usize, step: usize) -> Vec<f32> {
        let number = |i: usize| ((i * step % 1009) as f32 / 504.5 - 1.0).powi(3);
        (1..=count).map(number).collect()
    }

    #[test]
    fn every_instruction_set_and_every_block_gives_the_bits_of_the_definition() {
        for cols in [1, 7, 16, 31, 32, 33, 63, 64, 100, 257] {
            for (rows, tokens) in [(1, 1), (4, 1), (5, 1), (2, 4), (3, 4), (7, 9), (8, 6)] {
                let weights = numbers(rows * cols, 7919);
                let x = numbers(tokens * cols, 6421);
                let (mut dispatched, mut portable) =
                    (vec![0.0; rows * tokens], vec![0.0; rows * tokens]);
                products(&weights, &x, cols, &mut dispatched);
                Products {
                    rows: &weights,
                    x: &x,
                    cols,
                    out: &mut portable,
                }
                .run();
                for r in 0..rows {
                    for t in 0..tokens {
                        let expected =
                            reference(&weights[r * cols..][..cols], &x[t * cols..][..cols]);
                        for found in [&dispatched, &portable] {
                            let found = found[r * tokens + t];
                            assert_eq!(
                                found.to_bits(),
                                expected.to_bits(),
                                "{cols} {rows} {tokens}"
                            );
                        }
                    }
                }
            }
        }
    }
}
