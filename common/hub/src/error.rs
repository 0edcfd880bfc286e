//! The error type of the client, and its division into transient errors, which a retry may cure, and permanent ones.
//!
//! An error names the request without its query (signed URLs carry their credential there), the request id that the Hub
//! assigned (for a report to its operators), and what was found and expected. No variant holds a token: every text from a
//! server passes through [`crate::Token::scrub`] first.

use std::fmt;
use std::time::Duration;

use camino::Utf8PathBuf;
use uc_store::{ExitCode, StoreError};

use crate::retry::FailedAttempt;

/// The request that an error belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestContext {
    /// The HTTP method.
    pub method: &'static str,
    /// The URL without user information, query and fragment.
    pub url: Box<str>,
    /// The id that the server assigned to the request, if any.
    pub request_id: Option<Box<str>>,
}

impl fmt::Display for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)?;
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

/// What a server's response says about an error, beside the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorDetail {
    /// `X-Error-Code`, such as `RepoNotFound`.
    pub code: Option<Box<str>>,
    /// `X-Error-Message`, or the error message in the body.
    pub message: Option<Box<str>>,
}

impl fmt::Display for ErrorDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.code, &self.message) {
            (Some(code), Some(message)) => write!(f, ": {code}, {message}"),
            (Some(text), None) | (None, Some(text)) => write!(f, ": {text}"),
            (None, None) => Ok(()),
        }
    }
}

