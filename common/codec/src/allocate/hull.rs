//! The loss of one linear as a function of its bits: the lower convex hull of the measured curve.

use std::ops::RangeInclusive;

use super::{FEWEST_BITS, MeasuredLinear};
use crate::rate::curve::{RatePoint, follows_high_rate_rule};

/// Distance of the rates at which a curve is sampled, bits per weight. Between two of them the loss counts as linear, which is at
/// most 0.01 % above the curve at high rate.
const GRID: f64 = 1.0 / 32.0;

/// A point of the curve with more bits than another counts only if it has less than this fraction of its error: near the error of
/// rounding to bfloat16, finer steps take bits and change nothing.
const LEAST_REDUCTION: f64 = 0.9;

/// A rate and the loss at this rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Vertex {
    /// Bits per weight.
    bits: f64,
    /// Sensitivity times error.
    loss: f64,
}

/// The lower convex hull of a linear's loss.
#[derive(Debug, Clone)]
pub(super) struct Hull {
    /// Number of weights.
    pub(super) weights: f64,
    /// By rising bits; at least one.
    vertices: Vec<Vertex>,
    /// Points with rising bits and falling error, for [`Hull::lambda`].
    points: Vec<RatePoint>,
}

impl Hull {
    /// The hull within a range of bits per weight. If the linear cannot use as many bits as the range begins with, it is its best
    /// point; if it cannot change the loss, the point at [`FEWEST_BITS`].
    pub(super) fn new(linear: &MeasuredLinear, range: RangeInclusive<f64>) -> Self {
        let weights = linear.weights as f64;
        let curve = Curve::new(linear, *range.end());
        let samples = match &curve {
            Some(curve) => curve.samples(range),
            None => vec![Vertex {
                bits: FEWEST_BITS,
                loss: 0.0,
            }],
        };
        Hull {
            weights,
            vertices: lower_hull(samples),
            points: curve.map_or(Vec::new(), |curve| curve.points),
        }
    }

    /// Most bits per weight that it can use within the range.
    pub(super) fn most(&self) -> f64 {
        self.vertices
            .last()
            .map_or(FEWEST_BITS, |vertex| vertex.bits)
    }

    /// Reduction of the loss per bit on every edge, falling.
    pub(super) fn prices(&self) -> impl Iterator<Item = f64> + '_ {
        let edges = self.vertices.windows(2);
        edges.map(|pair| self.price(&pair[0], &pair[1]))
    }

    fn price(&self, few: &Vertex, many: &Vertex) -> f64 {
        (few.loss - many.loss) / ((many.bits - few.bits) * self.weights)
    }

    /// Bits per weight at which another bit reduces the loss by less than `price`.
    pub(super) fn bits_at(&self, price: f64) -> f64 {
        // The number of edges that are worth their bits, by bisection.
        let (mut worth, mut end) = (0, self.vertices.len() - 1);
        while worth < end {
            let middle = (worth + end) / 2;
            if self.price(&self.vertices[middle], &self.vertices[middle + 1]) >= price {
                worth = middle + 1
            } else {
                end = middle
            }
        }
        self.vertices[worth].bits
    }

    /// The loss at a number of bits per weight.
    pub(super) fn loss(&self, bits: f64) -> f64 {
        let after = self.vertices.partition_point(|vertex| vertex.bits < bits);
        let before = &self.vertices[after.saturating_sub(1)];
        match self.vertices.get(after) {
            Some(after) if after.bits > before.bits => {
                let share = (bits - before.bits) / (after.bits - before.bits);
                before.loss + share.max(0.0) * (after.loss - before.loss)
            }
            _ => before.loss,
        }
    }

    /// Whether the curve follows the high-rate rule at a number of bits per weight. Beyond its last point, it does if it is
    /// continued; before the first, it does not.
    pub(super) fn is_regular(&self, bits: f64) -> bool {
        let after = self.points.partition_point(|point| point.bits < bits);
        let end = after.min(self.points.len().saturating_sub(1));
        let pair = end
            .checked_sub(1)
            .and_then(|start| self.points.get(start..=end));
        pair.is_some_and(|pair| follows_high_rate_rule(&pair[0], &pair[1]))
    }

    /// The multiple of the base step at which the curve has these bits; None below the first measured point.
    pub(super) fn lambda(&self, bits: f64) -> Option<f64> {
        let after = self.points.partition_point(|point| point.bits < bits);
        let before = self.points.get(after.checked_sub(1)?)?;
        let octaves = match self.points.get(after) {
            Some(after) => {
                let share = (bits - before.bits) / (after.bits - before.bits);
                share * (before.lambda / after.lambda).log2()
            }
            None => bits - before.bits,
        };
        Some(before.lambda * (-octaves).exp2())
    }
}

