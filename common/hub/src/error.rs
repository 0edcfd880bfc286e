//! Everything that can go wrong between here and the Hub, told apart by whether trying again may help.
//!
//! An error names the request without its query (signed URLs carry their credential there), the Hub's own request id
//! for a report to its operators, and what was found and expected. No variant can hold a token: texts of a server go
//! through [`crate::Token::scrub`] before they come here.

use std::fmt;
use std::time::Duration;

use camino::Utf8PathBuf;
use uc_store::{ExitCode, StoreError};

use crate::watchdog::Tried;

/// Which request an error belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// GET, HEAD, POST, PUT.
    pub method: &'static str,
    /// The URL without user, query and fragment.
    pub url: Box<str>,
    /// The server's id of the request, if it gave one.
    pub request_id: Option<Box<str>>,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)?;
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

/// What a server said beside its status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// `X-Error-Code`, such as `RepoNotFound`.
    pub code: Option<Box<str>>,
    /// `X-Error-Message`, or the body's `error`.
    pub message: Option<Box<str>>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.code, &self.message) {
            (Some(code), Some(message)) => write!(f, ": {code}, {message}"),
            (Some(only), None) | (None, Some(only)) => write!(f, ": {only}"),
            (None, None) => Ok(()),
        }
    }
}

/// An error of the Hub, of the way to it, or of what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    // ---- transient: trying again may help
    /// The server has a problem of its own (5xx, 408).
    #[error("{at}: status {status}{said}")]
    Server {
        /// The request.
        at: At,
        /// The status.
        status: u16,
        /// What the server said.
        said: Said,
    },
    /// The server asks to come back later (429, or 503 with Retry-After).
    #[error("{at}: status {status}, too many requests{}{said}", after(*retry_after))]
    Busy {
        /// The request.
        at: At,
        /// The status.
        status: u16,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
        /// What the server said.
        said: Said,
    },
    /// No connection, or a connection that broke.
    #[error("{at}: connection lost: {reason}")]
    Connection {
        /// The request.
        at: At,
        /// The system's word.
        reason: String,
    },
    /// The request as a whole took too long.
    #[error("{at}: not done after {limit:?}")]
    Timeout {
        /// The request.
        at: At,
        /// The limit that was reached.
        limit: Duration,
    },
    /// Not a byte went in either direction for too long.
    #[error("{at}: no byte moved for {silent:?}")]
    Stalled {
        /// The request.
        at: At,
        /// The limit that was reached.
        silent: Duration,
    },
    /// The body ended before its end.
    #[error("{at}: the body ended early: found {found} bytes, expected {expected}")]
    Cut {
        /// The request.
        at: At,
        /// Bytes that are here.
        found: u64,
        /// Bytes that the whole has.
        expected: u64,
    },
    /// The server sent another range than the one asked for; the download begins again.
    #[error("{at}: found range {found}, expected {expected}")]
    Range {
        /// The request.
        at: At,
        /// What the server sent.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// An upload has to begin again: its URLs expired, it is gone, or what arrived is not what was sent.
    #[error("{at}: status {status}, the upload of {file} has to begin again{said}")]
    UploadLost {
        /// The request.
        at: At,
        /// The status.
        status: u16,
        /// The file.
        file: String,
        /// What the server said.
        said: Said,
    },
    // ---- transient once, then final
    /// The bytes received are not those that the Hub describes.
    #[error("{file}: {kind} found {found}, expected {expected}{}", if *repeated { ", twice" } else { "" })]
    Hash {
        /// The file in the repository.
        file: String,
        /// SHA-256, git blob.
        kind: &'static str,
        /// What came.
        found: String,
        /// What the Hub says it is.
        expected: String,
        /// Whether it happened again after a second whole download.
        repeated: bool,
    },
    // ---- final
    /// 401: no token, or one that the Hub does not know.
    #[error("{at}: status 401, not authorised{said}")]
    Unauthorised {
        /// The request.
        at: At,
        /// What the server said.
        said: Said,
    },
    /// 403: the token may not do this, or the repository is gated.
    #[error("{at}: status 403, forbidden{said}")]
    Forbidden {
        /// The request.
        at: At,
        /// What the server said.
        said: Said,
    },
    /// 404: repository, revision or file is not there.
    #[error("{at}: status 404, not found{said}")]
    NotFound {
        /// The request.
        at: At,
        /// What the server said.
        said: Said,
    },
    /// The file or the account's storage is over a limit (402, 413, 507, or a 403 that says so).
    #[error("{at}: status {status}, over a limit of size or storage{said}")]
    Quota {
        /// The request.
        at: At,
        /// The status.
        status: u16,
        /// What the server said.
        said: Said,
    },
    /// 409, 412: somebody else committed first.
    #[error("{at}: status {status}, conflict: the branch is no longer at {expected}{said}")]
    Conflict {
        /// The request.
        at: At,
        /// The status.
        status: u16,
        /// The commit on which ours was based.
        expected: String,
        /// What the server said.
        said: Said,
    },
    /// Another 4xx.
    #[error("{at}: status {status}, refused{said}")]
    Refused {
        /// The request.
        at: At,
        /// The status.
        status: u16,
        /// What the server said.
        said: Said,
    },
    /// What stands under the commit is not what its listing said.
    #[error("{at}: {what} found {found}, expected {expected}")]
    Changed {
        /// The request.
        at: At,
        /// Which property.
        what: &'static str,
        /// Its value now.
        found: String,
        /// Its value in the listing.
        expected: String,
    },
    /// An answer that does not have the form that the interface promises.
    #[error("{at}: found {found}, expected {expected}")]
    Malformed {
        /// The request.
        at: At,
        /// What came.
        found: String,
        /// What should come.
        expected: String,
    },
    /// A redirect that must not be followed.
    #[error("{at}: redirect to {to} not followed: {reason}")]
    Redirect {
        /// The request.
        at: At,
        /// Whereto, without query.
        to: String,
        /// Why not.
        reason: &'static str,
    },
    /// The server's certificate or the TLS handshake is bad.
    #[error("{at}: no secure connection: {reason}")]
    Insecure {
        /// The request.
        at: At,
        /// The library's word.
        reason: String,
    },
    /// The repository's .gitignore excludes a file.
    #[error("{file} is excluded by the repository's .gitignore, expected a file that it takes")]
    Ignored {
        /// The file in the repository.
        file: String,
    },
    /// A name or address that cannot be used.
    #[error("{what} found `{found}`, expected {expected}")]
    Name {
        /// What it names.
        what: &'static str,
        /// The name.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A local file changed while it was sent.
    #[error("{path} changed while it was sent: {found}, expected {expected}")]
    LocalChanged {
        /// The file.
        path: Utf8PathBuf,
        /// What it is now.
        found: String,
        /// What it was.
        expected: String,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The watchdog's last attempt failed as well.
    #[error("{what}: gave up after {} attempts, {}; last: {last}", tried.len(), summary(tried))]
    GaveUp {
        /// The operation.
        what: String,
        /// Every attempt.
        tried: Vec<Tried>,
        /// The last error.
        last: Box<HubError>,
    },
}

fn after(wait: Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(", come back in {wait:?}"))
}

/// How often each class of error came, most frequent first.
fn summary(tried: &[Tried]) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for attempt in tried {
        *counts.entry(attempt.class).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(class, count)| (std::cmp::Reverse(count), class));
    let words: Vec<_> = counts
        .iter()
        .map(|(class, count)| format!("{class} {count}"))
        .collect();
    words.join(", ")
}

