//! Everything that can go wrong in the store, with path, found and expected.

use camino::{Utf8Path, Utf8PathBuf};
use uc_settings::SettingError;

use crate::sha::Sha256Digest;

/// An error of the store. Every variant says where, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused an operation.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On which file.
        path: Utf8PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file does not have the form that its kind requires.
    #[error("{path} is not a valid {what}: found {found}, expected {expected}")]
    Malformed {
        /// The file.
        path: Utf8PathBuf,
        /// The kind of file.
        what: &'static str,
        /// What stands there.
        found: String,
        /// What should stand there.
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
        /// The newest version that is understood here.
        supported: u32,
    },
    /// The bytes of a file are not those that were recorded.
    #[error("{path} is damaged: SHA-256 found {found}, expected {expected}")]
    Hash {
        /// The file.
        path: Utf8PathBuf,
        /// Digest of the bytes on disk.
        found: Sha256Digest,
        /// Digest that was recorded.
        expected: Sha256Digest,
    },
    /// A file has another size than was recorded.
    #[error("{path} is damaged: size found {found} bytes, expected {expected} bytes")]
    Size {
        /// The file.
        path: Utf8PathBuf,
        /// Size on disk.
        found: u64,
        /// Size that was recorded.
        expected: u64,
    },
    /// An outside file is no longer the one the run was planned with.
    #[error("{path} changed since the run was planned: {what} found {found}, expected {expected}")]
    Changed {
        /// The file.
        path: Utf8PathBuf,
        /// Which of its properties differs.
        what: &'static str,
        /// Its value now.
        found: String,
        /// Its value in the plan.
        expected: String,
    },
    /// Something that a job needs is not there yet.
    #[error("{what} is missing: {needed_by} needs it; expected it from {producer}")]
    MissingInput {
        /// The artifact.
        what: String,
        /// The job that needs it.
        needed_by: String,
        /// The job that makes it.
        producer: String,
    },
    /// Somebody else holds the lock.
    #[error(
        "{path} is locked by another process ({holder}); two must not work on one run directory"
    )]
    Locked {
        /// The lock file.
        path: Utf8PathBuf,
        /// What the holder wrote into it.
        holder: String,
    },
    /// A setting has a value outside its range or of another type.
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
    /// A name that the plan does not know.
    #[error("unknown {kind} `{name}`; known: {known}")]
    Unknown {
        /// "stage", "artifact", "tensor", …
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A layer that the model or the stage does not have.
    #[error("stage `{stage}`: layer found {found}, expected {expected}")]
    Layer {
        /// The stage.
        stage: String,
        /// The layer asked for.
        found: String,
        /// What the stage takes.
        expected: String,
    },
}

impl StoreError {
    /// Wraps an I/O error with what was tried on which path.
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
