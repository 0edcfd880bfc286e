//! The one module that creates and deletes files.
//!
//! A file appears under its name only when it is complete and on disk: write to a scratch file in the same folder, fsync,
//! rename, fsync of the folder. Dropping an unfinished [`AtomicFile`] removes the scratch file and never publishes it. The
//! name of a scratch file follows from its target, so that the scratch file of a killed process is overwritten or swept,
//! and never mistaken for a result.
//!
//! Functions named `…_below` work below a folder that the user chose, a run directory or the folder of a pack. They walk from its
//! handle and follow no link, so that whatever the folder of a stranger holds, nothing outside of it is written or deleted.
//! There is no function that deletes by a path alone.
#![allow(clippy::disallowed_methods)] // the exception: all other code creates and deletes files through this module

mod folder;
mod growing;

use std::fs::File;
use std::io::{self, BufWriter, Write};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::OFlags;
use serde::Serialize;

use crate::error::StoreError;
use crate::sha::{Hasher, Sha256Digest};
use folder::{Folder, Missing, parts_below};

pub use growing::{GrowingFile, sweep_growing};

/// Suffix of scratch files; their names start with a dot.
const SCRATCH_SUFFIX: &str = ".partial";

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
    folder: Folder,
    /// Name of the scratch file in the folder.
    scratch: String,
    target: Utf8PathBuf,
    writer: Option<BufWriter<File>>,
    hasher: Hasher,
}

impl AtomicFile {
    /// Creates the scratch file of `target`, and the folder if it is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(target: &Utf8Path) -> Result<Self, StoreError> {
        let (folder, _) = split(target)?;
        create_dir_all(folder)?;
        Self::create_in(Folder::open(folder)?, target)
    }

    /// Like [`AtomicFile::create`], for a target below `base`.
    ///
    /// # Errors
    /// [`StoreError::Io`], also for a target that does not lie below `base`; [`StoreError::Malformed`] if a folder on the way
    /// is a link.
    pub fn create_below(base: &Utf8Path, target: &Utf8Path) -> Result<Self, StoreError> {
        let (folder, _) = split(target)?;
        let folder = Folder::below(base, folder, Missing::Create)?;
        Self::create_in(folder, target)
    }

    fn create_in(folder: Folder, target: &Utf8Path) -> Result<Self, StoreError> {
        let (_, name) = split(target)?;
        let scratch = format!(".{name}{SCRATCH_SUFFIX}");
        let file = folder.create_new(&scratch)?;
        Ok(Self {
            folder,
            scratch,
            target: target.to_owned(),
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

    /// The digest of the data so far.
    pub fn digest(&self) -> Sha256Digest {
        self.hasher.clone().finish().0
    }

    /// Publishes the file. From here on it exists completely, even after a crash.
    pub fn commit(mut self) -> Result<Written, StoreError> {
        let writer = self.writer.take().expect("only commit takes it");
        let file = writer
            .into_inner()
            .map_err(|error| StoreError::io("write", &self.target)(error.into_error()))?;
        file.sync_all()
            .map_err(StoreError::io("sync", &self.target))?;
        if !self.folder.holds(&self.scratch, &file) {
            let message = "another process has replaced its scratch file";
            return Err(StoreError::io("publish", &self.target)(io::Error::other(
                message,
            )));
        }
        drop(file);
        let (_, name) = split(&self.target)?;
        self.folder.rename(&self.scratch, name)?;
        self.folder.sync()?;
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
        let _ = self.folder.remove(&self.scratch);
    }
}

/// Folder and name of a file.
fn split(target: &Utf8Path) -> Result<(&Utf8Path, &str), StoreError> {
    target.parent().zip(target.file_name()).ok_or_else(|| {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        StoreError::io("create", target)(source)
    })
}

/// Publishes a file in one call.
pub fn write_bytes(target: &Utf8Path, data: &[u8]) -> Result<Written, StoreError> {
    write_to(AtomicFile::create(target)?, data)
}

/// Publishes a file below `base` in one call.
pub fn write_bytes_below(
    base: &Utf8Path,
    target: &Utf8Path,
    data: &[u8],
) -> Result<Written, StoreError> {
    write_to(AtomicFile::create_below(base, target)?, data)
}

fn write_to(mut file: AtomicFile, data: &[u8]) -> Result<Written, StoreError> {
    file.append(data)?;
    file.commit()
}

/// Publishes a value as pretty JSON with a final newline.
pub fn write_json<T: Serialize>(target: &Utf8Path, value: &T) -> Result<Written, StoreError> {
    write_bytes(target, &json_text(target, value)?)
}

/// Publishes a value below `base` as pretty JSON with a final newline.
pub fn write_json_below<T: Serialize>(
    base: &Utf8Path,
    target: &Utf8Path,
    value: &T,
) -> Result<Written, StoreError> {
    write_bytes_below(base, target, &json_text(target, value)?)
}

fn json_text<T: Serialize>(target: &Utf8Path, value: &T) -> Result<Vec<u8>, StoreError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::io("encode", target)(error.into()))?;
    text.push(b'\n');
    Ok(text)
}

