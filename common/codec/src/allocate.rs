//! Allocates bits per weight to the linears from a common budget.
//!
//! A linear with the output error `D(b)` at b bits per weight, whose outputs the loss weights by the sensitivity g, adds `g·D(b)`
//! to the loss. The allocation minimizes the sum for a given total of bits: every linear gets bits as long as they reduce the
//! loss by more than a common price per bit (Lagrangian allocation over convex hulls: Shoham and Gersho 1988). At high rate this
//! is reverse water-filling (Cover and Thomas 2006, ch. 10): D falls by a factor of four per bit, and a linear four times as
//! sensitive gets one bit more. Rate and error are measured ([`crate::rate::curve`]), because the rule does not hold for sparse weights,
//! weights of few different values, and at low rates.
//!
//! A linear that cannot change the loss (weights of zeros, an input that is never active, outputs without gradients) gets next to
//! no bits. Every other linear gets at most 1.25 bits per weight less than the average, since a sensitivity is an estimate.
//!
//! [`hull`] owns the curve of one linear; this file the budget.

mod hull;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::rate::curve::{RATES, RateCurve};
use hull::Hull;

/// Bits are rounded down to multiples of this, so that the last bit of a logarithm does not matter.
const RESOLUTION: f64 = 1.0 / 4096.0;
/// Bits per weight of a linear that cannot change the loss: the least that the search for a step accepts.
pub const FEWEST_BITS: f64 = 0.05;
/// Fewest bits per weight that a budget must leave for the indices.
const FEWEST_AVERAGE_BITS: f64 = 0.1;
/// A simpler allocation is kept unless the predicted loss is lower by at least this fraction.
const LEAST_GAIN: f64 = 1e-6;

/// What the allocation knows of one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredLinear {
    /// Name within the layer.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// Effective mean square gradient at its outputs, [`crate::factor::Factor::sensitivity`]; 0 if it has no influence.
    pub sensitivity: f64,
    /// Its rate and error.
    pub curve: RateCurve,
}

/// What the allocation knows of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredLayer {
    /// Bits of the layer's file besides the indices.
    pub overhead_bits: u64,
    /// The linears in the order of the layer's plan.
    pub linears: Vec<MeasuredLinear>,
}

impl MeasuredLayer {
    /// Number of weights of the linears.
    fn weights(&self) -> f64 {
        self.linears
            .iter()
            .map(|linear| linear.weights)
            .sum::<u64>() as f64
    }
}

/// How far bits may move between linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Every linear has the same bits per weight for its indices, every layer the same for everything.
    Tensor,
    /// Every layer has the same bits per weight, distributed among its linears.
    Layer,
    /// The linears of the model share one budget.
    Model,
}

/// Bits per weight of every linear, by layer and in the order of the layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// One entry per layer.
    pub layers: Vec<LayerAllocation>,
}

/// Bits allocated to a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerAllocation {
    /// Most bits of the layer's file, every byte included.
    pub file_bits: u64,
    /// The linears in the order of the layer's plan.
    pub linears: Vec<BitAllocation>,
}

/// Bits allocated to a linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitAllocation {
    /// Name within the layer.
    pub name: String,
    /// Bits per weight of the indices; [`FEWEST_BITS`] for a linear that cannot change the loss.
    pub bits: f64,
    /// The step at which the measured curve has these bits, see [`crate::rate::curve::RatePoint::lambda`]; None where it was not
    /// measured.
    pub lambda: Option<f64>,
    /// Whether the curve follows the high-rate rule at these bits.
    pub regular: bool,
}

/// An allocation that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// The document is not a valid allocation.
    #[error("the allocation cannot be parsed: {0}")]
    Parse(#[from] serde_json::Error),
    /// The allocation lacks a linear.
    #[error("the allocation has no bits for {name} of layer {layer}")]
    Missing {
        /// Layer index.
        layer: usize,
        /// Name within the layer.
        name: String,
    },
    /// No linear of the model does anything.
    #[error(
        "found {linears} linears whose weights are all zero or whose inputs never are anything else, expected a model that \
         computes something; was it downloaded or converted completely?"
    )]
    NoSignal {
        /// Number of linears.
        linears: usize,
    },
    /// The budget does not even pay for what the files hold besides indices.
    #[error(
        "{requested} bits per weight are too few: headers, logarithms and exact tensors alone take {overhead:.3}; \
         request at least {least:.2} (quantize.bpw)"
    )]
    Budget {
        /// The requested bits per weight.
        requested: f64,
        /// Bits per weight of everything but indices.
        overhead: f64,
        /// The fewest bits per weight that can be met.
        least: f64,
    },
}

