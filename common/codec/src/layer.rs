//! Quantizes all linears of a layer so that the layer's file meets a budget.
//!
//! The step of every linear is first chosen for the bits per weight allocated to it (see [`crate::allocate`]). Then all steps
//! of the layer are scaled by one common factor until the size of the file, as the caller measures it, lies just below the
//! budget. Whatever the file holds besides indices (tables, logarithms, headers, exact tensors, overlays) thus counts
//! against the same budget. Weights of few different values may not be able to use the budget: their steps then become as
//! fine as they can be ([`finest_step`]), which costs nothing.
//!
//! This module owns the search for the common factor. The caller supplies the weights and stores the results
//! ([`LayerIo`]). What an interrupted call left is taken up: all of it is determined by the same arguments.
//!
//! # Memory
//! Bytes at the same time, for the linear [m, n] where they are the most, with input factors of `4·n·block` bytes each:
//!
//! - a factor is made: the factors in the cache (at most its capacity), the factor, and `8·block²`;
//! - the linear is quantized: the factors in the cache and the input's, the output factor (`4·m·block`), 2 for every index, and those
//!   of [`feedback::quantize_weights`];
//! - the linear is stored: the same without the last, and what [`LayerIo::store`] takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::allocate::FEWEST_BITS;
use crate::code::{Code, LowRank, TensorCode};
use crate::contexts::row_log2_eighths;
use crate::error::CodecError;
use crate::factor_cache::FactorCache;
use crate::rate::row_steps::{self, Target};
use crate::rate::{RateProbe, SampledRows};
use crate::steps::{ColumnStatistics, STEP_RANGE, Steps, bound_levels, step_log2_eighths};
use crate::weights::{self, Weights};
use crate::{feedback, rans};

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

/// A quantized linear with indices `Q`, as [`Code`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Linear<Q> {
    /// Name within the layer.
    pub name: String,
    /// Name of its input.
    pub input: String,
    /// Indices, steps and overlay.
    pub code: Code<Q>,
}

/// A quantized linear with its indices.
pub type CodedLinear = Linear<Vec<i16>>;

/// A quantized linear without its indices.
pub type LinearParameters = Linear<()>;

impl<Q> Linear<Q> {
    /// Number of tiles of the entropy coder.
    pub fn tiles(&self) -> usize {
        match self.code.cols {
            0 => 0,
            _ => self.code.rows.div_ceil(self.tile_rows()),
        }
    }

    /// Rows of a tile; the last may have fewer.
    pub fn tile_rows(&self) -> usize {
        rans::tile_rows(self.code.rows, self.code.cols) as usize
    }

    /// The rows of a tile.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile(&self, tile: usize) -> Range<usize> {
        assert!(tile < self.tiles(), "tile {tile} of {}", self.tiles());
        let first = tile * self.tile_rows();
        first..self.code.rows.min(first + self.tile_rows())
    }

    /// The rows of a tile as a tensor of its own, from their indices `q` [rows, cols]. A tile holds whole blocks of the trellis, so
    /// that its weights do not depend on other rows.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile_code(&self, tile: usize, q: Vec<i16>) -> TensorCode {
        let rows = self.tile(tile);
        let overlay = self.code.overlay.as_ref().map(|overlay| LowRank {
            rank: overlay.rank,
            u: overlay.u[rows.start * overlay.rank..rows.end * overlay.rank].to_vec(),
            v: overlay.v.clone(),
        });
        TensorCode {
            rows: rows.len(),
            cols: self.code.cols,
            step: self.code.step,
            column_log2_eighths: self.code.column_log2_eighths.clone(),
            row_log2_eighths: self.code.row_log2_eighths[rows.clone()].to_vec(),
            row_step_log2_eighths: self.code.row_step_log2_eighths[rows].to_vec(),
            q,
            overlay,
        }
    }
}

impl LinearParameters {
    /// The linear with its indices `q` [rows, cols].
    pub fn with_indices(self, q: Vec<i16>) -> CodedLinear {
        Linear {
            name: self.name,
            input: self.input,
            code: self.code.with_indices(q),
        }
    }
}

impl CodedLinear {
    /// All of it but the indices.
    pub fn parameters(&self) -> LinearParameters {
        Linear {
            name: self.name.clone(),
            input: self.input.clone(),
            code: self.code.parameters(),
        }
    }
}

/// The caller's side of a layer: it supplies the weights, takes the quantized linears and measures their file. Linears are
/// passed one at a time, so that never more than one has to be in memory.
pub trait LayerIo {
    /// The caller's error.
    type Error: From<CodecError> + Send;
    /// The weights of a linear.
    type Weights: Weights<Error = Self::Error>;

    /// Weights of linear `index`, `[rows, cols]`.
    fn weights(&self, index: usize) -> Result<Self::Weights, Self::Error>;

    /// The initial steps of the first linears, which an interrupted call determined.
    fn saved_steps(&mut self) -> Result<Vec<InitialSteps>, Self::Error>;

    /// Keeps the initial steps of the next linear, in case the call is interrupted.
    fn save_steps(&mut self, steps: &InitialSteps) -> Result<(), Self::Error>;

    /// What [`LayerIo::measure`] returned for pass `pass` before the call was interrupted; the pass is not made again.
    fn measured(&mut self, pass: usize) -> Result<Option<u64>, Self::Error>;

    /// Begins pass `pass`, which replaces the one before it. Returns how many of its first linears an interrupted call stored.
    fn begin_pass(&mut self, pass: usize) -> Result<usize, Self::Error>;

    /// Stores linear `index` of the current pass. It may add a correction to the linear first.
    fn store(&mut self, index: usize, linear: CodedLinear) -> Result<(), Self::Error>;

    /// Size in bits of the file with the linears of the current pass, everything included.
    fn measure(&mut self) -> Result<u64, Self::Error>;

