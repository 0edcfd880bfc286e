//! Rotary positions of the tokens of a chunk.
//!
//! The frequencies of some scalings depend on the length of the window. For a sequence that grows, that length is its context:
//! so the rotation of a token does not depend on how many tokens follow.

use uc_model::rope::RopeSpec;

/// The frequencies of a rotary embedding, for one context.
#[derive(Debug, Clone)]
pub(crate) struct Frequencies {
    /// `[pairs]` radians per token.
    frequencies: Vec<f32>,
    /// Factor of cosine and sine.
    factor: f32,
}

impl Frequencies {
    pub(crate) fn new(spec: &RopeSpec, context: usize) -> Self {
        let (frequencies, factor) = spec.frequencies(context);
        Frequencies {
            frequencies,
            factor: factor as f32,
        }
    }

    /// Cosines and sines of `count` positions from `first` on.
    pub(crate) fn tables(&self, first: usize, count: usize) -> Tables {
        let pairs = self.frequencies.len();
        let mut tables = Tables {
            pairs,
            cos: Vec::with_capacity(count * pairs),
            sin: Vec::with_capacity(count * pairs),
        };
        for position in first..first + count {
            for &frequency in &self.frequencies {
                // The angle is rounded to f32, as in the reference implementation.
                let angle = f64::from(position as f32 * frequency);
                let (sin, cos) = libm::sincos(angle);
                tables.cos.push(cos as f32 * self.factor);
                tables.sin.push(sin as f32 * self.factor);
            }
        }
        tables
    }
}

/// Cosines and sines of some positions.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pairs: usize,
    /// [positions, pairs]
    cos: Vec<f32>,
    /// [positions, pairs]
    sin: Vec<f32>,
}

impl Tables {
    /// Rotates the pairs `(i, i + pairs)` of a head to the position with this index. Elements after the pairs are not rotated.
    pub(crate) fn rotate(&self, head: &mut [f32], index: usize) {
        let row = index * self.pairs..(index + 1) * self.pairs;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (low, rest) = head.split_at_mut(self.pairs);
        for i in 0..self.pairs {
            let (a, b) = (low[i], rest[i]);
            low[i] = a * cos[i] - b * sin[i];
            rest[i] = b * cos[i] + a * sin[i];
        }
    }
}
