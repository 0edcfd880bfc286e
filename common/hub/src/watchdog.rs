//! Tries an operation until it succeeds, fails for good, or has failed too often.
//!
//! Waits grow exponentially and are jittered from a seed; a server's Retry-After is honoured. An operation that moves
//! forward (a part is sent, some megabytes are here) starts its count anew: eight attempts means eight in a row that
//! brought nothing. Clock and sleep are injected, so that tests neither wait nor depend on time. The limits of a single
//! request (silence, duration) belong to [`crate::Limits`]; here is only what happens between requests.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::HubError;

/// How often and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in a row without progress; at least one is made.
    pub attempts: u32,
    /// About how long the first wait is.
    pub first_wait: Duration,
    /// No wait is longer, whatever the server asks.
    pub longest_wait: Duration,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 8,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(300),
            seed: 0,
        }
    }
}

impl Policy {
    /// So many attempts in a row, and no longer wait; two processes do not wait for the same moments.
    pub fn of(attempts: u32, longest_wait: Duration) -> Self {
        Self {
            attempts,
            longest_wait,
            seed: std::process::id().into(),
            ..Self::default()
        }
    }
}

/// Time, as the watchdog sees it.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> SystemTime;
    /// Waits.
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

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Its number, from 1, over the whole operation.
    pub number: u32,
    /// The class of the error in one word.
    #[serde(skip_deserializing)]
    pub class: &'static str,
    /// The error.
    pub error: String,
    /// Whether it had moved forward before it failed.
    pub progressed: bool,
    /// The wait that followed, in milliseconds; `None` after the last.
    pub waited_ms: Option<u64>,
}

/// What the watchdog is doing, for whoever shows or stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchState {
    /// The operation.
    pub operation: String,
    /// Trying, waiting, done or given up.
    pub phase: Phase,
    /// Attempts in a row without progress, with the present one.
    pub attempt: u32,
    /// How many are allowed.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When the next attempt is, in milliseconds since 1970; while waiting.
    pub next_try_at_ms: Option<u64>,
}

impl WatchState {
    /// After a failure: the attempt that comes or has begun, how long it waits, and what failed.
    pub fn retry(&self) -> Option<(u32, Duration, &str)> {
        let error = self.last_error.as_deref()?;
        match self.phase {
            Phase::Waiting => Some((self.attempt + 1, self.wait(), error)),
            Phase::Trying => Some((self.attempt, Duration::ZERO, error)),
            Phase::Done | Phase::GivenUp => None,
        }
    }

    fn wait(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let until = Duration::from_millis(self.next_try_at_ms.unwrap_or(0));
        until.saturating_sub(now.unwrap_or_default())
    }
}

/// What the watchdog is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// An attempt is under way.
    Trying,
    /// Between two attempts.
    Waiting,
    /// The operation succeeded.
    Done,
    /// It failed for good.
    GivenUp,
}

/// What an operation tells about its attempt.
#[derive(Debug, Default)]
pub struct Attempt {
    progressed: bool,
}

impl Attempt {
    /// Something is done that a later attempt need not do again.
    pub fn progressed(&mut self) {
        self.progressed = true;
    }
}

/// Who is told of every change.
type Observer<'a> = Box<dyn FnMut(&WatchState) + Send + 'a>;

/// Runs operations by a policy.
pub struct Watchdog<'a> {
    policy: Policy,
    clock: Arc<dyn Clock>,
    jitter: ChaCha8Rng,
    observer: Observer<'a>,
    tried: Vec<Tried>,
}

impl std::fmt::Debug for Watchdog<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Watchdog");
        out.field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<'a> Watchdog<'a> {
    /// With the system's clock and nobody told.
    pub fn new(policy: Policy) -> Self {
        Self::with_clock(policy, Arc::new(SystemClock))
    }

    /// With a clock of the caller's.
    pub fn with_clock(policy: Policy, clock: Arc<dyn Clock>) -> Self {
        Self {
            policy,
            clock,
            jitter: ChaCha8Rng::seed_from_u64(policy.seed),
            observer: Box::new(|_| {}),
            tried: Vec::new(),
        }
    }

    /// Tells `observer` of every change of state.
    #[must_use]
    pub fn observed(mut self, observer: impl FnMut(&WatchState) + Send + 'a) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Attempts of the last operation that failed.
    pub fn tried(&self) -> &[Tried] {
        &self.tried
    }

    /// Runs an operation.
    ///
    /// # Errors
    /// The operation's own error if it is final, [`HubError::GaveUp`] with every attempt otherwise.
    pub fn run<T>(
        &mut self,
        what: &str,
        mut operation: impl FnMut(&mut Attempt) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        self.tried.clear();
        let (mut in_a_row, mut last_error) = (1, None);
        loop {
            self.tell(what, Phase::Trying, in_a_row, &last_error, None);
            let mut attempt = Attempt::default();
            let error = match operation(&mut attempt) {
                Ok(value) => {
                    self.tell(what, Phase::Done, in_a_row, &last_error, None);
                    return Ok(value);
                }
                Err(error) => error,
            };
            if attempt.progressed {
                in_a_row = 1;
            }
            let again = error.is_transient() && in_a_row < self.policy.attempts;
            let wait = again.then(|| self.wait_after(in_a_row, error.retry_after()));
            last_error = Some(error.to_string());
            self.tried.push(Tried {
                number: self.tried.len() as u32 + 1,
                class: error.class(),
                error: error.to_string(),
                progressed: attempt.progressed,
                waited_ms: wait.map(|wait| wait.as_millis() as u64),
            });
            let Some(wait) = wait else {
                self.tell(what, Phase::GivenUp, in_a_row, &last_error, None);
                return Err(self.final_word(what, error));
            };
            tracing::warn!(operation = what, attempt = in_a_row, ?wait, %error, "failed, trying again");
            let until = self.clock.now() + wait;
            self.tell(what, Phase::Waiting, in_a_row, &last_error, Some(until));
            self.clock.sleep(wait);
            in_a_row += 1;
        }
    }

    fn final_word(&self, what: &str, error: HubError) -> HubError {
        if !error.is_transient() {
            return error;
        }
        HubError::GaveUp {
            what: what.into(),
            tried: self.tried.clone(),
            last: Box::new(error),
        }
    }

    /// Doubles from attempt to attempt, between half and whole at random; never less than the server asks.
    fn wait_after(&mut self, in_a_row: u32, asked: Option<Duration>) -> Duration {
        let doubled = 1_u32 << (in_a_row - 1).min(20);
        let whole = self.policy.first_wait.saturating_mul(doubled);
        let whole = whole.min(self.policy.longest_wait);
        let share = 0.5 + f64::from(self.jitter.next_u32()) / f64::from(u32::MAX) / 2.0;
        let jittered = whole.mul_f64(share);
        // A crowd that was told the same moment must not come back at the same moment.
        let asked = asked.map_or(Duration::ZERO, |asked| asked + jittered / 4);
        jittered.max(asked).min(self.policy.longest_wait)
    }

    fn tell(
        &mut self,
        what: &str,
        phase: Phase,
        attempt: u32,
        last_error: &Option<String>,
        until: Option<SystemTime>,
    ) {
        let since = until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
        (self.observer)(&WatchState {
            operation: what.into(),
            phase,
            attempt,
            attempts: self.policy.attempts,
            last_error: last_error.clone(),
            next_try_at_ms: since.map(|since| since.as_millis() as u64),
        });
    }
}

#[cfg(test)]
mod tests;
