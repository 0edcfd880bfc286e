//! A pack as a folder: the manifest, and the files that it names, which are opened on demand.
//!
//! Owns [`Pack`], the comparison of a binary file with its manifest entry, and the measurement of manifest entries. An entry
//! is measured on the file as written, so that the recorded digests cover what a reader gets, not what the compressor
//! had in memory. This module never writes.

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::check::{check_digest, check_equal};
use crate::digest::{Digest, Hasher};
use crate::error::{self, PackError};
use crate::exact::ExactDecl;
use crate::layer::{LayerFile, LinearHeader, PieceBuffers};
use crate::manifest::{ExactEntry, LayerEntry, LinearEntry, Manifest, NonLayerEntry, read_bounded};
use crate::non_layer::NonLayerFile;
use crate::{MANIFEST_FILE, REMOTE_FILE, layer_file_name};

/// An opened pack. Its manifest has been checked against its digest; other files are checked when they are opened.
#[derive(Debug)]
pub struct Pack {
    dir: PathBuf,
    manifest: Manifest,
    fingerprint: Digest,
}

impl Pack {
    /// Opens the pack in `dir`.
    ///
    /// # Errors
    /// Those of [`Manifest::read`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, PackError> {
        let (manifest, fingerprint) = Manifest::read(&dir)?;
        Ok(Self {
            dir: dir.as_ref().to_owned(),
            manifest,
            fingerprint,
        })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of manifest.json. Since the manifest holds the digest of every other file, this digest identifies the
    /// whole pack.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Path of a file of the pack.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads a layer file and checks its SHA-256 and its tensors against the manifest.
    ///
    /// # Errors
    /// `NoLayer`, `Io`, `Uploaded`, `Digest`, those of [`LayerFile::open`], and `Invalid` if the tensors differ from the manifest's.
    pub fn layer(&self, layer: u32) -> Result<LayerFile, PackError> {
        let (file, entry) = self.open_layer(layer)?;
        check_digest(file.origin(), "the file", file.digest()?.1, entry.sha256)?;
        first_error(compare_layer(&file, entry))?;
        Ok(file)
    }

    /// As [`Pack::layer`], but does not read the whole file to check its SHA-256: for readers that compare the digest of each
    /// tensor that they take from it.
    ///
    /// # Errors
    /// Those of [`Pack::layer`], without `Digest`.
    pub fn layer_unhashed(&self, layer: u32) -> Result<LayerFile, PackError> {
        let (file, entry) = self.open_layer(layer)?;
        first_error(compare_layer(&file, entry))?;
        Ok(file)
    }

    /// Opens and parses a layer file of the recorded size; also returns its manifest entry.
    fn open_layer(&self, layer: u32) -> Result<(LayerFile, &LayerEntry), PackError> {
        let entry = self
            .manifest
            .layers
            .get(layer as usize)
            .ok_or_else(|| PackError::NoLayer {
                origin: self.path(MANIFEST_FILE).display().to_string(),
                layer,
                layers: self.manifest.layers.len() as u32,
            })?;
        let (file, origin) = self.open_file(&entry.file, entry.size)?;
        Ok((LayerFile::from_file(file, &origin)?, entry))
    }

    /// Opens the file of non-layer tensors. Checks its size, header and list of tensors, but not the values, which may take
    /// several GB: [`crate::verify`] does.
    ///
    /// # Errors
    /// `Io`, those of [`NonLayerFile::open`], and `Invalid` if the tensors differ from the manifest's.
    pub fn non_layer(&self) -> Result<NonLayerFile, PackError> {
        let entry = &self.manifest.non_layer;
        let (file, origin) = self.open_file(&entry.file, entry.size)?;
        let non_layer = NonLayerFile::from_file(file, &origin)?;
        first_error(compare_non_layer(&non_layer, entry, &origin))?;
        Ok(non_layer)
    }
}

impl Pack {
    /// The repository that the pack was uploaded to, according to the note next to it. Layers may have been deleted here since.
    pub fn remote_repository(&self) -> Option<String> {
        remote_repository(&self.dir)
    }

    /// Opens a file of the pack, which must have the recorded size and must not be a link. Also returns its path for errors.
    fn open_file(&self, name: &str, size: u64) -> Result<(File, String), PackError> {
        let path = self.path(name);
        let origin = path.display().to_string();
        let file = uc_input::open_without_link(&path).map_err(|source| {
            let is_absent = source.kind() == std::io::ErrorKind::NotFound;
            match self.remote_repository().filter(|_| is_absent) {
                Some(repository) => PackError::Uploaded {
                    origin: origin.clone(),
                    repository,
                },
                None => error::io(&origin)(source),
            }
        })?;
        let found = file.metadata().map_err(error::io(&origin))?.len();
        check_equal(&origin, "file length", found, size)?;
        Ok((file, origin))
    }
}

/// Longest remote.json that is read, bytes.
const MAX_REMOTE: u64 = 64 << 10;

/// The repository that a pack was uploaded to, according to the note next to it. Layers may have been deleted here since.
pub(crate) fn remote_repository(dir: &Path) -> Option<String> {
    let text = read_bounded(&dir.join(REMOTE_FILE), MAX_REMOTE).ok()?;
    let note: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(note.get("repository")?.as_str()?.to_owned())
}

