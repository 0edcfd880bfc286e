//! Quantization with error feedback.
//!
//! Column by column, what is to be quantized is `w_j + Σ_{k<j} (w_k − ŵ_k)·a_kj` with the factor `a` of
//! [`crate::factor`]; this is LDLQ (Chee et al. 2023), equal to GPTQ (Frantar et al. 2022) in exact
//! arithmetic. The levels of a column are found together, down the rows, by the search of [`crate::trellis`].
//! `ŵ` is the weight as it will be reconstructed, `bf16(level·s)`, so that the rounding to bfloat16 is fed
//! back as well.
//!
//! Rows are cut into the blocks of the trellis and columns into blocks too. What all earlier columns left enters a tile (one
//! block of rows, one of columns) as one matrix product, then the tile is worked off column by column with the rows side by
//! side in vector lanes.
//!
//! # Rows
//! Rows feed back into one another where the factor of the outputs says so. With `e'` for what a column leaves of the
//! target that its earlier columns gave it, `Bᵀ·e'` is to be small: row i has to make up for `Σ_{k<i} b_ki·e'_k`. Within a
//! tile the search does so. What the blocks above left, `c_i = Σ_k b_ki·e'_k`, moves the targets of a tile beforehand, by the
//! `d` with `d_i + Σ_k b_ki·d_k = c_i` over the rows k of the tile above i, since the search hands on all that it leaves of a
//! target, d included. So a tile waits for those above it (within a block of the factor) and to the left of it, and tiles on
//! a diagonal are worked off at the same time, each by one thread: the bits do not depend on the number of threads.

use crate::bf16;
use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::Factor;
use crate::steps::Steps;
use crate::trellis::{BLOCK_ROWS, Coupling, Path};
use faer::linalg::triangular_solve::solve_unit_lower_triangular_in_place;
use faer::{MatMut, MatRef};
use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};
use uc_simd::{MatrixView, multiply, multiply_add};

/// Columns of a block.
const BLOCK: usize = 128;
/// Columns of a block whose errors enter the columns behind them together.
const PANEL: usize = 8;

/// A row whose weights are all zero: it stays so, and the trellis passes it over.
pub fn is_zero(row: &[f32]) -> bool {
    row.iter().all(|&w| w == 0.0)
}

/// Quantizes `w` [m, n] row-major with the given steps (finite, positive) under the factor of the layer's Hessian and, if
/// there is one, that of the linear's outputs. Returns the indices [m, n], 0 in rows of zeros; values beyond the largest
/// level saturate, and their error is fed back as any other.
///
/// The search takes every row's error as equally grave in units of its step: with outputs, the row steps should be
/// proportional to its [`Factor::inv_diag`].
///
/// # Errors
/// [`CodecError::Shape`], [`CodecError::NotFinite`] (weights, steps), [`CodecError::Range`] for a
/// step that is not positive.
pub fn quantize(
    w: &[f32],
    m: usize,
    n: usize,
    factor: &Factor,
    outputs: Option<&Factor>,
    steps: &Steps,
) -> Result<Vec<i16>, CodecError> {
    check_matrix("weights", w.len(), m, n)?;
    check_len("factor", factor.n, n)?;
    check_matrix("factor", factor.a.len(), n, factor.block)?;
    if let Some(outputs) = outputs {
        check_len("output factor", outputs.n, m)?;
        check_matrix("output factor", outputs.a.len(), m, outputs.block)?;
        let whole = outputs.block >= m || outputs.block.is_multiple_of(BLOCK_ROWS);
        if !whole && !BLOCK_ROWS.is_multiple_of(outputs.block) {
            let expected = "whole blocks of the trellis, or a divisor of one";
            return Err(CodecError::Range {
                what: "block of the output factor",
                found: outputs.block as f64,
                expected,
            });
        }
    }
    check_finite("weights", w)?;
    for (what, steps, count) in [
        ("column step", &steps.columns, n),
        ("row step", &steps.rows, m),
    ] {
        check_len(what, steps.len(), count)?;
        check_finite(what, steps)?;
        if let Some(&found) = steps.iter().find(|&&s| s <= 0.0) {
            let expected = "a positive number";
            return Err(CodecError::Range {
                what,
                found: f64::from(found),
                expected,
            });
        }
    }
    let mut q = vec![0i16; m * n];
    if q.is_empty() {
        return Ok(q);
    }
    let panels = panels(factor);
    // Blocks of rows that feed back into one another, and as many of such groups as keep all threads busy: what their rows
    // leave is in memory, 4 bytes a weight.
    let group = outputs.map_or(1, |outputs| outputs.block.min(m).div_ceil(BLOCK_ROWS));
    let together = BLOCK_ROWS * rayon::current_num_threads().next_multiple_of(group);
    let parts = w.chunks(together * n).zip(q.chunks_mut(together * n));
    for (part, (w, q)) in parts.enumerate() {
        let first = part * together;
        let strips = w.chunks(BLOCK_ROWS * n).zip(q.chunks_mut(BLOCK_ROWS * n));
        let strips = strips.enumerate().map(|(place, (w, q))| {
            let first = first + place * BLOCK_ROWS;
            let steps = &steps.rows[first..first + w.len() / n];
            Strip::new(Rows::new(w, steps, first, outputs), q)
        });
        quantize_strips(strips.collect(), group, &panels, factor, &steps.columns);
    }
    Ok(q)
}

