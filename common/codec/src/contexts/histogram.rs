//! How often each index occurs in each fine context.

use super::{FINE_CONTEXTS, fine_context};
use crate::error::{CodecError, check_matrix};
use rayon::prelude::*;

/// Number of indices that are counted individually, −2048..2048. Others can only be escaped.
pub(crate) const WINDOW: usize = 4096;
/// Position of the index 0 in a window.
pub(crate) const CENTRE: i32 = WINDOW as i32 / 2;
/// Approximate number of indices counted by one parallel piece.
const PIECE_INDICES: usize = 1 << 20;

/// `[FINE_CONTEXTS]` or empty. Per context `[WINDOW + 1]`, where the last entry counts the indices outside the window.
type Counts = Vec<Option<Vec<u64>>>;

/// Counts of indices per fine context.
#[derive(Default)]
pub(crate) struct Histogram {
    fine: Counts,
}

/// Counts of one context.
pub(crate) struct ContextCounts {
    /// `[WINDOW]` how often `index + CENTRE` occurs.
    pub(crate) counts: Vec<u64>,
    /// Indices outside the window.
    pub(crate) outside: u64,
}

impl Histogram {
    /// Adds the indices `q` [rows, cols] of a tensor.
    pub(crate) fn count(
        &mut self,
        q: &[i16],
        row_log2_eighths: &[u8],
        column_log2_eighths: &[u8],
    ) -> Result<(), CodecError> {
        let cols = column_log2_eighths.len();
        check_matrix("indices", q.len(), row_log2_eighths.len(), cols)?;
        if q.is_empty() {
            return Ok(());
        }
        let rows = (PIECE_INDICES / cols).max(1);
        let counts = q
            .par_chunks(rows * cols)
            .zip(row_log2_eighths.par_chunks(rows))
            .fold(Vec::new, |counts, (q, row_log2_eighths)| {
                count_piece(counts, q, row_log2_eighths, column_log2_eighths)
            })
            .reduce(Vec::new, add);
        self.fine = add(std::mem::take(&mut self.fine), counts);
        Ok(())
    }

    /// Adds the counts of another histogram.
    pub(crate) fn merge(&mut self, other: Histogram) {
        self.fine = add(std::mem::take(&mut self.fine), other.fine);
    }

    /// The counts in contexts of `2^granularity` fine contexts, None for contexts without indices.
    pub(crate) fn contexts(&self, granularity: u32) -> Vec<Option<ContextCounts>> {
        let merged = |context: usize| {
            let fine = (context << granularity)..((context + 1) << granularity);
            let mut parts = fine.filter_map(|fine| self.fine.get(fine)?.as_ref());
            let mut counts = parts.next()?.clone();
            for part in parts {
                counts.iter_mut().zip(part).for_each(|(a, b)| *a += b);
            }
            let outside = counts.pop()?;
            Some(ContextCounts { counts, outside })
        };
        (0..FINE_CONTEXTS >> granularity).map(merged).collect()
    }
}

/// Adds the indices of some rows to `counts`.
fn count_piece(
    mut counts: Counts,
    q: &[i16],
    row_log2_eighths: &[u8],
    column_log2_eighths: &[u8],
) -> Counts {
    counts.resize(FINE_CONTEXTS, None);
    for (q, &row_log2_eighths) in q.chunks(column_log2_eighths.len()).zip(row_log2_eighths) {
        for (&q, &column_log2_eighths) in q.iter().zip(column_log2_eighths) {
            let context = &mut counts[fine_context(row_log2_eighths, column_log2_eighths)];
            let context = context.get_or_insert_with(|| vec![0; WINDOW + 1]);
            // An index below the window wraps to a large number.
            context[((i32::from(q) + CENTRE) as u32 as usize).min(WINDOW)] += 1;
        }
    }
    counts
}

/// Sum of two sets of counts.
fn add(mut left: Counts, right: Counts) -> Counts {
    if left.is_empty() {
        return right;
    }
    for (left, right) in left.iter_mut().zip(right) {
        match (left.as_mut(), right) {
            (_, None) => {}
            (None, right) => *left = right,
            (Some(left), Some(right)) => left.iter_mut().zip(right).for_each(|(a, b)| *a += b),
        }
    }
    left
}

impl ContextCounts {
    /// Number of indices.
    pub(crate) fn total(&self) -> u64 {
        self.outside + self.counts.iter().sum::<u64>()
    }

    /// Empirical entropy in bits. The indices outside the window count as one symbol followed by 16 bits.
    pub(crate) fn entropy(&self) -> f64 {
        let total = self.total() as f64;
        let bits = |count: u64| match count {
            0 => 0.0,
            _ => count as f64 * (total / count as f64).log2(),
        };
        let inside: f64 = self.counts.iter().map(|&count| bits(count)).sum();
        inside + bits(self.outside) + 16.0 * self.outside as f64
    }

    /// Number of different indices.
    pub(crate) fn support(&self) -> usize {
        self.counts.iter().filter(|&&count| count > 0).count()
    }
}
