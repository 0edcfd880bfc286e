//! Parquet: one document in every row, from one column of strings.
//!
//! A page is decompressed as a whole. The size that the file declares for a column is limited before it is read, and what its
//! rows hold while they are read; a page whose own header contradicts the declared size takes at most 2 GiB, the most that the
//! format can express.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{Consumer, Piece, io, plain};
use crate::text::error::TextError;

/// Rows that are decoded at a time.
const ROWS: usize = 64;

/// Reads the strings of the column `field`.
pub fn read(path: &Path, field: &str, consumer: &mut Consumer<'_>) -> Result<(), TextError> {
    let file = uc_input::open(path).map_err(io(path))?;
    let size = file.metadata().map_err(io(path))?.len();
    let reader = guarded(path, || SerializedFileReader::new(file))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let columns = schema.columns();
    let names: Vec<String> = columns.iter().map(|c| c.path().string()).collect();
    let Some(column) = names.iter().position(|name| name == field) else {
        let names: Vec<_> = names.iter().take(20).collect();
        let reason =
            format!("found the columns {names:?}, expected `{field}`; --field names another");
        return Err(refuse(path, reason));
    };
    let decl = schema.column(column);
    if decl.physical_type() != Type::BYTE_ARRAY || decl.max_rep_level() != 0 {
        let reason =
            format!("found other values in the column `{field}`, expected one string per row");
        return Err(refuse(path, reason));
    }
    let mut rows = Rows {
        path,
        field,
        defined: decl.max_def_level(),
        row: 0,
        left: plain::expansion_limit(size),
        limit: plain::expansion_limit(size),
    };
    for group in 0..reader.num_row_groups() {
        let declared = reader.metadata().row_group(group).column(column);
        rows.check_declared(declared.uncompressed_size())?;
        let values = guarded(path, || {
            reader.get_row_group(group)?.get_column_reader(column)
        })?;
        if let ColumnReader::ByteArrayColumnReader(mut values) = values {
            while let Some(strings) = rows.next(&mut values)? {
                rows.hand_over(&strings, consumer)?;
            }
        }
    }
    Ok(())
}

/// What the parquet crate returns; it may also panic on damaged files.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, TextError> {
    let invalid = |reason: &str| refuse(path, format!("not a valid Parquet file: {reason}"));
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| invalid(&error.to_string())),
        Err(panic) => Err(invalid(words(&*panic))),
    }
}

/// The words of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the reader failed")
}

fn refuse(path: &Path, reason: String) -> TextError {
    TextError::Parquet {
        path: path.to_owned(),
        reason,
    }
}

/// The rows of a file.
struct Rows<'a> {
    path: &'a Path,
    field: &'a str,
    /// The definition level of a value that is not null.
    defined: i16,
    /// Rows that were handed over.
    row: u64,
    /// Bytes of text that may still come, and their limit.
    left: u64,
    limit: u64,
}

impl Rows<'_> {
    /// Refuses a column that declares more bytes than may still come.
    fn check_declared(&self, bytes: i64) -> Result<(), TextError> {
        if u64::try_from(bytes).is_ok_and(|bytes| bytes <= self.left) {
            return Ok(());
        }
        Err(self.expands_too_far())
    }

    fn expands_too_far(&self) -> TextError {
        TextError::Expansion {
            path: self.path.to_owned(),
            limit: self.limit,
        }
    }

    /// The next strings; none at the end.
    fn next(
        &mut self,
        values: &mut ColumnReaderImpl<ByteArrayType>,
    ) -> Result<Option<Vec<ByteArray>>, TextError> {
        let (mut levels, mut strings) = (Vec::new(), Vec::new());
        let (rows, found, _) = guarded(self.path, || {
            values.read_records(ROWS, Some(&mut levels), None, &mut strings)
        })?;
        if found != rows {
            let null = levels.iter().position(|&level| level != self.defined);
            let row = self.row + null.unwrap_or(0) as u64;
            let reason = format!(
                "row {row}: found no value of `{}`, expected a string",
                self.field
            );
            return Err(refuse(self.path, reason));
        }
        Ok((rows > 0).then_some(strings))
    }

    fn hand_over(
        &mut self,
        strings: &[ByteArray],
        consumer: &mut Consumer<'_>,
    ) -> Result<(), TextError> {
        for string in strings {
            let bytes = string.data();
            let left = self.left.checked_sub(bytes.len() as u64);
            self.left = left.ok_or_else(|| self.expands_too_far())?;
            let text = std::str::from_utf8(bytes).map_err(|error| {
                let (row, byte) = (self.row, error.valid_up_to());
                refuse(
                    self.path,
                    format!("row {row}: byte {byte} is not valid UTF-8"),
                )
            })?;
            consumer(Piece {
                starts_document: true,
                text,
            })?;
            self.row += 1;
        }
        Ok(())
    }
}