/// Columns that are worked off together.
struct Panel {
    /// First column.
    first: usize,
    width: usize,
    /// Columns before it in its block of the factor.
    done: usize,
}

/// All columns, from the left.
fn panels(factor: &Factor) -> Vec<Panel> {
    let blocks = factor.blocks().flat_map(|(start, size)| {
        (0..size).step_by(BLOCK).map(move |done| Panel {
            first: start + done,
            width: BLOCK.min(size - done),
            done,
        })
    });
    blocks.collect()
}

/// Quantizes blocks of rows, of which `group` after one another at a time feed back into one another.
fn quantize_strips(
    mut strips: Vec<Strip<'_>>,
    group: usize,
    panels: &[Panel],
    factor: &Factor,
    steps: &[f32],
) {
    // By group and panel: what the rows done have left of the panel, [rows, width].
    let groups = strips.len().div_ceil(group);
    let mut before: Vec<Vec<Vec<f32>>> = vec![vec![Vec::new(); panels.len()]; groups];
    for wave in 0..panels.len() + group - 1 {
        let place = |strip: usize| wave.checked_sub(strip % group);
        let found: Vec<Option<Vec<f32>>> = strips
            .par_iter_mut()
            .enumerate()
            .map(|(at, strip)| {
                let panel = panels.get(place(at)?)?;
                strip.quantize(panel, &before[at / group][place(at)?], factor, steps)
            })
            .collect();
        for (at, found) in found.into_iter().enumerate() {
            let known = place(at).and_then(|place| before[at / group].get_mut(place));
            match (known, found) {
                (Some(known), Some(found)) => known.extend(found),
                // Nothing is left to make up for, or the last rows of the group have done so.
                (Some(known), None) => *known = Vec::new(),
                (None, _) => {}
            }
        }
    }
}

/// A block of rows.
struct Rows<'a> {
    /// [rows, n]
    w: &'a [f32],
    /// Rows that are not zero.
    active: Vec<usize>,
    /// [rows]
    steps: &'a [f32],
    /// How they feed back into one another and into other blocks.
    ties: Option<Ties<'a>>,
}

impl<'a> Rows<'a> {
    /// The rows of `w` [rows, n], which begin at row `first` of the linear.
    fn new(w: &'a [f32], steps: &'a [f32], first: usize, outputs: Option<&'a Factor>) -> Self {
        let n = w.len() / steps.len();
        let zero = |&row: &usize| is_zero(&w[row * n..(row + 1) * n]);
        let active: Vec<usize> = (0..steps.len()).filter(|row| !zero(row)).collect();
        Rows {
            w,
            ties: outputs.map(|outputs| Ties::new(outputs, first, steps, &active)),
            active,
            steps,
        }
    }
}

/// How a block of rows feeds back into others by the factor of the outputs.
struct Ties<'a> {
    /// Rows above that feed back into these.
    above: usize,
    /// Are there rows below into which these feed back?
    below: bool,
    /// [above, rows] how much the error of a row above enters each row.
    onto: MatrixView<'a>,
    /// [active, active] the same among active rows, row k into row i at `(i, k)`: unit lower triangular.
    own: Vec<f32>,
    /// The same in units of their steps.
    coupling: Box<Coupling>,
}

