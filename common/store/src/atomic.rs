//! The one module that creates files.
//!
//! A file appears under its name only when it is complete and on disk: write to a scratch file in the same folder, fsync,
//! rename, fsync of the folder. Dropping an unfinished [`AtomicFile`] removes the scratch file and never publishes it. The
//! name of a scratch file follows from its target, so that the scratch file of a killed process is overwritten or swept,
//! and never mistaken for a result.
#![allow(clippy::disallowed_methods)] // the exception: all other code creates files through this module

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::error::StoreError;
use crate::sha::{Hasher, Sha256Digest};

/// Suffix of scratch files; their names start with a dot.
const SCRATCH_SUFFIX: &str = ".partial";
/// Suffix of files that grow over several processes; the sweep does not remove them.
const GROWING_SUFFIX: &str = ".growing";

/// Size and digest of a published file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size in bytes.
    pub size: u64,
    /// Digest.
    pub sha256: Sha256Digest,
}

/// A file that does not exist under its name until [`AtomicFile::commit`].
#[derive(Debug)]
pub struct AtomicFile {
    target: Utf8PathBuf,
    scratch: Utf8PathBuf,
    writer: Option<BufWriter<File>>,
    hasher: Hasher,
}

impl AtomicFile {
    /// Creates the scratch file of `target`, and the folder if it is missing.
    pub fn create(target: &Utf8Path) -> Result<Self, StoreError> {
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(StoreError::io("create", target)(source));
        };
        create_dir_all(folder)?;
        let scratch = folder.join(format!(".{name}{SCRATCH_SUFFIX}"));
        let file = File::create(&scratch).map_err(StoreError::io("create", &scratch))?;
        Ok(Self {
            target: target.to_owned(),
            scratch,
            writer: Some(BufWriter::with_capacity(1 << 20, file)),
            hasher: Hasher::default(),
        })
    }

    /// The name under which the file will appear.
    pub fn target(&self) -> &Utf8Path {
        &self.target
    }

    /// Appends data. The error names the file.
    pub fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.write_all(data)
            .map_err(StoreError::io("write", &self.target))
    }

    /// Publishes the file. From here on it exists completely, even after a crash.
    pub fn commit(mut self) -> Result<Written, StoreError> {
        let writer = self.writer.take().expect("only commit takes it");
        let file = writer
            .into_inner()
            .map_err(|error| StoreError::io("write", &self.target)(error.into_error()))?;
        file.sync_all()
            .map_err(StoreError::io("sync", &self.target))?;
        drop(file);
        std::fs::rename(&self.scratch, &self.target)
            .map_err(StoreError::io("publish", &self.target))?;
        let folder = self.target.parent().expect("checked by create");
        sync_folder(folder)?;
        let (sha256, size) = std::mem::take(&mut self.hasher).finish();
        Ok(Written { size, sha256 })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let writer = self.writer.as_mut().expect("only commit takes it");
        let written = writer.write(data)?;
        self.hasher.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().expect("only commit takes it").flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // The buffer is discarded, since the scratch file is removed.
            let _ = writer.into_parts();
        }
        // After a commit the scratch file no longer exists.
        let _ = std::fs::remove_file(&self.scratch);
    }
}