impl HubError {
    /// The class of the failure for an exit status; `None` where the store's error says it.
    pub fn exit_code(&self) -> Option<ExitCode> {
        match self.cause() {
            Self::Unauthorised { .. } | Self::Forbidden { .. } => Some(ExitCode::Permission),
            Self::NotFound { .. } | Self::Name { .. } | Self::Ignored { .. } => {
                Some(ExitCode::BadInput)
            }
            Self::LocalChanged { .. } => Some(ExitCode::Damaged),
            Self::Store(_) => None,
            _ => Some(ExitCode::Network),
        }
    }

    /// Whether trying the same thing again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Server { .. }
            | Self::Busy { .. }
            | Self::Connection { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Cut { .. }
            | Self::Range { .. }
            | Self::UploadLost { .. } => true,
            Self::Hash { repeated, .. } => !repeated,
            Self::Unauthorised { .. }
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Quota { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::Changed { .. }
            | Self::Malformed { .. }
            | Self::Redirect { .. }
            | Self::Insecure { .. }
            | Self::Ignored { .. }
            | Self::Name { .. }
            | Self::LocalChanged { .. }
            | Self::Store(_)
            | Self::GaveUp { .. } => false,
        }
    }

    /// How long the server asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The class in one word, for logs, states and summaries.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Server { .. } => "server",
            Self::Busy { .. } => "busy",
            Self::Connection { .. } => "connection",
            Self::Timeout { .. } => "timeout",
            Self::Stalled { .. } => "stalled",
            Self::Cut { .. } => "cut",
            Self::Range { .. } => "range",
            Self::UploadLost { .. } => "upload-lost",
            Self::Hash { .. } => "hash",
            Self::Unauthorised { .. } => "unauthorised",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound { .. } => "not-found",
            Self::Quota { .. } => "quota",
            Self::Conflict { .. } => "conflict",
            Self::Refused { .. } => "refused",
            Self::Changed { .. } => "changed",
            Self::Malformed { .. } => "malformed",
            Self::Redirect { .. } => "redirect",
            Self::Insecure { .. } => "insecure",
            Self::Ignored { .. } => "ignored",
            Self::Name { .. } => "name",
            Self::LocalChanged { .. } => "local-changed",
            Self::Store(_) => "store",
            Self::GaveUp { .. } => "gave-up",
        }
    }

    /// The error behind a [`HubError::GaveUp`], or the error itself.
    pub fn cause(&self) -> &Self {
        match self {
            Self::GaveUp { last, .. } => last.cause(),
            other => other,
        }
    }
}
