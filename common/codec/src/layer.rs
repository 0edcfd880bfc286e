//! Quantizes all linears of a layer so that the layer's file meets a budget.
//!
//! The step of every linear is first chosen for the bits per weight allocated to it (see [`crate::allocate`]). Then all steps
//! of the layer are scaled by one common factor until the size of the file, as the caller measures it, lies just below the
//! budget. Whatever the file holds besides indices (tables, logarithms, headers, exact tensors, overlays) thus counts
//! against the same budget.
//!
//! This module owns the search for the common factor. The caller supplies the weights and stores the results
//! ([`LayerIo`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::code::TensorCode;
use crate::contexts::row_log2_eighths;
use crate::error::CodecError;
use crate::factor_cache::FactorCache;
use crate::rate::RateProbe;
use crate::steps::{Steps, bound_levels, step_log2_eighths};
use crate::{feedback, rate};

/// Largest number of quantizations of the whole layer.
const MAX_PASSES: usize = 10;
/// The search stops when a layer is at most this many bits per weight below its budget.
const TOLERANCE: f64 = 0.0015;
/// Initial estimate of what the file holds besides indices, bits per weight.
const INITIAL_OVERHEAD: f64 = 0.02;
/// The search aims this many bits per weight below the budget, so that its inaccuracy seldom leads to a size above the
/// budget.
const SAFETY_MARGIN: f64 = 0.0006;

/// Name, shape, input and allocated bits of a linear.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearShape {
    /// Name within the layer.
    pub name: String,
    /// Name of its input. Linears with the same input share their column logarithms.
    pub input: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits per weight allocated to it.
    pub bits: f64,
}

/// A quantized linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodedLinear {
    /// Name within the layer.
    pub name: String,
    /// Name of its input.
    pub input: String,
    /// Indices, steps and overlay.
    pub code: TensorCode,
}

/// The caller's side of a layer: it supplies the weights, takes the quantized linears and measures their file. Linears are
/// passed one at a time, so that never more than one has to be in memory.
pub trait LayerIo {
    /// The caller's error.
    type Error: From<CodecError>;

    /// Weights of linear `index`, `[rows, cols]`.
    fn weights(&self, index: usize) -> Result<Vec<f32>, Self::Error>;

    /// Stores linear `index` of the current pass, whose weights are `w`. It may add a correction to the linear first.
    /// Linear 0 begins a new pass, which replaces the previous one.
    fn store(&mut self, index: usize, w: &[f32], linear: CodedLinear) -> Result<(), Self::Error>;

    /// Size in bits of the file with the linears of the current pass, everything included.
    fn measure(&mut self) -> Result<u64, Self::Error>;

    /// Keeps the pass that was just measured: it is the best so far.
    fn keep_pass(&mut self);
}

/// Quantizes every linear of a layer so that [`LayerIo::measure`] is at most the sum of the bits allocated to the linears, and
/// within 0.0015 bits per weight of it if ten passes reach that. The result is the last pass that was kept
/// ([`LayerIo::keep_pass`]).
///
/// The initial step of each linear is probed on `probe_rows` rows.
///
/// # Errors
/// [`CodecError::Budget`] if the budget cannot be met; other errors of the codec and of the caller.
pub fn quantize<W: LayerIo>(
    shapes: &[LinearShape],
    factors: &FactorCache<'_, W::Error>,
    probe_rows: usize,
    io: &mut W,
) -> Result<(), W::Error> {
    let weights: usize = shapes.iter().map(|shape| shape.rows * shape.cols).sum();
    let total = weights as f64;
    let allocated = |shape: &LinearShape| shape.bits * (shape.rows * shape.cols) as f64;
    let budget = shapes.iter().map(allocated).sum::<f64>().floor() as u64;
    let starts = initial_steps(shapes, factors, probe_rows, io)?;
    // The largest size within the budget, and the smallest of all.
    let (mut best, mut smallest) = (None::<u64>, u64::MAX);
    // A secant search in the base-2 logarithm of the common factor.
    let (mut shift, mut previous) = (0.0f64, None::<(f64, f64)>);
    for _ in 0..MAX_PASSES {
        pass(shapes, factors, &starts, shift, io)?;
        let bits = io.measure()?;
        smallest = smallest.min(bits);
        if bits <= budget && best.is_none_or(|best| bits > best) {
            best = Some(bits);
            io.keep_pass();
        }
        let excess = (bits as f64 - budget as f64) / total;
        if (-TOLERANCE..=0.0).contains(&excess) {
            break;
        }
        let slope = match previous {
            Some((last_shift, last_excess)) if last_shift != shift => {
                ((excess - last_excess) / (shift - last_shift)).clamp(-1.5, -0.2)
            }
            _ => -1.0,
        };
        previous = Some((shift, excess));
        shift -= (excess + SAFETY_MARGIN) / slope;
    }
    match best {
        Some(_) => Ok(()),
        None => Err(CodecError::Budget {
            found: smallest,
            expected: budget,
        }
        .into()),
    }
}

