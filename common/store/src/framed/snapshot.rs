//! A file of all that a job has accumulated, from which the job continues after a crash.
//!
//! Small values are frames, long sums lie between them as little-endian f32, and the last frame is the SHA-256 of all bytes before it.
//! The job passes its values through the file in a fixed order, whether they are saved or loaded. They are written from where they
//! are: a snapshot may be as large as the memory of its job. It appears under its name when it is whole, in the place of the one before.

use std::fs::File;
use std::io::{BufReader, Read};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Frame, HEADER, Header};
use crate::atomic::AtomicFile;
use crate::error::StoreError;
use crate::sha::{Hasher, Sha256Digest};
use crate::tensors::f32_bytes;

/// The small values, and the digest.
const FRAME: Frame = Frame {
    magic: *b"UCSUMS\0\0",
    version: 1,
    what: "snapshot",
    max_body: 64 << 20,
    zstd_level: None,
};

/// Values that are converted at a time.
const PIECE: usize = 1 << 18;

/// A snapshot that is being saved or loaded.
#[derive(Debug)]
pub struct Snapshot {
    path: Utf8PathBuf,
    file: Direction,
}

#[derive(Debug)]
enum Direction {
    Save(AtomicFile),
    Load(Hashed),
}

/// Hashes what is read.
#[derive(Debug)]
struct Hashed {
    file: BufReader<File>,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }
}

impl Snapshot {
    /// Begins a snapshot below `base`.
    pub(crate) fn save(base: &Utf8Path, path: &Utf8Path) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            file: Direction::Save(AtomicFile::create_below(base, path)?),
        })
    }

    /// Opens a snapshot.
    pub(crate) fn load(path: &Utf8Path) -> Result<Self, StoreError> {
        let file = uc_input::open(path).map_err(StoreError::io("open", path))?;
        let file = BufReader::with_capacity(1 << 20, file);
        let hasher = Hasher::default();
        Ok(Self {
            path: path.to_owned(),
            file: Direction::Load(Hashed { file, hasher }),
        })
    }

    /// Saves a small value, or replaces it by the saved one.
    ///
    /// # Errors
    /// [`StoreError::Io`], and those of [`Frame::decode`].
    pub fn value<T: Serialize + DeserializeOwned>(
        &mut self,
        value: &mut T,
    ) -> Result<(), StoreError> {
        let file = match &mut self.file {
            Direction::Save(file) => return FRAME.write(file, value),
            Direction::Load(file) => file,
        };
        let mut bytes = vec![0; HEADER];
        let failed = || StoreError::io("read", &self.path);
        file.read_exact(&mut bytes).map_err(failed())?;
        let stored = Header::parse(&FRAME, &bytes, &self.path)?.stored;
        file.take(stored.min(FRAME.max_body))
            .read_to_end(&mut bytes)
            .map_err(failed())?;
        *value = FRAME.decode(&bytes, &self.path)?;
        Ok(())
    }

    /// Saves sums, or replaces them by the saved ones.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sums(&mut self, sums: &mut [f32]) -> Result<(), StoreError> {
        for piece in sums.chunks_mut(PIECE) {
            let file = match &mut self.file {
                Direction::Save(file) => {
                    file.append(&f32_bytes(piece))?;
                    continue;
                }
                Direction::Load(file) => file,
            };
            let mut bytes = vec![0; 4 * piece.len()];
            let read = file.read_exact(&mut bytes);
            read.map_err(StoreError::io("read", &self.path))?;
            let (words, _) = bytes.as_chunks::<4>();
            let pairs = piece.iter_mut().zip(words);
            pairs.for_each(|(sum, &word)| *sum = f32::from_le_bytes(word));
        }
        Ok(())
    }

    /// Publishes the snapshot, or checks what was loaded.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Hash`] or [`StoreError::Malformed`] if what was loaded is not what was saved.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        let digest = match &self.file {
            Direction::Save(file) => file.digest(),
            Direction::Load(file) => file.hasher.clone().finish().0,
        };
        let mut saved = digest;
        self.value(&mut saved)?;
        check_digest(&self.path, digest, saved)?;
        match self.file {
            Direction::Save(file) => file.commit().map(|_| ()),
            Direction::Load(file) => match file.file.bytes().next() {
                None => Ok(()),
                Some(_) => Err(StoreError::malformed(
                    &self.path,
                    FRAME.what,
                    "more values",
                    "the end of the file",
                )),
            },
        }
    }
}

/// Compares the digest of a file with the saved one.
pub(crate) fn check_digest(
    path: &Utf8Path,
    found: Sha256Digest,
    expected: Sha256Digest,
) -> Result<(), StoreError> {
    match found == expected {
        true => Ok(()),
        false => Err(StoreError::Hash {
            path: path.to_owned(),
            found,
            expected,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic;
    use crate::plan::tests_support::folder;

    type Values = ((String, f64), Vec<f32>, u64);

    fn pass_through(values: &mut Values, mut snapshot: Snapshot) -> Result<(), StoreError> {
        snapshot.value(&mut values.0)?;
        snapshot.sums(&mut values.1)?;
        snapshot.value(&mut values.2)?;
        snapshot.finish()
    }

    #[test]
    fn what_is_loaded_is_what_was_saved_and_damage_is_detected() {
        let (_keep, base) = folder();
        let path = base.join("work/sums");
        let sums = (0..PIECE + 3).map(|i| 0.1 * i as f32).chain([f32::NAN]);
        let mut saved: Values = (("x".into(), 0.1), sums.collect(), 7);
        let save = |values: &mut Values| pass_through(values, Snapshot::save(&base, &path)?);
        let load = || {
            let mut loaded: Values = ((String::new(), 0.0), vec![0.0; PIECE + 4], 0);
            pass_through(&mut loaded, Snapshot::load(&path)?).map(|()| loaded)
        };
        assert!(load().is_err(), "there is none");
        save(&mut saved).expect("saved");
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        let loaded = load().expect("loaded");
        assert_eq!((&loaded.0, loaded.2), (&saved.0, saved.2));
        assert_eq!(bits(&loaded.1), bits(&saved.1));

        let whole = std::fs::read(&path).expect("read");
        for at in [3, 70, whole.len() / 2, whole.len() - 100, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            atomic::write_bytes(&path, &damaged).expect("written");
            assert!(load().is_err(), "bit at {at}");
            atomic::write_bytes(&path, &whole[..at]).expect("written");
            assert!(load().is_err(), "cut at {at}");
        }
        let longer = [&whole[..], b"x"].concat();
        atomic::write_bytes(&path, &longer).expect("written");
        assert!(load().is_err(), "longer");
    }
}
