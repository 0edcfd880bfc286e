//! The columns of the linears that read one input: their steps, and the order in which the runtime keeps them.

use std::ops::Range;
use std::sync::Arc;

use uc_codec::steps::factor;

/// [`factor`] of every logarithm.
pub(crate) static FACTORS: [f32; 256] = {
    let mut factors = [0.0; 256];
    let mut log = 0;
    while log < 256 {
        factors[log] = factor(log as u8);
        log += 1;
    }
    factors
};

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

    /// Whether these are the columns of the same input.
    pub(crate) fn is_same(&self, other: &Columns) -> bool {
        Arc::ptr_eq(&self.order, &other.order)
    }

    /// Number of columns.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// The factors by which the tensor's step is multiplied, at some places.
    pub(crate) fn factors(&self, places: Range<usize>) -> impl Iterator<Item = f32> {
        self.logs[places]
            .iter()
            .map(|&log| FACTORS[usize::from(log)])
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.len() * (size_of::<u32>() + size_of::<u8>())
    }

    /// Writes the vectors `x: [tokens, cols]` in this order.
    pub(crate) fn sort(&self, x: &[f32], out: &mut Vec<f32>) {
        out.clear();
        for x in x.chunks_exact(self.len()) {
            out.extend(self.order.iter().map(|&column| x[column as usize]));
        }
    }
}