impl<'a> Ties<'a> {
    fn new(outputs: &'a Factor, first: usize, steps: &[f32], active: &[usize]) -> Self {
        let (rows, block) = (steps.len(), outputs.block);
        let above = first % block;
        let start = first - above;
        let onto = MatrixView::new(&outputs.a[start * block + above..], above, rows, block);
        let b = &outputs.a[first * block..];
        // How much of the error of row k enters row i, k ≤ i.
        let entry = |k: usize, i: usize| {
            let (from, to) = (above + k, above + i);
            match from / block == to / block {
                true => b[k * block + to % block],
                false => 0.0,
            }
        };
        let pairs = active
            .iter()
            .flat_map(|&i| active.iter().map(move |&k| (i, k)));
        let own = pairs.map(|(i, k)| if k <= i { entry(k, i) } else { 0.0 });
        let scaled = |lane: usize, later: usize| match (active.get(lane), active.get(later)) {
            (Some(&k), Some(&i)) => entry(k, i) * (steps[k] / steps[i]),
            _ => 0.0,
        };
        Ties {
            above,
            below: above + rows < block.min(outputs.n - start),
            onto,
            own: own.collect(),
            coupling: Coupling::new(scaled),
        }
    }

    /// How far the errors `before` [above, width] of the rows above move the targets of the active rows, [active, width];
    /// none without rows above.
    fn shift(&self, before: &[f32], width: usize, active: &[usize]) -> Option<Vec<f32>> {
        if self.above == 0 || active.is_empty() {
            return None;
        }
        let rows = self.onto.transposed();
        let mut all = vec![0.0; rows.rows() * width];
        let before = MatrixView::new(before, self.above, width, width);
        multiply(&mut all, width, rows, before);
        let lanes = active.iter();
        let lanes = lanes.flat_map(|&row| &all[row * width..(row + 1) * width]);
        let mut shift: Vec<f32> = lanes.copied().collect();
        let own = MatRef::from_row_major_slice(&self.own, active.len(), active.len());
        let shifted = MatMut::from_row_major_slice_mut(&mut shift, active.len(), width);
        solve_unit_lower_triangular_in_place(own, shifted, faer::Par::Seq);
        Some(shift)
    }
}

/// A block of rows that is being quantized.
struct Strip<'a> {
    rows: Rows<'a>,
    /// [rows, n]
    q: &'a mut [i16],
    /// w − ŵ of the columns done, [active, n].
    left: Vec<f32>,
    work: Work,
}

impl<'a> Strip<'a> {
    fn new(rows: Rows<'a>, q: &'a mut [i16]) -> Self {
        let n = q.len() / rows.steps.len();
        let left = vec![0.0; rows.active.len() * n];
        Strip {
            rows,
            q,
            left,
            work: Work::new(),
        }
    }

    /// Quantizes the next columns, `before` [above, width] being what the rows above left of them; returns what these rows
    /// leave, [rows, width], where rows below have to make up for it.
    fn quantize(
        &mut self,
        panel: &Panel,
        before: &[f32],
        factor: &Factor,
        steps: &[f32],
    ) -> Option<Vec<f32>> {
        let n = steps.len();
        let (rows, active) = (&self.rows, &self.rows.active);
        let &Panel { first, width, done } = panel;
        // Rows and columns of `a` are those of the factor's block.
        let (a, stride) = (&factor.a[(first - done) * factor.block..], factor.block);
        let mut target: Vec<f32> = active
            .iter()
            .flat_map(|&row| &rows.w[row * n + first..row * n + first + width])
            .copied()
            .collect();
        if done > 0 && !active.is_empty() {
            let before = MatrixView::new(&self.left[first - done..], active.len(), done, n);
            let onto = MatrixView::new(&a[done..], done, width, stride);
            multiply_add(&mut target, width, before, onto);
        }
        let ties = rows.ties.as_ref();
        let shift = ties.and_then(|ties| ties.shift(before, width, active));
        if let Some(shift) = &shift {
            target.iter_mut().zip(shift).for_each(|(t, s)| *t += s);
        }
        let corner: Vec<f32> = (done..done + width)
            .flat_map(|k| &a[k * stride + done..k * stride + done + width])
            .copied()
            .collect();
        dispatch(Tile {
            rows,
            q: self.q,
            left: &mut self.left,
            target: &target,
            corner: &corner,
            steps,
            first,
            width,
            work: &mut self.work,
        });
        ties.filter(|ties| ties.below)?;
        let mut found = vec![0.0; rows.steps.len() * width];
        for (lane, &row) in active.iter().enumerate() {
            let found = &mut found[row * width..(row + 1) * width];
            let errors = self.work.error.iter().map(|column| column[lane]);
            found
                .iter_mut()
                .zip(errors)
                .for_each(|(found, error)| *found = error);
            if let Some(shift) = &shift {
                let shift = &shift[lane * width..(lane + 1) * width];
                found
                    .iter_mut()
                    .zip(shift)
                    .for_each(|(found, shift)| *found -= shift);
            }
        }
        Some(found)
    }
}

