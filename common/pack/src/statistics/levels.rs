//! Histograms of integers and their entropy.

use serde::Serialize;

/// How often each integer occurs: the integers that occur, in order, and their counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Histogram {
    /// The integers.
    pub values: Vec<i32>,
    /// `[values]` how often each occurs.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Zero-order entropy in bits for each integer.
    pub fn entropy(&self) -> f64 {
        let total = self.total() as f64;
        let bits = |count: u64| count as f64 * (total / count as f64).log2();
        let sum: f64 = self.counts.iter().map(|&count| bits(count)).sum();
        sum / total.max(1.0)
    }

    /// Number of integers that were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How often an integer occurs.
    pub fn count(&self, value: i32) -> u64 {
        let position = self.values.binary_search(&value);
        position.map_or(0, |position| self.counts[position])
    }
}

/// Counts integers of a known range.
pub(super) struct Counter {
    smallest: i32,
    counts: Vec<u64>,
}

impl Counter {
    pub(super) fn new(smallest: i32, largest: i32) -> Self {
        Counter {
            smallest,
            counts: vec![0; (largest - smallest + 1) as usize],
        }
    }

    pub(super) fn add(&mut self, value: i32) {
        self.counts[(value - self.smallest) as usize] += 1;
    }

    pub(super) fn finish(self) -> Histogram {
        let smallest = self.smallest;
        let occurring = self.counts.into_iter().enumerate().filter(|(_, n)| *n > 0);
        let (values, counts) = occurring.map(|(i, n)| (smallest + i as i32, n)).unzip();
        Histogram { values, counts }
    }
}
