//! The folder of downloaded models: where each commit of a repository is, and which commit a revision stood for last.
//!
//! ```text
//! OWNER--NAME/COMMIT/         the files of a commit
//! OWNER--NAME/refs/REVISION   the commit that a branch, tag or commit stood for when it was last downloaded completely
//! ```
//! Without a network (`HF_HUB_OFFLINE`), the second kind of file says what can be used. Downloads nothing.

use camino::{Utf8Path, Utf8PathBuf};
use uc_hub::{CommitId, RepoName};
use uc_store::{StoreError, atomic};

use crate::error::FetchError;

/// Largest file of a revision that is read, bytes.
const MAX_REVISION: u64 = 1 << 10;

/// The downloads of one repository.
pub struct ModelStore {
    folder: Utf8PathBuf,
}

impl ModelStore {
    /// The downloads of a repository in the folder of all models.
    pub fn new(models: &Utf8Path, repo: &RepoName) -> Self {
        let name = format!("{}--{}", repo.org(), repo.name());
        Self {
            folder: models.join(name),
        }
    }

    /// The folder of a commit.
    pub fn folder(&self, commit: &CommitId) -> Utf8PathBuf {
        self.folder.join(commit.to_string())
    }

    /// Records that a revision was downloaded completely.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn record(&self, revision: &str, commit: &CommitId) -> Result<(), StoreError> {
        for name in [revision, &commit.to_string()] {
            atomic::write_bytes(&self.revision_file(name), format!("{commit}\n").as_bytes())?;
        }
        Ok(())
    }

    /// The commit of a revision that was downloaded completely.
    ///
    /// # Errors
    /// [`FetchError::NotDownloaded`].
    pub fn downloaded(&self, repo: &RepoName, revision: &str) -> Result<CommitId, FetchError> {
        let text = uc_input::read_text(self.revision_file(revision), MAX_REVISION).ok();
        let commit = text.and_then(|text| text.trim().parse::<CommitId>().ok());
        commit.ok_or_else(|| FetchError::NotDownloaded {
            repository: repo.clone(),
            revision: revision.to_owned(),
            folder: self.folder.clone(),
        })
    }

    /// A revision may contain slashes, which no file name does.
    fn revision_file(&self, revision: &str) -> Utf8PathBuf {
        self.folder.join("refs").join(revision.replace('/', "%2F"))
    }
}
