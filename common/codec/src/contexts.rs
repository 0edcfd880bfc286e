//! Frequency tables of the entropy coder: one per context, shared by the tensors of a layer.
//!
//! # Contexts
//! The width of the distribution of `q_ij` is the width of its row, in units of the tensor step, divided by the step of its
//! column. Both are logarithms in eighths of an octave, so the *fine context* of an element is
//! `clamp(row_log2_eighths[i] − column_log2_eighths[j], 0, 127)`. Its context is `fine >> granularity`, with a granularity of
//! 0..=3 (an eighth of an octave to an octave) that the encoder chooses per layer, since in a small layer many tables
//! take more bits than they save. Row logarithms are derived from the indices themselves ([`row_log2_eighths`]):
//! elements with a standard deviation of about σ indices have the fine context `32 + 8·log2(σ)`.
//!
//! # Symbols
//! A table has a shift k of 0..=4. An index q becomes the symbol `s = (q + (2^k >> 1)) >> k`
//! (arithmetic shift) and k raw bits, `(q + (2^k >> 1)) mod 2^k`. Symbols −127..=127 have frequencies
//! in 4096ths. −128 is the escape, for an index whose symbol has no frequency: a byte with the symbol follows, or, for an
//! index beyond all symbols, the index itself ([`crate::rans`]).
//!
//! # Bytes of the tables
//! A bit stream, least significant bit first, zero padding to a whole byte:
//! ```text
//! 2  granularity
//! 7  first       number of the first context that has a table (0 if none)
//! 8  span        number of contexts up to the last one that has a table, 0..=128
//! 1  × span      1 where the context has a table; the first and the last of them are 1
//! per table, in order of context:
//!   3  shift     0..=4
//!   7  half      largest magnitude of a symbol with a frequency
//!   1  mirrored  frequency of −s equals that of s and is not stored (0 if half is 0)
//!   1  escapes   1 where the escape has a frequency
//!   12 escape    its frequency minus 1, if escapes
//!   4  rice      Rice parameter 0..=12, if half > 0
//!   …  one side if mirrored, else the negative side before the positive one: frequencies of
//!      |s| = half, half−1, …, 1, each as the Rice code of zigzag(frequency − (2·previous − the one before that)),
//!      both beginning at 0
//! ```
//! The frequency of the symbol 0 is 4096 minus the sum of the others.
//!
//! # Choices of the encoder
//! Granularity, shift, half, mirrored and frequencies are chosen by the cost in bits of the tables and the indices, in integer
//! arithmetic, so that the choice is the same on every platform.

mod fit;
mod histogram;
mod table;

pub(crate) use fit::symbol_of;
pub(crate) use histogram::Histogram;
pub(crate) use table::{
    ContextTable, DecodeTables, ESCAPE, LARGEST_SYMBOL, PROBABILITY_BITS, symbol_index,
};

use crate::bits::{BitReader, BitWriter};
use crate::code::TensorCode;
use crate::error::{CodecError, check_len, check_matrix};
use crate::steps::eighths;
use rayon::prelude::*;
use std::sync::OnceLock;
use uc_simd::{Kernel, dispatch};

/// Number of fine contexts.
pub const FINE_CONTEXTS: usize = 128;
/// Offset of a row logarithm: it is `8·log2(rms) + ROW_BIAS`.
pub const ROW_BIAS: i32 = 32;
/// Largest granularity.
const MAX_GRANULARITY: u32 = 3;

/// Fine context of an element.
#[inline(always)]
pub fn fine_context(row_log2_eighths: u8, column_log2_eighths: u8) -> usize {
    (i32::from(row_log2_eighths) - i32::from(column_log2_eighths))
        .clamp(0, FINE_CONTEXTS as i32 - 1) as usize
}

/// Row logarithms of the indices `q` [rows, cols]: `clamp(32 + round(8·log2(rms)), 1, 255)` with
/// `rms² = mean over j of (q_ij · 2^(column_log2_eighths[j]/8))²`, which is the row's width in units of the
/// tensor step. The logarithm 0 means a row of zero weights ([`crate::trellis`]); only the quantizer knows these
/// and sets it.
///
/// # Errors
/// [`CodecError::Shape`].
pub fn row_log2_eighths(
    q: &[i16],
    rows: usize,
    column_log2_eighths: &[u8],
) -> Result<Vec<u8>, CodecError> {
    let cols = column_log2_eighths.len();
    check_matrix("indices", q.len(), rows, cols)?;
    if cols == 0 {
        return Ok(vec![1; rows]);
    }
    let squares: Vec<f64> = column_log2_eighths
        .iter()
        .map(|&log| square_of_factor(log))
        .collect();
    Ok(q.par_chunks(cols)
        .map(|q| {
            rms_log2_eighths(
                dispatch(RowEnergy {
                    q,
                    squares: &squares,
                }),
                cols,
            )
        })
        .collect())
}

