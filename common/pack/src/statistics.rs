//! What a tensor of a pack looks like: steps, levels, entropy, the distribution of its weights, its error against a source.
//!
//! Everything is measured on the tensor as read from disk, in pieces of rows with bounded memory, and the digest of its values is
//! compared with the manifest on the way. One thread works on a tensor, in a fixed order, so results have the same bits
//! everywhere. This module displays nothing.

use std::ops::Range;

use serde::Serialize;
use uc_codec::bf16;
use uc_codec::steps;
use uc_codec::trellis::LevelReader;

use crate::check::check_digest;
use crate::digest::{Digest, Hasher};
use crate::error::{self, PackError, invalid};
use crate::exact::ExactDtype;
use crate::layer::{Contents, LayerFile, PieceBuffers};
use crate::lookup::{Entry, TensorRef};
use crate::manifest::{ExactEntry, LinearEntry};
use crate::pack::Pack;

mod error_sums;
mod levels;
#[cfg(test)]
mod tests;
mod values;

pub use error_sums::ErrorStatistics;
pub(crate) use error_sums::ErrorSums;
use levels::Counter;
pub use levels::Histogram;
use values::ValueCounter;
pub(crate) use values::values;
pub use values::{OUTLIER_DEVIATIONS, PROBABILITIES, Quantile, ValueStatistics};

/// Smallest and largest index.
const INDEX_RANGE: (i32, i32) = (i16::MIN as i32, i16::MAX as i32);
/// Smallest and largest level.
const LEVEL_RANGE: (i32, i32) = (2 * INDEX_RANGE.0, 2 * INDEX_RANGE.1 + 1);

/// What a tensor looks like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// Full name.
    pub name: String,
    /// Index of its layer; none for a tensor outside the layers.
    pub layer: Option<u32>,
    /// File of the pack that holds it.
    pub file: String,
    /// Dimensions, outermost first; `[rows, columns]` of a linear.
    pub shape: Vec<u64>,
    /// Number of elements.
    pub parameters: u64,
    /// Digest of the values as a reader of the pack gets them: those of a linear in bfloat16.
    pub sha256: Digest,
    /// How it is stored.
    pub storage: Storage,
    /// The distribution of its values.
    pub values: ValueStatistics,
}

/// How a tensor is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// A linear: quantized and entropy-coded.
    Coded(Box<CodeStatistics>),
    /// Unchanged, with elements of this type.
    Exact(ExactDtype),
}

/// What the code of a linear looks like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CodeStatistics {
    /// Digest of the tensor's bytes in the source, arranged as [rows, columns].
    pub source_sha256: Digest,
    /// 8 times the bytes of the layer file that belong to this linear alone.
    pub bits: u64,
    /// `bits` for each weight.
    pub bits_per_weight: f64,
    /// Rank of the overlay, 0 for none.
    pub rank: u32,
    /// The tensor step.
    pub step: f32,
    /// `[columns]` steps of the columns, in a row whose factor is 1.
    pub column_steps: Summary,
    /// `[rows]` factors by which the steps of the rows exceed those of the columns.
    pub row_factors: Summary,
    /// The levels: the integers that the steps are multiplied by.
    pub levels: Histogram,
    /// Zero-order entropy of the levels, bits for each weight.
    pub level_entropy: f64,
    /// Zero-order entropy of the indices, bits for each weight: what they would take with one table for the tensor.
    pub index_entropy: f64,
    /// Bits that the entropy-coded indices take, for each weight. What contexts gain is the difference to the entropy.
    pub index_bits_per_weight: f64,
    /// Number of indices that the entropy coder escapes.
    pub escapes: u64,
    /// Number of levels that are 0.
    pub zero_levels: u64,
}

/// Minimum, median (the upper one of two) and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Smallest value.
    pub min: f32,
    /// Value in the middle.
    pub median: f32,
    /// Largest value.
    pub max: f32,
}

impl Summary {
    /// Of the values that logarithms stand for. There is at least one, and larger logarithms stand for larger values.
    fn of(logarithms: &mut [u8], value: impl Fn(u8) -> f32) -> Self {
        logarithms.sort_unstable();
        Summary {
            min: value(logarithms[0]),
            median: value(logarithms[logarithms.len() / 2]),
            max: value(logarithms[logarithms.len() - 1]),
        }
    }
}

/// Measures a tensor, given its full name; `.weight` may be left out.
///
/// # Errors
/// `UnknownTensor` with similar names; those of [`Pack::layer`] and [`Pack::non_layer`]; `Codec`; `Digest` if the values are not
/// those that the manifest records; `Invalid` if a value is not finite.
pub fn tensor_statistics(pack: &Pack, name: &str) -> Result<TensorStatistics, PackError> {
    let tensor = pack.tensor(name)?;
    let (storage, values) = match (tensor.layer, tensor.entry) {
        (Some(layer), Entry::Linear(entry)) => {
            let file = pack.layer(layer.index)?;
            let (code, values) = linear_statistics(&file, &tensor, entry)?;
            (Storage::Coded(Box::new(code)), values)
        }
        (_, Entry::Linear(entry)) => unreachable!("the linear {} is in no layer", entry.name),
        (Some(layer), Entry::Exact(entry)) => {
            let file = pack.layer(layer.index)?;
            let reader = file.exact_reader(tensor.index);
            let values = exact_statistics(file.origin(), &tensor, entry, reader)?;
            (Storage::Exact(entry.dtype), values)
        }
        (None, Entry::Exact(entry)) => {
            let origin = pack.path(tensor.file()).display().to_string();
            let file = pack.non_layer()?;
            let reader = file.reader(tensor.index)?;
            let values = exact_statistics(&origin, &tensor, entry, reader)?;
            (Storage::Exact(entry.dtype), values)
        }
    };
    Ok(TensorStatistics {
        name: tensor.name(),
        layer: tensor.layer.map(|layer| layer.index),
        file: tensor.file().to_owned(),
        shape: tensor.shape().to_vec(),
        parameters: tensor.parameters(),
        sha256: tensor.sha256(),
        storage,
        values,
    })
}