/// An error of the Hub, of the connection, of a local file, or of a name given by the caller.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    // ---- transient
    /// The server failed (5xx, 408).
    #[error("{request}: status {status}{detail}")]
    Server {
        /// The request.
        request: RequestContext,
        /// The status.
        status: u16,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// The server requests a later retry (429, or 5xx and 408 with Retry-After).
    #[error("{request}: status {status}, too many requests{}{detail}", retry_note(*retry_after))]
    Busy {
        /// The request.
        request: RequestContext,
        /// The status.
        status: u16,
        /// The wait that the server requests.
        retry_after: Option<Duration>,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// The connection could not be made, or broke.
    #[error("{request}: connection lost: {reason}")]
    Connection {
        /// The request.
        request: RequestContext,
        /// The message of the operating system or the HTTP library.
        reason: String,
    },
    /// The server was not reached: its name is unknown, or nothing answers at its address.
    #[error("{request}: the server cannot be reached: {reason}")]
    Unreachable {
        /// The request.
        request: RequestContext,
        /// The message of the operating system or the HTTP library.
        reason: String,
    },
    /// The whole request took too long.
    #[error("{request}: not finished after {limit:?}")]
    Timeout {
        /// The request.
        request: RequestContext,
        /// The limit that was reached.
        limit: Duration,
    },
    /// No byte was sent or received for too long.
    #[error("{request}: no data for {limit:?}")]
    Stalled {
        /// The request.
        request: RequestContext,
        /// The limit that was reached.
        limit: Duration,
    },
    /// The response body ended early.
    #[error("{request}: the body ended early: found {found} bytes, expected {expected}")]
    Truncated {
        /// The request.
        request: RequestContext,
        /// Bytes received.
        found: u64,
        /// Bytes of the whole body.
        expected: u64,
    },
    /// The server sent a range other than the one requested. The download starts over.
    #[error("{request}: found range {found}, expected {expected}")]
    Range {
        /// The request.
        request: RequestContext,
        /// The range in the response.
        found: String,
        /// The range requested.
        expected: String,
    },
    /// An upload must start over: its URLs expired, storage has dropped it, or it arrived damaged.
    #[error("{request}: status {status}, the upload of {file} must start over{detail}")]
    UploadLost {
        /// The request.
        request: RequestContext,
        /// The status.
        status: u16,
        /// The file.
        file: String,
        /// What the response says.
        detail: ErrorDetail,
    },
    // ---- transient once, then permanent
    /// The digest of the bytes received is not the one that the Hub states.
    #[error("{file}: {kind} found {found}, expected {expected}{}", if *repeated { ", twice" } else { "" })]
    DigestMismatch {
        /// The file in the repository.
        file: String,
        /// The kind of digest: SHA-256 or git blob.
        kind: &'static str,
        /// The digest of the bytes received.
        found: String,
        /// The digest that the Hub states.
        expected: String,
        /// Whether a second download of the whole file failed in the same way.
        repeated: bool,
    },
    // ---- permanent
    /// 401: no token, or one that the Hub does not accept.
    #[error("{request}: status 401, not authorized{detail}")]
    Unauthorized {
        /// The request.
        request: RequestContext,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// 403: the token lacks a permission, or the repository is gated.
    #[error("{request}: status 403, forbidden{detail}")]
    Forbidden {
        /// The request.
        request: RequestContext,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// 404: the repository, the revision or the file does not exist.
    #[error("{request}: status 404, not found{detail}")]
    NotFound {
        /// The request.
        request: RequestContext,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// A limit on file size or on the account's storage is exceeded (402, 413, 507, or a 403 that says so).
    #[error("{request}: status {status}, a size or storage limit is exceeded{detail}")]
    Quota {
        /// The request.
        request: RequestContext,
        /// The status.
        status: u16,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// 409, 412: another commit was made in the meantime.
    #[error("{request}: status {status}, conflict: the branch is no longer at {expected}{detail}")]
    Conflict {
        /// The request.
        request: RequestContext,
        /// The status.
        status: u16,
        /// The parent of the refused commit.
        expected: String,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// Any other status.
    #[error("{request}: status {status}, refused{detail}")]
    Refused {
        /// The request.
        request: RequestContext,
        /// The status.
        status: u16,
        /// What the response says.
        detail: ErrorDetail,
    },
    /// A file no longer has a property that the listing of its commit states.
    #[error("{request}: {what} found {found}, expected {expected}")]
    Changed {
        /// The request.
        request: RequestContext,
        /// The property.
        what: &'static str,
        /// Its current value.
        found: String,
        /// Its value in the listing.
        expected: String,
    },
    /// A response does not have the documented form.
    #[error("{request}: found {found}, expected {expected}")]
    Malformed {
        /// The request.
        request: RequestContext,
        /// What the response contains.
        found: String,
        /// What it should contain.
        expected: String,
    },
    /// The environment forbids the network.
    #[error("{request}: not sent, because HF_HUB_OFFLINE is set")]
    Offline {
        /// The request.
        request: RequestContext,
    },
    /// A redirect that must not be followed.
    #[error("{request}: redirect to {to} not followed: {reason}")]
    Redirect {
        /// The request.
        request: RequestContext,
        /// The target, without user information and query.
        to: String,
        /// Why it was not followed.
        reason: &'static str,
    },
    /// The TLS handshake failed or the server's certificate is not trusted.
    #[error("{request}: no secure connection: {reason}")]
    Insecure {
        /// The request.
        request: RequestContext,
        /// The message of the TLS library.
        reason: String,
    },
    /// The repository's .gitignore excludes a file.
    #[error(
        "{file} is excluded by the repository's .gitignore, expected a file that it does not exclude"
    )]
    Ignored {
        /// The file in the repository.
        file: String,
    },
    /// A name or an address is invalid.
    #[error("{what} found `{found}`, expected {expected}")]
    InvalidName {
        /// The kind of name.
        what: &'static str,
        /// The name.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A local file changed during its upload.
    #[error("{path} changed during its upload: found {found}, expected {expected}")]
    LocalChanged {
        /// The file.
        path: Utf8PathBuf,
        /// Its current size or digest.
        found: String,
        /// Its size or digest before the upload.
        expected: String,
    },
    /// A file on disk could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The last attempt that the retry policy allows failed too.
    #[error("{what}: gave up after {} attempts, {}; last: {last}", failures.len(), summary(failures))]
    RetriesExhausted {
        /// The operation.
        what: String,
        /// All failed attempts.
        failures: Vec<FailedAttempt>,
        /// The error of the last attempt.
        last: Box<HubError>,
    },
}

fn retry_note(wait: Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(", retry after {wait:?}"))
}

/// The number of failures of each error class, most frequent first.
fn summary(failures: &[FailedAttempt]) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for failure in failures {
        *counts.entry(failure.class).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(class, count)| (std::cmp::Reverse(count), class));
    let counts: Vec<_> = counts
        .iter()
        .map(|(class, count)| format!("{class} {count}"))
        .collect();
    counts.join(", ")
}

impl HubError {
    /// The exit code for this error. `None` for [`HubError::Store`], whose own error determines the code.
    pub fn exit_code(&self) -> Option<ExitCode> {
        match self.cause() {
            Self::Unauthorized { .. } | Self::Forbidden { .. } => Some(ExitCode::Permission),
            Self::NotFound { .. } | Self::InvalidName { .. } | Self::Ignored { .. } => {
                Some(ExitCode::BadInput)
            }
            Self::LocalChanged { .. } => Some(ExitCode::Damaged),
            Self::Store(_) => None,
            _ => Some(ExitCode::Network),
        }
    }

    /// Whether a retry of the same operation may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Server { .. }
            | Self::Busy { .. }
            | Self::Connection { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Truncated { .. }
            | Self::Range { .. }
            | Self::UploadLost { .. } => true,
            Self::DigestMismatch { repeated, .. } => !repeated,
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Quota { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::Changed { .. }
            | Self::Malformed { .. }
            | Self::Offline { .. }
            | Self::Redirect { .. }
            | Self::Insecure { .. }
            | Self::Ignored { .. }
            | Self::InvalidName { .. }
            | Self::LocalChanged { .. }
            | Self::Store(_)
            | Self::RetriesExhausted { .. } => false,
        }
    }

    /// The wait that the server requested.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error class in one word, for logs, retry states and summaries.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Server { .. } => "server",
            Self::Busy { .. } => "busy",
            Self::Connection { .. } => "connection",
            Self::Unreachable { .. } => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::Stalled { .. } => "stalled",
            Self::Truncated { .. } => "truncated",
            Self::Range { .. } => "range",
            Self::UploadLost { .. } => "upload-lost",
            Self::DigestMismatch { .. } => "digest",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound { .. } => "not-found",
            Self::Quota { .. } => "quota",
            Self::Conflict { .. } => "conflict",
            Self::Refused { .. } => "refused",
            Self::Changed { .. } => "changed",
            Self::Malformed { .. } => "malformed",
            Self::Offline { .. } => "offline",
            Self::Redirect { .. } => "redirect",
            Self::Insecure { .. } => "insecure",
            Self::Ignored { .. } => "ignored",
            Self::InvalidName { .. } => "invalid-name",
            Self::LocalChanged { .. } => "local-changed",
            Self::Store(_) => "store",
            Self::RetriesExhausted { .. } => "retries-exhausted",
        }
    }

    /// The last error behind a [`HubError::RetriesExhausted`], or the error itself.
    pub fn cause(&self) -> &Self {
        match self {
            Self::RetriesExhausted { last, .. } => last.cause(),
            other => other,
        }
    }
}
