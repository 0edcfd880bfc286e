//! What a model takes in memory, by kind.

use serde::Serialize;

use crate::coded::Coded;
use crate::matrix::Matrix;

/// Bytes of a model in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights of the compressed linears.
    pub linear_weights: u64,
    /// Bytes of the compressed linears in their resident form: levels, logarithms of steps, the order of columns, overlays.
    pub linear_bytes: u64,
    /// Levels that are held apart because they do not fit into the fields of their neighbours.
    pub outliers: u64,
    /// Bytes of the exact matrices: embedding, head, routers; in fast arithmetic also those of the integers of the head.
    pub exact_bytes: u64,
}

impl Memory {
    /// Bits per weight of the compressed linears, in memory.
    pub fn linear_bits(&self) -> f64 {
        8.0 * self.linear_bytes as f64 / self.linear_weights.max(1) as f64
    }

    /// Adds a matrix.
    pub(crate) fn add(&mut self, matrix: &Matrix) {
        match matrix {
            Matrix::Dense { values, .. } => self.exact_bytes += values.bytes() as u64,
            Matrix::Coded(coded) => self.add_coded(coded),
        }
    }

    fn add_coded(&mut self, coded: &Coded) {
        let [rows, cols] = coded.shape();
        self.linear_weights += (rows * cols) as u64;
        self.linear_bytes += coded.bytes() as u64;
        self.outliers += coded.outliers() as u64;
    }
}
