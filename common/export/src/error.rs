//! The error type of this crate. Every variant says what was found, what was expected and what to do.

use camino::Utf8PathBuf;
use uc_model::config::ConfigError;
use uc_pack::PackError;
use uc_store::StoreError;

/// Why a pack is not exported, or an export not read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The pack cannot be read, or differs from its manifest.
    #[error("{}", .0.text())]
    Pack(PackError),
    /// The configuration in the pack cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of the export cannot be written or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The format has no place for this model, this tokenizer or this value.
    #[error("{what}: found {found}, expected {expected}")]
    Unsupported {
        /// What the format has no place for.
        what: String,
        /// What the pack has.
        found: String,
        /// What the format can hold, and what to do.
        expected: String,
    },
    /// The destination exists and is kept.
    #[error("{path} exists{found}; {remedy}")]
    Exists {
        /// The destination.
        path: Utf8PathBuf,
        /// What it is.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Layers of the pack are not on this disk.
    #[error("{path} lacks {missing} of {layers} layer files{origin}; {remedy}")]
    FreedLayers {
        /// The pack.
        path: Utf8PathBuf,
        /// Number of layer files that are absent.
        missing: usize,
        /// Number of layers.
        layers: usize,
        /// Where they are, as far as it is known.
        origin: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor as reconstructed now differs from the manifest.
    #[error(
        "{tensor}: SHA-256 found {found}, expected {expected}; the pack is damaged: uc verify lists all findings"
    )]
    Digest {
        /// Full name of the tensor.
        tensor: String,
        /// Digest of what would have been written.
        found: String,
        /// Digest in the manifest.
        expected: String,
    },
    /// A file that should be an export is not one.
    #[error("{path} is not a valid {kind} file: {what}: found {found}, expected {expected}")]
    Malformed {
        /// The file.
        path: Utf8PathBuf,
        /// The format.
        kind: &'static str,
        /// Which part of the file.
        what: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
}

impl From<PackError> for ExportError {
    fn from(error: PackError) -> Self {
        // The system's error stays a cause of its own, because it decides the exit status.
        match error {
            PackError::Io { origin, source } => Self::Store(StoreError::Io {
                action: "read",
                path: origin.into(),
                source,
            }),
            error => Self::Pack(error),
        }
    }
}

/// An [`ExportError::Unsupported`].
pub(crate) fn unsupported(
    what: impl Into<String>,
    found: impl ToString,
    expected: impl Into<String>,
) -> ExportError {
    ExportError::Unsupported {
        what: what.into(),
        found: uc_input::printable(&found.to_string()).into_owned(),
        expected: expected.into(),
    }
}
