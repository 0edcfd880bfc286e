//! Products of matrices with the vectors of some tokens, divided into tasks for all threads.
//!
//! Matrices that read the same vectors are computed together: their tasks are one list, since a small matrix alone has not enough rows
//! for all threads, and the vectors are quantized once.

use rayon::prelude::*;

use crate::coded::{Coded, Input, TaskMemory};
use crate::matrix::Matrix;

/// Tasks of a list for each thread, at least, if the matrices have enough rows.
const TASKS_OF_THREAD: usize = 3;

/// Tokens that are transposed side by side: the values of a row that are in one line of the caches.
const TRANSPOSED_TOKENS: usize = 16;

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
    /// [rows, tokens]
    out: &'a mut [f32],
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
        .map(|matrix| vec![0.0; matrix.rows() * tokens])
        .collect();
    let mut tasks = Vec::new();
    let rows: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
    let largest = rows.div_ceil(TASKS_OF_THREAD * rayon::current_num_threads());
    for (reader, out) in readers.iter().zip(&mut outs) {
        let task_rows = reader.matrix.task_rows(tokens, largest);
        let parts = out.chunks_mut(task_rows * tokens).enumerate();
        tasks.extend(parts.map(|(index, out)| Task {
            reader,
            first: index * task_rows,
            out,
        }));
    }
    let tasks = tasks.into_par_iter().with_max_len(1);
    tasks.for_each_init(TaskMemory::default, |memory, task| {
        task.run(x, &inputs, memory);
    });
    let outs = outs.into_iter();
    outs.map(|out| transposed(out, tokens)).collect()
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
    fn run(self, x: &[f32], inputs: &[Input], memory: &mut TaskMemory) {
        let Reader {
            matrix,
            input,
            inner,
        } = self.reader;
        match (matrix, input) {
            (Matrix::Coded(coded), Some(input)) => {
                coded.rows_of_product(self.first, &inputs[*input], memory, self.out);
                if let Some(inner) = inner {
                    coded.add_overlay(self.first, inner, self.out);
                }
            }
            (Matrix::Dense { values, cols }, _) => {
                values.rows_of_product(self.first, x, *cols, self.out);
            }
            (Matrix::Coded(_), None) => unreachable!("every compressed linear has an input"),
        }
    }
}

/// `[rows, tokens]` to `[tokens, rows]`.
pub(crate) fn transposed(values: Vec<f32>, tokens: usize) -> Vec<f32> {
    if tokens < 2 {
        return values;
    }
    let rows = values.len() / tokens;
    let mut out = vec![0.0; values.len()];
    let parts = out.par_chunks_mut(rows * TRANSPOSED_TOKENS).enumerate();
    parts.for_each(|(part, out)| {
        let (first, count) = (part * TRANSPOSED_TOKENS, out.len() / rows);
        for (row, values) in values.chunks_exact(tokens).enumerate() {
            for (token, value) in values[first..first + count].iter().enumerate() {
                out[token * rows + row] = *value;
            }
        }
    });
    out
}
