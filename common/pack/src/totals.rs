//! The totals in the manifest. Every reader recomputes them.
//!
//! Owns what is counted and how ratios are rounded: bits per weight up and the compression ratio down, so that rounding
//! never makes the pack look better than it is.

use serde::{Deserialize, Serialize};

use crate::error::{PackError, invalid};
use crate::manifest::Manifest;

/// Sums over the pack. Every byte of every layer file counts towards the bits of the linears.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Elements of all linears.
    pub linear_parameters: u64,
    /// 8 times the total size of the layer files.
    pub linear_bits: u64,
    /// `linear_bits / linear_parameters`, six decimals, rounded up.
    pub bits_per_weight_linears: String,
    /// Elements of all linears, of the layers' exact tensors and of the non-layer tensors.
    pub total_parameters: u64,
    /// Total size of the layer files, `scaffold.uc` and the manifest's `files`; without manifest.json and manifest.sha256.
    pub total_bytes: u64,
    /// `8 * total_bytes / total_parameters`, six decimals, rounded up.
    pub bits_per_weight_all: String,
    /// Total size of the source's files.
    pub source_bytes: u64,
    /// `source_bytes / total_bytes`, six decimals, rounded down.
    pub compression_ratio: String,
}

impl Totals {
    /// Computes the totals from the entries of a manifest. Ignores `manifest.totals`.
    ///
    /// # Errors
    /// `Invalid` if a sum does not fit in 64 bits or the manifest has no linear.
    pub fn compute(manifest: &Manifest, origin: &str) -> Result<Self, PackError> {
        let sum = |what: &str, mut terms: &mut dyn Iterator<Item = u64>| {
            // `try_fold` needs a sized iterator; a mutable reference to the trait object is one.
            let total = Iterator::try_fold(&mut terms, 0u64, u64::checked_add);
            total.ok_or_else(|| invalid(origin, what, "overflow", "a sum below 2^64"))
        };
        let linears = manifest.layers.iter().flat_map(|l| &l.linears);
        let mut parts = linears.map(|l| l.shape[0].saturating_mul(l.shape[1]));
        let linear_parameters = sum("linear_parameters", &mut parts)?;

        let mut exact_parameters = 0u64;
        let exact = manifest.layers.iter().flat_map(|l| &l.exact);
        for tensor in exact.chain(&manifest.non_layer.tensors) {
            let mut parts = [exact_parameters, tensor.decl().elements(origin)?].into_iter();
            exact_parameters = sum("total_parameters", &mut parts)?;
        }
        let mut parts = [linear_parameters, exact_parameters].into_iter();
        let total_parameters = sum("total_parameters", &mut parts)?;

        let layer_bytes = sum("layer sizes", &mut manifest.layers.iter().map(|l| l.size))?;
        let linear_bits = sum("linear_bits", &mut [layer_bytes; 8].into_iter())?;
        let others = manifest.files.iter().map(|f| f.size);
        let mut parts = [layer_bytes, manifest.non_layer.size]
            .into_iter()
            .chain(others);
        let total_bytes = sum("total_bytes", &mut parts)?;
        let source_bytes = sum(
            "source_bytes",
            &mut manifest.source.files.iter().map(|f| f.size),
        )?;
        if linear_parameters == 0 || total_bytes == 0 {
            return Err(invalid(
                origin,
                "linear_parameters",
                0,
                "at least one linear",
            ));
        }
        Ok(Self {
            linear_parameters,
            linear_bits,
            bits_per_weight_linears: ratio(linear_bits.into(), linear_parameters, Round::Up),
            total_parameters,
            total_bytes,
            bits_per_weight_all: ratio(u128::from(total_bytes) * 8, total_parameters, Round::Up),
            source_bytes,
            compression_ratio: ratio(source_bytes.into(), total_bytes, Round::Down),
        })
    }
}

#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

/// `numerator / denominator` with six decimals, in integer arithmetic. The denominator must not be zero.
fn ratio(numerator: u128, denominator: u64, round: Round) -> String {
    let denominator = u128::from(denominator);
    let scaled = numerator * 1_000_000;
    let millionths = match round {
        Round::Up => scaled.div_ceil(denominator),
        Round::Down => scaled / denominator,
    };
    format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_weight_are_never_rounded_down_and_ratios_never_up() {
        assert_eq!(ratio(5_000_001, 1_000_000, Round::Up), "5.000001");
        assert_eq!(ratio(50_000_001, 10_000_000, Round::Up), "5.000001");
        assert_eq!(ratio(50_000_019, 10_000_000, Round::Down), "5.000001");
        assert_eq!(ratio(5, 1, Round::Up), "5.000000");
        assert_eq!(ratio(1, 3, Round::Down), "0.333333");
        assert_eq!(
            ratio(u128::from(u64::MAX) * 8, 1, Round::Up),
            "147573952589676412920.000000"
        );
    }
}
