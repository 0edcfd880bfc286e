//! Temporary tables on disk: bytes are appended to a table in pieces, and read back when the table is complete.
//!
//! The file has no name. Its space is freed however the process ends, and no later process can mistake it for a result.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};

use crate::atomic::create_dir_all;
use crate::error::StoreError;

/// Tables in one unnamed temporary file.
#[derive(Debug)]
pub struct Spill {
    folder: Utf8PathBuf,
    file: File,
    end: u64,
    /// The pieces of every table, in the order in which they were appended.
    tables: BTreeMap<String, Vec<Piece>>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    length: usize,
}

impl Spill {
    /// Creates an empty file in `folder`, and the folder if it is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn new(folder: &Utf8Path) -> Result<Self, StoreError> {
        create_dir_all(folder)?;
        let file = tempfile::tempfile_in(folder).map_err(StoreError::io("create", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            file,
            end: 0,
            tables: BTreeMap::new(),
        })
    }

    /// Appends bytes to a table.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, table: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all(bytes)
            .map_err(StoreError::io("write", &self.folder))?;
        let piece = Piece {
            offset: self.end,
            length: bytes.len(),
        };
        self.end += bytes.len() as u64;
        self.tables.entry(table.to_owned()).or_default().push(piece);
        Ok(())
    }

    /// The pieces of a table, in the order in which they were appended.
    pub fn pieces<'a>(
        &'a self,
        table: &str,
    ) -> impl Iterator<Item = Result<Vec<u8>, StoreError>> + 'a {
        let pieces = self.tables.get(table).into_iter().flatten();
        pieces.map(|piece| {
            let mut bytes = vec![0; piece.length];
            self.file
                .read_exact_at(&mut bytes, piece.offset)
                .map_err(StoreError::io("read", &self.folder))?;
            Ok(bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_back_piece_by_piece_and_leave_no_file() {
        let keep = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(keep.path())
            .expect("utf-8")
            .join("work");
        let mut spill = Spill::new(&folder).expect("made");
        spill.append("b", &[1, 2]).expect("written");
        spill.append("a", &[3]).expect("written");
        spill.append("b", &[4]).expect("written");
        let table = |name: &str| {
            spill
                .pieces(name)
                .collect::<Result<Vec<_>, _>>()
                .expect("read")
        };
        assert_eq!(table("b"), [vec![1, 2], vec![4]]);
        assert_eq!((table("a"), table("c")), (vec![vec![3]], vec![]));
        let bytes = |name: &str| table(name).concat().len();
        assert_eq!((bytes("b"), bytes("c")), (3, 0));
        assert_eq!(folder.read_dir_utf8().expect("folder").count(), 0);
    }
}
