//! What a layer file holds besides indices, before anything is quantized.
//!
//! The bit allocation and the check of a requested rate need this number ahead of time. It is an upper bound except for the context
//! tables, whose size depends on the indices. Owns no format: the fields are those that [`crate::layer`] writes.

use uc_codec::contexts::FINE_CONTEXTS;
use uc_codec::rans;

use crate::LAYER_ALIGNMENT;

/// Bytes allowed for the context tables: those of a layer of few linears. Larger tables pay for themselves in the indices.
const TABLES: u64 = 2 * FINE_CONTEXTS as u64;
/// Bytes of the fixed part of the header.
const FIXED_HEADER: u64 = 24;
/// Bytes of packed logarithms besides the logarithms: their length, base and mode.
const LOGARITHMS: u64 = 6;

/// A linear as far as its descriptor depends on it.
#[derive(Debug, Clone, Copy)]
pub struct LinearExtent<'a> {
    /// Name within the layer.
    pub name: &'a str,
    /// Name of its input.
    pub input: &'a str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// Bits of a layer file besides the indices: headers, logarithms at 8 bits each, states of the entropy coder, padding, and the
/// exact tensors, given as (length of the name, number of dimensions, bytes of the values).
pub fn overhead_bits<'a>(
    linears: impl Iterator<Item = LinearExtent<'a>>,
    exact: impl Iterator<Item = (usize, usize, u64)>,
) -> u64 {
    let mut bytes = FIXED_HEADER + TABLES;
    let mut inputs = std::collections::BTreeSet::new();
    for linear in linears {
        let (rows, cols) = (linear.rows as u64, linear.cols as u64);
        if inputs.insert(linear.input) {
            bytes += 1 + linear.input.len() as u64 + 4 + LOGARITHMS + cols;
        }
        let tile_rows = u64::from(rans::tile_rows(linear.rows, linear.cols)).max(1);
        let states = 4 * cols.min(32);
        bytes += 1 + linear.name.len() as u64 + 12 + 2 * (LOGARITHMS + rows);
        bytes += rows.div_ceil(tile_rows) * (4 + states) + LAYER_ALIGNMENT as u64;
    }
    for (name, dimensions, values) in exact {
        bytes += 3 + name as u64 + 4 * dimensions as u64 + values;
    }
    8 * bytes
}

#[cfg(test)]
mod tests {
    use uc_codec::TensorCode;
    use uc_codec::layer::CodedLinear;

    use super::*;
    use crate::{ExactDtype, ExactTensor, encode_layer};

    #[test]
    fn a_layer_without_information_takes_at_most_its_overhead() {
        for (rows, cols) in [(8, 8), (64, 40), (300, 5000)] {
            let linear = |name: &str, input: &str| CodedLinear {
                name: name.into(),
                input: input.into(),
                code: TensorCode {
                    rows,
                    cols,
                    step: 1.0,
                    // Logarithms that cannot be packed.
                    column_log2_eighths: (0..cols).map(|i| (i * 89 % 251) as u8).collect(),
                    row_log2_eighths: (0..rows).map(|i| (i * 67 % 255 + 1) as u8).collect(),
                    row_step_log2_eighths: (0..rows).map(|i| (i * 101 % 256) as u8).collect(),
                    q: vec![0; rows * cols],
                    overlay: None,
                },
            };
            let linears = [
                linear("a.weight", "x"),
                linear("b.weight", "x"),
                linear("c.weight", "y"),
            ];
            let exact = [ExactTensor {
                name: "norm.weight".into(),
                dtype: ExactDtype::F32,
                shape: vec![8],
                bytes: vec![0; 32],
            }];
            let bytes = encode_layer(3, &linears, &exact).expect("encoded");
            fn extent(linear: &CodedLinear) -> LinearExtent<'_> {
                LinearExtent {
                    name: &linear.name,
                    input: &linear.input,
                    rows: linear.code.rows,
                    cols: linear.code.cols,
                }
            }
            let bits = overhead_bits(linears.iter().map(extent), [(11, 1, 32)].into_iter());
            let found = 8 * bytes.len() as u64;
            assert!(found <= bits, "{found} bits, bound {bits}");
        }
    }
}
