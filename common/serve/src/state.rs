//! What all requests share, and the server's limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uc_infer::batch::BatchSettings;
use uc_model::text::splitmix64;

use crate::access::Access;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::phase::Watch;
use crate::served::Prepared;

/// The limits of a server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Those of the batch.
    pub batch: BatchSettings,
    /// Most sequences that wait for a slot.
    pub queue: usize,
    /// Longest body of a request, bytes.
    pub body_bytes: usize,
    /// Longest time for the body of a request to arrive.
    pub body_time: Duration,
    /// Longest time for an answer, from its acceptance on.
    pub timeout: Duration,
    /// Longest time that a client may not read what is sent.
    pub write_time: Duration,
    /// Longest time for the head of a request, also of the next one on the same connection.
    pub head_time: Duration,
    /// Time for running answers to be completed when the server ends.
    pub drain: Duration,
    /// Most open connections; others wait until one is closed.
    pub connections: usize,
    /// Whether prompts and answers are written to the log.
    pub log_prompts: bool,
    /// Who may use the server.
    pub access: Access,
}

/// See the module.
pub(crate) struct State {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) settings: Settings,
    pub(crate) engine: Engine,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) phase: Watch,
    /// When the server started, seconds since 1970.
    pub(crate) started: u64,
    pub(crate) ids: Ids,
}

/// Numbers that do not repeat, not even when the server starts again.
#[derive(Debug)]
pub(crate) struct Ids {
    seed: u64,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        let nanoseconds = since_1970().as_nanos() as u64;
        Ids {
            seed: nanoseconds ^ u64::from(std::process::id()).rotate_left(40),
            next: AtomicU64::new(0),
        }
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        splitmix64(self.seed, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The next name that begins with this.
    pub(crate) fn name(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}", self.next())
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    since_1970().as_secs()
}

fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}