impl Allocation {
    /// Parses an allocation from JSON.
    ///
    /// # Errors
    /// [`AllocationError::Parse`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, AllocationError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Bits of the file of a layer, and the bits of its linears in the order of `names`.
    ///
    /// # Errors
    /// [`AllocationError::Missing`].
    pub fn layer<'a>(
        &self,
        layer: usize,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(u64, Vec<BitAllocation>), AllocationError> {
        let allocation = self.layers.get(layer);
        let linears = allocation.map_or(&[][..], |allocation| &allocation.linears);
        let linears = names.map(|name| {
            let linear = linears.iter().find(|linear| linear.name == name);
            linear.cloned().ok_or_else(|| AllocationError::Missing {
                layer,
                name: name.into(),
            })
        });
        let file_bits = allocation.map_or(0, |allocation| allocation.file_bits);
        Ok((file_bits, linears.collect::<Result<_, _>>()?))
    }
}

/// An allocation and what it is expected to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The bits.
    pub allocation: Allocation,
    /// The scope that was used: the simplest one with the lowest predicted loss within the requested scope.
    pub scope: Scope,
    /// Predicted contribution of the weight errors to the loss, in the units of the sensitivities.
    pub loss: f64,
    /// Bits per weight of the budget that no linear is expected to use: more bits would not reduce its error. They are part of the
    /// layers' file sizes nevertheless.
    pub unused: f64,
}

/// Allocates `bits_per_weight` to the linears of `layers` with the least predicted loss.
///
/// # Errors
/// [`AllocationError::Budget`]; [`AllocationError::NoSignal`] if no linear has an output other than zero.
pub fn allocate(
    layers: &[MeasuredLayer],
    bits_per_weight: f64,
    scope: Scope,
) -> Result<Plan, AllocationError> {
    let linears = || layers.iter().flat_map(|layer| &layer.linears);
    if linears().all(|linear| linear.curve.signal == 0.0) {
        return Err(AllocationError::NoSignal {
            linears: linears().count(),
        });
    }
    let mut best: Option<Plan> = None;
    for candidate in [Scope::Tensor, Scope::Layer, Scope::Model] {
        if candidate > scope {
            break;
        }
        let plan = match allocate_within(layers, bits_per_weight, candidate) {
            // A layer of its own may be too small for its overhead, the model may not.
            Err(AllocationError::Budget { .. }) if candidate < scope => continue,
            plan => plan?,
        };
        let keeps = |best: &Plan| plan.loss >= best.loss * (1.0 - LEAST_GAIN);
        if !best.as_ref().is_some_and(keeps) {
            best = Some(plan);
        }
    }
    Ok(best.expect("the requested scope was tried last"))
}

/// The allocation in which bits move exactly within `scope`.
fn allocate_within(
    layers: &[MeasuredLayer],
    bits_per_weight: f64,
    scope: Scope,
) -> Result<Plan, AllocationError> {
    let groups: Vec<&[MeasuredLayer]> = match scope {
        Scope::Model => vec![layers],
        Scope::Layer | Scope::Tensor => layers.chunks(1).collect(),
    };
    let mut plan = Plan {
        allocation: Allocation { layers: Vec::new() },
        scope,
        loss: 0.0,
        unused: 0.0,
    };
    let mut total = 0.0;
    for group in groups {
        let first = plan.allocation.layers.len();
        let budget = Budget::new(group, bits_per_weight)?;
        let linears = group.iter().flat_map(|layer| &layer.linears);
        let hulls: Vec<Hull> = linears.map(|linear| budget.hull(linear)).collect();
        let bits = match scope {
            Scope::Tensor => hulls
                .iter()
                .map(|hull| budget.average.min(hull.most()))
                .collect(),
            Scope::Layer | Scope::Model => distribute(&hulls, budget.index_bits),
        };
        let mut spent = 0.0;
        let mut allocated = hulls.iter().zip(bits);
        for layer in group {
            let mut index_bits = 0.0;
            let linears = layer.linears.iter().zip(allocated.by_ref());
            let linears = linears.map(|(linear, (hull, bits))| {
                let bits = (bits / RESOLUTION).floor() * RESOLUTION;
                plan.loss += hull.loss(bits);
                index_bits += bits * linear.weights as f64;
                BitAllocation {
                    name: linear.name.clone(),
                    bits,
                    lambda: hull.lambda(bits),
                    regular: hull.is_regular(bits),
                }
            });
            let linears = linears.collect();
            plan.allocation.layers.push(LayerAllocation {
                file_bits: layer.overhead_bits + index_bits as u64,
                linears,
            });
            spent += index_bits;
        }
        // Layers may use what is left, in proportion to their weights.
        let left = (budget.index_bits - spent).max(0.0);
        for (layer, allocation) in group.iter().zip(&mut plan.allocation.layers[first..]) {
            allocation.file_bits += (left * layer.weights() / budget.weights) as u64;
        }
        plan.unused += left;
        total += budget.weights;
    }
    plan.unused /= total.max(1.0);
    Ok(plan)
}