    /// Keeps the pass that was just measured: it is the best so far.
    fn keep_pass(&mut self) -> Result<(), Self::Error>;

    /// Takes note of the progress, several times a second.
    fn progress(&mut self, progress: Progress);
}

/// What has been done of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The initial steps of so many linears are known.
    Steps(usize),
    /// So many weights are quantized in this pass.
    Weights(u64),
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
    for number in 0..MAX_PASSES {
        let bits = match io.measured(number)? {
            Some(bits) => bits,
            None => {
                let done = io.begin_pass(number)?;
                pass(shapes, done, factors, &starts, search.shift, io)?;
                io.measure()?
            }
        };
        smallest = smallest.min(bits);
        if bits <= budget && search.within.is_none_or(|within| search.shift < within) {
            io.keep_pass()?;
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitialSteps {
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

impl InitialSteps {
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
    io: &mut W,
) -> Result<Vec<InitialSteps>, W::Error> {
    let mut starts = io.saved_steps()?;
    for (index, shape) in shapes.iter().enumerate().skip(starts.len()) {
        io.progress(Progress::Steps(index));
        let factor = factors.input(&shape.input)?;
        let (column_log2_eighths, base) = step_log2_eighths(&factor.inv_diag)?;
        let row_step_log2_eighths = match factors.outputs(&shape.name)? {
            Some(outputs) => step_log2_eighths(&outputs.inv_diag)?.0,
            None => vec![0; shape.rows],
        };
        let weights = io.weights(index)?;
        let sampled = SampledRows::new(&weights, probe_rows)?;
        let target = Target {
            bits: shape.bits.max(FEWEST_BITS),
            lambda: shape.lambda,
            regular: shape.regular,
        };
        let choice = {
            let io = RefCell::new(&mut *io);
            let rate_probe = RateProbe {
                sampled: &sampled,
                factor: &factor,
                column_log2_eighths: &column_log2_eighths,
                row_step_log2_eighths: &row_step_log2_eighths,
                progress: &|| io.borrow_mut().progress(Progress::Steps(index)),
            };
            row_steps::choose(rate_probe, base, target)?
        };
        let row_step_log2_eighths = match choice.equal_rows {
            true => vec![0; shape.rows],
            false => row_step_log2_eighths,
        };
        let columns = column_statistics(&weights, &row_step_log2_eighths)?;
        let start = InitialSteps {
            finest: columns.finest_step(&column_log2_eighths),
            column_peaks: columns.peaks(),
            column_log2_eighths,
            row_step_log2_eighths,
            step: choice.step,
            equal_rows: choice.equal_rows,
        };
        io.save_steps(&start)?;
        starts.push(start);
    }
    Ok(starts)
}

/// The statistics of the columns of `weights`, whose rows have the logarithms `row_step_log2_eighths`.
fn column_statistics<W: Weights>(
    weights: &W,
    row_step_log2_eighths: &[u8],
) -> Result<ColumnStatistics, W::Error> {
    let (rows, cols) = weights.shape();
    let mut columns = ColumnStatistics::new(cols);
    let step = weights::piece_rows(cols);
    for first in (0..rows).step_by(step) {
        let range = first..rows.min(first + step);
        columns.add(&weights.rows(range.clone())?, &row_step_log2_eighths[range]);
    }
    Ok(columns)
}

/// Column logarithms by input, bounded so that no linear that reads the input has useless levels at a shift: linears with the
/// same input share their column logarithms, so the bound of each must hold for all.
fn shared_column_logs<'a>(
    shapes: &'a [LinearShape],
    starts: &[InitialSteps],
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

/// One quantization of the whole layer with all steps multiplied by `2^shift`, from linear `first` on.
fn pass<W: LayerIo>(
    shapes: &[LinearShape],
    first: usize,
    factors: &FactorCache<'_, W::Error>,
    starts: &[InitialSteps],
    shift: f64,
    io: &mut W,
) -> Result<(), W::Error> {
    let column_logs = shared_column_logs(shapes, starts, shift);
    let mut done = 0;
    for (index, (shape, start)) in shapes.iter().zip(starts).enumerate() {
        let weights = (shape.rows * shape.cols) as u64;
        if index < first {
            done += weights;
            continue;
        }
        io.progress(Progress::Weights(done));
        let factor = factors.input(&shape.input)?;
        let outputs = match start.equal_rows {
            true => None,
            false => factors.outputs(&shape.name)?,
        };
        let step = start.step(shift);
        let column_log2_eighths = column_logs[shape.input.as_str()].clone();
        let steps = Steps::new(step, &column_log2_eighths, &start.row_step_log2_eighths);
        let stored = io.weights(index)?;
        let mut progress = |part| io.progress(Progress::Weights(done + part as u64));
        let outputs = outputs.as_ref();
        let indices = feedback::quantize_weights(&stored, &factor, outputs, &steps, &mut progress)?;
        let mut row_log2_eighths = row_log2_eighths(&indices.q, shape.rows, &column_log2_eighths)?;
        let zero_rows = row_log2_eighths.iter_mut().zip(indices.zero_rows);
        zero_rows
            .filter(|(_, is_zero)| *is_zero)
            .for_each(|(log, _)| *log = 0);
        let code = TensorCode {
            rows: shape.rows,
            cols: shape.cols,
            step,
            column_log2_eighths,
            row_log2_eighths,
            row_step_log2_eighths: start.row_step_log2_eighths.clone(),
            q: indices.q,
            overlay: None,
        };
        let linear = CodedLinear {
            name: shape.name.clone(),
            input: shape.input.clone(),
            code,
        };
        io.store(index, linear)?;
        done += weights;
        io.progress(Progress::Weights(done));
    }
    Ok(())
}
