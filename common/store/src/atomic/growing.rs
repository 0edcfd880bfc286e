//! A file that grows over several attempts and processes until it is complete: a download.
//!
//! Owns its scratch file, its lock and its publication. What is downloaded, and whether it is right, is up to the caller.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::OFlags;

use super::folder::Folder;
use super::{create_dir_all, split};
use crate::error::StoreError;

/// Suffix of files that grow over several processes; the sweep does not remove them.
const GROWING_SUFFIX: &str = ".growing";

/// A file that grows over several attempts and processes until it is complete: a download.
///
/// Unlike an [`AtomicFile`], it keeps its data when it is dropped, so that the next attempt resumes. The data on disk is
/// not trusted: the caller reads it again ([`GrowingFile::read`]) and checks the digest of the whole file before
/// calling [`GrowingFile::commit`]. The tag identifies the version of the target and is part of the scratch file's
/// name, so that different versions have different scratch files.
#[derive(Debug)]
pub struct GrowingFile {
    folder: Folder,
    target: Utf8PathBuf,
    scratch: Utf8PathBuf,
    file: File,
    size: u64,
}

impl GrowingFile {
    /// Opens the scratch file of `target` and `tag`, or creates an empty one, and the folder if it is missing. The tag has
    /// no dot.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has the file open; [`StoreError::Io`].
    pub fn open(target: &Utf8Path, tag: &str) -> Result<Self, StoreError> {
        let (folder_path, name) = split(target)?;
        create_dir_all(folder_path)?;
        let folder = Folder::open(folder_path)?;
        let scratch_name = format!(".{name}.{tag}{GROWING_SUFFIX}");
        let scratch = folder_path.join(&scratch_name);
        let file = folder.open_or_create(&scratch_name, OFlags::RDWR | OFlags::APPEND)?;
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(StoreError::Locked {
                    path: scratch,
                    holder: "another download of the same file".into(),
                });
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(StoreError::io("lock", &scratch)(error));
            }
            Ok(()) => {}
        }
        let size = file
            .metadata()
            .map_err(StoreError::io("inspect", &scratch))?
            .len();
        Ok(Self {
            folder,
            target: target.to_owned(),
            scratch,
            file,
            size,
        })
    }

    /// Size so far, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Passes the data so far to `sink`, from the beginning, in pieces.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn read(&self, mut sink: impl FnMut(&[u8])) -> Result<(), StoreError> {
        let (mut piece, mut offset) = (vec![0; 1 << 20], 0);
        loop {
            match self.file.read_at(&mut piece, offset) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    sink(&piece[..read]);
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::io("read", &self.scratch)(error)),
            }
        }
    }

    /// Appends data.
    ///
    /// # Errors
    /// [`StoreError::Io`]; earlier data stays.
    pub fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all(data)
            .map_err(StoreError::io("write", &self.scratch))?;
        self.size += data.len() as u64;
        Ok(())
    }

    /// Discards the data so far.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file
            .set_len(0)
            .map_err(StoreError::io("truncate", &self.scratch))?;
        self.size = 0;
        Ok(())
    }

    /// Publishes the file, which the caller has checked. From here on it exists completely, even after a crash.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn commit(self) -> Result<(), StoreError> {
        self.file
            .sync_all()
            .map_err(StoreError::io("sync", &self.scratch))?;
        let (_, name) = split(&self.target)?;
        let (_, scratch) = split(&self.scratch)?;
        self.folder.rename(scratch, name)?;
        self.folder.sync()?;
        self.remove_other_versions(name)
    }

    /// Removes the scratch files of other versions of the target, unless another process has them open.
    fn remove_other_versions(&self, name: &str) -> Result<(), StoreError> {
        for entry in self.folder.files()? {
            let tag = entry
                .strip_prefix(&format!(".{name}."))
                .and_then(|rest| rest.strip_suffix(GROWING_SUFFIX));
            // A tag has no dot: `.a.b.TAG.growing` belongs to `a.b` and not to `a`.
            if tag.is_none_or(|tag| tag.contains('.')) {
                continue;
            }
            let file = self.folder.open_existing(&entry);
            if file.is_some_and(|file| file.try_lock().is_ok()) {
                self.folder.remove(&entry)?;
            }
        }
        Ok(())
    }
}

