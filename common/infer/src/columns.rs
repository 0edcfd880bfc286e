//! The columns of the linears that read one input: their steps, and the order in which the runtime keeps them.

use std::sync::Arc;

use uc_codec::steps::factor;

/// The inputs of some linears, sorted by step. Linears of one input share them.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    /// For each place the column of the source: a permutation.
    pub(crate) order: Arc<[u32]>,
    /// For each place the logarithm of the column, see [`uc_codec::steps`].
    logs: Arc<[u8]>,
}

impl Columns {
    /// The columns with these logarithms, `[cols]` in the order of the source. Those with equal logarithms stay in this order.
    pub(crate) fn new(column_log2_eighths: &[u8]) -> Self {
        let mut order: Vec<u32> = (0..column_log2_eighths.len() as u32).collect();
        order.sort_by_key(|&column| column_log2_eighths[column as usize]);
        let logs = order
            .iter()
            .map(|&column| column_log2_eighths[column as usize]);
        Columns {
            logs: logs.collect(),
            order: order.into(),
        }
    }

    /// Number of columns.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// The factors by which the tensor's step is multiplied, in this order.
    pub(crate) fn factors(&self) -> impl Iterator<Item = f32> {
        self.logs.iter().map(|&log| factor(log))
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.len() * (size_of::<u32>() + size_of::<u8>())
    }

    /// Writes the vectors `x: [tokens, cols]` in this order.
    pub(crate) fn sort(&self, x: &[f32], out: &mut Vec<f32>) {
        out.clear();
        for x in x.chunks_exact(self.len()) {
            self.append_sorted(x, out);
        }
    }

    /// Appends a vector `[cols]` in this order.
    pub(crate) fn append_sorted(&self, x: &[f32], out: &mut Vec<f32>) {
        out.extend(self.order.iter().map(|&column| x[column as usize]));
    }
}