impl LayerEntry {
    /// Makes the manifest entry of a layer from its file: decodes and reconstructs every linear, several at a time and each in
    /// pieces of rows. `source_digest(name)` returns the digest of a linear's bytes in the source.
    ///
    /// # Errors
    /// Those of [`LayerFile::reconstruct_pieces`], and `NoTensor` if `source_digest` has no digest of a linear.
    pub fn measure(
        file: &LayerFile,
        prefix: &str,
        source_digest: impl Fn(&str) -> Option<Digest> + Sync,
    ) -> Result<Self, PackError> {
        let measure_linear = |(index, header): (usize, &LinearHeader)| {
            let missing = || PackError::NoTensor {
                origin: "source digests".to_owned(),
                tensor: format!("{prefix}{}", header.name),
            };
            let source_sha256 = source_digest(&header.name).ok_or_else(missing)?;
            let mut hasher = Hasher::default();
            let mut buffers = PieceBuffers::default();
            file.reconstruct_pieces(index, &mut buffers, &mut |weights| hasher.words(weights))?;
            Ok(LinearEntry {
                name: header.name.clone(),
                shape: [header.rows as u64, header.cols as u64],
                source_sha256,
                reconstructed_sha256: hasher.finish(),
                bits: header.bytes * 8,
                rank: header.rank as u32,
            })
        };
        let linears = file.linears().par_iter().enumerate();
        let linears = || linears.map(measure_linear).collect::<Result<_, _>>();
        let (linears, whole) = rayon::join(linears, || file.digest());
        let (linears, (size, sha256)) = (linears?, whole?);
        let mut exact = Vec::with_capacity(file.exact().len());
        for (i, decl) in file.exact().iter().enumerate() {
            let digest = Digest::hash_reader(file.exact_reader(i));
            let (_, sha256) = digest.map_err(error::io(file.origin()))?;
            exact.push(ExactEntry::new(decl, sha256));
        }
        Ok(Self {
            index: file.layer(),
            file: layer_file_name(file.layer()),
            size,
            sha256,
            prefix: prefix.to_owned(),
            linears,
            exact,
        })
    }
}

impl NonLayerEntry {
    /// Makes the manifest entry of a file of non-layer tensors from the file on disk.
    ///
    /// # Errors
    /// `Io` and those of [`NonLayerFile::open`].
    pub fn measure(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let (size, sha256) = Digest::hash_file(path.as_ref())?;
        let non_layer = NonLayerFile::open(path.as_ref())?;
        let mut tensors = Vec::new();
        for (i, decl) in non_layer.tensors().iter().enumerate() {
            let (_, sha256) =
                Digest::hash_reader(non_layer.reader(i)?).map_err(error::io(&origin))?;
            tensors.push(ExactEntry::new(decl, sha256));
        }
        Ok(Self {
            file: crate::NON_LAYER_FILE.to_owned(),
            size,
            sha256,
            tensors,
        })
    }
}

fn first_error(errors: Vec<PackError>) -> Result<(), PackError> {
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Every difference in index, names, shapes, ranks and bits between a layer file and its manifest entry.
pub(crate) fn compare_layer(file: &LayerFile, entry: &LayerEntry) -> Vec<PackError> {
    let origin = file.origin();
    let mut errors: Vec<PackError> = check_equal(origin, "layer index", file.layer(), entry.index)
        .err()
        .into_iter()
        .collect();
    let from_header = |h: &LinearHeader| {
        (
            h.name.clone(),
            [h.rows as u64, h.cols as u64],
            h.rank as u32,
            h.bytes * 8,
        )
    };
    let from_entry = |l: &LinearEntry| (l.name.clone(), l.shape, l.rank, l.bits);
    let found: Vec<_> = file.linears().iter().map(from_header).collect();
    let expected: Vec<_> = entry.linears.iter().map(from_entry).collect();
    errors.extend(compare_lists(
        origin,
        "linear (name, shape, rank, bits)",
        &found,
        &expected,
    ));
    let expected: Vec<ExactDecl> = entry.exact.iter().map(ExactEntry::decl).collect();
    errors.extend(compare_lists(
        origin,
        "exact tensor",
        file.exact(),
        &expected,
    ));
    errors
}

/// Every difference in names, dtypes and shapes between a file of non-layer tensors and its manifest entry.
pub(crate) fn compare_non_layer(
    file: &NonLayerFile,
    entry: &NonLayerEntry,
    origin: &str,
) -> Vec<PackError> {
    let expected: Vec<ExactDecl> = entry.tensors.iter().map(ExactEntry::decl).collect();
    compare_lists(origin, "tensor", file.tensors(), &expected)
}

fn compare_lists<T: PartialEq + std::fmt::Debug>(
    origin: &str,
    what: &str,
    found: &[T],
    expected: &[T],
) -> Vec<PackError> {
    let count = check_equal(
        origin,
        &format!("number of {what} entries"),
        found.len(),
        expected.len(),
    );
    let pairs = found.iter().zip(expected).enumerate();
    let differing =
        pairs.filter_map(|(i, (a, b))| check_equal(origin, &format!("{what} {i}"), a, b).err());
    count.err().into_iter().chain(differing).collect()
}
