//! A folder by handle: names are resolved relative to it, and a link in the place of a name is never followed.
//!
//! Owns every call of the system that creates, renames or deletes below a folder. A path below a run directory is walked from
//! the directory's handle, so that no file or folder of a run can stand for something outside of it. It decides neither what is
//! created nor when.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::StoreError;

/// Permissions of new files and folders, from which the process's mask removes some.
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o777);
/// Flags of every folder handle.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// Flags of every file that is opened or created here. Without NONBLOCK, a FIFO would wait for its other end.
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Whether folders that do not exist are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Fail,
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    handle: OwnedFd,
    path: Utf8PathBuf,
}

impl Folder {
    /// Opens a folder by a path whose links are followed, because the user chose it.
    pub(super) fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        let shown = match path.as_str() {
            "" => Utf8Path::new("."),
            _ => path,
        };
        let handle = rustix::fs::open(shown.as_str(), FOLDER, Mode::empty());
        Ok(Self {
            handle: handle.map_err(failure("open folder", shown))?,
            path: shown.to_owned(),
        })
    }

    /// Opens the folder `path`, which lies at or below `base`. No link below `base` is followed.
    pub(super) fn below(
        base: &Utf8Path,
        path: &Utf8Path,
        missing: Missing,
    ) -> Result<Self, StoreError> {
        if missing == Missing::Create {
            super::create_dir_all(base)?;
        }
        let mut folder = Self::open(base)?;
        for part in parts_below(base, path)? {
            folder = folder.enter(part, missing)?;
        }
        Ok(folder)
    }

    fn enter(&self, name: &str, missing: Missing) -> Result<Self, StoreError> {
        let path = self.path.join(name);
        let open =
            || rustix::fs::openat(&self.handle, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
        let mut handle = open();
        if matches!(handle, Err(Errno::NOENT)) && missing == Missing::Create {
            match rustix::fs::mkdirat(&self.handle, name, FOLDER_MODE) {
                Ok(()) => self.sync()?,
                Err(Errno::EXIST) => {} // another process was faster
                Err(error) => return Err(failure("create folder", &path)(error)),
            }
            handle = open();
        }
        match handle {
            Ok(handle) => Ok(Self { handle, path }),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(self.unexpected(name, "folder")),
            Err(error) => Err(failure("open folder", &path)(error)),
        }
    }

    /// The error for a name that is not what it should be.
    fn unexpected(&self, name: &str, what: &'static str) -> StoreError {
        let found = match self.kind(name) {
            Ok(FileType::Symlink) => "a link, which is not followed",
            Ok(FileType::RegularFile) => "a file",
            Ok(FileType::Directory) => "a folder",
            _ => "neither file nor folder",
        };
        StoreError::malformed(&self.path.join(name), what, found, format!("a {what}"))
    }

    fn kind(&self, name: impl rustix::path::Arg) -> rustix::io::Result<FileType> {
        let stat = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// Creates a file for writing. What stood in its place, such as a link, is removed first.
    pub(super) fn create_new(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path.join(name);
        let flags = FILE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let create = || rustix::fs::openat(&self.handle, name, flags, FILE_MODE);
        let mut file = create();
        if matches!(file, Err(Errno::EXIST)) {
            self.remove(name)?;
            file = create();
        }
        file.map(File::from).map_err(failure("create", &path))
    }

    /// Opens a regular file with `flags` and creates it if there is none.
    pub(super) fn open_or_create(&self, name: &str, flags: OFlags) -> Result<File, StoreError> {
        let path = self.path.join(name);
        let flags = FILE | OFlags::CREATE | flags;
        let file = match rustix::fs::openat(&self.handle, name, flags, FILE_MODE) {
            Ok(handle) => File::from(handle),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                return Err(self.unexpected(name, "file"));
            }
            Err(error) => return Err(failure("open", &path)(error)),
        };
        let metadata = file.metadata().map_err(StoreError::io("inspect", &path))?;
        match metadata.is_file() {
            true => Ok(file),
            false => Err(self.unexpected(name, "file")),
        }
    }

    /// Opens a regular file for reading, if there is one.
    pub(super) fn open_existing(&self, name: &str) -> Option<File> {
        let flags = FILE | OFlags::RDONLY;
        let handle = rustix::fs::openat(&self.handle, name, flags, Mode::empty()).ok()?;
        let file = File::from(handle);
        file.metadata().is_ok_and(|m| m.is_file()).then_some(file)
    }

    /// Whether `name` is this open file, and not one that has taken its place since.
    pub(super) fn holds(&self, name: &str, file: &File) -> bool {
        let named = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
        let open = rustix::fs::fstat(file);
        match (named, open) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            _ => false,
        }
    }

    /// Renames a file of this folder; a file with the new name is replaced, as is a link.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.handle, from, &self.handle, to)
            .map_err(failure("publish", &self.path.join(to)))
    }

    /// Renames a folder of this folder. With `replace`, a folder of the new name is exchanged for it and then removed.
    pub(super) fn publish_folder(
        &self,
        from: &str,
        to: &str,
        replace: bool,
    ) -> Result<(), StoreError> {
        let rename = |flags| rustix::fs::renameat_with(&self.handle, from, &self.handle, to, flags);
        match rename(RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) if replace => {}
            // A file system without such renames; the caller has looked for a folder of that name.
            Err(Errno::INVAL | Errno::NOSYS) if replace || self.kind(to).is_err() => {}
            Err(error) => return Err(failure("publish", &self.path.join(to))(error)),
        }
        match rename(RenameFlags::EXCHANGE) {
            Ok(()) => self.remove_tree(from),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOENT) => {
                self.remove_tree(to)?;
                self.rename(from, to)
            }
            Err(error) => Err(failure("publish", &self.path.join(to))(error)),
        }
    }

    /// Removes a file or a link. It is not an error if there is none.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failure("remove", &self.path.join(name))(error)),
        }
    }

    /// Removes a folder and its contents, or a file. It is not an error if there is none.
    pub(super) fn remove_tree(&self, name: &str) -> Result<(), StoreError> {
        match self.kind(name) {
            Err(Errno::NOENT) => return Ok(()),
            Ok(FileType::Directory) => {}
            _ => return self.remove(name),
        }
        let folder = self.enter(name, Missing::Fail)?;
        for (entry, _) in folder.entries()? {
            folder.remove_tree(&utf8(&folder.path, &entry)?)?;
        }
        rustix::fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR)
            .map_err(failure("remove", &self.path.join(name)))
    }

    /// Names and kinds of the entries.
    fn entries(&self) -> Result<Vec<(CString, FileType)>, StoreError> {
        let failed = || failure("read folder", &self.path);
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.handle).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => self.kind(name).map_err(failed())?,
                kind => kind,
            };
            entries.push((name.to_owned(), kind));
        }
        Ok(entries)
    }

    /// Names of the entries that are not folders; names that are not UTF-8 are left out.
    pub(super) fn files(&self) -> Result<Vec<String>, StoreError> {
        let files = self.entries()?.into_iter();
        let files = files.filter(|(_, kind)| *kind != FileType::Directory);
        Ok(files
            .filter_map(|(name, _)| name.into_string().ok())
            .collect())
    }

    /// The folders in this folder; those whose names are not UTF-8 are left out.
    pub(super) fn folders(&self) -> Result<Vec<Self>, StoreError> {
        let folders = self.entries()?.into_iter();
        let folders = folders.filter(|(_, kind)| *kind == FileType::Directory);
        let names = folders.filter_map(|(name, _)| name.into_string().ok());
        names.map(|name| self.enter(&name, Missing::Fail)).collect()
    }

    /// Makes the entries of the folder survive a power failure.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.handle).map_err(failure("sync folder", &self.path))
    }
}

/// The names that lead from `base` to `path`.
pub(super) fn parts_below<'p>(
    base: &Utf8Path,
    path: &'p Utf8Path,
) -> Result<Vec<&'p str>, StoreError> {
    let outside = || {
        let message = format!("it does not lie below {base}");
        StoreError::io("use", path)(io::Error::new(io::ErrorKind::InvalidInput, message))
    };
    let below = path.strip_prefix(base).map_err(|_| outside())?;
    let names = below.components().map(|part| match part {
        Utf8Component::Normal(name) => Ok(name),
        _ => Err(outside()),
    });
    names.collect()
}

fn utf8(folder: &Utf8Path, name: &CStr) -> Result<String, StoreError> {
    let name = name.to_str().map_err(|_| {
        let found = name.to_string_lossy().into_owned();
        StoreError::malformed(folder, "folder", found, "names in UTF-8")
    })?;
    Ok(name.to_owned())
}

fn failure(action: &'static str, path: &Utf8Path) -> impl FnOnce(Errno) -> StoreError {
    let error = StoreError::io(action, path);
    move |errno| error(errno.into())
}