fn linear_statistics(
    file: &LayerFile,
    tensor: &TensorRef<'_>,
    entry: &LinearEntry,
) -> Result<(CodeStatistics, ValueStatistics), PackError> {
    let index = tensor.index;
    let header = &file.linears()[index];
    let mut columns = file.column_log2_eighths(index)?;
    let mut row_steps = Vec::with_capacity(header.rows);
    let mut levels = Counter::new(LEVEL_RANGE.0, LEVEL_RANGE.1);
    let mut indices = Counter::new(INDEX_RANGE.0, INDEX_RANGE.1);
    let mut values = ValueCounter::new(ExactDtype::BF16);
    let mut level_reader = LevelReader::new(header.cols);
    let (mut hasher, mut escapes) = (Hasher::default(), 0);
    let mut buffers = PieceBuffers::default();
    let mut pieces = file.pieces(index, Contents::Weights, &mut buffers)?;
    while let Some(piece) = pieces.next_piece()? {
        hasher.words(piece.weights);
        values.words(piece.weights);
        row_steps.extend_from_slice(piece.row_step_log2_eighths);
        piece.q.iter().for_each(|&q| indices.add(q.into()));
        level_reader.rows(piece.q, piece.row_log2_eighths, &mut |level| {
            levels.add(level)
        });
        let escaped = file
            .tables()
            .escaped(piece.q, piece.row_log2_eighths, &columns);
        escapes += escaped.map_err(|source| PackError::Codec {
            origin: file.origin().to_owned(),
            tensor: header.name.clone(),
            source,
        })?;
    }
    let name = tensor.name();
    check_digest(
        file.origin(),
        &name,
        hasher.finish(),
        entry.reconstructed_sha256,
    )?;
    let (levels, indices) = (levels.finish(), indices.finish());
    let weights = tensor.parameters() as f64;
    let code = CodeStatistics {
        source_sha256: entry.source_sha256,
        bits: entry.bits,
        bits_per_weight: entry.bits as f64 / weights,
        rank: entry.rank,
        step: header.step,
        column_steps: Summary::of(&mut columns, |log| steps::column_step(header.step, log)),
        row_factors: Summary::of(&mut row_steps, steps::factor),
        level_entropy: levels.entropy(),
        index_entropy: indices.entropy(),
        index_bits_per_weight: 8.0 * file.payload_bytes(index) as f64 / weights,
        escapes,
        zero_levels: levels.count(0),
        levels,
    };
    Ok((code, values.finish(file.origin(), &name)?))
}

fn exact_statistics(
    origin: &str,
    tensor: &TensorRef<'_>,
    entry: &ExactEntry,
    reader: impl std::io::Read,
) -> Result<ValueStatistics, PackError> {
    let name = tensor.name();
    let mut values = ValueCounter::new(entry.dtype);
    let hashed = Digest::hash_pieces(reader, &mut |bytes| values.bytes(bytes));
    let (_, found) = hashed.map_err(error::io(origin))?;
    check_digest(origin, &name, found, entry.sha256)?;
    values.finish(origin, &name)
}

/// Measures the error of a linear against reference weights, usually those of its source. `source(rows, out)` fills `out`
/// with these rows of the reference, `[rows, columns]`; it is called for all rows in order.
///
/// # Errors
/// Those of `source`; those of [`tensor_statistics`]; `Invalid` for a tensor that is stored exactly, which has no error.
pub fn error_against<E: From<PackError>>(
    pack: &Pack,
    name: &str,
    mut source: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<ErrorStatistics, E> {
    let tensor = pack.tensor(name)?;
    let (Some(layer), Entry::Linear(entry)) = (tensor.layer, tensor.entry) else {
        let origin = pack.path(tensor.file()).display().to_string();
        let found = "a tensor that is stored exactly";
        return Err(invalid(&origin, tensor.name(), found, "a linear").into());
    };
    let file = pack.layer(layer.index)?;
    let cols = file.linears()[tensor.index].cols;
    let (mut sums, mut hasher) = (ErrorSums::default(), Hasher::default());
    let mut reference = Vec::new();
    let mut buffers = PieceBuffers::default();
    let mut pieces = file.pieces(tensor.index, Contents::Weights, &mut buffers)?;
    while let Some(piece) = pieces.next_piece()? {
        hasher.words(piece.weights);
        reference.resize(piece.weights.len(), 0.0f32);
        let rows = piece.first_row..piece.first_row + piece.weights.len() / cols;
        source(rows, &mut reference)?;
        let weights = piece.weights.iter().map(|&w| f64::from(bf16::to_f32(w)));
        sums.add(reference.iter().copied().map(f64::from).zip(weights));
    }
    let found = hasher.finish();
    check_digest(
        file.origin(),
        &tensor.name(),
        found,
        entry.reconstructed_sha256,
    )?;
    Ok(sums.finish())
}