/// The curve of a linear that can change the loss: points with rising bits and falling error.
struct Curve {
    sensitivity: f64,
    /// Error without any bits.
    signal: f64,
    points: Vec<RatePoint>,
    /// Bits up to which the last point may be continued by the high-rate rule.
    end: f64,
}

impl Curve {
    fn new(linear: &MeasuredLinear, end: f64) -> Option<Self> {
        let signal = linear.curve.signal;
        let matters = linear.sensitivity > 0.0 && signal > 0.0;
        let mut points = linear.curve.points.clone();
        let last = points.windows(2).next_back();
        let continues = last.is_some_and(|pair| follows_high_rate_rule(&pair[0], &pair[1]));
        points.sort_by(|a, b| a.bits.total_cmp(&b.bits).then(a.error.total_cmp(&b.error)));
        let mut least = signal;
        points.retain(|point| {
            let better = point.error < LEAST_REDUCTION * least && point.bits > 0.0;
            least = if better { point.error } else { least };
            better
        });
        let last = points.last()?.bits;
        matters.then_some(Curve {
            sensitivity: linear.sensitivity,
            signal,
            points,
            end: if continues { end.max(last) } else { last },
        })
    }

    /// The curve from the beginning of the range, or from its last point if that comes first, to the end of both.
    fn samples(&self, range: RangeInclusive<f64>) -> Vec<Vertex> {
        let end = self.end.min(*range.end());
        let start = range.start().min(end);
        let count = ((end - start) / GRID).ceil() as usize;
        let grid = (0..count).map(|index| start + index as f64 * GRID);
        let vertex = |bits| Vertex {
            bits,
            loss: self.sensitivity * self.error(bits),
        };
        grid.chain([end]).map(vertex).collect()
    }

    /// The error at a rate: the logarithm is interpolated between the points, and continued by the high-rate rule.
    fn error(&self, bits: f64) -> f64 {
        let after = self.points.partition_point(|point| point.bits < bits);
        let (low_bits, low) = match after.checked_sub(1) {
            Some(before) => (self.points[before].bits, self.points[before].error),
            None => (0.0, self.signal),
        };
        let Some(high) = self.points.get(after) else {
            return low * (2.0 * (low_bits - bits)).exp2();
        };
        if high.error == 0.0 {
            // Exact from this point on; on the way to it, the error falls linearly.
            return low * (high.bits - bits) / (high.bits - low_bits);
        }
        let share = (bits - low_bits) / (high.bits - low_bits);
        low * (high.error / low).powf(share)
    }
}

/// The lower convex hull of points with rising bits (Andrew 1979). A point whose loss is not below that of its predecessor is
/// dropped.
fn lower_hull(points: Vec<Vertex>) -> Vec<Vertex> {
    let mut hull: Vec<Vertex> = Vec::new();
    let slope = |a: &Vertex, b: &Vertex| (b.loss - a.loss) / (b.bits - a.bits);
    for point in points {
        if hull
            .last()
            .is_some_and(|last| point.loss >= last.loss || point.bits <= last.bits)
        {
            continue;
        }
        while let [.., a, b] = hull.as_slice()
            && slope(a, b) >= slope(b, &point)
        {
            hull.pop();
        }
        hull.push(point);
    }
    hull.shrink_to_fit();
    hull
}