/// The row logarithm for a sum of squares over `cols` elements.
fn rms_log2_eighths(energy: f64, cols: usize) -> u8 {
    if energy == 0.0 {
        return 1;
    }
    (ROW_BIAS + eighths((energy / cols as f64).sqrt())).clamp(1, 255) as u8
}

/// `2^(log/4)`, the square of the step's factor.
fn square_of_factor(log: u8) -> f64 {
    const QUARTERS: [f64; 4] = [
        1.0,
        1.189207115002721,
        std::f64::consts::SQRT_2,
        1.681792830507429,
    ];
    let exponent = 1023 + u64::from(log >> 2);
    QUARTERS[usize::from(log & 3)] * f64::from_bits(exponent << 52)
}

/// Sums `q_j² · squares_j` over a row, in eight interleaved partial sums (a fixed order).
struct RowEnergy<'a> {
    q: &'a [i16],
    squares: &'a [f64],
}

impl Kernel for RowEnergy<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0f64; 8];
        for (q, squares) in self.q.chunks(8).zip(self.squares.chunks(8)) {
            for ((sum, &q), &square) in sums.iter_mut().zip(q).zip(squares) {
                let q = i32::from(q);
                *sum += f64::from(q * q) * square;
            }
        }
        sums.iter().sum()
    }
}

/// The tables of a layer.
#[derive(Debug, Clone)]
pub struct LayerTables {
    granularity: u32,
    /// [128 >> granularity]
    contexts: Vec<Option<ContextTable>>,
    decode: OnceLock<DecodeTables>,
}

impl PartialEq for LayerTables {
    fn eq(&self, other: &Self) -> bool {
        self.granularity == other.granularity && self.contexts == other.contexts
    }
}

/// Counts the indices of tensors one at a time, then builds the tables for all of them.
#[derive(Default)]
pub struct TableBuilder {
    histogram: Histogram,
}

impl TableBuilder {
    /// Counts the indices of a tensor.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn add(&mut self, code: &TensorCode) -> Result<(), CodecError> {
        self.add_rows(&code.q, &code.row_log2_eighths, &code.column_log2_eighths)
    }

    /// Counts the indices `q` [rows, cols] of some rows of a tensor.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn add_rows(
        &mut self,
        q: &[i16],
        row_log2_eighths: &[u8],
        column_log2_eighths: &[u8],
    ) -> Result<(), CodecError> {
        self.histogram
            .count(q, row_log2_eighths, column_log2_eighths)
    }

    /// Adds what another builder counted.
    pub fn merge(&mut self, other: TableBuilder) {
        self.histogram.merge(other.histogram);
    }

    /// The tables that minimize the bits of the counted indices and of the tables themselves.
    pub fn build(&self) -> LayerTables {
        let candidates = (0..=MAX_GRANULARITY).map(|granularity| {
            let contexts = self.histogram.contexts(granularity);
            let fitted: Vec<_> = contexts
                .par_iter()
                .map(|context| context.as_ref().map(fit::best_table))
                .collect();
            let bits: u64 = fitted
                .iter()
                .flatten()
                .map(|(_, bits)| bits + fit::ONE_BIT)
                .sum();
            (bits, granularity, fitted)
        });
        // On a tie, the coarser granularity: fewer tables in the decoder.
        let best = candidates.rev().min_by_key(|(bits, ..)| *bits);
        let (_, granularity, fitted) = best.expect("there are four granularities");
        let contexts = fitted
            .into_iter()
            .map(|fitted| fitted.map(|(table, _)| table))
            .collect();
        LayerTables {
            granularity,
            contexts,
            decode: OnceLock::new(),
        }
    }
}

