//! A client of the Hugging Face Hub over plain HTTP, made for transfers that take hours.
//!
//! It lists repositories, resumes interrupted downloads, uploads only what the remote lacks, and retries transient errors.
//! A downloaded file appears under its name only after its content has been checked against the Hub's digest. An uploaded
//! file is identified by its SHA-256. All calls block; threads may share a [`Hub`].
//!
//! The crate draws no progress display and makes no decision about a run. It checks every path and size that a response
//! contains before use. It sends the token to no origin other than the endpoint's. `docs/decisions/0010-hub-client.md`
//! describes the protocol.
//!
//! | module | what it owns |
//! |---|---|
//! | `endpoint` | [`Endpoint`], [`Token`]: address and credentials |
//! | `repo`, `git_id`, `digest` | [`RepoName`], [`RepoRef`], [`CommitId`], [`BlobId`], [`FileId`]: names and ids |
//! | `url` | origins, redacted URLs, percent-encoding |
//! | `http` | one request with redirects and [`Limits`], its response or error |
//! | `listing` | [`Hub::info`], [`Hub::head`], [`Hub::tree`] |
//! | `download` | [`Hub::download`], [`Hub::read_prefix`] |
//! | `local_file` | [`LocalFile`]: a file to be uploaded |
//! | `upload` | [`Hub::push`], [`Hub::upload_without_commit`] and the single steps of an upload |
//! | `retry` | [`Retrier`]: attempts, waits and their record |
//! | `error` | [`HubError`]: what went wrong, and whether a retry may succeed |

mod digest;
mod download;
mod endpoint;
mod error;
mod git_id;
mod http;
mod listing;
mod local_file;
mod repo;
mod retry;
mod upload;
mod url;

pub use digest::{FileId, blob_id};
pub use download::DownloadOutcome;
pub use endpoint::{Endpoint, Token};
pub use error::{ErrorDetail, HubError, RequestContext};
pub use git_id::{BlobId, CommitId};
pub use http::Limits;
pub use listing::{RemoteFile, Snapshot};
pub use local_file::LocalFile;
pub use repo::{RepoName, RepoRef};
pub use retry::{
    Attempt, Clock, FailedAttempt, Retrier, RetryPhase, RetryPolicy, RetryState, SystemClock,
};
pub use upload::{
    BatchAction, CommitOutcome, Difference, Preupload, PushOutcome, RepoCreation, UploadMode,
    UploadState, Visibility, differences,
};

/// Progress of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes transferred, those of earlier attempts included.
    pub done: u64,
    /// Bytes in total.
    pub total: u64,
}

/// A client for one Hub.
#[derive(Debug, Clone)]
pub struct Hub {
    http: http::HttpClient,
}

impl Hub {
    /// A client for an endpoint.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] if `SSL_CERT_FILE` is set but holds no certificate.
    pub fn new(endpoint: Endpoint, limits: Limits) -> Result<Self, HubError> {
        Ok(Self {
            http: http::HttpClient::new(endpoint, limits)?,
        })
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.http.endpoint
    }

    /// A URL of the API for model repositories.
    fn model_api_url(&self, repo: &RepoName, path: &str) -> String {
        format!("{}/api/models/{repo}{path}", self.endpoint().url())
    }
}
