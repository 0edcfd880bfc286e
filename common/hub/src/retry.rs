//! Retries an operation with exponential backoff until it succeeds, fails permanently or has failed too often.
//!
//! Waits double from attempt to attempt, with jitter from a seeded generator. A server's Retry-After is honoured. An
//! attempt that makes progress (a part was sent, some megabytes were received) resets the count: a limit of eight attempts
//! means eight in a row without progress. The clock is injected, so that tests neither wait nor depend on the time. Time
//! limits of a single request belong to [`crate::Limits`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::HubError;

/// How often an operation is retried, and how long to wait before each retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in a row without progress. At least one is always made.
    pub max_attempts: u32,
    /// The first wait, before jitter.
    pub initial_wait: Duration,
    /// Upper limit of every wait, even if the server requests a longer one.
    pub max_wait: Duration,
    /// Seed of the jitter.
    pub jitter_seed: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            initial_wait: Duration::from_secs(1),
            max_wait: Duration::from_secs(300),
            jitter_seed: 0,
        }
    }
}

impl RetryPolicy {
    /// A policy with these limits. The jitter differs from process to process.
    pub fn new(max_attempts: u32, max_wait: Duration) -> Self {
        Self {
            max_attempts,
            max_wait,
            jitter_seed: std::process::id().into(),
            ..Self::default()
        }
    }
}

/// How often an operation is tried, at most, until the server is first reached (see [`Retrier::failing_fast`]).
const FIRST_CONTACT_ATTEMPTS: u32 = 3;
/// Time after which an operation is not tried again, if the server has never been reached.
const FIRST_CONTACT_TIME: Duration = Duration::from_secs(8);

/// The clock of a [`Retrier`].
pub trait Clock: Send + Sync {
    /// The current time.
    fn now(&self) -> SystemTime;
    /// Blocks for `wait`.
    fn sleep(&self, wait: Duration);
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, wait: Duration) {
        std::thread::sleep(wait);
    }
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// Its number in the whole operation, from 1.
    pub number: u32,
    /// The error class, [`HubError::class`].
    #[serde(skip_deserializing)]
    pub class: &'static str,
    /// The error message.
    pub error: String,
    /// Whether it made progress before it failed.
    pub progressed: bool,
    /// The wait after it, in milliseconds; `None` after the last attempt.
    pub waited_ms: Option<u64>,
}

/// The state of a [`Retrier`], for an observer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryState {
    /// The name of the operation.
    pub operation: String,
    /// The current phase.
    pub phase: RetryPhase,
    /// Number of attempts in a row without progress, the current one included.
    pub attempt: u32,
    /// The limit on `attempt`.
    pub attempts: u32,
    /// The error message of the last failed attempt.
    pub last_error: Option<String>,
    /// While waiting: the time of the next attempt, in milliseconds since 1970.
    pub next_try_at_ms: Option<u64>,
}

impl RetryState {
    /// After a failure: the number of the next or current attempt, the remaining wait, and the last error.
    pub fn pending_retry(&self) -> Option<(u32, Duration, &str)> {
        let error = self.last_error.as_deref()?;
        match self.phase {
            RetryPhase::Waiting => Some((self.attempt + 1, self.remaining_wait(), error)),
            RetryPhase::Trying => Some((self.attempt, Duration::ZERO, error)),
            RetryPhase::Done | RetryPhase::GivenUp => None,
        }
    }

    fn remaining_wait(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let until = Duration::from_millis(self.next_try_at_ms.unwrap_or(0));
        until.saturating_sub(now.unwrap_or_default())
    }
}

/// The phase of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryPhase {
    /// An attempt is running.
    Trying,
    /// Waiting for the next attempt.
    Waiting,
    /// The operation succeeded.
    Done,
    /// The operation failed permanently or too often.
    GivenUp,
}

/// The handle through which an operation reports on its current attempt.
#[derive(Debug, Default)]
pub struct Attempt {
    progressed: bool,
}

impl Attempt {
    /// Records progress: work that a later attempt need not repeat.
    pub fn mark_progress(&mut self) {
        self.progressed = true;
    }
}

/// Receives every change of state.
type Observer<'a> = Box<dyn FnMut(&RetryState) + Send + 'a>;

/// Runs operations and retries them according to a policy.
pub struct Retrier<'a> {
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
    jitter: ChaCha8Rng,
    observer: Observer<'a>,
    failures: Vec<FailedAttempt>,
    /// Whether the server counts as reached, so that the whole policy applies.
    is_reached: bool,
}

