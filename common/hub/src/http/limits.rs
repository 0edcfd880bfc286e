//! The limits beyond which a request counts as failed.

use std::time::Duration;

/// Time and throughput limits of a single request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time to resolve the host name, and time to connect.
    pub connect: Duration,
    /// Time without a byte in either direction.
    pub stall: Duration,
    /// Time for a whole request, in addition to the time allowed for its transfer.
    pub request: Duration,
    /// Slowest acceptable transfer in bytes per second. It determines the time allowed for a transfer.
    pub min_throughput: u64,
    /// Number of received bytes from which a download attempt counts as progress (see [`crate::Retrier`]).
    pub progress_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            request: Duration::from_secs(180),
            min_throughput: 32 << 10,
            progress_bytes: 8 << 20,
        }
    }
}

impl Limits {
    /// The time limit of a request that transfers `bytes` bytes.
    pub(super) fn request_timeout(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes / self.min_throughput.max(1))
    }
}
