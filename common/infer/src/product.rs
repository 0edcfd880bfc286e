//! Products of matrices with the vectors of some tokens, divided into tasks for all threads.
//!
//! Matrices that read the same vectors are computed together: their tasks are one list, since a small matrix alone has not enough rows
//! for all threads, and the vectors are quantized once.

use std::cell::Cell;

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

use crate::coded::{Coded, Input, TaskMemory};
use crate::matrix::Matrix;
use crate::tasks;

/// Rows and tokens that are transposed together: the values in a line of the caches.
const TILE: usize = 16;
/// Zeros that a thread writes at least.
const PART_ZEROS: usize = 1 << 15;

/// A matrix and what its tasks read.
struct Reader<'a> {
    matrix: &'a Matrix,
    /// The input of a compressed linear.
    input: Option<usize>,
    /// The products of the vectors with the overlay's V.
    inner: Option<Vec<f32>>,
}

/// Some rows of a matrix.
struct Task<'a> {
    reader: &'a Reader<'a>,
    first: usize,
    out: Out<'a>,
}

/// Where the results of some rows go.
enum Out<'a> {
    /// `[rows]`, for one token.
    One(&'a mut [f32]),
    /// `[rows]` for each of several tokens.
    Several(Vec<&'a mut [f32]>),
}

/// `x Wᵀ` for every matrix and `x: [tokens, cols]`; each `[tokens, rows]`. The values of a token do not depend on the other tokens.
///
/// # Panics
/// If the matrices have different numbers of columns, or `x` has no whole number of rows.
pub(crate) fn products(matrices: &[&Matrix], x: &[f32]) -> Vec<Vec<f32>> {
    let Some(cols) = matrices.first().map(|matrix| matrix.cols()) else {
        return Vec::new();
    };
    assert!(
        x.len().is_multiple_of(cols) && matrices.iter().all(|matrix| matrix.cols() == cols),
        "vectors of the width of the matrices"
    );
    let tokens = x.len() / cols;
    if tokens == 0 {
        return vec![Vec::new(); matrices.len()];
    }
    let (readers, inputs) = readers(matrices, x);
    let mut outs: Vec<Vec<f32>> = matrices
        .iter()
        .map(|matrix| zeros(matrix.rows() * tokens))
        .collect();
    let mut tasks: Vec<Task<'_>> = Vec::new();
    let rows: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
    // A task for every thread, even if it is small.
    let largest = rows.div_ceil(rayon::current_num_threads());
    for (reader, out) in readers.iter().zip(&mut outs) {
        let task_rows = reader.matrix.task_rows(tokens, largest);
        let task = |(index, out)| Task {
            reader,
            first: index * task_rows,
            out,
        };
        match tokens {
            1 => tasks.extend(
                out.chunks_mut(task_rows)
                    .map(Out::One)
                    .enumerate()
                    .map(task),
            ),
            _ => {
                let rows = reader.matrix.rows();
                let outs = stripes(out, rows, task_rows).into_iter();
                tasks.extend(outs.map(Out::Several).enumerate().map(task));
            }
        }
    }
    tasks::for_each(tasks, |task, (): &mut ()| {
        let mut memory = MEMORY.take().unwrap_or_default();
        task.run(x, &inputs, &mut memory);
        MEMORY.set(Some(memory));
    });
    outs
}

/// Zeros, which all threads write if they are many.
pub(crate) fn zeros(count: usize) -> Vec<f32> {
    if count < 2 * PART_ZEROS {
        return vec![0.0; count];
    }
    let zeros = rayon::iter::repeat_n(0.0, count);
    zeros.with_min_len(PART_ZEROS).collect()
}

thread_local! {
    /// That of the last task, kept because tasks are small and many.
    static MEMORY: Cell<Option<Box<Memory>>> = const { Cell::new(None) };
}

/// The columns of `out: [tokens, rows]` in parts of `task_rows`, of each part those of every token.
pub(crate) fn stripes(out: &mut [f32], rows: usize, task_rows: usize) -> Vec<Vec<&mut [f32]>> {
    let tokens = out.len() / rows;
    let part = |_| Vec::with_capacity(tokens);
    let mut stripes: Vec<_> = (0..rows.div_ceil(task_rows)).map(part).collect();
    for out in out.chunks_exact_mut(rows) {
        for (stripes, out) in stripes.iter_mut().zip(out.chunks_mut(task_rows)) {
            stripes.push(out);
        }
    }
    stripes
}

/// What tasks use one after the other.
#[derive(Default)]
struct Memory {
    /// [rows, tokens] the results of a task.
    out: Vec<f32>,
    task: TaskMemory,
}

/// What the tasks of the matrices read, and the inputs of all of them.
fn readers<'a>(matrices: &[&'a Matrix], x: &[f32]) -> (Vec<Reader<'a>>, Vec<Input>) {
    let mut inputs: Vec<(&Coded, Input)> = Vec::new();
    let mut input_of = |coded: &'a Coded| {
        let known = inputs
            .iter()
            .position(|(other, _)| coded.shares_input(other));
        known.unwrap_or_else(|| {
            inputs.push((coded, coded.input(x)));
            inputs.len() - 1
        })
    };
    let readers = matrices.iter().map(|&matrix| match matrix {
        Matrix::Coded(coded) => Reader {
            matrix,
            input: Some(input_of(coded)),
            inner: coded.inner_products(x),
        },
        Matrix::Dense { .. } => Reader {
            matrix,
            input: None,
            inner: None,
        },
    });
    let readers = readers.collect();
    (
        readers,
        inputs.into_iter().map(|(_, input)| input).collect(),
    )
}