impl std::fmt::Debug for Retrier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Retrier");
        out.field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<'a> Retrier<'a> {
    /// A retrier with the system's clock and no observer.
    pub fn new(policy: RetryPolicy) -> Self {
        Self::with_clock(policy, Arc::new(SystemClock))
    }

    /// A retrier with the given clock and no observer.
    pub fn with_clock(policy: RetryPolicy, clock: Arc<dyn Clock>) -> Self {
        Self {
            policy,
            clock,
            jitter: ChaCha8Rng::seed_from_u64(policy.jitter_seed),
            observer: Box::new(|_| {}),
            failures: Vec::new(),
            is_reached: true,
        }
    }

    /// Gives up within seconds if the server cannot be reached at all: a mistyped name, a missing network or a wrong proxy is
    /// reported at once. The policy applies in full as soon as any attempt has reached the server.
    #[must_use]
    pub fn failing_fast(mut self) -> Self {
        self.is_reached = false;
        self
    }

    /// Calls `observer` with every change of state.
    #[must_use]
    pub fn with_observer(mut self, observer: impl FnMut(&RetryState) + Send + 'a) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// The failed attempts of the last operation.
    pub fn failed_attempts(&self) -> &[FailedAttempt] {
        &self.failures
    }

    /// Runs an operation until it succeeds or the policy ends it. `what` names it in messages.
    ///
    /// # Errors
    /// The operation's own error if it is permanent, [`HubError::RetriesExhausted`] with all attempts otherwise.
    pub fn run<T>(
        &mut self,
        what: &str,
        mut operation: impl FnMut(&mut Attempt) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        self.failures.clear();
        let (mut consecutive, mut last_error) = (1, None);
        let start = self.clock.now();
        loop {
            self.notify(what, RetryPhase::Trying, consecutive, &last_error, None);
            let mut attempt = Attempt::default();
            let error = match operation(&mut attempt) {
                Ok(value) => {
                    self.is_reached = true;
                    self.notify(what, RetryPhase::Done, consecutive, &last_error, None);
                    return Ok(value);
                }
                Err(error) => error,
            };
            if attempt.progressed {
                consecutive = 1;
            }
            self.is_reached |= !matches!(error, HubError::Unreachable { .. });
            let retry = error.is_transient() && self.may_retry(consecutive, start);
            let wait = retry.then(|| self.wait_after(consecutive, error.retry_after()));
            last_error = Some(error.to_string());
            self.failures.push(FailedAttempt {
                number: self.failures.len() as u32 + 1,
                class: error.class(),
                error: error.to_string(),
                progressed: attempt.progressed,
                waited_ms: wait.map(|wait| wait.as_millis() as u64),
            });
            let Some(wait) = wait else {
                self.notify(what, RetryPhase::GivenUp, consecutive, &last_error, None);
                return Err(self.final_error(what, error));
            };
            // A Hub that was never reached is reported once, when it is given up.
            match self.is_reached {
                true => {
                    tracing::warn!(operation = what, attempt = consecutive, ?wait, %error, "failed, retrying");
                }
                false => {
                    tracing::info!(operation = what, attempt = consecutive, ?wait, %error, "failed, retrying");
                }
            }
            let until = self.clock.now() + wait;
            self.notify(
                what,
                RetryPhase::Waiting,
                consecutive,
                &last_error,
                Some(until),
            );
            self.clock.sleep(wait);
            consecutive += 1;
        }
    }

    /// Whether the policy allows another attempt.
    fn may_retry(&self, consecutive: u32, start: SystemTime) -> bool {
        if self.is_reached {
            return consecutive < self.policy.max_attempts;
        }
        let elapsed = self.clock.now().duration_since(start).unwrap_or_default();
        let attempts = self.policy.max_attempts.min(FIRST_CONTACT_ATTEMPTS);
        consecutive < attempts && elapsed < FIRST_CONTACT_TIME
    }

    fn final_error(&self, what: &str, error: HubError) -> HubError {
        if !error.is_transient() {
            return error;
        }
        HubError::RetriesExhausted {
            what: what.into(),
            failures: self.failures.clone(),
            last: Box::new(error),
        }
    }

    /// The backoff after an attempt: doubled each time, times a random factor from 0.5 to 1, and at least the wait that
    /// the server requested. Never more than the policy allows.
    fn wait_after(&mut self, consecutive: u32, requested: Option<Duration>) -> Duration {
        let multiple = 1_u32 << (consecutive - 1).min(20);
        let backoff = self.policy.initial_wait.saturating_mul(multiple);
        let backoff = backoff.min(self.policy.max_wait);
        let factor = 0.5 + f64::from(self.jitter.next_u32()) / f64::from(u32::MAX) / 2.0;
        let jittered = backoff.mul_f64(factor);
        // Clients that received the same Retry-After must not all retry at the same time.
        let requested = requested.map_or(Duration::ZERO, |requested| requested + jittered / 4);
        jittered.max(requested).min(self.policy.max_wait)
    }

    fn notify(
        &mut self,
        what: &str,
        phase: RetryPhase,
        attempt: u32,
        last_error: &Option<String>,
        until: Option<SystemTime>,
    ) {
        let since_epoch = until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
        (self.observer)(&RetryState {
            operation: what.into(),
            phase,
            attempt,
            attempts: self.policy.max_attempts,
            last_error: last_error.clone(),
            next_try_at_ms: since_epoch.map(|since| since.as_millis() as u64),
        });
    }
}

#[cfg(test)]
mod tests;
