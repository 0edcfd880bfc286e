//! Quantization with error feedback.
//!
//! Column by column, what is to be quantized is `w_j + Σ_{k<j} (w_k − ŵ_k)·a_kj` with the factor `a` of
//! [`crate::factor`]; this is LDLQ (Chee et al. 2023), equal to GPTQ (Frantar et al. 2022) in exact
//! arithmetic. The levels of a column are found together, down the rows, by the search of [`crate::trellis`].
//! `ŵ` is the weight as it will be reconstructed, `bf16(level·s)`, so that the rounding to bfloat16 is fed
//! back as well.
//!
//! Rows are cut into the blocks of the trellis; within a block, and only there, rows feed back into one another where
//! the factor of the outputs says so. The columns are cut into blocks too:
//! what all earlier columns left enters a block as one matrix product, then the block is worked off
//! column by column with the rows side by side in vector lanes. Each block of rows is one thread's work, so
//! the bits do not depend on the number of threads.

use crate::bf16;
use crate::factor::Factor;
use crate::failure::{CodecError, check_finite, check_len, check_matrix};
use crate::product::{View, multiply};
use crate::simd::{Kernel, dispatch};
use crate::steps::Steps;
use crate::trellis::{BLOCK_ROWS, Coupling, Path};
use rayon::prelude::*;

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
        check_matrix("output factor", outputs.a.len(), m, BLOCK_ROWS)?;
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
    w.par_chunks(BLOCK_ROWS * n)
        .zip(q.par_chunks_mut(BLOCK_ROWS * n))
        .zip(steps.rows.par_chunks(BLOCK_ROWS))
        .enumerate()
        .for_each(|(block, ((w, q), row_steps))| {
            let active: Vec<usize> = (0..row_steps.len())
                .filter(|&row| !is_zero(&w[row * n..(row + 1) * n]))
                .collect();
            let coupling = outputs.map(|outputs| {
                let b = &outputs.a[block * BLOCK_ROWS * BLOCK_ROWS..];
                coupling_of(b, row_steps, &active)
            });
            let rows = Rows {
                w,
                active,
                steps: row_steps,
                coupling,
            };
            quantize_rows(&rows, q, factor, &steps.columns);
        });
    Ok(q)
}

/// A block of rows.
struct Rows<'a> {
    /// [rows, n]
    w: &'a [f32],
    /// Rows that are not zero.
    active: Vec<usize>,
    /// [rows]
    steps: &'a [f32],
    /// Of the active rows, in units of their steps.
    coupling: Option<Box<Coupling>>,
}

/// How the errors of active rows, in units of their steps, enter the rows below: from the rows of `b` in the factor of the outputs.
fn coupling_of(b: &[f32], steps: &[f32], active: &[usize]) -> Box<Coupling> {
    Coupling::new(|lane, later| match (active.get(lane), active.get(later)) {
        (Some(&k), Some(&i)) => b[k * BLOCK_ROWS + i] * (steps[k] / steps[i]),
        _ => 0.0,
    })
}

/// Quantizes a block of rows to `q` [rows, n].
fn quantize_rows(rows: &Rows<'_>, q: &mut [i16], factor: &Factor, steps: &[f32]) {
    let n = steps.len();
    let (w, active) = (rows.w, &rows.active);
    let mut left = vec![0.0f32; active.len() * n]; // w − ŵ of the columns done, [active, n]
    let mut target = vec![0.0f32; active.len() * BLOCK]; // what a block is to be quantized from, [active, width]
    let mut work = Work::new();
    for (start, size) in factor.blocks() {
        // Rows and columns of `a` are those of the factor's block.
        let (a, stride) = (&factor.a[start * factor.block..], factor.block);
        for done in (0..size).step_by(BLOCK) {
            let (first, width) = (start + done, BLOCK.min(size - done));
            let target = &mut target[..active.len() * width];
            for (&row, target) in active.iter().zip(target.chunks_mut(width)) {
                target.copy_from_slice(&w[row * n + first..row * n + first + width]);
            }
            if done > 0 && !active.is_empty() {
                let before = View::new(&left[start..], active.len(), done, n);
                let onto = View::new(&a[done..], done, width, stride);
                multiply(target, width, before, onto, true);
            }
            let corner: Vec<f32> = (done..done + width)
                .flat_map(|k| &a[k * stride + done..k * stride + done + width])
                .copied()
                .collect();
            dispatch(Block {
                rows,
                q,
                left: &mut left,
                target,
                corner: &corner,
                steps,
                first,
                width,
                work: &mut work,
            });
        }
    }
}

/// A number for each row of a block.
type Column<T> = [T; BLOCK_ROWS];

/// A block with its columns one after another and its rows side by side.
struct Work {
    /// [columns] what is to be quantized.
    aim: Vec<Column<f32>>,
    /// [columns] the weights, then w − ŵ.
    own: Vec<Column<f32>>,
    /// [columns]
    index: Vec<Column<i16>>,
    path: Box<Path>,
}

impl Work {
    fn new() -> Self {
        Work {
            aim: vec![[0.0; BLOCK_ROWS]; BLOCK],
            own: vec![[0.0; BLOCK_ROWS]; BLOCK],
            index: vec![[0; BLOCK_ROWS]; BLOCK],
            path: Path::new(),
        }
    }
}

/// The columns `first..first + width` of a block of rows.
struct Block<'a> {
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

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.steps.len();
        let (first, width) = (self.first, self.width);
        let Work {
            aim,
            own,
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
                match &self.rows.coupling {
                    None => path.quantize(&values, active.len()),
                    Some(coupling) => path.quantize_coupled(&values, active.len(), coupling),
                }
                index[j] = path.indices;
                for ((own, level), step) in own[j].iter_mut().zip(&path.levels).zip(&steps) {
                    *own -= bf16::to_f32(bf16::round_nearest_even(level * step));
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
