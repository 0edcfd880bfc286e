//! Access to the Hub that both kinds of download share: the connection, retries, and where headers of shards are kept.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use uc_hub::{Endpoint, Hub, HubError, Limits, Retrier, RetryPolicy};
use uc_model::source;

/// Interval between progress reports to the driver.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// When downloads are retried.
#[derive(Debug, Clone, clap::Args)]
pub struct RetryArgs {
    /// Attempts in a row without progress before the download gives up
    #[arg(long, default_value_t = RetryPolicy::default().max_attempts, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,
    /// Longest wait between two attempts, in seconds
    #[arg(long, default_value_t = 300)]
    longest_wait: u64,
}

impl RetryArgs {
    /// A retrier with the limits in the arguments.
    pub fn retrier<'a>(&self) -> Retrier<'a> {
        let longest_wait = Duration::from_secs(self.longest_wait);
        Retrier::new(RetryPolicy::new(self.attempts, longest_wait))
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
