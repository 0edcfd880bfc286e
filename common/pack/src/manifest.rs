//! manifest.json: what the pack holds, what it was made from, and the digest of everything.
//!
//! Owns: the manifest's types (fields in the order of the file, unknown fields refused), its canonical
//! text, and the checks that need nothing but the manifest itself. Bits and sizes are integers; the few
//! derived ratios are decimal strings that are recomputed on reading, so that no float is ever compared.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::exact::{ExactDecl, ExactDtype};
use crate::totals::Totals;
use crate::wire::check_name;
use crate::{
    CONFIG_FILE, DIGEST_FILE, FORMAT_VERSION, MANIFEST_FILE, MAX_COLUMNS, MAX_MANIFEST, MAX_ROWS,
    NON_LAYER_FILE, layer_file_name,
};

/// The whole manifest. Field order is file order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version: 5.
    pub pack_version: u32,
    /// The program that wrote the pack.
    pub tool: Tool,
    /// How the linears were coded.
    pub codec: Codec,
    /// What was compressed.
    pub source: Source,
    /// On which text the codec was calibrated.
    pub calibration: Calibration,
    /// One entry per layer, by index.
    pub layers: Vec<LayerEntry>,
    /// The scaffold file.
    #[serde(rename = "scaffold")]
    pub non_layer: NonLayerEntry,
    /// Every other file of the pack: config.json, tokenizer.json and so on.
    pub files: Vec<FileEntry>,
    /// Sums over the above.
    pub totals: Totals,
}

/// The program that wrote the pack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Name of the program.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How the linears were coded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codec {
    /// Name of the method.
    pub name: String,
    /// "open" if the source code of the encoder is public.
    pub source: String,
    /// Version of the payload format in the layer files.
    pub format: u32,
    /// The encoder's settings; the reader does not need them.
    pub settings: BTreeMap<String, String>,
}

/// What was compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the model as given to the compressor.
    pub name: String,
    /// SHA-256 of the model's config.json, which the pack also holds.
    pub config_sha256: Digest,
    /// The files of the source.
    pub files: Vec<FileEntry>,
    /// Number of source tensors of each dtype.
    pub dtypes: BTreeMap<String, u64>,
    /// Where the source came from, if it is a model of the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubSource>,
}

/// A repository of the Hub at a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `owner/name`.
    pub repository: String,
    /// The commit.
    pub commit: String,
}

/// On which text the codec was calibrated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The text files.
    pub files: Vec<FileEntry>,
    /// Number of windows drawn from them.
    pub windows: u64,
    /// Tokens per window.
    pub length: u64,
    /// Seed of the draw.
    pub seed: u64,
    /// SHA-256 of the concatenated SHA-256s of all windows.
    pub windows_sha256: Digest,
    /// Tokens in all windows.
    pub tokens: u64,
}

/// A file with its size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Plain name, no folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Digest of its bytes.
    pub sha256: Digest,
}

/// A layer file and the tensors that it yields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerEntry {
    /// Position of the layer in the model, from 0.
    pub index: u32,
    /// `layer_NNN.uc`.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// What to put before the names below to get the model's tensor names.
    pub prefix: String,
    /// The coded matrices, in file order.
    pub linears: Vec<LinearEntry>,
    /// The exact tensors, in file order.
    #[serde(rename = "extras")]
    pub exact: Vec<ExactEntry>,
}

/// A coded matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearEntry {
    /// Name within the prefix.
    pub name: String,
    /// Rows (outputs) and columns (inputs).
    pub shape: [u64; 2],
    /// Digest of the source tensor's bytes as they stood in the source.
    pub source_sha256: Digest,
    /// Digest of the reconstruction: row-major bf16, little-endian.
    pub reconstructed_sha256: Digest,
    /// 8 times the bytes that the layer file spends on this matrix alone (`LinearHeader::bytes`).
    pub bits: u64,
    /// Rank of the low-rank correction, 0 for none.
    pub rank: u32,
}

/// A tensor that is stored exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExactEntry {
    /// Name; within the prefix for a layer's exact tensors.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: ExactDtype,
    /// Digest of the tensor's bytes.
    pub sha256: Digest,
}

impl ExactEntry {
    /// An entry for a tensor whose digest is known.
    pub fn new(decl: &ExactDecl, sha256: Digest) -> Self {
        Self {
            name: decl.name.clone(),
            shape: decl.shape.clone(),
            dtype: decl.dtype,
            sha256,
        }
    }

