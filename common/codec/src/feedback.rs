//! Quantization with error feedback.
//!
//! The columns are quantized one after another. The target of column j is `w_j + Σ_{k<j} (w_k − ŵ_k)·a_kj` with the factor
//! `a` of [`crate::factor`]; this is LDLQ (Chee et al. 2023), equal to GPTQ (Frantar et al. 2022) in exact arithmetic. The
//! levels of a column are found jointly, down the rows, by the search of [`crate::trellis`]. `ŵ` is the weight as it will be
//! reconstructed, `bf16(level·s)`, so that the rounding to bfloat16 is fed back as well.
//!
//! Rows are divided into the blocks of the trellis, columns into blocks of 128. For each tile (one row block, one
//! column block), the residuals of all earlier columns are added to the targets as one matrix product. The tile is then
//! quantized column by column, with its rows side by side in vector lanes.
//!
//! # Feedback between rows
//! The factor of the outputs determines how rows feed back into one another. Let `e'` be the error of a column against
//! the target that results from the columns before it. `Bᵀ·e'` should be small, so row i has to compensate for
//! `Σ_{k<i} b_ki·e'_k`. For rows k in the same tile, the search does this. For rows k in the blocks above, the sum
//! `c_i = Σ_k b_ki·e'_k` is known in advance, and the targets of the tile are shifted by `d` before the search. Since
//! the search also propagates the shift, as a part of the error against its targets, `d` is the solution of
//! `d_i + Σ_k b_ki·d_k = c_i`, where k runs over the rows of the tile above i. A tile therefore depends on the tiles
//! above it (within a block of the factor) and to the left of it. Tiles on an anti-diagonal are independent and are
//! quantized at the same time, each by one thread: the bits do not depend on the number of threads.
//!
//! This file owns the checks of the arguments, the division into tiles and their order; `row_block` quantizes the tiles
//! of a row block given as `input`, `coupling` holds the feedback between rows, `tile` is the innermost kernel.

mod coupling;
mod input;
mod row_block;
#[cfg(test)]
mod tests;
mod tile;

use crate::error::{CodecError, check_finite, check_len, check_matrix};
use crate::factor::Factor;
use crate::steps::Steps;
use crate::trellis::BLOCK_ROWS;
use crate::weights::{Matrix, Weights, finite_rows, is_zero};
use input::RowBlockInput;
use rayon::prelude::*;
use row_block::RowBlock;

/// Columns of a block.
const BLOCK_COLUMNS: usize = 128;

/// Quantizes `w` [m, n] row-major with the given steps (finite, positive) under the factor of the input's second moments
/// and, if given, the factor of the output gradients' second moments. Returns the indices [m, n], 0 in rows of zeros. Values
/// beyond the largest level saturate, and their error is fed back like any other.
///
/// The search gives every row's error the same weight in units of its step: with `outputs`, the row steps should be
/// proportional to its [`Factor::inv_diag`].
///
/// # Errors
/// [`CodecError::Shape`]; [`CodecError::NotFinite`] (weights, steps); [`CodecError::Range`] for a step that is not positive or
/// an output factor whose blocks do not match those of the trellis.
pub fn quantize(
    w: &[f32],
    m: usize,
    n: usize,
    factor: &Factor,
    outputs: Option<&Factor>,
    steps: &Steps,
) -> Result<Vec<i16>, CodecError> {
    let weights = Matrix::new(w, m, n)?;
    Ok(quantize_weights(&weights, factor, outputs, steps, &mut |_| {})?.q)
}

/// The indices of a linear.
#[derive(Debug)]
pub struct Indices {
    /// [m, n], 0 in rows of zeros.
    pub q: Vec<i16>,
    /// `[m]` whether all weights of a row are zero.
    pub zero_rows: Vec<bool>,
}

