//! Log output of all programs: plain text or JSON, always on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `verbosity` is the number of `-v`; `quiet` leaves only errors. `UC_LOG` overrides both.
pub fn init(verbosity: u8, quiet: bool, format: LogFormat) {
    let level = match (quiet, verbosity) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("UC_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let use_colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(use_colour)
        // A message about a line that cannot be written could not be written either.
        .log_internal_errors(false)
        .with_target(false);
    // In tests, a second call in the same process keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
