//! The one way to open a file that came from outside: a model, a text, a pack, a run directory or a plan of someone else.
//!
//! Only regular files are opened: a FIFO would wait for ever and a device never ends. Sizes are limited while reading, because
//! the size in the metadata is a statement of the file system and not a bound (a file can grow, `/proc` reports zero).
//! Owns no paths and keeps no state. Never decides what a file means; text of outside is escaped by [`printable`] before it is
//! printed.
#![allow(clippy::disallowed_methods)]

mod disk;

use std::borrow::Cow;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;

pub use disk::{open_without_link, stored_bytes};

/// One MiB, the unit of the limits below.
const MIB: u64 = 1 << 20;
/// Limit for a small JSON document: a config, a plan, a receipt.
pub const SMALL_JSON: u64 = 16 * MIB;
/// Limit for a JSON document with an entry per tensor or token: a manifest, an index of shards, a tokenizer.
pub const LARGE_JSON: u64 = 256 * MIB;

/// Opens a regular file for reading. Links are followed, as for any path that a user gives.
///
/// # Errors
/// Those of the system; [`ErrorKind::InvalidInput`] if the path is a folder, FIFO, socket or device.
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    // Without NONBLOCK, opening a FIFO waits for a writer. It has no effect on regular files.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    regular(File::from(rustix::fs::open(
        path.as_ref(),
        flags,
        Mode::empty(),
    )?))
}

/// The file, if it is a regular one.
fn regular(file: File) -> Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let found = if kind.is_dir() {
        "a folder"
    } else {
        "a FIFO, socket or device"
    };
    let message = format!("it is {found}, not a regular file");
    Err(Error::new(ErrorKind::InvalidInput, message))
}

/// The bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// Those of [`open`]; [`ErrorKind::FileTooLarge`] if there are more bytes.
pub fn read(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    read_from(open(path)?, limit)
}

/// The bytes that are left in `reader`, at most `limit`.
///
/// # Errors
/// Those of the reader; [`ErrorKind::FileTooLarge`] if there are more bytes.
pub fn read_from(reader: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let message = format!("it has more than {limit} bytes, the limit for such a file");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// The text of a regular file of at most `limit` bytes.
///
/// # Errors
/// Those of [`read`]; [`ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: impl AsRef<Path>, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| {
        let message = format!(
            "it is not UTF-8 from byte {}",
            error.utf8_error().valid_up_to()
        );
        Error::new(ErrorKind::InvalidData, message)
    })
}

/// A JSON document of at most `limit` bytes. serde_json refuses nesting deeper than 128.
///
/// # Errors
/// Those of [`read`]; [`ErrorKind::InvalidData`] with the place for JSON that does not parse.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>, limit: u64) -> Result<T> {
    serde_json::from_slice(&read(path, limit)?)
        .map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// `text` with control characters and characters that change the direction of text written as escapes, so that a name or a
/// message of outside cannot move the cursor, clear the screen or pretend to be another line.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if needs_escape(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and the marks, embeddings, overrides and isolates of the
/// bidirectional algorithm (Unicode Standard Annex 9).
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().expect("folder");
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("fifo");
        for path in [fifo.as_path(), Path::new("/dev/zero"), folder.path()] {
            let error = open(path).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", path.display());
        }
        assert_eq!(
            open(folder.path().join("absent"))
                .expect_err("absent")
                .kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn the_limit_holds_while_reading_whatever_the_metadata_say() {
        // The files of /proc report a size of zero.
        let error = read("/proc/self/maps", 16).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("text");
        std::fs::write(&path, "sixteen bytes ok").expect("file");
        assert_eq!(read(&path, 16).expect("bytes").len(), 16);
        assert_eq!(
            read(&path, 15).expect_err("too large").kind(),
            ErrorKind::FileTooLarge
        );
    }

    #[test]
    fn text_from_outside_cannot_control_a_terminal() {
        assert_eq!(printable("model.layers.0 é 漢"), "model.layers.0 é 漢");
        assert_eq!(
            printable("\u{1b}[2Jverdict\r\nPASS\u{202e}"),
            "\\u{1b}[2Jverdict\\r\\nPASS\\u{202e}"
        );
    }
}
