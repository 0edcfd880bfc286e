//! A client of the Hugging Face Hub over plain HTTP, made for files that take hours.
//!
//! Owns where the Hub is and the token for it, what a repository holds, downloads that go on where they were cut,
//! uploads that send only what the remote lacks, and the watchdog over both. Every byte that comes is checked against
//! the Hub's own digest before a file appears under its name; every file that goes is known by its SHA-256. Blocking;
//! a [`Hub`] may be shared by threads.
//!
//! It never draws, never decides what a run does, never takes an answer's word for a path or a size without a check,
//! and never sends the token to another origin than the endpoint's. The wire is described in
//! `docs/decisions/0010-hub-client.md`.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Endpoint`], [`Token`] | address and secret |
//! | [`RepoName`], [`RepoRef`], [`CommitId`], [`BlobId`], [`FileId`] | names and identities |
//! | `listing` | [`Hub::info`], [`Hub::tree`] |
//! | `download` | [`Hub::download`], [`Hub::beginning`] |
//! | `upload` | [`Hub::create_repo`], [`Hub::preupload`], [`Hub::lfs_batch`], [`Hub::send_lfs`], [`Hub::commit`] |
//! | `push` | [`Hub::push`]: all of the upload, from what the remote lacks to the commit; [`Hub::store`]: all but the commit |
//! | [`Watchdog`] | attempts, waits, their record |
//! | [`HubError`] | what went wrong, and whether trying again may help |

mod answer;
mod digest;
mod download;
mod endpoint;
mod error;
mod http;
mod listing;
mod local;
mod name;
mod push;
mod upload;
mod watchdog;

pub use digest::{FileId, blob_id};
pub use download::Downloaded;
pub use endpoint::{Endpoint, Token};
pub use error::{At, HubError, Said};
pub use http::Limits;
pub use listing::{RemoteFile, Snapshot};
pub use local::LocalFile;
pub use name::{BlobId, CommitId, RepoName, RepoRef};
pub use push::{Difference, Pushed, differences};
pub use upload::{BatchAction, Committed, Created, Mode, Preupload, UploadState, Visibility};
pub use watchdog::{Attempt, Clock, Phase, Policy, SystemClock, Tried, WatchState, Watchdog};

/// Bytes done of bytes in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there, or that are sent.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A Hub, by its endpoint.
#[derive(Debug, Clone)]
pub struct Hub {
    http: http::Http,
}

impl Hub {
    /// A client for an endpoint.
    ///
    /// # Errors
    /// [`HubError::Name`] if `SSL_CERT_FILE` is set and holds no certificates.
    pub fn new(endpoint: Endpoint, limits: Limits) -> Result<Self, HubError> {
        Ok(Self {
            http: http::Http::new(endpoint, limits)?,
        })
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.http.endpoint
    }

    /// A URL of the interface for models.
    fn api(&self, repo: &RepoName, rest: &str) -> String {
        format!("{}/api/models/{repo}{rest}", self.endpoint().url())
    }
}
