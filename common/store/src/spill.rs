//! Bytes that wait on disk, by table, until all of a table are there.
//!
//! The file has no name: whatever ends the process, its space is free again, and no later process can take it for
//! a result.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};

use crate::atomic::create_dir_all;
use crate::error::StoreError;

/// Tables in one nameless file.
#[derive(Debug)]
pub struct Spill {
    folder: Utf8PathBuf,
    file: File,
    end: u64,
    /// Where the pieces of a table lie, in the order in which they came.
    tables: BTreeMap<String, Vec<Piece>>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    length: usize,
}

impl Spill {
    /// An empty file in `folder`, which is made if it is missing.
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

    /// The bytes of a table, piece by piece as they were appended.
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
    fn tables_come_back_piece_by_piece_and_leave_nothing_behind() {
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
