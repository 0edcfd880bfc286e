//! Outside inputs: hashed whole when a run is planned, recognised by size and time of change afterwards.
//!
//! The time is that of the inode's last change (ctime), which the system sets: a file that was written and then got
//! its old modification time back is not taken for the old file.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::StoreError;
use crate::plan::{External, ExternalFile};
use crate::sha::{Hasher, hash_file};

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

/// Hashes a file from outside.
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

/// Makes the external of some files; its digest covers file names, sizes and hashes in order.
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

/// Describes files again, hashing only those whose size or time of change differ from `known`.
pub fn refresh(known: &External, paths: &[Utf8PathBuf]) -> Result<External, StoreError> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let (size, mtime_ns) = stamp(path)?;
        let same = known
            .files
            .iter()
            .find(|file| file.path == *path && file.size == size && file.mtime_ns == mtime_ns);
        files.push(match same {
            Some(file) => file.clone(),
            None => describe_file(path)?,
        });
    }
    Ok(external(files))
}

/// The files that a process has hashed and found to be those of the plan, with their time of change.
#[derive(Debug, Default)]
pub struct Verified(BTreeMap<Utf8PathBuf, i64>);

/// Checks that the files are still those of the plan: size and time, and the hash where the time differs.
///
/// Shards that come and go are left out: [`verify_file`] is for those that are needed.
pub fn verify_external(external: &External, verified: &mut Verified) -> Result<(), StoreError> {
    let mut files = external.files.iter().filter(|file| file.shard.is_none());
    files.try_for_each(|file| verify_file(file, verified))
}

/// Checks one file; a file that came again after the run was planned is hashed once by each process that reads it.
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
    fn a_changed_file_is_noticed_and_a_touched_one_is_not_mistaken() {
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
        // A writer that gives the file its old time back is seen all the same.
        let then = std::fs::metadata(&path)
            .expect("file")
            .modified()
            .expect("time");
        crate::atomic::write_bytes(&path, b"abd").expect("other bytes");
        let file = std::fs::File::open(&path).expect("file");
        file.set_modified(then).expect("set back");
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
