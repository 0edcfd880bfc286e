//! A file of frames that grows while a job works, and from which the job continues after a crash.
//!
//! Frames are neither flushed nor renamed: that would cost a small job more than its work. A frame counts if it is whole and has its
//! digest, and so do all frames before it; what follows is discarded when the file is opened. After a crash of the process all
//! frames are there, after a loss of power as many as the system has written.

use std::os::unix::fs::FileExt;

use camino::Utf8Path;
use serde::Serialize;

use super::{Frame, FramedFile};
use crate::atomic;
use crate::error::StoreError;

/// Frames that can be read and appended.
#[derive(Debug)]
pub struct Journal(FramedFile);

impl Journal {
    /// Opens a file below `base`, or creates an empty one, and discards what is damaged or incomplete at its end.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Malformed`] if a folder on the way or the file is a link.
    pub fn open(frame: Frame, base: &Utf8Path, path: &Utf8Path) -> Result<Self, StoreError> {
        let file = atomic::open_partial_below(base, path)?;
        let size = file.metadata().map_err(StoreError::io("inspect", path))?;
        let size = size.len();
        let mut frames = FramedFile {
            frame,
            path: path.to_owned(),
            file,
            bounds: vec![0],
        };
        while let Ok(Some(end)) = frames.next_end(size) {
            frames.bounds.push(end);
            let bytes = frames.bytes(frames.len() - 1)?;
            if frame.check(&bytes, path).is_err() {
                frames.bounds.pop();
                break;
            }
        }
        let mut journal = Self(frames);
        journal.truncate(journal.0.len())?;
        Ok(journal)
    }

    /// The frames.
    pub fn frames(&self) -> &FramedFile {
        &self.0
    }

    /// Appends a value.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append<T: Serialize>(&mut self, value: &T) -> Result<(), StoreError> {
        let bytes = self.0.frame.encode(value, &self.0.path)?;
        self.append_encoded(&bytes)
    }

    /// Appends a value that was encoded with the frame of this file, for values that are encoded in parallel.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append_encoded(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let end = *self.0.bounds.last().expect("never empty");
        let written = self.0.file.write_all_at(bytes, end);
        written.map_err(StoreError::io("write", &self.0.path))?;
        self.0.bounds.push(end + bytes.len() as u64);
        Ok(())
    }

    /// Waits until all frames are on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sync(&self) -> Result<(), StoreError> {
        let synced = self.0.file.sync_data();
        synced.map_err(StoreError::io("sync", &self.0.path))
    }

    /// Discards all but the first `frames` frames.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn truncate(&mut self, frames: usize) -> Result<(), StoreError> {
        self.0.bounds.truncate(frames + 1);
        let end = *self.0.bounds.last().expect("never empty");
        let cut = self.0.file.set_len(end);
        cut.map_err(StoreError::io("truncate", &self.0.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::folder;

    const FRAME: Frame = Frame {
        magic: *b"UCTEST\0\0",
        version: 1,
        what: "test journal",
        max_body: 1 << 20,
        zstd_level: None,
    };

    fn values(journal: &Journal) -> Vec<Vec<u8>> {
        let frames = journal.frames();
        (0..frames.len())
            .map(|index| frames.get(index).expect("a value"))
            .collect()
    }

    #[test]
    fn a_journal_continues_after_its_last_whole_frame() {
        let (_keep, base) = folder();
        let path = base.join("work/journal");
        let write = |values: &[&[u8]]| {
            let mut journal = Journal::open(FRAME, &base, &path).expect("opened");
            values
                .iter()
                .for_each(|value| journal.append(value).expect("appended"));
            journal.frames().len()
        };
        assert_eq!(write(&[b"one", b"two"]), 2);
        assert_eq!(write(&[b"three"]), 3);
        let whole = std::fs::read(&path).expect("read");
        let second = whole.len() - 2 * (whole.len() / 3);
        for (cut, kept) in [(whole.len() - 1, 2), (second + 10, 1), (second, 1), (5, 0)] {
            atomic::write_bytes(&path, &whole[..cut]).expect("written");
            let journal = Journal::open(FRAME, &base, &path).expect("opened");
            assert_eq!(journal.frames().len(), kept, "cut at {cut}");
        }
        let mut damaged = whole.clone();
        let middle = whole.len() / 2;
        damaged[middle] ^= 1;
        atomic::write_bytes(&path, &damaged).expect("written");
        assert_eq!(write(&[b"again"]), 2);
        let mut journal = Journal::open(FRAME, &base, &path).expect("opened");
        assert_eq!(values(&journal), [b"one".to_vec(), b"again".to_vec()]);
        journal.truncate(1).expect("cut");
        assert_eq!(values(&journal), [b"one".to_vec()]);
    }
}
