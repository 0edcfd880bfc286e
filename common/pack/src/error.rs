//! Everything that can be wrong with a pack, as one error type.
//!
//! Owns: `PackError`. Every variant names the file (or the given origin of bytes in memory), what was
//! looked at, what was found and what was expected. It deliberately never prints and never decides
//! whether an error is fatal: `verify` turns errors into findings, everybody else returns them.

use thiserror::Error;

/// An error of reading, writing or checking a pack.
#[derive(Debug, Error)]
pub enum PackError {
    /// The operating system refused to open or read.
    #[error("{origin}: {source}")]
    Io {
        /// Path of the file.
        origin: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not begin with the magic of its kind.
    #[error("{origin}: this is no {kind} file: it begins with {found}, expected {expected}")]
    Magic {
        /// Path or name of the bytes.
        origin: String,
        /// "layer" or "scaffold".
        kind: &'static str,
        /// First eight bytes found, hexadecimal.
        found: String,
        /// The magic, hexadecimal.
        expected: String,
    },
    /// The file has another format version than this crate reads.
    #[error("{origin}: format version {found}; this program reads version {supported}")]
    Version {
        /// Path or name of the bytes.
        origin: String,
        /// Version in the file.
        found: u32,
        /// The one version that is read and written.
        supported: u32,
    },
    /// The file ends before a field or section does.
    #[error(
        "{origin}: {what} needs {needed} bytes at byte {offset}, but only {available} are there"
    )]
    Truncated {
        /// Path or name of the bytes.
        origin: String,
        /// Field or section.
        what: String,
        /// Where it begins, bytes from the start of the file.
        offset: u64,
        /// Its length in bytes.
        needed: u64,
        /// Bytes that are left in the file.
        available: u64,
    },
    /// A value is outside what the format allows, or two values contradict each other.
    #[error("{origin}: {what}: found {found}, expected {expected}")]
    Invalid {
        /// Path or name of the bytes.
        origin: String,
        /// Field, section or tensor.
        what: String,
        /// The value.
        found: String,
        /// What would have been valid.
        expected: String,
    },
    /// The entropy coder or the reconstruction refused a tensor.
    #[error("{origin}: tensor {tensor}: {source}")]
    Codec {
        /// Path or name of the bytes.
        origin: String,
        /// Name of the tensor within the file.
        tensor: String,
        /// What the codec said.
        source: uc_codec::CodecError,
    },
    /// A tensor was asked for that the file does not hold.
    #[error("{origin}: holds no tensor {tensor}")]
    NoTensor {
        /// Path or name of the bytes.
        origin: String,
        /// The name asked for.
        tensor: String,
    },
    /// A layer was asked for that the pack does not have.
    #[error("{origin}: layer {layer} was asked for, but the pack has {layers} layers")]
    NoLayer {
        /// Path of the manifest.
        origin: String,
        /// Index asked for.
        layer: u32,
        /// Number of layers.
        layers: u32,
    },
    /// The manifest is not JSON of the specified form.
    #[error("{origin}: {source}")]
    Json {
        /// Path of the manifest.
        origin: String,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// The manifest means something valid but is not written in the one canonical form.
    #[error("{origin}: not in canonical form from byte {offset} on")]
    NotCanonical {
        /// Path of the manifest.
        origin: String,
        /// First byte that differs from the canonical text.
        offset: usize,
    },
    /// A SHA-256 differs from the recorded one.
    #[error("{origin}: SHA-256 of {what}: found {found}, expected {expected}")]
    Digest {
        /// Path of the file.
        origin: String,
        /// What was hashed.
        what: String,
        /// Digest or text found.
        found: String,
        /// Digest or text recorded.
        expected: String,
    },
}

/// Shorthand for the most frequent variant.
pub(crate) fn invalid(
    origin: &str,
    what: impl Into<String>,
    found: impl ToString,
    expected: impl ToString,
) -> PackError {
    PackError::Invalid {
        origin: origin.to_owned(),
        what: what.into(),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// Attaches a path to an I/O error.
pub(crate) fn io(origin: &str) -> impl FnOnce(std::io::Error) -> PackError + '_ {
    move |source| PackError::Io {
        origin: origin.to_owned(),
        source,
    }
}
