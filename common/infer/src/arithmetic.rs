//! How compressed linears are computed with, and how they are kept.

use std::fmt;

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

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arithmetic::Exact => "exact",
            Arithmetic::Fast => "fast",
        })
    }
}

/// How compressed linears are kept in memory. The results are the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryForm {
    /// Levels in fields of a few bits, made when the pack is loaded: about six bits per weight.
    Resident,
    /// The entropy-coded tiles of the pack, decoded each time they are used: the bits of the pack.
    Streamed,
}

impl fmt::Display for MemoryForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryForm::Resident => "resident",
            MemoryForm::Streamed => "streamed",
        })
    }
}
