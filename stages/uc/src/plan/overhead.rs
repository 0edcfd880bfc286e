//! What the layer files of a model hold besides indices, and the least rate that follows from it.
//!
//! A rate that would not even pay for the headers is refused before the first stage. `shard-loader inspect` computes the numbers.

use serde::Deserialize;
use uc_settings::{AllocationMode, Settings};
use uc_store::ExitCode;

use crate::report::failure::failure;

/// Bits per weight that must be left for the indices, as `uc_codec::allocate` has it.
const FEWEST_INDEX_BITS: f64 = 0.1;
/// Largest value of `quantize.bpw`.
const MOST_BITS: f64 = 8.0;

/// Bits per weight of the layer files besides indices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Overhead {
    /// Of all layers together.
    pub model: f64,
    /// Of the layer that has most.
    pub largest_layer: f64,
}

impl Overhead {
    /// Refuses a rate that would not even pay for the overhead.
    ///
    /// # Errors
    /// With the least rate that such layers can have.
    pub fn check(self, settings: &Settings) -> anyhow::Result<()> {
        let bits = match settings.allocation.mode {
            AllocationMode::Global => self.model,
            AllocationMode::PerLayer | AllocationMode::PerTensor => self.largest_layer,
        };
        let least = ((bits + FEWEST_INDEX_BITS) * 100.0).ceil() / 100.0;
        if settings.quantize.bpw >= least {
            return Ok(());
        }
        let expected = match least <= MOST_BITS {
            true => format!("at least --bpw {least:.2}"),
            false => format!("larger layers: no rate up to {MOST_BITS} bits is enough"),
        };
        let message = format!(
            "quantize.bpw: found {}, but the layers of this model are so small that headers, logarithms and exact tensors alone \
             take {bits:.2} bits per weight; expected {expected}",
            settings.quantize.bpw
        );
        Err(failure(ExitCode::BadInput, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_below_the_overhead_is_refused_with_the_least_one() {
        let overhead = Overhead {
            model: 2.341,
            largest_layer: 4.957,
        };
        let check = |mode, bpw| {
            let mut settings = Settings::default();
            settings.allocation.mode = mode;
            settings.quantize.bpw = bpw;
            overhead.check(&settings)
        };
        assert!(check(AllocationMode::Global, 2.45).is_ok());
        assert!(check(AllocationMode::PerLayer, 5.06).is_ok());
        let refused = check(AllocationMode::Global, 2.44).expect_err("too few");
        assert!(refused.to_string().contains("--bpw 2.45"), "{refused}");
        let refused = check(AllocationMode::PerTensor, 5.0).expect_err("too few");
        assert!(refused.to_string().contains("--bpw 5.06"), "{refused}");
        let tiny = Overhead {
            model: 12.0,
            largest_layer: 12.0,
        };
        let refused = tiny.check(&Settings::default()).expect_err("too small");
        assert!(refused.to_string().contains("no rate"), "{refused}");
    }
}
