//! Temporary tables on disk: bytes are appended to a table in pieces, and read back when the table is complete.
//!
//! The file lies in the job's scratch folder. What it holds is known to the job alone, and to its snapshots, which also have the digest
//! of all pieces: a job that does not continue from a snapshot writes over what it finds.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::error::StoreError;
use crate::framed::{Snapshot, check_digest};
use crate::sha::Hasher;

/// Bytes that are hashed at a time.
const CHUNK: u64 = 1 << 20;

/// Tables in one temporary file.
#[derive(Debug)]
pub struct Spill {
    path: Utf8PathBuf,
    file: File,
    end: u64,
    /// The pieces of every table, in the order in which they were appended.
    tables: BTreeMap<String, Vec<Piece>>,
    /// Has seen the file up to `hashed`.
    hasher: Hasher,
    hashed: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Piece {
    offset: u64,
    length: usize,
}

impl Spill {
    /// Empty tables in a file below `base`, which is created if it is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Malformed`] if a folder on the way or the file is a link.
    pub fn new(base: &Utf8Path, path: &Utf8Path) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            file: atomic::open_partial_below(base, path)?,
            end: 0,
            tables: BTreeMap::new(),
            hasher: Hasher::default(),
            hashed: 0,
        })
    }

    /// Appends bytes to a table.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, table: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, self.end);
        written.map_err(StoreError::io("write", &self.path))?;
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
            let read = self.file.read_exact_at(&mut bytes, piece.offset);
            read.map_err(StoreError::io("read", &self.path))?;
            Ok(bytes)
        })
    }

    /// Saves what the file holds, after waiting until it is on disk, or replaces the tables by the saved ones.
    ///
    /// # Errors
    /// Those of the snapshot; [`StoreError::Io`] and [`StoreError::Hash`] if the file is not the saved one.
    pub fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        let synced = self.file.sync_data();
        synced.map_err(StoreError::io("sync", &self.path))?;
        snapshot.value(&mut self.end)?;
        snapshot.value(&mut self.tables)?;
        let mut bytes = Vec::new();
        while self.hashed < self.end {
            bytes.resize(CHUNK.min(self.end - self.hashed) as usize, 0);
            let read = self.file.read_exact_at(&mut bytes, self.hashed);
            read.map_err(StoreError::io("read", &self.path))?;
            self.hasher.update(&bytes);
            self.hashed += bytes.len() as u64;
        }
        let (digest, _) = self.hasher.clone().finish();
        let mut saved = digest;
        snapshot.value(&mut saved)?;
        check_digest(&self.path, digest, saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::folder;

    fn table(spill: &Spill, name: &str) -> Vec<Vec<u8>> {
        let pieces = spill.pieces(name).collect::<Result<_, _>>();
        pieces.expect("read")
    }

    #[test]
    fn tables_are_read_back_piece_by_piece() {
        let (_keep, base) = folder();
        let mut spill = Spill::new(&base, &base.join("work/spill")).expect("made");
        spill.append("b", &[1, 2]).expect("written");
        spill.append("a", &[3]).expect("written");
        spill.append("b", &[4]).expect("written");
        assert_eq!(table(&spill, "b"), [vec![1, 2], vec![4]]);
        assert_eq!(table(&spill, "a"), [vec![3]]);
        assert!(table(&spill, "c").is_empty());
    }

    #[test]
    fn tables_continue_from_a_snapshot_unless_their_file_is_damaged() {
        let (_keep, base) = folder();
        let (path, sums) = (base.join("spill"), base.join("sums"));
        let load = || {
            let mut spill = Spill::new(&base, &path).expect("made");
            let mut snapshot = Snapshot::load(&sums).expect("opened");
            spill.pass_through(&mut snapshot)?;
            snapshot.finish().map(|()| spill)
        };
        let save = |spill: &mut Spill| {
            let mut snapshot = Snapshot::save(&base, &sums).expect("begun");
            spill.pass_through(&mut snapshot).expect("saved");
            snapshot.finish().expect("saved");
        };
        let mut spill = Spill::new(&base, &path).expect("made");
        spill.append("a", &[1, 2]).expect("written");
        save(&mut spill);
        spill
            .append("a", &[8, 8, 8])
            .expect("lost with the process");
        let mut spill = load().expect("loaded");
        spill.append("b", &[3]).expect("written");
        save(&mut spill);
        let spill = load().expect("loaded");
        assert_eq!(table(&spill, "a"), [vec![1, 2]]);
        assert_eq!(table(&spill, "b"), [vec![3]]);
        for damaged in [&[1, 0, 3][..], &[1, 2]] {
            atomic::write_bytes(&path, damaged).expect("written");
            assert!(load().is_err(), "{damaged:?}");
        }
        let mut spill = Spill::new(&base, &path).expect("made");
        assert!(table(&spill, "a").is_empty());
        spill.append("a", &[5]).expect("written");
        assert_eq!(table(&spill, "a"), [vec![5]]);
    }
}
