//! Quantizes all linears of a layer so that the layer's file meets a budget.
//!
//! The step of every linear is first chosen for the bits per weight allocated to it (see [`crate::allocate`]). Then all steps
//! of the layer are scaled by one common factor until the size of the file, as the caller measures it, lies just below the
//! budget. Whatever the file holds besides indices (tables, logarithms, headers, exact tensors, overlays) thus counts
//! against the same budget. Weights of few different values may not be able to use the budget: their steps then become as
//! fine as they can be ([`finest_step`]), which costs nothing.
//!
//! This module owns the search for the common factor. The caller supplies the weights and stores the results
//! ([`LayerIo`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::allocate::FEWEST_BITS;
use crate::code::TensorCode;
use crate::contexts::row_log2_eighths;
use crate::error::CodecError;
use crate::factor_cache::FactorCache;
use crate::feedback;
use crate::rate::RateProbe;
use crate::rate::row_steps::{self, Target};
use crate::steps::{STEP_RANGE, Steps, bound_levels, column_peaks, finest_step, step_log2_eighths};

/// Largest number of quantizations of the whole layer.
const MAX_PASSES: usize = 10;
/// The search stops when a layer is at most this many bits per weight below its budget.
const TOLERANCE: f64 = 0.0015;
/// The search aims this many bits per weight below the budget, so that its inaccuracy seldom leads to a size above the
/// budget.
const SAFETY_MARGIN: f64 = 0.0006;
/// Largest change of the common factor between two passes, in octaves.
const MAX_SHIFT: f64 = 4.0;
/// Passes that all exceed the budget before the changes of the common factor grow.
const PATIENCE: u32 = 3;

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
    /// Bits per weight allocated to its indices.
    pub bits: f64,
    /// The step at which the linear is expected to have these bits, as a multiple of the smallest entry of its input factor's
    /// inverse diagonal ([`crate::rate::curve::RatePoint::lambda`]).
    pub lambda: Option<f64>,
    /// Whether its rate and error follow the high-rate rule there. If they do not, equal steps for all rows may be better than
    /// steps that follow the sensitivity of the outputs.
    pub regular: bool,
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

/// Quantizes every linear of a layer so that [`LayerIo::measure`] is at most `budget` bits, and within 0.0015 bits per weight of
/// it if ten passes reach that. The result is the last pass that was kept ([`LayerIo::keep_pass`]).
///
/// The initial step of each linear is probed on `probe_rows` rows.
///
/// # Errors
/// [`CodecError::Budget`] if the budget cannot be met; other errors of the codec and of the caller.
pub fn quantize<W: LayerIo>(
    shapes: &[LinearShape],
    budget: u64,
    factors: &FactorCache<'_, W::Error>,
    probe_rows: usize,
    io: &mut W,
) -> Result<(), W::Error> {
    let weights: usize = shapes.iter().map(|shape| shape.rows * shape.cols).sum();
    let total = weights as f64;
    let starts = initial_steps(shapes, factors, probe_rows, io)?;
    let mut smallest = u64::MAX;
    let mut search = Search::default();
    for _ in 0..MAX_PASSES {
        pass(shapes, factors, &starts, search.shift, io)?;
        let bits = io.measure()?;
        smallest = smallest.min(bits);
        if bits <= budget && search.within.is_none_or(|within| search.shift < within) {
            io.keep_pass();
        }
        let excess = (bits as f64 - budget as f64) / total;
        if (-TOLERANCE..=0.0).contains(&excess) || !search.advance(excess) {
            break;
        }
    }
    if smallest <= budget {
        return Ok(());
    }
    Err(CodecError::Budget {
        found: smallest,
        expected: budget,
    }
    .into())
}

/// A secant search in the base-2 logarithm of the common factor, with bisection where the size does not fall with the step as
/// expected.
#[derive(Default)]
struct Search {
    /// The next point.
    shift: f64,
    /// Number of points tried.
    passes: u32,
    /// The last point and its excess.
    last: Option<(f64, f64)>,
    /// The largest point that exceeds the budget, and the smallest one within it: the result.
    over: Option<f64>,
    within: Option<f64>,
}

