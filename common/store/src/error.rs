//! The errors of the store.

use camino::{Utf8Path, Utf8PathBuf};
use uc_settings::SettingError;

use crate::sha::Sha256Digest;

/// An error of the store. Every variant says where it occurred, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An I/O operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file does not have the format of its kind.
    #[error("{path} is not a valid {what}: found {found}, expected {expected}")]
    Malformed {
        /// The file.
        path: Utf8PathBuf,
        /// The kind of file.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A file was written by a newer program.
    #[error("{path} has {what} version {found}, this program reads up to version {supported}")]
    Newer {
        /// The file.
        path: Utf8PathBuf,
        /// The kind of file.
        what: &'static str,
        /// The version in the file.
        found: u32,
        /// The newest version that this program reads.
        supported: u32,
    },
    /// The bytes of a file differ from the record.
    #[error("{path} is damaged: SHA-256 found {found}, expected {expected}")]
    Hash {
        /// The file.
        path: Utf8PathBuf,
        /// Digest of the bytes on disk.
        found: Sha256Digest,
        /// Recorded digest.
        expected: Sha256Digest,
    },
    /// The size of a file differs from the record.
    #[error("{path} is damaged: size found {found} bytes, expected {expected} bytes")]
    Size {
        /// The file.
        path: Utf8PathBuf,
        /// Size on disk.
        found: u64,
        /// Recorded size.
        expected: u64,
    },
    /// An external file has changed since the run was planned.
    #[error("{path} changed since the run was planned: {what} found {found}, expected {expected}")]
    Changed {
        /// The file.
        path: Utf8PathBuf,
        /// Which of its properties differs.
        what: &'static str,
        /// The current value.
        found: String,
        /// The value in the plan.
        expected: String,
    },
    /// An input of a job is missing.
    #[error("{what} is missing: {needed_by} needs it; expected it from {producer}")]
    MissingInput {
        /// The input.
        what: String,
        /// The job that needs it.
        needed_by: String,
        /// The job that makes it, or where else it comes from.
        producer: String,
    },
    /// Another process holds the lock.
    #[error(
        "{path} is locked by another process ({holder}); only one process may work on a run directory"
    )]
    Locked {
        /// The lock file.
        path: Utf8PathBuf,
        /// What the holder wrote into the file.
        holder: String,
    },
    /// A setting has a value that is not allowed.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A plan names something that it does not define, or contradicts itself.
    #[error("{0}")]
    Plan(#[from] crate::plan::PlanProblem),
    /// A stage returned without publishing one of its declared outputs.
    #[error("stage `{stage}` ended without publishing its output `{artifact}`")]
    OutputNotCommitted {
        /// The stage.
        stage: String,
        /// The output.
        artifact: String,
    },
    /// An unknown name.
    #[error("unknown {kind} `{name}`; known: {known}")]
    Unknown {
        /// "stage", "artifact", "tensor", …
        kind: &'static str,
        /// The requested name.
        name: String,
        /// The known names.
        known: String,
    },
    /// The stage has no job for this layer.
    #[error("stage `{stage}`: layer found {found}, expected {expected}")]
    Layer {
        /// The stage.
        stage: String,
        /// The requested layer.
        found: String,
        /// What the stage accepts.
        expected: String,
    },
}

impl StoreError {
    /// Adds operation and path to an I/O error.
    pub fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A [`StoreError::Malformed`].
    pub fn malformed(
        path: &Utf8Path,
        what: &'static str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            what,
            found: found.into(),
            expected: expected.into(),
        }
    }
}