/// Removes growing files of other targets in the folder of `target`. Only the process that downloads into the folder may
/// call it.
pub fn sweep_growing(target: &Utf8Path) -> Result<(), StoreError> {
    let (folder, name) = split(target)?;
    if !folder.exists() {
        return Ok(());
    }
    let folder = Folder::open(folder)?;
    for entry in folder.files()? {
        let owner = entry.strip_suffix(GROWING_SUFFIX);
        let owner = owner.and_then(|rest| rest.rsplit_once('.')?.0.strip_prefix('.'));
        if owner.is_some_and(|owner| owner != name) {
            folder.remove(&entry)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::sweep_scratch;
    use crate::plan::tests_support::folder;

    #[test]
    fn a_growing_file_survives_its_process_and_appears_only_at_commit() {
        let (_keep, folder) = folder();
        let target = folder.join("deep/file");
        let mut file = GrowingFile::open(&target, "v1").expect("opened");
        file.append(b"ab").expect("appended");
        assert!(matches!(
            GrowingFile::open(&target, "v1"),
            Err(StoreError::Locked { .. })
        ));
        drop(file); // the process ends; the sweep of a later one leaves the file alone
        assert_eq!(sweep_scratch(&folder).expect("swept"), 0);
        assert!(!target.exists());
        let other = GrowingFile::open(&target, "v2").expect("opened");
        assert_eq!(other.size(), 0, "another version starts empty");
        let mut file = GrowingFile::open(&target, "v1").expect("opened");
        assert_eq!(file.size(), 2);
        file.append(b"c").expect("appended");
        let mut seen = Vec::new();
        file.read(|piece| seen.extend_from_slice(piece))
            .expect("read");
        assert_eq!(seen, b"abc");
        file.commit().expect("published");
        assert_eq!(std::fs::read(&target).expect("file"), b"abc");
    }

    #[test]
    fn a_commit_removes_growing_files_of_other_versions_that_are_not_open() {
        let (_keep, folder) = folder();
        let start = |name: &str, tag| {
            let mut file = GrowingFile::open(&folder.join(name), tag).expect("opened");
            file.append(b"x").expect("appended");
            file
        };
        drop(start("a", "old"));
        drop(start("a.b", "old"));
        let busy = start("a", "busy");
        start("a", "new").commit().expect("published");
        let mut names: Vec<_> = folder
            .read_dir_utf8()
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, [".a.b.old.growing", ".a.busy.growing", "a"]);
        drop(busy);
    }

    #[test]
    fn a_growing_file_can_be_restarted() {
        let (_keep, folder) = folder();
        let target = folder.join("file");
        let mut file = GrowingFile::open(&target, "v1").expect("opened");
        file.append(b"wrong").expect("appended");
        file.restart().expect("cut");
        assert_eq!(file.size(), 0);
        file.append(b"ok").expect("appended");
        file.commit().expect("published");
        assert_eq!(std::fs::read(&target).expect("file"), b"ok");
    }

    #[test]
    fn a_link_in_the_place_of_the_scratch_file_is_not_followed() {
        let (_keep, folder) = folder();
        let precious = folder.join("precious");
        std::fs::write(&precious, "mine").expect("written");
        std::os::unix::fs::symlink(&precious, folder.join(".file.v1.growing")).expect("link");
        let error = GrowingFile::open(&folder.join("file"), "v1").expect_err("refused");
        assert!(error.to_string().contains("a link"), "{error}");
        assert_eq!(std::fs::read(&precious).expect("file"), b"mine");
    }
}