impl Search {
    /// Takes the excess over the budget at `self.shift`, bits per weight, and moves on. False if there is no other point to try.
    fn advance(&mut self, excess: f64) -> bool {
        let current = self.shift;
        if excess > 0.0 {
            self.over = Some(self.over.map_or(current, |over| over.max(current)));
        } else {
            self.within = Some(self.within.map_or(current, |within| within.min(current)));
        }
        let slope = match self.last {
            // The steps are as fine as they can be: the weights cannot use the budget.
            Some((shift, last)) if last == excess && (current - shift).abs() >= 1.0 => {
                return false;
            }
            Some((shift, last)) => ((excess - last) / (current - shift)).clamp(-1.5, -0.2),
            None => -1.0,
        };
        let mut next = current - ((excess + SAFETY_MARGIN) / slope).clamp(-MAX_SHIFT, MAX_SHIFT);
        self.passes += 1;
        if self.within.is_none() && self.passes >= PATIENCE {
            // The size hardly depends on the steps here: go where it does.
            let octaves = f64::from(self.passes - PATIENCE + 1).exp2() / 4.0;
            next = next.max(current + octaves.min(MAX_SHIFT));
        }
        // Where both are known and in order, the result lies between them.
        if let (Some(over), Some(within)) = (self.over, self.within)
            && over < within
            && !(over < next && next < within)
        {
            next = 0.5 * (over + within);
        }
        self.last = Some((current, excess));
        self.shift = next;
        (next - current).abs() > 1e-7
    }
}

/// Logarithms and step of one linear before the common factor is applied.
struct Start {
    column_log2_eighths: Vec<u8>,
    row_step_log2_eighths: Vec<u8>,
    step: f32,
    /// Whether all rows have equal steps although the outputs are of different sensitivity: then rows do not feed back into one
    /// another either.
    equal_rows: bool,
    /// The smallest step that is of use.
    finest: f32,
    /// `[cols]` largest weight of each column, in units of its row's factor.
    column_peaks: Vec<f32>,
}

impl Start {
    /// The step scaled by `2^shift`, within the range of steps that are of use.
    fn step(&self, shift: f64) -> f32 {
        let step = (f64::from(self.step) * shift.exp2()) as f32;
        step.clamp(self.finest, *STEP_RANGE.end())
    }
}

/// Chooses the logarithms and the initial step of every linear.
fn initial_steps<W: LayerIo>(
    shapes: &[LinearShape],
    factors: &FactorCache<'_, W::Error>,
    probe_rows: usize,
    io: &W,
) -> Result<Vec<Start>, W::Error> {
    let mut starts = Vec::with_capacity(shapes.len());
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
        let target = Target {
            bits: shape.bits.max(FEWEST_BITS),
            lambda: shape.lambda,
            regular: shape.regular,
        };
        let choice = row_steps::choose(rate_probe, base, target, probe_rows)?;
        let row_step_log2_eighths = match choice.equal_rows {
            true => vec![0; shape.rows],
            false => row_step_log2_eighths,
        };
        let column_peaks = column_peaks(&w, shape.cols, &row_step_log2_eighths);
        starts.push(Start {
            finest: finest_step(&w, &column_log2_eighths, &row_step_log2_eighths),
            column_peaks,
            column_log2_eighths,
            row_step_log2_eighths,
            step: choice.step,
            equal_rows: choice.equal_rows,
        });
    }
    Ok(starts)
}

/// Column logarithms by input, bounded so that no linear that reads the input has useless levels at a shift: linears with the
/// same input share their column logarithms, so the bound of each must hold for all.
fn shared_column_logs<'a>(
    shapes: &'a [LinearShape],
    starts: &[Start],
    shift: f64,
) -> BTreeMap<&'a str, Vec<u8>> {
    let mut shared: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (shape, start) in shapes.iter().zip(starts) {
        let logs = shared
            .entry(&shape.input)
            .or_insert_with(|| start.column_log2_eighths.clone());
        bound_levels(&start.column_peaks, start.step(shift), logs);
    }
    shared
}

/// One quantization of the whole layer with all steps multiplied by `2^shift`.
fn pass<W: LayerIo>(
    shapes: &[LinearShape],
    factors: &FactorCache<'_, W::Error>,
    starts: &[Start],
    shift: f64,
    io: &mut W,
) -> Result<(), W::Error> {
    let column_logs = shared_column_logs(shapes, starts, shift);
    for (index, (shape, start)) in shapes.iter().zip(starts).enumerate() {
        let factor = factors.input(&shape.input)?;
        let outputs = match start.equal_rows {
            true => None,
            false => factors.outputs(&shape.name)?,
        };
        let step = start.step(shift);
        let column_log2_eighths = column_logs[shape.input.as_str()].clone();
        let w = io.weights(index)?;
        let steps = Steps::new(step, &column_log2_eighths, &start.row_step_log2_eighths);
        let (rows, cols) = (shape.rows, shape.cols);
        let q = feedback::quantize(&w, rows, cols, &factor, outputs.as_ref(), &steps)?;
        let mut row_log2_eighths = row_log2_eighths(&q, shape.rows, &column_log2_eighths)?;
        for (log, w) in row_log2_eighths.iter_mut().zip(w.chunks(shape.cols.max(1))) {
            if feedback::is_zero(w) {
                *log = 0;
            }
        }
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
