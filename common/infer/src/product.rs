//! Products of matrices with the vectors of some tokens, divided into tasks for all threads.
//!
//! Matrices that read the same vectors are computed together: their tasks are one list, since a small matrix alone has not enough rows
//! for all threads, and the vectors are quantized once.

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

use crate::coded::{Coded, Input, TaskMemory};
use crate::matrix::Matrix;

/// Tasks of a list for each thread, at least, if the matrices have enough rows.
const TASKS_OF_THREAD: usize = 3;

/// Rows and tokens that are transposed together: the values in a line of the caches.
const TILE: usize = 16;

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
    let parts = out.par_chunks_mut(rows * TILE).enumerate();
    parts.for_each(|(part, out)| {
        dispatch(Transposed {
            values: &values[part * TILE..],
            tokens,
            rows,
            out,
        });
    });
    out
}

/// Transposes some tokens, at most [`TILE`].
struct Transposed<'a> {
    /// [rows, tokens], from the first of these tokens on.
    values: &'a [f32],
    tokens: usize,
    rows: usize,
    /// [these tokens, rows]
    out: &'a mut [f32],
}

impl Kernel for Transposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Transposed {
            values,
            tokens,
            rows,
            out,
        } = self;
        // Lines of the caches are read and written as a whole: those of the tokens may all have one place in a cache.
        let whole = match out.len() / rows {
            TILE => rows - rows % TILE,
            _ => 0,
        };
        for first in (0..whole).step_by(TILE) {
            let tile: [[f32; TILE]; TILE] = std::array::from_fn(|row| {
                let values = values[(first + row) * tokens..].first_chunk();
                *values.expect("as many tokens")
            });
            for (token, out) in out.chunks_exact_mut(rows).enumerate() {
                let line: [f32; TILE] = std::array::from_fn(|row| tile[row][token]);
                *out[first..].first_chunk_mut().expect("as many rows") = line;
            }
        }
        for (token, out) in out.chunks_exact_mut(rows).enumerate() {
            for (row, out) in out.iter_mut().enumerate().skip(whole) {
                *out = values[row * tokens + token];
            }
        }
    }
}