/// Creates a folder and its parents. New folders are synced like files, so that they survive a power failure.
pub fn create_dir_all(folder: &Utf8Path) -> Result<(), StoreError> {
    let new: Vec<&Utf8Path> = folder
        .ancestors()
        .take_while(|path| !path.as_str().is_empty() && !path.exists())
        .collect();
    if !folder.as_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(StoreError::io("create folder", folder))?;
    }
    new.into_iter()
        .filter_map(Utf8Path::parent)
        .try_for_each(|parent| Folder::open(parent)?.sync())
}

/// Creates a folder below `base`, with the folders on the way to it.
pub fn create_dir_below(base: &Utf8Path, folder: &Utf8Path) -> Result<(), StoreError> {
    Folder::below(base, folder, Missing::Create).map(|_| ())
}

/// Removes a file below `base`. It is not an error if there is none.
pub fn remove_file_below(base: &Utf8Path, path: &Utf8Path) -> Result<(), StoreError> {
    in_parent(base, path, Folder::remove)
}

/// Removes a folder below `base` and its contents. It is not an error if there is none.
pub fn remove_dir_below(base: &Utf8Path, path: &Utf8Path) -> Result<(), StoreError> {
    in_parent(base, path, Folder::remove_tree)
}

/// Removes something from its folder, if there is such a folder.
fn in_parent(
    base: &Utf8Path,
    path: &Utf8Path,
    remove: impl FnOnce(&Folder, &str) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    if parts_below(base, path)?.is_empty() {
        return Err(StoreError::io("remove", path)(
            io::ErrorKind::InvalidInput.into(),
        ));
    }
    let (folder, name) = split(path)?;
    match Folder::below(base, folder, Missing::Fail) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        folder => remove(&folder?, name),
    }
}

/// Publishes a finished folder under another name in the same parent. With `replace`, a folder of that name is exchanged for
/// it in one step and removed afterwards; without, there must be none.
///
/// # Errors
/// [`StoreError::Io`], of the kind `AlreadyExists` if there is something of that name and `replace` is not set.
pub fn publish_folder(
    scratch: &Utf8Path,
    target: &Utf8Path,
    replace: bool,
) -> Result<(), StoreError> {
    let (parent, from) = split(scratch)?;
    let (_, to) = split(target)?;
    let folder = Folder::open(parent)?;
    folder.publish_folder(from, to, replace)?;
    folder.sync()
}

/// Opens a log below `base` for appending. A crash may truncate it; a log is not a checkpoint.
pub fn open_log_below(base: &Utf8Path, path: &Utf8Path) -> Result<File, StoreError> {
    open_below(base, path, OFlags::WRONLY | OFlags::APPEND)
}

/// Opens a lock file below `base` for reading and writing, without truncating what its holder wrote.
pub(crate) fn open_lock_below(base: &Utf8Path, path: &Utf8Path) -> Result<File, StoreError> {
    open_below(base, path, OFlags::RDWR)
}

/// Opens a file below `base` for reading and writing at any position. What it holds is kept. It is not a finished file until
/// [`publish_folder`] publishes the folder that it lies in.
pub fn open_partial_below(base: &Utf8Path, path: &Utf8Path) -> Result<File, StoreError> {
    open_below(base, path, OFlags::RDWR)
}

fn open_below(base: &Utf8Path, path: &Utf8Path, flags: OFlags) -> Result<File, StoreError> {
    let (folder, name) = split(path)?;
    Folder::below(base, folder, Missing::Create)?.open_or_create(name, flags)
}

/// Removes the scratch files of killed processes below `folder`, and returns their number. Only the holder of the run's
/// lock may call it.
pub fn sweep_scratch(folder: &Utf8Path) -> Result<usize, StoreError> {
    match Folder::open(folder) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(0),
        folder => sweep(&folder?),
    }
}

fn sweep(folder: &Folder) -> Result<usize, StoreError> {
    let mut swept = 0;
    for name in folder.files()? {
        if is_scratch(&name) {
            folder.remove(&name)?;
            swept += 1;
        }
    }
    for folder in folder.folders()? {
        swept += sweep(&folder)?;
    }
    Ok(swept)
}

