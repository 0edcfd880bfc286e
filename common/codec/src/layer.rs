//! All linears of a layer, quantized so that the file that they make meets a budget.
//!
//! Every linear gets the bits per weight that it is due (see [`crate::allocate`]); then all steps of the layer are moved
//! by one common factor until the size of the whole, as its caller measures it, lies just below the budget. What the
//! file holds besides indices (tables, logarithms, headers, exact tensors, overlays) so comes out of the same budget.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::code::TensorCode;
use crate::contexts::row_log2_eighths;
use crate::error::CodecError;
use crate::factors::Factors;
use crate::rate::RateProbe;
use crate::steps::{Steps, bound_levels, step_log2_eighths};
use crate::{feedback, rate};

/// Most quantizations of the whole layer.
const MOST_PASSES: usize = 10;
/// A layer is near enough to its budget when it is this many bits per weight below.
const TOLERANCE: f64 = 0.0015;
/// First guess at what the file holds besides indices, bits per weight.
const FIRST_OVERHEAD: f64 = 0.02;
/// Aimed at below the budget, bits per weight, so that the aim's own noise seldom lands above.
const MARGIN: f64 = 0.0006;

/// A linear by name, shape and the input that it reads.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearShape {
    /// Name within the layer.
    pub name: String,
    /// Name of its input; linears of one input share their column logarithms.
    pub input: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits per weight that it is due.
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

/// Where the layer's parts come from, where its linears go, and how the result is measured. Never more than one linear
/// is in memory here.
pub trait LayerWork {
    /// The caller's error.
    type Error: From<CodecError>;

    /// Weights of linear `index`, `[rows, cols]`.
    fn weights(&self, index: usize) -> Result<Vec<f32>, Self::Error>;

    /// Takes the next linear of the pass under way; may first add a correction to it, its weights being `w`. The first
    /// of a pass takes the place of what an earlier pass left.
    fn store(&mut self, index: usize, w: &[f32], linear: CodedLinear) -> Result<(), Self::Error>;

    /// Bits of the file that the linears of the pass make, everything counted.
    fn measure(&mut self) -> Result<u64, Self::Error>;

    /// The pass that was just measured is the best so far: it outlives the next ones.
    fn keep(&mut self);
}

/// Quantizes every linear of a layer so that [`LayerWork::measure`] is at most the bits that the linears are due
/// together, and as near to them as [`TOLERANCE`]; the result is the pass that the work was last told to keep.
///
/// The first guess of each step is probed on `probe_rows` rows.
///
/// # Errors
/// [`CodecError::Budget`] where the budget cannot be met; the codec's and the caller's others.
pub fn quantize<W: LayerWork>(
    shapes: &[LinearShape],
    factors: &Factors<'_, W::Error>,
    probe_rows: usize,
    work: &mut W,
) -> Result<(), W::Error> {
    let weights: usize = shapes.iter().map(|shape| shape.rows * shape.cols).sum();
    let total = weights as f64;
    let due = |shape: &LinearShape| shape.bits * (shape.rows * shape.cols) as f64;
    let budget = shapes.iter().map(due).sum::<f64>().floor() as u64;
    let starts = first_steps(shapes, factors, probe_rows, work)?;
    let (mut most, mut smallest) = (None::<u64>, u64::MAX);
    let (mut shift, mut last) = (0.0f64, None::<(f64, f64)>);
    for _ in 0..MOST_PASSES {
        pass(shapes, factors, &starts, shift, work)?;
        let bits = work.measure()?;
        smallest = smallest.min(bits);
        if bits <= budget && most.is_none_or(|most| bits > most) {
            most = Some(bits);
            work.keep();
        }
        let excess = (bits as f64 - budget as f64) / total;
        if (-TOLERANCE..=0.0).contains(&excess) {
            break;
        }
        let slope = match last {
            Some((at, then)) if at != shift => ((excess - then) / (shift - at)).clamp(-1.5, -0.2),
            _ => -1.0,
        };
        last = Some((shift, excess));
        shift -= (excess + MARGIN) / slope;
    }
    match most {
        Some(_) => Ok(()),
        None => Err(CodecError::Budget {
            found: smallest,
            expected: budget,
        }
        .into()),
    }
}

/// Logarithms and step of one linear before the common factor.
struct Start {
    column_log2_eighths: Vec<u8>,
    row_step_log2_eighths: Vec<u8>,
    step: f32,
}

fn first_steps<W: LayerWork>(
    shapes: &[LinearShape],
    factors: &Factors<'_, W::Error>,
    probe_rows: usize,
    work: &W,
) -> Result<Vec<Start>, W::Error> {
    let mut starts = Vec::with_capacity(shapes.len());
    // Linears of one input share their logarithms: each bound holds for all of them.
    let mut shared: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (index, shape) in shapes.iter().enumerate() {
        let factor = factors.input(&shape.input)?;
        let (column_log2_eighths, base) = step_log2_eighths(&factor.inv_diag)?;
        let row_step_log2_eighths = match factors.outputs(&shape.name)? {
            Some(outputs) => step_log2_eighths(&outputs.inv_diag)?.0,
            None => vec![0; shape.rows],
        };
        let w = work.weights(index)?;
        let rate_probe = RateProbe {
            w: &w,
            m: shape.rows,
            n: shape.cols,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &row_step_log2_eighths,
        };
        let target = (shape.bits - FIRST_OVERHEAD).max(0.05);
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

/// One quantization of the whole layer with all steps times `2^shift`.
fn pass<W: LayerWork>(
    shapes: &[LinearShape],
    factors: &Factors<'_, W::Error>,
    starts: &[Start],
    shift: f64,
    work: &mut W,
) -> Result<(), W::Error> {
    for (index, (shape, start)) in shapes.iter().zip(starts).enumerate() {
        let factor = factors.input(&shape.input)?;
        let outputs = factors.outputs(&shape.name)?;
        let step = (f64::from(start.step) * shift.exp2()) as f32;
        crate::steps::check_step(step)?;
        let w = work.weights(index)?;
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
        work.store(index, &w, linear)?;
    }
    Ok(())
}