impl LayerTables {
    /// As [`TableBuilder`], for tensors that are all in memory.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn build(tensors: &[&TensorCode]) -> Result<Self, CodecError> {
        let mut builder = TableBuilder::default();
        for code in tensors {
            builder.add(code)?;
        }
        Ok(builder.build())
    }

    /// A context spans `2^granularity` eighths of an octave.
    pub fn granularity(&self) -> u32 {
        self.granularity
    }

    /// Number of contexts that have a table.
    pub fn len(&self) -> usize {
        self.contexts.iter().flatten().count()
    }

    /// True if no context has a table, as for a layer without weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Context of an element.
    pub fn context(&self, row_log2_eighths: u8, column_log2_eighths: u8) -> usize {
        fine_context(row_log2_eighths, column_log2_eighths) >> self.granularity
    }

    /// Number of indices among `q` [rows, cols] whose symbol has no frequency in the table of its context, so that the entropy
    /// coder escapes them.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn escaped(
        &self,
        q: &[i16],
        row_log2_eighths: &[u8],
        column_log2_eighths: &[u8],
    ) -> Result<u64, CodecError> {
        let cols = column_log2_eighths.len();
        check_matrix("indices", q.len(), row_log2_eighths.len(), cols)?;
        let is_escaped = |row: u8, column: u8, q: i16| {
            let table = self.table(self.context(row, column));
            table.is_none_or(|table| !table.holds(i32::from(q)))
        };
        let rows = q.chunks(cols.max(1)).zip(row_log2_eighths);
        let escaped = rows.map(|(q, &row)| {
            let columns = q.iter().zip(column_log2_eighths);
            columns
                .filter(|(q, column)| is_escaped(row, **column, **q))
                .count() as u64
        });
        Ok(escaped.sum())
    }

    /// The table of a context.
    pub(crate) fn table(&self, context: usize) -> Option<&ContextTable> {
        self.contexts.get(context)?.as_ref()
    }

    /// Lookup tables of the decoder, built at the first use.
    pub(crate) fn decode_tables(&self) -> &DecodeTables {
        self.decode
            .get_or_init(|| DecodeTables::new(&self.contexts))
    }

    /// Writes the bytes of the format (see the module).
    pub fn to_bytes(&self) -> Vec<u8> {
        let used: Vec<usize> = (0..self.contexts.len())
            .filter(|&context| self.contexts[context].is_some())
            .collect();
        let first = used.first().copied().unwrap_or(0);
        let span = used.last().map_or(0, |last| last + 1 - first);
        let mut writer = BitWriter::default();
        writer.put(self.granularity, 2);
        writer.put(first as u32, 7);
        writer.put(span as u32, 8);
        for context in &self.contexts[first..first + span] {
            writer.put(u32::from(context.is_some()), 1);
        }
        for table in self.contexts.iter().flatten() {
            table.write(&mut writer);
        }
        writer.finish()
    }

    /// Reads the bytes of the format; they must hold the tables and nothing else.
    ///
    /// # Errors
    /// [`CodecError::Damaged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = BitReader::new("context tables", bytes);
        let granularity = reader.take(2)?;
        let first = reader.take(7)? as usize;
        let span = reader.take(8)? as usize;
        let mut contexts: Vec<Option<ContextTable>> = vec![None; FINE_CONTEXTS >> granularity];
        if first + span > contexts.len() {
            return Err(reader.damaged((first + span) as u64, "no more contexts than there are"));
        }
        let mut used = Vec::with_capacity(span);
        for context in first..first + span {
            if reader.take(1)? == 1 {
                used.push(context);
            }
        }
        let ends = (used.first().copied(), used.last().copied());
        let expected = (span > 0).then_some(first);
        if ends != (expected, expected.map(|first| first + span - 1)) || (span == 0 && first != 0) {
            return Err(reader.damaged(span as u64, "a span from the first to the last table"));
        }
        for context in used {
            contexts[context] = Some(ContextTable::read(&mut reader)?);
        }
        reader.finish()?;
        Ok(LayerTables {
            granularity,
            contexts,
            decode: OnceLock::new(),
        })
    }
}

/// Empirical entropy in bits of the indices of `tensors` in contexts of `2^granularity` eighths of an octave: a lower bound for
/// any tables of these contexts.
///
/// # Errors
/// [`CodecError::Shape`]; [`CodecError::Range`] for a granularity beyond 3.
pub fn context_entropy(tensors: &[&TensorCode], granularity: u32) -> Result<f64, CodecError> {
    if granularity > MAX_GRANULARITY {
        let expected = "0 to 3";
        return Err(CodecError::Range {
            what: "granularity",
            found: granularity.into(),
            expected,
        });
    }
    let mut histogram = Histogram::default();
    for code in tensors {
        histogram.count(&code.q, &code.row_log2_eighths, &code.column_log2_eighths)?;
    }
    Ok(histogram
        .contexts(granularity)
        .iter()
        .flatten()
        .map(|context| context.entropy())
        .sum())
}

/// Checks that there is one logarithm per row and per column.
pub(crate) fn check_log2_eighths(
    rows: usize,
    cols: usize,
    row_log2_eighths: &[u8],
    column_log2_eighths: &[u8],
) -> Result<(), CodecError> {
    check_len("row_log2_eighths", row_log2_eighths.len(), rows)?;
    check_len("column_log2_eighths", column_log2_eighths.len(), cols)
}