    /// The descriptor that the binary file must hold.
    pub fn decl(&self) -> ExactDecl {
        ExactDecl {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
        }
    }
}

/// The scaffold file and its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NonLayerEntry {
    /// `scaffold.uc`.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// The tensors, in file order, with their full names.
    pub tensors: Vec<ExactEntry>,
}

/// Only what must be known before the rest can be understood.
#[derive(Deserialize)]
struct VersionOnly {
    pack_version: u32,
}

impl Manifest {
    /// The canonical text: two-space indented JSON in field order, one newline at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings, integers and lists only");
        bytes.push(b'\n');
        bytes
    }

    /// The content of `manifest.sha256` for the given manifest text, as `sha256sum` writes it.
    pub fn digest_line(manifest: &[u8]) -> String {
        format!("{}  {MANIFEST_FILE}\n", Digest::of(manifest))
    }

    /// Parses without the cross checks of `problems`.
    ///
    /// # Errors
    /// `Version` before anything else, `Json`.
    pub fn parse(bytes: &[u8], origin: &str) -> Result<Self, PackError> {
        let json = |source| PackError::Json {
            origin: origin.to_owned(),
            source,
        };
        let found = serde_json::from_slice::<VersionOnly>(bytes)
            .map_err(json)?
            .pack_version;
        let supported = u32::from(FORMAT_VERSION);
        if found != supported {
            return Err(PackError::Version {
                origin: origin.to_owned(),
                found,
                supported,
            });
        }
        serde_json::from_slice(bytes).map_err(json)
    }

    /// Whether `bytes` are this manifest's canonical text.
    ///
    /// # Errors
    /// `NotCanonical` with the first byte that differs.
    pub fn check_canonical(&self, bytes: &[u8], origin: &str) -> Result<(), PackError> {
        let canonical = self.to_bytes();
        if canonical == bytes {
            return Ok(());
        }
        let same = canonical
            .iter()
            .zip(bytes)
            .take_while(|(a, b)| a == b)
            .count();
        Err(PackError::NotCanonical {
            origin: origin.to_owned(),
            offset: same,
        })
    }

    /// Reads and checks the manifest of a pack; returns its fingerprint too.
    ///
    /// # Errors
    /// `Io`, `Digest`, `Version`, `Json`, `NotCanonical`, `Invalid`.
    pub fn read(dir: impl AsRef<Path>) -> Result<(Self, Digest), PackError> {
        let path = dir.as_ref().join(MANIFEST_FILE);
        let origin = path.display().to_string();
        let bytes = read_bounded(&path)?;
        let manifest = Self::parse(&bytes, &origin)?;
        check_digest_line(dir.as_ref(), &bytes)?;
        manifest.check_canonical(&bytes, &origin)?;
        match manifest.problems(&origin).into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok((manifest, Digest::of(&bytes))),
        }
    }

    /// Everything that is wrong with the manifest in itself: names, order, shapes, totals.
    pub fn problems(&self, origin: &str) -> Vec<PackError> {
        let mut found = Vec::new();
        let mut note = |result: Result<(), PackError>| found.extend(result.err());
        for (i, layer) in self.layers.iter().enumerate() {
            note(equal(origin, "layer index", layer.index as usize, i));
            note(equal(
                origin,
                "layer file",
                &layer.file,
                &layer_file_name(layer.index),
            ));
            for linear in &layer.linears {
                note(check_linear(origin, layer, linear));
            }
            for extra in &layer.exact {
                note(extra.decl().elements(origin).map(|_| ()));
            }
        }
        note(equal(
            origin,
            "scaffold file",
            self.non_layer.file.as_str(),
            NON_LAYER_FILE,
        ));
        for tensor in &self.non_layer.tensors {
            note(tensor.decl().elements(origin).map(|_| ()));
        }
        note(check_unique(origin, "tensor", self.tensor_names()));
        note(check_unique(
            origin,
            "file",
            self.file_names().map(str::to_owned),
        ));
        for file in &self.files {
            note(check_file_name(origin, &file.name));
        }
        for label in self.source.files.iter().chain(&self.calibration.files) {
            note(check_label(origin, &label.name));
        }
        let config = self
            .files
            .iter()
            .find(|f| f.name == CONFIG_FILE)
            .map(|f| f.sha256);
        let expected = Some(self.source.config_sha256);
        note(equal(
            origin,
            "SHA-256 of config.json in files",
            config,
            expected,
        ));
        match Totals::compute(self, origin) {
            Ok(totals) => note(equal(origin, "totals", &self.totals, &totals)),
            Err(error) => note(Err(error)),
        }
        found
    }

    /// Full names of all tensors.
    fn tensor_names(&self) -> impl Iterator<Item = String> + '_ {
        let layers = self.layers.iter().flat_map(|layer| {
            let linears = layer.linears.iter().map(|l| &l.name);
            linears
                .chain(layer.exact.iter().map(|e| &e.name))
                .map(|n| layer.prefix.clone() + n)
        });
        layers.chain(self.non_layer.tensors.iter().map(|t| t.name.clone()))
    }

    /// Names of all files of the pack, the manifest and its digest included.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        let named = self.layers.iter().map(|l| l.file.as_str());
        let others = self.files.iter().map(|f| f.name.as_str());
        named
            .chain([self.non_layer.file.as_str()])
            .chain(others)
            .chain([MANIFEST_FILE, DIGEST_FILE])
    }
}

