//! Access to the Hub that both kinds of download share: the connection, retries, and where headers of shards are kept.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use uc_hub::{Endpoint, Hub, HubError, Limits, Retrier, RetryPolicy};
use uc_model::source;

/// Interval between progress reports to the driver.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The environment variable with the number of attempts, for runs that `uc` starts.
const ATTEMPTS_VARIABLE: &str = "UC_HUB_ATTEMPTS";

/// When downloads are retried.
#[derive(Debug, Clone, clap::Args)]
pub struct RetryArgs {
    /// Attempts in a row without progress before the download gives up; by default UC_HUB_ATTEMPTS or 8
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: Option<u32>,
    /// Longest wait between two attempts, in seconds
    #[arg(long, default_value_t = 300)]
    longest_wait: u64,
}

impl RetryArgs {
    /// A retrier with the limits in the arguments or in the environment.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] if the variable is not a number from 1 to 1000.
    pub fn retrier<'a>(&self) -> Result<Retrier<'a>, HubError> {
        Ok(self.with_attempts(self.attempts()?))
    }

    /// Like [`RetryArgs::retrier`], for the start of a download that somebody waits for: unless a number of attempts was
    /// requested, it gives up within seconds if the Hub cannot be reached at all.
    ///
    /// # Errors
    /// As for [`RetryArgs::retrier`].
    pub fn first_retrier<'a>(&self) -> Result<Retrier<'a>, HubError> {
        let attempts = self.attempts()?;
        let retrier = self.with_attempts(attempts);
        Ok(match attempts {
            Some(_) => retrier,
            None => retrier.failing_fast(),
        })
    }

    fn with_attempts<'a>(&self, attempts: Option<u32>) -> Retrier<'a> {
        let longest_wait = Duration::from_secs(self.longest_wait);
        let attempts = attempts.unwrap_or(RetryPolicy::default().max_attempts);
        Retrier::new(RetryPolicy::new(attempts, longest_wait))
    }

    /// The requested number of attempts.
    fn attempts(&self) -> Result<Option<u32>, HubError> {
        let variable = std::env::var(ATTEMPTS_VARIABLE).ok();
        let variable = variable.filter(|text| !text.trim().is_empty());
        match (self.attempts, variable) {
            (Some(attempts), _) => Ok(Some(attempts)),
            (None, None) => Ok(None),
            (None, Some(text)) => {
                let attempts = text.trim().parse().ok();
                let attempts = attempts.filter(|attempts| (1..=1000).contains(attempts));
                attempts.map(Some).ok_or_else(|| HubError::InvalidName {
                    what: ATTEMPTS_VARIABLE,
                    found: uc_input::printable(&text).into_owned(),
                    expected: "a number from 1 to 1000",
                })
            }
        }
    }
}

/// A client for the Hub that the environment specifies.
pub fn connect() -> Result<Hub, HubError> {
    Hub::new(Endpoint::from_env()?, Limits::default())
}

/// Path of the file that holds the header of a shard, next to the shard.
pub fn header_path(shard: &Utf8Path) -> Utf8PathBuf {
    let path = source::header_path(shard.as_std_path());
    Utf8PathBuf::from_path_buf(path).expect("a UTF-8 path with a UTF-8 suffix")
}