/// Whether a file name belongs to a scratch file.
pub fn is_scratch(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SCRATCH_SUFFIX)
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
    fn a_folder_is_published_whole_and_replaces_another_only_on_request() {
        let (_keep, base) = folder();
        let (scratch, target) = (base.join("out.partial"), base.join("out"));
        let write = |text: &[u8]| {
            write_bytes_below(&scratch, &scratch.join("file"), text).expect("written");
        };
        write(b"first");
        publish_folder(&scratch, &target, false).expect("published");
        write(b"second");
        let error = publish_folder(&scratch, &target, false).expect_err("refused");
        assert!(
            matches!(&error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        );
        assert_eq!(std::fs::read(target.join("file")).expect("file"), b"first");
        publish_folder(&scratch, &target, true).expect("replaced");
        assert_eq!(std::fs::read(target.join("file")).expect("file"), b"second");
        assert!(!scratch.exists());
    }

    #[test]
    fn removing_an_absent_file_is_not_an_error() {
        let (_keep, folder) = folder();
        remove_file_below(&folder, &folder.join("absent")).expect("no error");
        remove_file_below(&folder, &folder.join("absent/file")).expect("no error");
        remove_dir_below(&folder, &folder.join("absent")).expect("no error");
    }

    /// A run directory in which `inside` leads to a folder outside that holds a file.
    fn with_link_to_outside() -> (tempfile::TempDir, Utf8PathBuf, Utf8PathBuf) {
        let (keep, folder) = folder();
        let (base, outside) = (folder.join("run"), folder.join("outside"));
        for folder in [&base, &outside] {
            std::fs::create_dir(folder).expect("folder");
        }
        let precious = outside.join("precious");
        std::fs::write(&precious, "mine").expect("written");
        std::os::unix::fs::symlink(&outside, base.join("inside")).expect("link");
        std::os::unix::fs::symlink(&precious, base.join("file")).expect("link");
        std::os::unix::fs::symlink(&precious, base.join(".new.partial")).expect("link");
        (keep, base, precious)
    }

    #[test]
    fn no_link_below_a_folder_leads_outside() {
        let (_keep, base, precious) = with_link_to_outside();
        let target = base.join("inside/precious");
        let refused: [(&str, Result<(), StoreError>); 6] = [
            ("write", write_bytes_below(&base, &target, b"x").map(|_| ())),
            ("remove", remove_file_below(&base, &target)),
            ("tree", remove_dir_below(&base, &base.join("inside/folder"))),
            (
                "create",
                create_dir_below(&base, &base.join("inside/folder")),
            ),
            ("log", open_log_below(&base, &base.join("file")).map(|_| ())),
            (
                "lock",
                open_lock_below(&base, &base.join("file")).map(|_| ()),
            ),
        ];
        for (what, result) in refused {
            let error = result.expect_err(what).to_string();
            assert!(error.contains("a link"), "{what}: {error}");
        }
        // A link in the place of a file is removed or replaced, not followed.
        write_bytes_below(&base, &base.join("new"), b"x").expect("written");
        write_bytes_below(&base, &base.join("file"), b"x").expect("replaced");
        remove_dir_below(&base, &base.join("inside")).expect("removed");
        assert_eq!(std::fs::read(&precious).expect("file"), b"mine");
        assert_eq!(std::fs::read(base.join("file")).expect("file"), b"x");
        assert!(!base.join("inside").exists());
    }

    #[test]
    fn paths_outside_a_folder_are_refused_and_the_sweep_stays_inside() {
        let (_keep, base, precious) = with_link_to_outside();
        std::fs::write(precious.with_file_name(".x.partial"), "kept").expect("written");
        assert_eq!(
            sweep_scratch(&base).expect("swept"),
            1,
            "the link named .new.partial"
        );
        assert!(precious.with_file_name(".x.partial").exists());
        for path in [
            precious.clone(),
            base.join("../outside/precious"),
            base.clone(),
        ] {
            remove_file_below(&base, &path).expect_err(path.as_str());
            remove_dir_below(&base, &path).expect_err(path.as_str());
        }
        assert!(precious.exists());
    }

    #[test]
    fn a_fifo_in_the_place_of_a_lock_is_refused_at_once() {
        let (_keep, folder) = folder();
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        let fifo = folder.join("lock");
        rustix::fs::mknodat(rustix::fs::CWD, fifo.as_str(), kind, mode, 0).expect("fifo");
        for open in [open_lock_below, open_log_below] {
            let error = open(&folder, &fifo).expect_err("refused").to_string();
            assert!(error.contains("neither file nor folder"), "{error}");
        }
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(matches!(
            AtomicFile::create(Utf8Path::new("/")),
            Err(StoreError::Io { .. })
        ));
    }
}