/// A number for each row of a block.
type Column<T> = [T; BLOCK_ROWS];

/// A tile with its columns one after another and its rows side by side.
struct Work {
    /// [columns] what is to be quantized.
    aim: Vec<Column<f32>>,
    /// [columns] the weights, then w − ŵ.
    own: Vec<Column<f32>>,
    /// [columns] what was to be quantized, less ŵ.
    error: Vec<Column<f32>>,
    /// [columns]
    index: Vec<Column<i16>>,
    path: Box<Path>,
}

impl Work {
    fn new() -> Self {
        Work {
            aim: vec![[0.0; BLOCK_ROWS]; BLOCK],
            own: vec![[0.0; BLOCK_ROWS]; BLOCK],
            error: vec![[0.0; BLOCK_ROWS]; BLOCK],
            index: vec![[0; BLOCK_ROWS]; BLOCK],
            path: Path::new(),
        }
    }
}

/// The columns `first..first + width` of a block of rows.
struct Tile<'a> {
    rows: &'a Rows<'a>,
    q: &'a mut [i16],
    left: &'a mut [f32],
    target: &'a [f32],
    /// [width, width] the factor's part that lies inside the block.
    corner: &'a [f32],
    steps: &'a [f32],
    first: usize,
    width: usize,
    work: &'a mut Work,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.steps.len();
        let (first, width) = (self.first, self.width);
        let Work {
            aim,
            own,
            error,
            index,
            path,
        } = self.work;
        let active = &self.rows.active;
        let mut row_steps = [1.0; BLOCK_ROWS];
        for (lane, &row) in active.iter().enumerate() {
            row_steps[lane] = self.rows.steps[row];
            let at = row * n + first;
            for (j, &w) in self.rows.w[at..at + width].iter().enumerate() {
                own[j][lane] = w;
                aim[j][lane] = self.target[lane * width + j];
            }
        }
        for panel in (0..width).step_by(PANEL) {
            let end = width.min(panel + PANEL);
            for j in panel..end {
                let steps = row_steps.map(|row| self.steps[first + j] * row);
                let mut values = aim[j];
                values
                    .iter_mut()
                    .zip(&steps)
                    .for_each(|(value, step)| *value /= step);
                match &self.rows.ties {
                    None => path.quantize(&values, active.len()),
                    Some(ties) => path.quantize_coupled(&values, active.len(), &ties.coupling),
                }
                index[j] = path.indices;
                error[j] = aim[j];
                let columns = own[j].iter_mut().zip(&mut error[j]);
                for ((own, error), (level, step)) in columns.zip(path.levels.iter().zip(&steps)) {
                    let found = bf16::to_f32(bf16::round_nearest_even(level * step));
                    *own -= found;
                    *error -= found;
                }
                pass_on(
                    &own[j..=j],
                    &mut aim[j + 1..end],
                    &self.corner[j * width + j + 1..],
                    width,
                );
            }
            if end < width {
                let after = &self.corner[panel * width + end..];
                pass_on(&own[panel..end], &mut aim[end..width], after, width);
            }
        }
        for (lane, &row) in active.iter().enumerate() {
            for j in 0..width {
                self.q[row * n + first + j] = index[j][lane];
                self.left[lane * n + first + j] = own[j][lane];
            }
        }
    }
}

