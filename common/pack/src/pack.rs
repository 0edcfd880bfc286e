//! A pack as a folder: the manifest and the files that it names, opened on demand.
//!
//! Owns: `Pack`, the agreement between a binary file and its manifest entry, and the measurement that
//! makes a manifest entry from the bytes of a layer file, so that the recorded digests are those of what
//! a reader gets and not of what the compressor had in memory. It never writes.

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{self, PackError};
use crate::exact::ExactDecl;
use crate::layer::{LayerFile, LinearHeader};
use crate::manifest::{ExactEntry, LayerEntry, LinearEntry, Manifest, NonLayerEntry, equal};
use crate::non_layer::NonLayerFile;
use crate::{MANIFEST_FILE, layer_file_name};

/// An opened pack. The manifest was checked against its digest; other files are checked when opened.
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
    /// As `Manifest::read`.
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

    /// SHA-256 of manifest.json: stands for every byte of the pack.
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
    /// `NoLayer`, `Io`, `Digest`, the parser's errors, `Invalid` if the tensors are not the manifest's.
    pub fn layer(&self, layer: u32) -> Result<LayerFile, PackError> {
        let entry = self
            .manifest
            .layers
            .get(layer as usize)
            .ok_or_else(|| PackError::NoLayer {
                origin: self.path(MANIFEST_FILE).display().to_string(),
                layer,
                layers: self.manifest.layers.len() as u32,
            })?;
        let path = self.path(&entry.file);
        let origin = path.display().to_string();
        let size = std::fs::metadata(&path).map_err(error::io(&origin))?.len();
        equal(&origin, "file length", size, entry.size)?;
        let file = LayerFile::open(&path)?;
        check_digest(&origin, "the file", file.digest()?.1, entry.sha256)?;
        first(compare_layer(&file, entry))?;
        Ok(file)
    }

    /// Opens the scaffold. Size, head and tensor list are checked here; the values, which may be several
    /// GB, only by `verify`.
    ///
    /// # Errors
    /// `Io`, the parser's errors, `Invalid` if the tensors are not the manifest's.
    pub fn non_layer(&self) -> Result<NonLayerFile, PackError> {
        let entry = &self.manifest.non_layer;
        let path = self.path(&entry.file);
        let origin = path.display().to_string();
        let size = std::fs::metadata(&path).map_err(error::io(&origin))?.len();
        equal(&origin, "file length", size, entry.size)?;
        let non_layer = NonLayerFile::open(&path)?;
        first(compare_non_layer(&non_layer, entry, &origin))?;
        Ok(non_layer)
    }
}

impl LayerEntry {
    /// Makes the manifest entry of a layer from the file's own bytes: every linear is decoded and
    /// reconstructed, one at a time. `source(name)` gives the digest of the source tensor's bytes.
    ///
    /// # Errors
    /// The codec's, and `NoTensor` where `source` has nothing for a linear.
    pub fn measure(
        file: &LayerFile,
        prefix: &str,
        source: impl Fn(&str) -> Option<Digest>,
    ) -> Result<Self, PackError> {
        let mut linears = Vec::with_capacity(file.linears().len());
        for (i, header) in file.linears().iter().enumerate() {
            let missing = || PackError::NoTensor {
                origin: "digests of the source".to_owned(),
                tensor: format!("{prefix}{}", header.name),
            };
            linears.push(LinearEntry {
                name: header.name.clone(),
                shape: [header.rows as u64, header.cols as u64],
                source_sha256: source(&header.name).ok_or_else(missing)?,
                reconstructed_sha256: Digest::of_words(&file.reconstruct(i)?),
                bits: header.bytes * 8,
                rank: header.rank as u32,
            });
        }
        let exact = file.exact().iter().enumerate();
        let (size, sha256) = file.digest()?;
        Ok(Self {
            index: file.layer(),
            file: layer_file_name(file.layer()),
            size,
            sha256,
            prefix: prefix.to_owned(),
            linears,
            exact: exact
                .map(|(i, d)| ExactEntry::new(d, Digest::of(file.exact_bytes(i))))
                .collect(),
        })
    }
}

impl NonLayerEntry {
    /// Makes the manifest entry of a scaffold from the file as it lies on disk.
    ///
    /// # Errors
    /// `Io` and the parser's errors.
    pub fn measure(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let (size, sha256) = Digest::of_file(path.as_ref())?;
        let non_layer = NonLayerFile::open(path.as_ref())?;
        let mut tensors = Vec::new();
        for decl in non_layer.tensors() {
            let (_, sha256) =
                Digest::of_reader(non_layer.reader(&decl.name)?).map_err(error::io(&origin))?;
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

fn first(problems: Vec<PackError>) -> Result<(), PackError> {
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// `Digest` unless the two agree.
pub(crate) fn check_digest(
    origin: &str,
    what: &str,
    found: Digest,
    expected: Digest,
) -> Result<(), PackError> {
    if found == expected {
        return Ok(());
    }
    Err(PackError::Digest {
        origin: origin.to_owned(),
        what: what.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// Every disagreement of index, names, shapes, ranks and bits.
pub(crate) fn compare_layer(file: &LayerFile, entry: &LayerEntry) -> Vec<PackError> {
    let origin = file.origin();
    let mut found: Vec<PackError> = equal(origin, "layer index", file.layer(), entry.index)
        .err()
        .into_iter()
        .collect();
    let described = |h: &LinearHeader| {
        (
            h.name.clone(),
            [h.rows as u64, h.cols as u64],
            h.rank as u32,
            h.bytes * 8,
        )
    };
    let recorded = |l: &LinearEntry| (l.name.clone(), l.shape, l.rank, l.bits);
    let have: Vec<_> = file.linears().iter().map(described).collect();
    let want: Vec<_> = entry.linears.iter().map(recorded).collect();
    found.extend(compare_lists(
        origin,
        "linear (name, shape, rank, bits)",
        &have,
        &want,
    ));
    let want: Vec<ExactDecl> = entry.exact.iter().map(ExactEntry::decl).collect();
    found.extend(compare_lists(origin, "exact tensor", file.exact(), &want));
    found
}

/// Every disagreement of names, dtypes and shapes.
pub(crate) fn compare_non_layer(
    file: &NonLayerFile,
    entry: &NonLayerEntry,
    origin: &str,
) -> Vec<PackError> {
    let want: Vec<ExactDecl> = entry.tensors.iter().map(ExactEntry::decl).collect();
    compare_lists(origin, "tensor", file.tensors(), &want)
}

fn compare_lists<T: PartialEq + std::fmt::Debug>(
    origin: &str,
    what: &str,
    found: &[T],
    expected: &[T],
) -> Vec<PackError> {
    let count = equal(
        origin,
        &format!("number of each {what}"),
        found.len(),
        expected.len(),
    );
    let pairs = found.iter().zip(expected).enumerate();
    let differing =
        pairs.filter_map(|(i, (a, b))| equal(origin, &format!("{what} {i}"), a, b).err());
    count.err().into_iter().chain(differing).collect()
}
