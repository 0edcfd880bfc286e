//! What a file is on disk: whether its name is a link, and how much of its length is stored.
//!
//! For folders whose files are listed with their sizes, such as packs: a link would lead out of the folder, and a file with
//! holes can be long without taking space.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::regular;

/// Opens a regular file for reading. The last part of the path must not be a symbolic link.
///
/// # Errors
/// Those of [`crate::open`]; [`ErrorKind::InvalidInput`] for a link.
pub fn open_without_link(path: impl AsRef<Path>) -> Result<File> {
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
    match rustix::fs::open(path.as_ref(), flags, Mode::empty()) {
        Ok(file) => regular(File::from(file)),
        Err(Errno::LOOP) => {
            let message = "it is a symbolic link, not a regular file";
            Err(Error::new(ErrorKind::InvalidInput, message))
        }
        Err(error) => Err(error.into()),
    }
}

/// Bytes of a file that are stored, holes not counted; the count stops at `enough`. A file system that does not tell holes
/// from data has no holes.
///
/// # Errors
/// Those of the system.
pub fn stored_bytes(file: &File, enough: u64) -> Result<u64> {
    let length = file.metadata()?.len();
    let (mut stored, mut position) = (0, 0);
    while stored < enough && position < length {
        let data = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(length),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        if hole <= position {
            return Ok(length);
        }
        stored += hole - data;
        position = hole;
    }
    rustix::fs::seek(file, SeekFrom::Start(0))?;
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;

    #[test]
    fn a_link_is_refused_and_a_file_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "text").expect("file");
        symlink(&file, &link).expect("link");
        open_without_link(&file).expect("a file");
        let error = open_without_link(&link).expect_err("a link");
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(open_without_link(folder.path()).is_err());
    }

    #[test]
    fn holes_are_not_stored_and_ordinary_files_are() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 100_000]).expect("file");
        let file = File::open(&path).expect("opened");
        assert!(stored_bytes(&file, u64::MAX).expect("counted") >= 100_000);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("opened");
        file.set_len(1 << 34).expect("a long hole");
        file.write_all_at(b"end", (1 << 34) - 3).expect("the end");
        let file = File::open(&path).expect("opened");
        let stored = stored_bytes(&file, u64::MAX).expect("counted");
        assert!(stored < 1 << 20, "{stored}");
        assert!(stored_bytes(&file, 10).expect("counted") >= 10);
    }
}
