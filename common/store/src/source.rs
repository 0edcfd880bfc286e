//! External inputs: hashed completely when a run is planned, recognized by size and time of change afterwards.
//!
//! The time is that of the inode's last change (ctime), which only the system sets. So a file that was overwritten,
//! with its old modification time restored, is not mistaken for the old file.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::StoreError;
use crate::plan::{External, ExternalFile};
use crate::sha::{Hasher, Sha256Digest, hash_file};

/// Size and time of the last change (nanoseconds since 1970) of a file.
fn stamp(path: &Utf8Path) -> Result<(u64, i64), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).map_err(StoreError::io("open", path))?;
    let changed = metadata
        .ctime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.ctime_nsec());
    Ok((metadata.len(), changed))
}

/// Hashes and describes an external file.
pub fn describe_file(path: &Utf8Path) -> Result<ExternalFile, StoreError> {
    let (_, mtime_ns) = stamp(path)?;
    let (sha256, size) = hash_file(path)?;
    Ok(ExternalFile {
        path: path.to_owned(),
        size,
        sha256,
        mtime_ns,
        shard: None,
    })
}

/// The external input of some files. Its digest covers names, sizes and hashes of the files in order.
pub fn external(files: Vec<ExternalFile>) -> External {
    let digest = match files.as_slice() {
        [file] => file.sha256,
        files => {
            let mut hasher = Hasher::default();
            for file in files {
                let name = file.path.file_name().unwrap_or_default();
                hasher.update(format!("{name} {} {}\n", file.size, file.sha256).as_bytes());
            }
            hasher.finish().0
        }
    };
    External { files, digest }
}

/// Describes files again, and hashes only those whose size or time of change differs from `known`.
pub fn refresh(known: &External, paths: &[Utf8PathBuf]) -> Result<External, StoreError> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let (size, mtime_ns) = stamp(path)?;
        let unchanged = known
            .files
            .iter()
            .find(|file| file.path == *path && file.size == size && file.mtime_ns == mtime_ns);
        files.push(match unchanged {
            Some(file) => file.clone(),
            None => describe_file(path)?,
        });
    }
    Ok(external(files))
}

/// The files that this process has hashed and found unchanged, with their time of change.
#[derive(Debug, Default)]
pub struct Verified(BTreeMap<Utf8PathBuf, i64>);

/// Checks that the files are those of the plan: by size and time, and by hash if the time differs.
///
/// Of shards that are fetched on demand, only the headers beside them are checked; the shards that a job reads are checked
/// by [`verify_file`].
pub fn verify_external(external: &External, verified: &mut Verified) -> Result<(), StoreError> {
    external
        .files
        .iter()
        .try_for_each(|file| match &file.shard {
            None => verify_file(file, verified),
            Some(shard) => shard.header.as_ref().map_or(Ok(()), |header| {
                verify_header(&shard_header(&file.path), header, verified)
            }),
        })
}

/// Path of the file that holds the header of a shard.
pub fn shard_header(shard: &Utf8Path) -> Utf8PathBuf {
    format!("{shard}.header").into()
}

/// Checks that the header of a shard is that of the plan. It is hashed once by each process that reads it.
fn verify_header(
    path: &Utf8Path,
    expected: &Sha256Digest,
    verified: &mut Verified,
) -> Result<(), StoreError> {
    let (_, changed) = stamp(path)?;
    if verified.0.get(path) == Some(&changed) {
        return Ok(());
    }
    let (found, _) = hash_file(path)?;
    if found != *expected {
        return Err(StoreError::Changed {
            path: path.to_owned(),
            what: "SHA-256",
            found: found.to_string(),
            expected: expected.to_string(),
        });
    }
    verified.0.insert(path.to_owned(), changed);
    Ok(())
}

/// Checks one file. A file that was downloaded again after the run was planned is hashed once by each process that reads
/// it.
pub fn verify_file(file: &ExternalFile, verified: &mut Verified) -> Result<(), StoreError> {
    let (size, mtime_ns) = stamp(&file.path)?;
    let changed = |what, found: String, expected: String| {
        Err(StoreError::Changed {
            path: file.path.clone(),
            what,
            found,
            expected,
        })
    };
    if size != file.size {
        return changed("size", size.to_string(), file.size.to_string());
    }
    let known = verified.0.get(&file.path).copied();
    if mtime_ns != file.mtime_ns && known != Some(mtime_ns) {
        let (found, _) = hash_file(&file.path)?;
        if found != file.sha256 {
            return changed("SHA-256", found.to_string(), file.sha256.to_string());
        }
        verified.0.insert(file.path.clone(), mtime_ns);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::folder;

    #[test]
    fn a_changed_file_is_detected_and_a_rewritten_equal_one_is_accepted() {
        let verify_external = |known: &External| verify_external(known, &mut Verified::default());
        let (_keep, folder) = folder();
        let path = folder.join("model.safetensors");
        crate::atomic::write_bytes(&path, b"abc").expect("written");
        let known = external(vec![describe_file(&path).expect("hashed")]);
        verify_external(&known).expect("same");
        let paths = [path.clone()];
        crate::atomic::write_bytes(&path, b"abc").expect("same bytes, later");
        verify_external(&known).expect("same bytes");
        assert_eq!(
            refresh(&known, &paths).expect("hashed").digest,
            known.digest
        );
        // A change is detected even if the file gets its old modification time back.
        let old_time = std::fs::metadata(&path)
            .expect("file")
            .modified()
            .expect("time");
        crate::atomic::write_bytes(&path, b"abd").expect("other bytes");
        let file = std::fs::File::open(&path).expect("file");
        file.set_modified(old_time).expect("set back");
        assert!(matches!(
            verify_external(&known),
            Err(StoreError::Changed {
                what: "SHA-256",
                ..
            })
        ));
        assert_ne!(
            refresh(&known, &paths).expect("hashed").digest,
            known.digest
        );
        crate::atomic::write_bytes(&path, b"abcd").expect("longer");
        assert!(matches!(
            verify_external(&known),
            Err(StoreError::Changed { what: "size", .. })
        ));
    }
}