/// Compares manifest.sha256 with the digest of the manifest's bytes, to the byte.
///
/// # Errors
/// `Io`, `Digest`.
pub(crate) fn check_digest_line(dir: &Path, manifest: &[u8]) -> Result<(), PackError> {
    let found = read_bounded(&dir.join(DIGEST_FILE))?;
    let expected = Manifest::digest_line(manifest);
    if found == expected.as_bytes() {
        return Ok(());
    }
    // At most one line of what was found: the file may be anything.
    let shown = String::from_utf8_lossy(&found[..found.len().min(96)]);
    Err(PackError::Digest {
        origin: dir.join(MANIFEST_FILE).display().to_string(),
        what: format!("the manifest against {DIGEST_FILE}"),
        found: expected.trim_end().to_owned(),
        expected: shown.trim_end().escape_default().to_string(),
    })
}

/// Reads a text file of the pack that must fit in memory.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, PackError> {
    let origin = path.display().to_string();
    let size = std::fs::metadata(path).map_err(error::io(&origin))?.len();
    if size > MAX_MANIFEST {
        return Err(invalid(
            &origin,
            "file length",
            size,
            format!("at most {MAX_MANIFEST}"),
        ));
    }
    std::fs::read(path).map_err(error::io(&origin))
}

pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(
    origin: &str,
    what: &str,
    found: T,
    expected: T,
) -> Result<(), PackError> {
    if found == expected {
        return Ok(());
    }
    Err(invalid(
        origin,
        what,
        format!("{found:?}"),
        format!("{expected:?}"),
    ))
}

fn check_linear(origin: &str, layer: &LayerEntry, linear: &LinearEntry) -> Result<(), PackError> {
    let what = format!("shape of {}{}", layer.prefix, linear.name);
    let [rows, columns] = linear.shape;
    if !(1..=MAX_ROWS).contains(&rows) || !(1..=MAX_COLUMNS).contains(&columns) {
        let expected = format!("1 to {MAX_ROWS} rows and 1 to {MAX_COLUMNS} columns");
        return Err(invalid(
            origin,
            what,
            format!("{:?}", linear.shape),
            expected,
        ));
    }
    Ok(())
}

fn check_unique(
    origin: &str,
    what: &str,
    names: impl Iterator<Item = String>,
) -> Result<(), PackError> {
    let mut seen = HashSet::new();
    for name in names {
        if seen.contains(&name) {
            return Err(invalid(
                origin,
                format!("{what} names"),
                name,
                "every name once",
            ));
        }
        seen.insert(name);
    }
    Ok(())
}

/// Names of files in the pack: `A-Z a-z 0-9 _ - .`, no leading dot, no two dots in a row.
pub(crate) fn check_file_name(origin: &str, name: &str) -> Result<(), PackError> {
    check_name(name, "file name", origin)?;
    if name.starts_with('.') || name.contains("..") {
        return Err(invalid(
            origin,
            "file name",
            name,
            "no leading dot, no two dots in a row",
        ));
    }
    Ok(())
}

/// Names of files outside the pack are only shown, never opened; they must still be harmless to show.
fn check_label(origin: &str, name: &str) -> Result<(), PackError> {
    let bad = |c: char| c.is_control() || matches!(c, '/' | '\\');
    if name.is_empty() || name.len() > 255 || name.contains(bad) || name.contains("..") {
        let expected = "1 to 255 bytes, no separators, control characters or two dots in a row";
        return Err(invalid(origin, "file label", format!("{name:?}"), expected));
    }
    Ok(())
}