/// As [`quantize`], for weights that are read when they are needed. `progress` is called with the number of weights that are
/// done, on the calling thread, several times a second.
///
/// Besides the indices, this takes `8·n` bytes for each of `256·next_multiple(threads, group)` rows, where a group is the row
/// blocks of one block of `outputs`: the weights of these rows and their residuals.
///
/// # Errors
/// Those of [`quantize`] and of `weights`.
pub fn quantize_weights<W: Weights>(
    weights: &W,
    factor: &Factor,
    outputs: Option<&Factor>,
    steps: &Steps,
    progress: &mut dyn FnMut(usize),
) -> Result<Indices, W::Error> {
    let (m, n) = weights.shape();
    check_factors(m, n, factor, outputs)?;
    check_steps(m, n, steps)?;
    let mut indices = Indices {
        q: vec![0i16; m * n],
        zero_rows: Vec::with_capacity(m),
    };
    if indices.q.is_empty() {
        indices.zero_rows.resize(m, true);
        return Ok(indices);
    }
    let column_blocks = column_blocks(factor);
    // A group is the row blocks that feed back into one another. Only as many groups as keep all threads busy are quantized
    // together, because the weights and residuals of their rows are held in memory (8 bytes per weight).
    let group = outputs.map_or(1, |outputs| outputs.block.min(m).div_ceil(BLOCK_ROWS));
    let batch_rows = BLOCK_ROWS * rayon::current_num_threads().next_multiple_of(group);
    for (batch, q) in indices.q.chunks_mut(batch_rows * n).enumerate() {
        let first_of_batch = batch * batch_rows;
        let w = finite_rows(weights, first_of_batch..first_of_batch + q.len() / n)?;
        let zero_rows = w.chunks(n).map(is_zero);
        indices.zero_rows.extend(zero_rows);
        let blocks = w.chunks(BLOCK_ROWS * n).zip(q.chunks_mut(BLOCK_ROWS * n));
        let row_blocks = blocks.enumerate().map(|(index, (w, q))| {
            let first = first_of_batch + index * BLOCK_ROWS;
            let steps = &steps.rows[first..first + w.len() / n];
            RowBlock::new(RowBlockInput::new(w, steps, first, outputs), q)
        });
        quantize_row_blocks(
            row_blocks.collect(),
            group,
            &column_blocks,
            factor,
            &steps.columns,
            &mut |share| progress(first_of_batch * n + (share * w.len() as f64) as usize),
        );
    }
    Ok(indices)
}

/// Refuses factors that do not have the shape of the weights [m, n].
fn check_factors(
    m: usize,
    n: usize,
    factor: &Factor,
    outputs: Option<&Factor>,
) -> Result<(), CodecError> {
    check_len("factor", factor.n, n)?;
    check_matrix("factor", factor.a.len(), n, factor.block)?;
    let Some(outputs) = outputs else {
        return Ok(());
    };
    check_len("output factor", outputs.n, m)?;
    check_matrix("output factor", outputs.a.len(), m, outputs.block)?;
    let holds_whole_blocks = outputs.block >= m || outputs.block.is_multiple_of(BLOCK_ROWS);
    if holds_whole_blocks || BLOCK_ROWS.is_multiple_of(outputs.block) {
        return Ok(());
    }
    let expected = "whole blocks of the trellis, or a divisor of one";
    Err(CodecError::Range {
        what: "block of the output factor",
        found: outputs.block as f64,
        expected,
    })
}

/// Refuses steps that are not finite and positive, or not as many as the weights [m, n] need.
fn check_steps(m: usize, n: usize, steps: &Steps) -> Result<(), CodecError> {
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
    Ok(())
}

/// Columns that are quantized together.
struct ColumnBlock {
    /// First column.
    first: usize,
    width: usize,
    /// Columns before it in the same block of the factor.
    done: usize,
}

/// All columns, from the left.
fn column_blocks(factor: &Factor) -> Vec<ColumnBlock> {
    let blocks = factor.blocks().flat_map(|(start, size)| {
        (0..size)
            .step_by(BLOCK_COLUMNS)
            .map(move |done| ColumnBlock {
                first: start + done,
                width: BLOCK_COLUMNS.min(size - done),
                done,
            })
    });
    blocks.collect()
}

/// Quantizes row blocks, of which every `group` consecutive ones feed back into one another. `progress` gets the share that is done.
fn quantize_row_blocks(
    mut row_blocks: Vec<RowBlock<'_>>,
    group: usize,
    column_blocks: &[ColumnBlock],
    factor: &Factor,
    steps: &[f32],
    progress: &mut dyn FnMut(f64),
) {
    // By group and column block: errors of the rows quantized so far, [rows, width].
    let groups = row_blocks.len().div_ceil(group);
    let mut errors_above: Vec<Vec<Vec<f32>>> = vec![vec![Vec::new(); column_blocks.len()]; groups];
    let diagonals = column_blocks.len() + group - 1;
    for diagonal in 0..diagonals {
        // The column block of a row block on this anti-diagonal.
        let column_of = |row_block: usize| diagonal.checked_sub(row_block % group);
        let errors: Vec<Option<Vec<f32>>> = row_blocks
            .par_iter_mut()
            .enumerate()
            .map(|(index, row_block)| {
                let column = column_of(index)?;
                let column_block = column_blocks.get(column)?;
                let above = &errors_above[index / group][column];
                row_block.quantize(column_block, above, factor, steps)
            })
            .collect();
        for (index, errors) in errors.into_iter().enumerate() {
            let above =
                column_of(index).and_then(|column| errors_above[index / group].get_mut(column));
            match (above, errors) {
                (Some(above), Some(errors)) => above.extend(errors),
                // There is nothing to compensate for, or this was the last row block of the group.
                (Some(above), None) => *above = Vec::new(),
                (None, _) => {}
            }
        }
        progress((diagonal + 1) as f64 / diagonals as f64);
    }
}
