//! The error type of this crate.
//!
//! Every variant of [`PackError`] names the file (or the name that the caller gave to bytes in memory), what was checked,
//! what was found and what was expected. Names, values and paths come from files of others, so the text of every error is
//! escaped here, in one place. This module never prints and never decides whether an error is fatal: [`crate::verify`] turns
//! errors into findings, everything else returns them.

use std::error::Error;
use std::fmt;

use uc_input::printable;

use crate::REMOTE_FILE;

/// An error of reading, writing or checking a pack.
#[derive(Debug)]
pub enum PackError {
    /// An operation of the operating system failed.
    Io {
        /// Path of the file.
        origin: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file of the pack was deleted here after its upload.
    Uploaded {
        /// Path of the file.
        origin: String,
        /// The repository that holds it, according to the note next to the pack.
        repository: String,
    },
    /// The file does not begin with the magic of its kind.
    Magic {
        /// Path or name of the bytes.
        origin: String,
        /// Kind of file: "layer" or "non-layer tensor".
        kind: &'static str,
        /// First eight bytes of the file, hexadecimal.
        found: String,
        /// The magic, hexadecimal.
        expected: String,
    },
    /// The format version of the file is not the one that this crate supports.
    Version {
        /// Path or name of the bytes.
        origin: String,
        /// Version in the file.
        found: u32,
        /// The only version that this crate reads and writes.
        supported: u32,
    },
    /// The file ends within a field or section.
    Truncated {
        /// Path or name of the bytes.
        origin: String,
        /// Field or section.
        what: String,
        /// Where it begins, in bytes from the start of the file.
        offset: u64,
        /// Its length in bytes.
        needed: u64,
        /// Bytes that are left from there to the end of the file.
        available: u64,
    },
    /// A value is outside the range that the format allows, or contradicts another value.
    Invalid {
        /// Path or name of the bytes.
        origin: String,
        /// Field, section or tensor.
        what: String,
        /// The value that was found.
        found: String,
        /// The valid value or range.
        expected: String,
    },
    /// The codec rejected a tensor.
    Codec {
        /// Path or name of the bytes.
        origin: String,
        /// Name of the tensor within the file.
        tensor: String,
        /// The codec's error.
        source: uc_codec::CodecError,
    },
    /// The file has no tensor of the requested name.
    NoTensor {
        /// Path or name of the bytes.
        origin: String,
        /// The requested name.
        tensor: String,
    },
    /// The pack has no tensor of the requested name.
    UnknownTensor {
        /// Path of the manifest.
        origin: String,
        /// The requested name.
        tensor: String,
        /// The most similar names of the pack.
        nearest: Vec<String>,
    },
    /// Two packs have no linear of the same name and shape: there is nothing to compare.
    NothingInCommon {
        /// Path and model of the first pack.
        a: String,
        /// Path and model of the second pack.
        b: String,
    },
    /// The pack has no layer of the requested index.
    NoLayer {
        /// Path of the manifest.
        origin: String,
        /// The requested index.
        layer: u32,
        /// Number of layers of the pack.
        layers: u32,
    },
    /// A JSON file cannot be parsed, or does not have the specified fields.
    Json {
        /// Path of the file.
        origin: String,
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// The manifest can be parsed, but its text is not the canonical text of its content.
    NotCanonical {
        /// Path of the manifest.
        origin: String,
        /// Offset of the first byte that differs.
        offset: usize,
    },
    /// A SHA-256 digest differs from the recorded one.
    Digest {
        /// Path of the file.
        origin: String,
        /// What was hashed.
        what: String,
        /// The computed digest, or the line that it would make in `manifest.sha256`.
        found: String,
        /// The recorded digest or line.
        expected: String,
    },
}

impl PackError {
    /// The error with its cause, in one line. The causes are those of libraries, so there is at most one.
    pub fn text(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {}", printable(&source.to_string())),
            None => self.to_string(),
        }
    }

    /// The message without the cause, as it is: nothing is escaped.
    fn message(&self) -> String {
        match self {
            Self::Io { origin, .. } | Self::Json { origin, .. } => origin.clone(),
            Self::Magic {
                origin,
                kind,
                found,
                expected,
            } => {
                format!("{origin}: not a {kind} file: it begins with {found}, expected {expected}")
            }
            Self::Version {
                origin,
                found,
                supported,
            } => {
                format!("{origin}: format version {found}; this program reads version {supported}")
            }
            Self::Truncated {
                origin,
                what,
                offset,
                needed,
                available,
            } => format!(
                "{origin}: {what} needs {needed} bytes at byte {offset}, but only {available} are left"
            ),
            Self::Invalid {
                origin,
                what,
                found,
                expected,
            } => format!("{origin}: {what}: found {found}, expected {expected}"),
            Self::Codec { origin, tensor, .. } => format!("{origin}: tensor {tensor}"),
            Self::NoTensor { origin, tensor } => format!("{origin}: no tensor is named {tensor}"),
            Self::Uploaded { origin, repository } => format!(
                "{origin}: not in this folder; according to {REMOTE_FILE}, {repository} holds it: download that repository"
            ),
            Self::UnknownTensor {
                origin,
                tensor,
                nearest,
            } => {
                let hint = match nearest.as_slice() {
                    [] => String::new(),
                    names => format!("; did you mean {}?", names.join(", ")),
                };
                format!("{origin}: no tensor is named {tensor}{hint}")
            }
            Self::NothingInCommon { a, b } => format!(
                "{a} and {b} have no linear of the same name and shape, expected two packs of one model"
            ),
            Self::NoLayer {
                origin,
                layer,
                layers,
            } => format!("{origin}: layer {layer} was requested, but the pack has {layers} layers"),
            Self::NotCanonical { origin, offset } => {
                format!("{origin}: differs from the canonical text at byte {offset}")
            }
            Self::Digest {
                origin,
                what,
                found,
                expected,
            } => format!("{origin}: SHA-256 of {what}: found {found}, expected {expected}"),
        }
    }
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.message()))
    }
}

impl Error for PackError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Codec { source, .. } => Some(source),
            Self::Json { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Makes a [`PackError::Invalid`].
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

/// Makes a [`PackError::Io`] from the error of an operation on `origin`.
pub(crate) fn io(origin: &str) -> impl FnOnce(std::io::Error) -> PackError + '_ {
    move |source| PackError::Io {
        origin: origin.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_pack_is_escaped_and_no_word_stands_twice() {
        let error = invalid("\u{1b}[2J", "name", "\u{202e}", "a\nverdict PASS");
        let expected = "\\u{1b}[2J: name: found \\u{202e}, expected a\\nverdict PASS";
        assert_eq!(error.text(), expected);
        let error = io("layer")(std::io::Error::other("no\rPASS"));
        assert_eq!(error.to_string(), "layer");
        assert_eq!(error.text(), "layer: no\\rPASS");
    }
}