/// `aim[k] += Σ_j errors[j] · a[j · stride + k]`, in the order of j, with fused multiply-adds.
#[inline(always)]
fn pass_on(errors: &[Column<f32>], aim: &mut [Column<f32>], a: &[f32], stride: usize) {
    const LANES: usize = 32;
    for (k, aim) in aim.iter_mut().enumerate() {
        for (lane, aim) in aim.chunks_exact_mut(LANES).enumerate() {
            let mut sum = [0.0; LANES];
            sum.copy_from_slice(aim);
            for (j, error) in errors.iter().enumerate() {
                let a = a[j * stride + k];
                let error = &error[lane * LANES..(lane + 1) * LANES];
                for (sum, error) in sum.iter_mut().zip(error) {
                    *sum = error.mul_add(a, *sum);
                }
            }
            aim.copy_from_slice(&sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::factorize;
    use crate::trellis::levels;
    use crate::trellis::tests::column_indices;

    /// Fixed pseudo-random numbers in −1..1, [count].
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(seed | 1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// A Hessian whose inputs are correlated with their neighbours.
    fn neighbours(n: usize) -> Vec<f32> {
        (0..n * n)
            .map(|i| 0.95f32.powi((i / n).abs_diff(i % n) as i32))
            .collect()
    }

    /// Column steps, and rows that take them as they are.
    fn columns(columns: Vec<f32>, m: usize) -> Steps {
        Steps {
            columns,
            rows: vec![1.0; m],
        }
    }

    /// The definition, one column after another, for rows without zeros and without coupling.
    fn plainly(w: &[f32], n: usize, factor: &Factor, steps: &Steps) -> Vec<i16> {
        let m = w.len() / n;
        let (mut q, mut left) = (vec![0; m * n], vec![0.0f32; m * n]);
        for j in 0..n {
            let aim = |row: usize| {
                (0..j).fold(w[row * n + j], |aim, k| {
                    left[row * n + k].mul_add(factor.a[k * n + j], aim)
                })
            };
            let step = |row: usize| steps.columns[j] * steps.rows[row];
            let values: Vec<f32> = (0..m).map(|row| aim(row) / step(row)).collect();
            let column = column_indices(&values);
            let levels = levels(&column, 1, &vec![1; m]);
            for row in 0..m {
                let found = bf16::round_nearest_even(levels[row] as f32 * step(row));
                q[row * n + j] = column[row];
                left[row * n + j] = w[row * n + j] - bf16::to_f32(found);
            }
        }
        q
    }

    #[test]
    fn within_one_block_the_indices_are_those_of_the_definition() {
        for (m, n) in [(1, 1), (31, 1), (1, 128), (33, 7), (130, 100), (257, 128)] {
            let factor = factorize(&neighbours(n), n, 0.01).unwrap();
            let w = noise(m * n, 9);
            let steps = Steps {
                columns: (0..n).map(|j| 0.02 + 0.01 * (j % 5) as f32).collect(),
                rows: (0..m).map(|row| 1.0 + 0.25 * (row % 7) as f32).collect(),
            };
            let found = quantize(&w, m, n, &factor, None, &steps).unwrap();
            assert!(found == plainly(&w, n, &factor, &steps), "[{m}, {n}]");
        }
    }

    #[test]
    fn across_blocks_they_differ_from_it_only_where_a_sum_in_other_order_tips_a_tie() {
        let (m, n) = (140, 300);
        let factor = factorize(&neighbours(n), n, 0.01).unwrap();
        let w = noise(m * n, 4);
        let steps = columns(vec![0.05; n], m);
        let found = quantize(&w, m, n, &factor, None, &steps).unwrap();
        let plain = plainly(&w, n, &factor, &steps);
        // A tie that tips changes the rest of its column's path and of its rows.
        let differ = found.iter().zip(&plain).filter(|(a, b)| a != b).count();
        assert!(differ <= m * n / 20, "{differ} of {} differ", m * n);
    }

    #[test]
    fn rows_of_zeros_stay_zero_and_do_not_disturb_the_others() {
        let n = 3;
        let factor = factorize(&neighbours(n), n, 0.01).unwrap();
        let w = noise(4 * n, 8);
        let mut with_zeros = w.clone();
        with_zeros.splice(n..n, [0.0; 3]);
        let outputs = |m: usize| {
            let mut moments = vec![0.0; m * BLOCK_ROWS];
            for i in 0..m {
                for k in 0..m {
                    moments[i * BLOCK_ROWS + k] = 0.7f32.powi(i.abs_diff(k) as i32);
                }
            }
            factorize(&moments, m, 0.1).unwrap()
        };
        let q = quantize(&w, 4, n, &factor, None, &columns(vec![0.1; 3], 4)).unwrap();
        let mut expected = q.clone();
        expected.splice(n..n, [0; 3]);
        let steps = columns(vec![0.1; 3], 5);
        assert_eq!(
            quantize(&with_zeros, 5, n, &factor, None, &steps).unwrap(),
            expected
        );
        let coupled = quantize(&with_zeros, 5, n, &factor, Some(&outputs(5)), &steps).unwrap();
        assert_eq!(coupled[n..2 * n], [0; 3]);
    }

    #[test]
    fn inputs_in_blocks_are_quantized_as_matrices_by_themselves() {
        let (m, n, block) = (40, 300, 170);
        let whole = neighbours(n);
        let mut h = vec![0.0; n * block];
        for j in 0..n {
            let start = j - j % block;
            for k in start..n.min(start + block) {
                h[j * block + k - start] = whole[j * n + k];
            }
        }
        let factor = factorize(&h, n, 0.01).unwrap();
        let w = noise(m * n, 6);
        let found = quantize(&w, m, n, &factor, None, &columns(vec![0.05; n], m)).unwrap();
        for (start, size) in factor.blocks() {
            let part = |values: &[f32]| -> Vec<f32> {
                values
                    .chunks(n)
                    .flat_map(|row| &row[start..start + size])
                    .copied()
                    .collect()
            };
            let own = factorize(&neighbours(size), size, 0.01).unwrap();
            let steps = columns(vec![0.05; size], m);
            let alone = quantize(&part(&w), m, size, &own, None, &steps).unwrap();
            let found: Vec<i16> = found
                .chunks(n)
                .flat_map(|row| &row[start..start + size])
                .copied()
                .collect();
            assert!(found == alone, "block at {start}");
        }
    }

    #[test]
    fn coupled_rows_leave_less_of_what_the_loss_minds() {
        let (m, n) = (160, 40);
        let factor = factorize(&neighbours(n), n, 0.01).unwrap();
        // Outputs of a block that move together: G_ik = 0.9^|i−k|.
        let mut moments = vec![0.0f32; m * BLOCK_ROWS];
        for i in 0..m {
            for k in (i - i % BLOCK_ROWS..m).take(BLOCK_ROWS) {
                moments[i * BLOCK_ROWS + k % BLOCK_ROWS] = 0.9f32.powi(i.abs_diff(k) as i32);
            }
        }
        let outputs = factorize(&moments, m, 0.01).unwrap();
        let w = noise(m * n, 5);
        let steps = columns(vec![0.05; n], m);
        let loss = |outputs: Option<&Factor>| -> f64 {
            let q = quantize(&w, m, n, &factor, outputs, &steps).unwrap();
            let levels = levels(&q, n, &vec![1; m]);
            let left =
                |i: usize, j: usize| f64::from(w[i * n + j] - 0.05 * levels[i * n + j] as f32);
            let h = neighbours(n);
            let mut loss = 0.0;
            for i in 0..m {
                for k in (i - i % BLOCK_ROWS..m).take(BLOCK_ROWS) {
                    let g = f64::from(moments[i * BLOCK_ROWS + k % BLOCK_ROWS]);
                    for j in 0..n {
                        let through: f64 =
                            (0..n).map(|l| f64::from(h[j * n + l]) * left(k, l)).sum();
                        loss += g * left(i, j) * through;
                    }
                }
            }
            loss
        };
        let (coupled, single) = (loss(Some(&outputs)), loss(None));
        assert!(coupled < 0.5 * single, "{coupled} of {single}");
    }

    #[test]
    fn what_is_left_is_white_in_the_metric_of_both_sides_across_all_blocks_of_rows() {
        let (m, n) = (300, 200);
        let input = factorize(&neighbours(n), n, 0.01).unwrap();
        let outputs = factorize(&neighbours(m), m, 0.01).unwrap();
        let mut w = noise(m * n, 5);
        w[140 * n..141 * n].fill(0.0); // a row of zeros among those that are fed back
        let steps = Steps {
            columns: input.inv_diag.iter().map(|x| 0.01 * x).collect(),
            rows: outputs.inv_diag.clone(),
        };
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| quantize(&w, m, n, &input, Some(&outputs), &steps).unwrap())
        };
        let q = with(1);
        for threads in [2, 3, 8] {
            assert!(with(threads) == q, "{threads} threads");
        }
        let logs: Vec<u8> = (0..m).map(|row| u8::from(row != 140)).collect();
        let levels = levels(&q, n, &logs);
        let mut left = vec![0.0f64; m * n];
        for (at, left) in left.iter_mut().enumerate() {
            let step = steps.columns[at % n] * steps.rows[at / n];
            let found = bf16::to_f32(bf16::round_nearest_even(levels[at] as f32 * step));
            *left = f64::from(w[at]) - f64::from(found);
        }
        // Bᵀ·E·A in units of the steps.
        let mut mean = vec![0.0f64; m];
        for j in 0..n {
            let column: Vec<f64> = (0..m)
                .map(|i| {
                    (0..=j)
                        .map(|l| left[i * n + l] * f64::from(input.a[l * n + j]))
                        .sum()
                })
                .collect();
            for (i, mean) in mean.iter_mut().enumerate() {
                let found = (0..=i).map(|k| f64::from(outputs.a[k * m + i]) * column[k]);
                let step = f64::from(steps.columns[j] * steps.rows[i]);
                *mean += (found.sum::<f64>() / step).powi(2) / n as f64;
            }
        }
        let block = |rows: std::ops::Range<usize>| {
            let count = rows.len() as f64;
            rows.map(|row| mean[row]).sum::<f64>() / count
        };
        let (first, second, third) = (block(0..128), block(141..256), block(256..300));
        assert!(first < 0.4, "{first}");
        assert!((second / first - 1.0).abs() < 0.1, "{second} after {first}");
        assert!((third / first - 1.0).abs() < 0.15, "{third} after {first}");
    }

    #[test]
    fn outputs_in_blocks_narrower_than_the_trellis_s_feed_back_within_these_only() {
        let (m, n, block) = (300, 5, 128);
        let w = noise(m * n, 3);
        let (mut narrow, mut whole) = (vec![0.0; m * block], vec![0.0; m * m]);
        for i in 0..m {
            for k in (i - i % block..m).take(block) {
                let moment = 0.8f32.powi(i.abs_diff(k) as i32);
                (narrow[i * block + k % block], whole[i * m + k]) = (moment, moment);
            }
        }
        let input = factorize(&neighbours(n), n, 0.01).unwrap();
        let [narrow, whole] = [narrow, whole].map(|moments| factorize(&moments, m, 0.01).unwrap());
        let steps = columns(vec![0.05; n], m);
        let with = |outputs| quantize(&w, m, n, &input, Some(outputs), &steps).unwrap();
        assert!(with(&narrow) == with(&whole));
        assert!(with(&narrow) != quantize(&w, m, n, &input, None, &steps).unwrap());
    }

    #[test]
    fn values_out_of_range_saturate() {
        let factor = factorize(&[1.0], 1, 0.01).unwrap();
        let q = quantize(&[1e6, -1e6], 2, 1, &factor, None, &columns(vec![1e-3], 2)).unwrap();
        assert!(q[0] > 32_700 && q[1] < -32_700, "{q:?}");
    }

    #[test]
    fn nan_weights_bad_steps_and_wrong_lengths_are_refused() {
        let factor = factorize(&neighbours(2), 2, 0.01).unwrap();
        let with = |w: &[f32], steps: &[f32]| {
            let steps = columns(steps.to_vec(), 1);
            quantize(w, 1, 2, &factor, None, &steps).unwrap_err()
        };
        let nan = with(&[0.0, f32::NAN], &[1.0; 2]);
        assert!(matches!(
            nan,
            CodecError::NotFinite {
                what: "weights",
                index: 1,
                ..
            }
        ));
        let infinite = with(&[0.0; 2], &[1.0, f32::INFINITY]);
        assert!(matches!(
            infinite,
            CodecError::NotFinite {
                what: "column step",
                index: 1,
                ..
            }
        ));
        assert!(matches!(
            with(&[0.0; 2], &[1.0, 0.0]),
            CodecError::Range { .. }
        ));
        assert!(matches!(
            with(&[0.0; 3], &[1.0; 2]),
            CodecError::Shape {
                what: "weights",
                ..
            }
        ));
        assert!(matches!(
            with(&[0.0; 2], &[1.0; 3]),
            CodecError::Shape {
                what: "column step",
                ..
            }
        ));
    }
}
