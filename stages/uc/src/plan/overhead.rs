//! What the layer files of a model hold besides indices, and the least rate that follows from it.
//!
//! A rate that would not even pay for the headers is refused before the first stage. `shard-loader inspect` computes the numbers.

use serde::Deserialize;
use uc_settings::{AllocationMode, Settings};
use uc_store::ExitCode;

use crate::report::failure::failure;

/// Largest value of `quantize.bpw`.
const MOST_BITS: f64 = 8.0;

/// What layer files hold besides indices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Overhead {
    /// In all layers together.
    pub model: LayerOverhead,
    /// In the layer that has most.
    pub largest_layer: LayerOverhead,
}

/// Bits per weight besides indices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct LayerOverhead {
    /// Headers, logarithms and exact tensors.
    pub bits: f64,
    /// The least rate that pays for them.
    pub least: f64,
}

impl Overhead {
    /// Refuses a rate that would not even pay for the overhead.
    ///
    /// # Errors
    /// With the least rate that such layers can have.
    pub fn check(self, settings: &Settings) -> anyhow::Result<()> {
        let LayerOverhead { bits, least } = match settings.allocation.mode {
            AllocationMode::Global => self.model,
            AllocationMode::PerLayer | AllocationMode::PerTensor => self.largest_layer,
        };
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
        let least_of = |bits, least| LayerOverhead { bits, least };
        let overhead = Overhead {
            model: least_of(2.341, 2.45),
            largest_layer: least_of(4.957, 5.06),
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
            model: least_of(12.0, 12.1),
            largest_layer: least_of(12.0, 12.1),
        };
        let refused = tiny.check(&Settings::default()).expect_err("too small");
        assert!(refused.to_string().contains("no rate"), "{refused}");
    }
}
