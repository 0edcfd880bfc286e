//! How products with compressed linears are computed.

use serde::Serialize;

/// The arithmetic of the products with compressed linears. Both give the same bits for any number of threads, whatever else is
/// computed at the same time, and on every instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// The weights of the contract, `bf16(level · step + overlay)`, times activations in f32. For audits.
    Exact,
    /// Levels times activations in integers of 16 bits, with the steps outside of the sums.
    Fast,
}