/// Logarithms and step of one linear before the common factor is applied.
struct Start {
    column_log2_eighths: Vec<u8>,
    row_step_log2_eighths: Vec<u8>,
    step: f32,
}

/// Chooses the logarithms and the initial step of every linear.
fn initial_steps<W: LayerIo>(
    shapes: &[LinearShape],
    factors: &FactorCache<'_, W::Error>,
    probe_rows: usize,
    io: &W,
) -> Result<Vec<Start>, W::Error> {
    let mut starts = Vec::with_capacity(shapes.len());
    // Linears with the same input share their column logarithms, so the bound of each must hold for all.
    let mut shared: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (index, shape) in shapes.iter().enumerate() {
        let factor = factors.input(&shape.input)?;
        let (column_log2_eighths, base) = step_log2_eighths(&factor.inv_diag)?;
        let row_step_log2_eighths = match factors.outputs(&shape.name)? {
            Some(outputs) => step_log2_eighths(&outputs.inv_diag)?.0,
            None => vec![0; shape.rows],
        };
        let w = io.weights(index)?;
        let rate_probe = RateProbe {
            w: &w,
            m: shape.rows,
            n: shape.cols,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &row_step_log2_eighths,
        };
        let target = (shape.bits - INITIAL_OVERHEAD).max(0.05);
        let choice = rate::choose_step(rate_probe, base, target, probe_rows)?;
        let logs = shared
            .entry(&shape.input)
            .or_insert(column_log2_eighths.clone());
        bound_levels(&w, choice.step, logs, &row_step_log2_eighths);
        starts.push(Start {
            column_log2_eighths,
            row_step_log2_eighths,
            step: choice.step,
        });
    }
    for (shape, start) in shapes.iter().zip(&mut starts) {
        start
            .column_log2_eighths
            .clone_from(&shared[shape.input.as_str()]);
    }
    Ok(starts)
}

/// One quantization of the whole layer with all steps multiplied by `2^shift`.
fn pass<W: LayerIo>(
    shapes: &[LinearShape],
    factors: &FactorCache<'_, W::Error>,
    starts: &[Start],
    shift: f64,
    io: &mut W,
) -> Result<(), W::Error> {
    for (index, (shape, start)) in shapes.iter().zip(starts).enumerate() {
        let factor = factors.input(&shape.input)?;
        let outputs = factors.outputs(&shape.name)?;
        let step = (f64::from(start.step) * shift.exp2()) as f32;
        crate::steps::check_step(step)?;
        let w = io.weights(index)?;
        let steps = Steps::new(
            step,
            &start.column_log2_eighths,
            &start.row_step_log2_eighths,
        );
        let (rows, cols) = (shape.rows, shape.cols);
        let q = feedback::quantize(&w, rows, cols, &factor, outputs.as_ref(), &steps)?;
        let mut row_log2_eighths = row_log2_eighths(&q, shape.rows, &start.column_log2_eighths)?;
        for (log, w) in row_log2_eighths.iter_mut().zip(w.chunks(shape.cols.max(1))) {
            if feedback::is_zero(w) {
                *log = 0;
            }
        }
        let column_log2_eighths = start.column_log2_eighths.clone();
        let code = TensorCode {
            rows,
            cols,
            step,
            column_log2_eighths,
            row_log2_eighths,
            row_step_log2_eighths: start.row_step_log2_eighths.clone(),
            q,
            overlay: None,
        };
        let linear = CodedLinear {
            name: shape.name.clone(),
            input: shape.input.clone(),
            code,
        };
        io.store(index, &w, linear)?;
    }
    Ok(())
}