/// A file that grows over several attempts and processes until it is complete: a download.
///
/// Unlike an [`AtomicFile`], it keeps its data when it is dropped, so that the next attempt resumes. The data on disk is
/// not trusted: the caller reads it again ([`GrowingFile::read`]) and checks the digest of the whole file before
/// calling [`GrowingFile::commit`]. The tag identifies the version of the target and is part of the scratch file's
/// name, so that different versions have different scratch files.
#[derive(Debug)]
pub struct GrowingFile {
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
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(StoreError::io("create", target)(source));
        };
        create_dir_all(folder)?;
        let scratch = folder.join(format!(".{name}.{tag}{GROWING_SUFFIX}"));
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&scratch)
            .map_err(StoreError::io("open", &scratch))?;
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
        let mut reader =
            File::open(&self.scratch).map_err(StoreError::io("open", &self.scratch))?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => sink(&piece[..read]),
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
        std::fs::rename(&self.scratch, &self.target)
            .map_err(StoreError::io("publish", &self.target))?;
        sync_folder(self.target.parent().expect("checked by open"))?;
        self.remove_other_versions()
    }

    /// Removes the scratch files of other versions of the target, unless another process has them open.
    fn remove_other_versions(&self) -> Result<(), StoreError> {
        let folder = self.target.parent().expect("checked by open");
        let name = self.target.file_name().expect("checked by open");
        let entries = folder.read_dir_utf8();
        for entry in entries.map_err(StoreError::io("read folder", folder))? {
            let entry = entry.map_err(StoreError::io("read folder", folder))?;
            let tag = entry
                .file_name()
                .strip_prefix(&format!(".{name}."))
                .and_then(|rest| rest.strip_suffix(GROWING_SUFFIX));
            // A tag has no dot: `.a.b.TAG.growing` belongs to `a.b` and not to `a`.
            if tag.is_none_or(|tag| tag.contains('.')) {
                continue;
            }
            let unused = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
            if unused {
                remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes growing files of other targets in the folder of `target`. Only the process that downloads into the folder may
/// call it.
pub fn sweep_growing(target: &Utf8Path) -> Result<(), StoreError> {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(());
    };
    let entries = match folder.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(StoreError::io("read folder", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read folder", folder))?;
        let owner = entry.file_name().strip_suffix(GROWING_SUFFIX);
        let owner = owner.and_then(|rest| rest.rsplit_once('.')?.0.strip_prefix('.'));
        if owner.is_some_and(|owner| owner != name) {
            remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Publishes a file in one call.
pub fn write_bytes(target: &Utf8Path, data: &[u8]) -> Result<Written, StoreError> {
    let mut file = AtomicFile::create(target)?;
    file.append(data)?;
    file.commit()
}

/// Publishes a value as pretty JSON with a final newline.
pub fn write_json<T: Serialize>(target: &Utf8Path, value: &T) -> Result<Written, StoreError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::io("encode", target)(error.into()))?;
    text.push(b'\n');
    write_bytes(target, &text)
}

/// Creates a folder and its parents. New folders are synced like files, so that they survive a power failure.
pub fn create_dir_all(folder: &Utf8Path) -> Result<(), StoreError> {
    let new: Vec<&Utf8Path> = folder
        .ancestors()
        .take_while(|path| !path.as_str().is_empty() && !path.exists())
        .collect();
    std::fs::create_dir_all(folder).map_err(StoreError::io("create folder", folder))?;
    new.into_iter()
        .filter_map(Utf8Path::parent)
        .try_for_each(sync_folder)
}

/// Removes a file. It is not an error if there is none.
pub fn remove_file(path: &Utf8Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder and its contents. It is not an error if there is none.
pub fn remove_dir_all(path: &Utf8Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Opens a log for appending. A crash may truncate it; a log is not a checkpoint.
pub fn open_log(path: &Utf8Path) -> Result<File, StoreError> {
    if let Some(folder) = path.parent() {
        create_dir_all(folder)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(StoreError::io("open", path))
}

/// Opens a lock file for reading and writing, without truncating what its holder wrote.
pub(crate) fn open_lock(path: &Utf8Path) -> Result<File, StoreError> {
    if let Some(folder) = path.parent() {
        create_dir_all(folder)?;
    }
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(StoreError::io("open", path))
}

/// Removes the scratch files of killed processes below `folder`, and returns their number. Only the holder of the run's
/// lock may call it.
pub fn sweep_scratch(folder: &Utf8Path) -> Result<usize, StoreError> {
    let mut swept = 0;
    let entries = match folder.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(StoreError::io("read folder", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read folder", folder))?;
        let kind = entry
            .file_type()
            .map_err(StoreError::io("inspect", entry.path()))?;
        if kind.is_dir() {
            swept += sweep_scratch(entry.path())?;
        } else if is_scratch(entry.file_name()) {
            remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Whether a file name belongs to a scratch file.
pub fn is_scratch(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SCRATCH_SUFFIX)
}

fn sync_folder(folder: &Utf8Path) -> Result<(), StoreError> {
    let folder = if folder.as_str().is_empty() {
        Utf8Path::new(".")
    } else {
        folder
    };
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(StoreError::io("sync folder", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("utf-8");
        (folder, path)
    }

    #[test]
    fn a_file_appears_only_at_commit() {
        let (_keep, folder) = folder();
        let target = folder.join("deep/er/file");
        let mut file = AtomicFile::create(&target).expect("scratch");
        file.append(b"abc").expect("appended");
        assert!(!target.exists());
        let written = file.commit().expect("published");
        assert_eq!(written.size, 3);
        assert_eq!(written.sha256, crate::sha::hash_bytes(b"abc"));
        assert_eq!(std::fs::read(&target).expect("file"), b"abc");
    }

    #[test]
    fn dropping_an_unfinished_file_publishes_nothing_and_keeps_the_old_one() {
        let (_keep, folder) = folder();
        let target = folder.join("file");
        write_bytes(&target, b"old").expect("written");
        let mut file = AtomicFile::create(&target).expect("scratch");
        file.append(b"new").expect("appended");
        drop(file);
        assert_eq!(std::fs::read(&target).expect("file"), b"old");
        assert_eq!(folder.read_dir_utf8().expect("folder").count(), 1);
    }

    #[test]
    fn scratch_files_of_a_killed_process_are_swept_and_results_stay() {
        let (_keep, folder) = folder();
        let target = folder.join("layers/000/file");
        write_bytes(&target, b"whole").expect("written");
        let mut file = AtomicFile::create(&target).expect("scratch");
        file.append(b"half").expect("appended");
        std::mem::forget(file); // as after kill -9
        assert_eq!(sweep_scratch(&folder).expect("swept"), 1);
        assert_eq!(std::fs::read(&target).expect("file"), b"whole");
        assert_eq!(sweep_scratch(&folder.join("absent")).expect("nothing"), 0);
    }

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
    fn removing_an_absent_file_is_not_an_error() {
        let (_keep, folder) = folder();
        remove_file(&folder.join("absent")).expect("no error");
        remove_dir_all(&folder.join("absent")).expect("no error");
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(matches!(
            AtomicFile::create(Utf8Path::new("/")),
            Err(StoreError::Io { .. })
        ));
    }
}