impl Task<'_> {
    fn run(self, x: &[f32], inputs: &[Input], memory: &mut Memory) {
        let Task { reader, first, out } = self;
        match out {
            Out::One(out) => reader.rows_of_product(first, x, inputs, &mut memory.task, out),
            Out::Several(mut out) => {
                memory.out.clear();
                memory.out.resize(out.len() * out[0].len(), 0.0);
                reader.rows_of_product(first, x, inputs, &mut memory.task, &mut memory.out);
                transpose(&memory.out, &mut out);
            }
        }
    }
}

impl Reader<'_> {
    /// The rows of the product from `first` on, `out: [rows, tokens]`, of zeros.
    fn rows_of_product(
        &self,
        first: usize,
        x: &[f32],
        inputs: &[Input],
        memory: &mut TaskMemory,
        out: &mut [f32],
    ) {
        match (self.matrix, self.input) {
            (Matrix::Coded(coded), Some(input)) => {
                coded.rows_of_product(first, &inputs[input], memory, out);
                if let Some(inner) = &self.inner {
                    coded.add_overlay(first, inner, out);
                }
            }
            (Matrix::Dense { values, cols }, _) => values.rows_of_product(first, x, *cols, out),
            (Matrix::Coded(_), None) => unreachable!("every compressed linear has an input"),
        }
    }
}

/// Writes `values: [rows, tokens]` to the rows of each token.
pub(crate) fn transpose(values: &[f32], out: &mut [&mut [f32]]) {
    dispatch(Transpose { values, out });
}

/// See [`transpose`].
struct Transpose<'a, 'b> {
    values: &'a [f32],
    out: &'a mut [&'b mut [f32]],
}

impl Kernel for Transpose<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Transpose { values, out } = self;
        let (tokens, rows) = (out.len(), out[0].len());
        let (tiles, rest) = out.as_chunks_mut::<TILE>();
        let whole = rows - rows % TILE;
        // Lines of the caches are read and written as a whole: those of the tokens may all have one place in a cache.
        for (tile, out) in tiles.iter_mut().enumerate() {
            for first in (0..whole).step_by(TILE) {
                let at = |row| (first + row) * tokens + tile * TILE;
                let tile: [&[f32; TILE]; TILE] =
                    std::array::from_fn(|row| values[at(row)..].first_chunk().expect("a line"));
                for (token, out) in out.iter_mut().enumerate() {
                    let line: [f32; TILE] = std::array::from_fn(|row| tile[row][token]);
                    *out[first..].first_chunk_mut().expect("a line") = line;
                }
            }
        }
        for (token, out) in tiles.as_flattened_mut().iter_mut().enumerate() {
            for (row, out) in out.iter_mut().enumerate().skip(whole) {
                *out = values[row * tokens + token];
            }
        }
        let first = tokens - rest.len();
        for (token, out) in rest.iter_mut().enumerate() {
            for (out, values) in out.iter_mut().zip(values.chunks_exact(tokens)) {
                *out = values[first + token];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_tokens_become_tokens_of_rows() {
        for (rows, tokens) in [(1, 1), (16, 16), (70, 16), (300, 37), (3, 5), (64, 128)] {
            let values: Vec<f32> = (0..rows * tokens).map(|i| i as f32).collect();
            let mut found = vec![0.0; values.len()];
            let mut stripes: Vec<_> = found.chunks_exact_mut(rows).collect();
            transpose(&values, &mut stripes);
            for token in 0..tokens {
                for row in 0..rows {
                    assert_eq!(found[token * rows + row], (row * tokens + token) as f32);
                }
            }
        }
    }
}
