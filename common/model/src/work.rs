//! What the passes of this process have computed so far, by kind of work: calls, operations, bytes and seconds.
//!
//! The counters cost two readings of the clock for each product, norm or gate of a batch. On a GPU, whose kernels run behind the
//! calls, the seconds are those of the calls only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Products with the weights of linears, forward and backward.
    Linears,
    /// Attention, forward and backward, with its rotations and exponentials.
    Attention,
    /// Norms, gates and their gradients.
    Elementwise,
    /// Second moments of inputs and gradients.
    Moments,
    /// Leverage scores of tokens.
    Leverages,
    /// Products with the head, forward and backward.
    Head,
    /// Softmax over the vocabulary: the loss of sampled labels, or the divergence of two models.
    Loss,
    /// Waiting for states to be read, hashed and written.
    States,
}

impl Kind {
    /// Every kind, in the order in which they are reported.
    pub const ALL: [Kind; 8] = [
        Kind::Linears,
        Kind::Attention,
        Kind::Elementwise,
        Kind::Moments,
        Kind::Leverages,
        Kind::Head,
        Kind::Loss,
        Kind::States,
    ];

    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Linears => "linears",
            Kind::Attention => "attention",
            Kind::Elementwise => "elementwise",
            Kind::Moments => "moments",
            Kind::Leverages => "leverages",
            Kind::Head => "head",
            Kind::Loss => "loss",
            Kind::States => "states",
        }
    }
}

/// Operations and bytes of a piece of work. A multiply-add counts as two operations; bytes are those of its operands and results, each
/// counted once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Amount {
    /// Floating-point operations that the result needs: of a symmetric product those of one triangle, of attention those of the pairs that
    /// the mask admits.
    pub operations: u64,
    /// Bytes of operands and results.
    pub bytes: u64,
}

impl Amount {
    /// The product of an `m · k` and a `k · n` matrix in f32.
    pub fn product(m: usize, k: usize, n: usize) -> Self {
        Amount {
            operations: 2 * (m * k * n) as u64,
            bytes: 4 * (m * k + k * n + m * n) as u64,
        }
    }

    /// A loop over so many f32 values, read and written.
    pub fn values(count: usize) -> Self {
        Amount {
            operations: 0,
            bytes: 4 * count as u64,
        }
    }
}

/// Calls, operations, bytes and nanoseconds, by kind.
static COUNTERS: [[AtomicU64; 4]; Kind::ALL.len()] =
    [const { [const { AtomicU64::new(0) }; 4] }; Kind::ALL.len()];

/// Does `work` and counts it.
pub fn counted<R>(kind: Kind, amount: Amount, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    add(kind, amount, start.elapsed());
    result
}

/// Counts work that took so long.
pub fn add(kind: Kind, amount: Amount, elapsed: Duration) {
    let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    let values = [1, amount.operations, amount.bytes, nanoseconds];
    for (counter, value) in COUNTERS[kind as usize].iter().zip(values) {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

/// The part of a stretch of time that is not spent computing: waiting for states.
#[derive(Debug)]
pub struct Waiting {
    start: Instant,
    computing: Duration,
}

impl Waiting {
    /// The stretch of time begins now.
    pub fn begin() -> Self {
        Waiting {
            start: Instant::now(),
            computing: Duration::ZERO,
        }
    }

    /// Computes: this time is not spent waiting.
    pub fn computing<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.computing += start.elapsed();
        result
    }

    /// The stretch of time ends now; counts it as [`Kind::States`] with so many f32 values read and written.
    pub fn finish(self, values: usize) {
        let waited = self.start.elapsed().saturating_sub(self.computing);
        add(Kind::States, Amount::values(values), waited);
    }
}

/// Logs the work since the last call, a line for each kind, at level debug, and sets the counters to 0.
pub fn log() {
    for kind in Kind::ALL {
        let counters = COUNTERS[kind as usize].each_ref();
        let [calls, operations, bytes, nanoseconds] =
            counters.map(|counter| counter.swap(0, Ordering::Relaxed));
        if calls > 0 {
            let (kind, seconds) = (kind.name(), nanoseconds as f64 / 1e9);
            tracing::debug!(kind, calls, operations, bytes, seconds, "work");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_by_its_kind_and_a_product_by_its_shape() {
        let counted_before = COUNTERS[Kind::Loss as usize][1].load(Ordering::Relaxed);
        let seven = counted(Kind::Loss, Amount::product(2, 3, 5), || 7);
        let counted_now = COUNTERS[Kind::Loss as usize][1].load(Ordering::Relaxed);
        assert_eq!((seven, counted_now - counted_before), (7, 60));
        assert_eq!(Amount::product(2, 3, 5).bytes, 4 * (6 + 15 + 10));
    }
}