/// The bits of a group of layers.
struct Budget {
    /// Number of weights.
    weights: f64,
    /// Bits for the indices.
    index_bits: f64,
    /// Bits per weight for the indices.
    average: f64,
}

impl Budget {
    fn new(layers: &[MeasuredLayer], bits_per_weight: f64) -> Result<Self, AllocationError> {
        let weights: f64 = layers.iter().map(MeasuredLayer::weights).sum();
        let overhead = layers.iter().map(|layer| layer.overhead_bits).sum::<u64>() as f64;
        let average = index_bits_per_weight(weights, overhead, bits_per_weight)?;
        Ok(Budget {
            weights,
            index_bits: average * weights,
            average,
        })
    }

    fn hull(&self, linear: &MeasuredLinear) -> Hull {
        let fewest = (self.average + RATES.start()).max(FEWEST_BITS);
        Hull::new(linear, fewest..=self.average + RATES.end())
    }
}

/// Bits per weight that `bits_per_weight` leave for the indices of `weights` weights whose files hold `overhead` bits besides
/// indices.
///
/// # Errors
/// [`AllocationError::Budget`] if they are fewer than [`FEWEST_AVERAGE_BITS`].
pub fn index_bits_per_weight(
    weights: f64,
    overhead: f64,
    bits_per_weight: f64,
) -> Result<f64, AllocationError> {
    let overhead = overhead / weights.max(1.0);
    let average = bits_per_weight - overhead;
    if average >= FEWEST_AVERAGE_BITS {
        return Ok(average);
    }
    Err(AllocationError::Budget {
        requested: bits_per_weight,
        overhead,
        least: least_bits_per_weight(overhead),
    })
}

/// The least rate, in hundredths of a bit per weight, that pays for `overhead` bits per weight besides indices.
pub fn least_bits_per_weight(overhead: f64) -> f64 {
    ((overhead + FEWEST_AVERAGE_BITS) * 100.0).ceil() / 100.0
}

/// Bits per weight of every linear: the least sum of losses whose bits are at most `budget`.
fn distribute(hulls: &[Hull], budget: f64) -> Vec<f64> {
    let total = |price: f64| -> f64 {
        let bits = hulls.iter().map(|hull| hull.weights * hull.bits_at(price));
        bits.sum()
    };
    let prices = hulls.iter().flat_map(Hull::prices);
    let highest = prices.fold(0.0, f64::max);
    // At `cheap`, the linears take more bits than there are; at `dear`, at most as many.
    let (mut cheap, mut dear) = (0.0f64, 2.0 * highest);
    if total(cheap) <= budget {
        return hulls.iter().map(Hull::most).collect();
    }
    // Bisection over the bit patterns, which have the order of positive numbers, ends at adjacent prices.
    while dear.to_bits() - cheap.to_bits() > 1 {
        let middle = f64::from_bits(cheap.to_bits() + (dear.to_bits() - cheap.to_bits()) / 2);
        if total(middle) <= budget {
            dear = middle
        } else {
            cheap = middle
        }
    }
    // Linears whose next bits have the same price share what is left.
    let (few, many) = (total(dear), total(cheap));
    let share = ((budget - few) / (many - few)).clamp(0.0, 1.0);
    let bits = hulls.iter().map(|hull| {
        let (few, many) = (hull.bits_at(dear), hull.bits_at(cheap));
        few + share * (many - few)
    });
    bits.collect()
}
