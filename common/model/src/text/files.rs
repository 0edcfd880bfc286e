//! Reading texts in pieces of bounded size: plain UTF-8, JSON lines, Parquet, and the first two compressed.
//!
//! Owns the formats and their limits. No file is ever in memory as a whole, unless it is a single line of JSON or a single
//! value of Parquet. Never tokenizes, and never guesses an encoding: text is UTF-8 or refused.

mod json;
mod parquet;
mod plain;

use std::path::Path;

use super::error::TextError;

/// The longest line of JSON, bytes.
const MAX_LINE: usize = 64 << 20;

/// A piece of a document. Pieces of one document follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Whether a new document begins with it.
    pub starts_document: bool,
    /// Its text; never empty, except for a whole document.
    pub text: &'a str,
}

/// What takes the pieces of a text.
pub type Consumer<'a> = dyn FnMut(Piece<'_>) -> Result<(), TextError> + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// One document.
    Plain,
    /// A document in every line.
    JsonLines,
    /// A document in every row.
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Reads all files in order. A plain file is one document. A `.jsonl` file has one document for each non-empty line, the string
/// under the key `field`; a `.parquet` file one for each row, the string in the column `field`. Other keys and columns are
/// ignored. A byte order mark at the start of a file is no part of its text.
///
/// # Errors
/// [`TextError`], with the file and, where applicable, the byte offset, line or row; those of `consumer`.
pub fn read_texts<P: AsRef<Path>>(
    paths: &[P],
    field: &str,
    consumer: &mut Consumer<'_>,
) -> Result<(), TextError> {
    for path in paths {
        let path = path.as_ref();
        match format(path)? {
            (Format::Parquet, _) => parquet::read(path, field, consumer)?,
            (format, compression) => {
                let reader = plain::open(path, compression)?;
                match format {
                    Format::JsonLines => json::read(path, field, reader, consumer)?,
                    _ => {
                        let mut starts_document = true;
                        plain::read(path, reader, &mut |text| {
                            let piece = Piece {
                                starts_document,
                                text,
                            };
                            starts_document = false;
                            consumer(piece)
                        })?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The format of a file by its name.
fn format(path: &Path) -> Result<(Format, Compression), TextError> {
    let unknown = || TextError::UnknownFormat {
        path: path.to_owned(),
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(unknown)?;
    let (name, compression) = match name.rsplit_once('.') {
        Some((name, "gz")) => (name, Compression::Gzip),
        Some((name, "zst")) => (name, Compression::Zstd),
        _ => (name, Compression::None),
    };
    match (
        name.rsplit_once('.').map(|(_, extension)| extension),
        compression,
    ) {
        (Some("txt" | "utf8" | "raw"), _) => Ok((Format::Plain, compression)),
        (Some("jsonl"), _) => Ok((Format::JsonLines, compression)),
        (Some("parquet"), Compression::None) => Ok((Format::Parquet, compression)),
        _ => Err(unknown()),
    }
}

/// An error of the system at a file.
fn io(path: &Path) -> impl Fn(std::io::Error) -> TextError + '_ {
    |source| TextError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
