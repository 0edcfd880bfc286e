//! Rows of numbers that wait on disk, by table, until all of a table's rows are there.
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
use crate::tensors::f32_bytes;

/// Tables of f32 rows in one nameless file.
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
    values: usize,
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

    /// Appends values to a table.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, table: &str, values: &[f32]) -> Result<(), StoreError> {
        let bytes = f32_bytes(values);
        self.file
            .write_all(&bytes)
            .map_err(StoreError::io("write", &self.folder))?;
        let piece = Piece {
            offset: self.end,
            values: values.len(),
        };
        self.end += bytes.len() as u64;
        self.tables.entry(table.to_owned()).or_default().push(piece);
        Ok(())
    }

    /// The values of a table, piece by piece as they were appended.
    pub fn pieces<'a>(
        &'a self,
        table: &str,
    ) -> impl Iterator<Item = Result<Vec<f32>, StoreError>> + 'a {
        let pieces = self.tables.get(table).into_iter().flatten();
        pieces.map(|piece| {
            let mut bytes = vec![0; 4 * piece.values];
            self.file
                .read_exact_at(&mut bytes, piece.offset)
                .map_err(StoreError::io("read", &self.folder))?;
            let values = bytes.as_chunks::<4>().0.iter();
            Ok(values.map(|&bytes| f32::from_le_bytes(bytes)).collect())
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
        spill.append("b", &[1.0, 2.0]).expect("written");
        spill.append("a", &[3.0]).expect("written");
        spill.append("b", &[4.0]).expect("written");
        let table = |name: &str| {
            spill
                .pieces(name)
                .collect::<Result<Vec<_>, _>>()
                .expect("read")
        };
        assert_eq!(table("b"), [vec![1.0, 2.0], vec![4.0]]);
        assert_eq!((table("a"), table("c")), (vec![vec![3.0]], vec![]));
        let values = |name: &str| table(name).concat().len();
        assert_eq!((values("b"), values("c")), (3, 0));
        assert_eq!(folder.read_dir_utf8().expect("folder").count(), 0);
    }
}
