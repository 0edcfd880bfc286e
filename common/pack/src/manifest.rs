//! manifest.json: the content of the pack, what it was made from, and the digest of every file and tensor.
//!
//! Owns the manifest's types (fields in the order of the file, unknown fields rejected), its canonical text, and the checks
//! that need nothing but the manifest. Bits and sizes are integers. The few derived ratios are decimal strings, which are
//! recomputed on reading, so that no floating-point numbers are compared.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::canonical::Comparison;
use crate::check::{check_equal, check_unique};
use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::exact::{ExactDecl, ExactDtype};
use crate::limits::{check_counts, check_weights};
use crate::totals::Totals;
use crate::wire::check_name;
use crate::{
    CONFIG_FILE, DIGEST_FILE, FORMAT_VERSION, MANIFEST_FILE, MAX_COLUMNS, MAX_MANIFEST, MAX_ROWS,
    NON_LAYER_FILE, layer_file_name,
};

/// The whole manifest. The order of the fields is their order in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version of the pack: [`FORMAT_VERSION`].
    pub pack_version: u32,
    /// The program that wrote the pack.
    pub tool: Tool,
    /// The codec of the linears.
    pub codec: Codec,
    /// The model that was compressed.
    pub source: Source,
    /// The calibration text.
    pub calibration: Calibration,
    /// The layers, by index.
    pub layers: Vec<LayerEntry>,
    /// The file of non-layer tensors (`scaffold.uc`).
    #[serde(rename = "scaffold")]
    pub non_layer: NonLayerEntry,
    /// The other files of the pack: config.json, tokenizer.json and so on.
    pub files: Vec<FileEntry>,
    /// Sums over the entries above.
    pub totals: Totals,
}

/// The program that wrote the pack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Name of the program.
    pub name: String,
    /// The release that last changed the bytes that the program writes.
    pub version: String,
}

/// The codec of the linears.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codec {
    /// Name of the codec.
    pub name: String,
    /// "open" if the source code of the encoder is public.
    pub source: String,
    /// Version of the payloads in the layer files.
    pub format: u32,
    /// The arithmetic of the forward passes that the linears were quantized by: number format and backend. Absent in packs of
    /// encoders before 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<String>,
    /// Every setting that decides the bytes of the pack, by its full name, for information: a reader does not need them.
    /// Encoders before 0.3 recorded the sections `quantize` and `overlay` alone.
    pub settings: BTreeMap<String, String>,
}

/// The model that was compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the model, as given to the compressor.
    pub name: String,
    /// SHA-256 of the model's config.json, a copy of which is in the pack.
    pub config_sha256: Digest,
    /// The source's files.
    pub files: Vec<FileEntry>,
    /// Number of source tensors of each dtype.
    pub dtypes: BTreeMap<String, u64>,
    /// The Hub repository that the source was downloaded from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubSource>,
}

impl Source {
    /// The name of the source on the Hub, `owner/name`. The name of a local folder is not one.
    pub fn hub_name(&self) -> Option<&str> {
        let name = match &self.hub {
            Some(hub) => &hub.repository,
            None => &self.name,
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        (name.matches('/').count() == 1 && name.chars().all(is_allowed)).then_some(name)
    }
}

/// A Hub repository at a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `owner/name`.
    pub repository: String,
    /// The commit.
    pub commit: String,
}

/// The calibration text: the files, and the windows drawn from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The text files.
    pub files: Vec<FileEntry>,
    /// Number of windows.
    pub windows: u64,
    /// Tokens per window.
    pub length: u64,
    /// Seed of the random choice of windows.
    pub seed: u64,
    /// SHA-256 of the concatenated SHA-256 digests of all windows.
    pub windows_sha256: Digest,
    /// Tokens in all windows.
    pub tokens: u64,
    /// What was asked for and what of the text was read. Absent in packs of encoders before 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<WindowRequest>,
}

/// The windows that were asked for, beside those that the text and the model gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowRequest {
    /// Number of windows; 0 for all that the text has.
    pub windows: u64,
    /// Tokens per window.
    pub length: u64,
    /// Bytes of the texts, decompressed.
    pub text_bytes: u64,
    /// Number of excerpts of a long text that were tokenized; 0 if the whole text was.
    pub excerpts: u64,
}

/// A file with its size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name without a folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

/// A layer file and its tensors.
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
    /// Prefix that turns the names below into the model's tensor names.
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
    /// Name relative to the prefix.
    pub name: String,
    /// Rows (outputs) and columns (inputs).
    pub shape: [u64; 2],
    /// Digest of the tensor's bytes in the source, arranged as [rows, columns].
    pub source_sha256: Digest,
    /// Digest of the reconstructed weights: bfloat16, row-major, little-endian.
    pub reconstructed_sha256: Digest,
    /// 8 times the bytes of the layer file that belong to this matrix alone ([`crate::LinearHeader::bytes`]).
    pub bits: u64,
    /// Rank of the overlay (low-rank correction), 0 for none.
    pub rank: u32,
}

/// A tensor that is stored unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExactEntry {
    /// Name; relative to the prefix for a layer's tensor.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: ExactDtype,
    /// Digest of the tensor's values.
    pub sha256: Digest,
}

impl ExactEntry {
    /// The entry of a tensor with the given descriptor and digest.
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

/// The file of non-layer tensors and its tensors.
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

/// Maximum length of manifest.sha256, bytes; the line has 80.
const MAX_DIGEST_LINE: u64 = 1 << 12;

/// The manifest's version alone, which is checked before the other fields are parsed.
#[derive(Deserialize)]
struct VersionOnly {
    pack_version: u32,
}

impl Manifest {
    /// The canonical text: JSON with two spaces of indentation, fields in order, and a final newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings, integers and lists only");
        bytes.push(b'\n');
        bytes
    }

    /// The content of `manifest.sha256` for the given manifest text, in the form that `sha256sum` writes.
    pub fn digest_line(manifest: &[u8]) -> String {
        format!("{}  {MANIFEST_FILE}\n", Digest::hash_bytes(manifest))
    }

    /// Parses a manifest, without the checks of [`Manifest::inconsistencies`].
    ///
    /// # Errors
    /// `Version`, which is checked first, and `Json`.
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

    /// Checks that `bytes` are the canonical text of this manifest.
    ///
    /// # Errors
    /// `NotCanonical` with the offset of the first byte that differs.
    pub fn check_canonical(&self, bytes: &[u8], origin: &str) -> Result<(), PackError> {
        // The text is compared while it is made: a second copy of it could be large.
        let mut comparison = Comparison::new(bytes);
        let written = serde_json::to_writer_pretty(&mut comparison, self);
        let equal = written.is_ok() && comparison.write_all(b"\n").is_ok();
        if equal && comparison.offset() == bytes.len() {
            return Ok(());
        }
        Err(PackError::NotCanonical {
            origin: origin.to_owned(),
            offset: comparison.offset(),
        })
    }

    /// Reads and checks the manifest of a pack. Also returns its SHA-256, the fingerprint of the pack.
    ///
    /// # Errors
    /// `Io`, `Digest`, `Version`, `Json`, `NotCanonical`, `Invalid`.
    pub fn read(dir: impl AsRef<Path>) -> Result<(Self, Digest), PackError> {
        let path = dir.as_ref().join(MANIFEST_FILE);
        let origin = path.display().to_string();
        let bytes = read_bounded(&path, MAX_MANIFEST)?;
        let manifest = Self::parse(&bytes, &origin)?;
        check_digest_line(dir.as_ref(), &bytes)?;
        manifest.check_canonical(&bytes, &origin)?;
        match manifest.inconsistencies(&origin).into_iter().next() {
            Some(error) => Err(error),
            None => Ok((manifest, Digest::hash_bytes(&bytes))),
        }
    }

    /// Every inconsistency that can be found from the manifest alone: in names, order, shapes and totals.
    pub fn inconsistencies(&self, origin: &str) -> Vec<PackError> {
        let mut errors = Vec::new();
        let mut check = |result: Result<(), PackError>| errors.extend(result.err());
        for (i, layer) in self.layers.iter().enumerate() {
            check(check_equal(origin, "layer index", layer.index as usize, i));
            check(check_equal(
                origin,
                "layer file",
                &layer.file,
                &layer_file_name(layer.index),
            ));
            for linear in &layer.linears {
                check(check_linear(origin, layer, linear));
            }
            for tensor in &layer.exact {
                check(tensor.decl().elements(origin).map(|_| ()));
            }
        }
        check(check_equal(
            origin,
            "file of non-layer tensors",
            self.non_layer.file.as_str(),
            NON_LAYER_FILE,
        ));
        for tensor in &self.non_layer.tensors {
            check(tensor.decl().elements(origin).map(|_| ()));
        }
        let tensor_names: Vec<String> = self.tensors().map(|tensor| tensor.name()).collect();
        check(check_unique(
            origin,
            "tensor names",
            tensor_names.iter().map(String::as_str),
        ));
        check(check_unique(origin, "file names", self.file_names()));
        // On file systems that ignore case, such names are one file.
        let lower_case: Vec<String> = self.file_names().map(str::to_lowercase).collect();
        let names = lower_case.iter().map(String::as_str);
        check(check_unique(
            origin,
            "file names without regard to case",
            names,
        ));
        check(check_counts(self, origin));
        let weights = self.layers.iter().map(LayerEntry::weights);
        check(check_weights(
            origin,
            weights.fold(0, u64::saturating_add),
            self.totals.total_bytes,
        ));
        for file in &self.files {
            check(check_file_name(origin, &file.name));
        }
        for file in self.source.files.iter().chain(&self.calibration.files) {
            check(check_external_name(origin, &file.name));
        }
        let config = self
            .files
            .iter()
            .find(|f| f.name == CONFIG_FILE)
            .map(|f| f.sha256);
        let expected = Some(self.source.config_sha256);
        check(check_equal(
            origin,
            "SHA-256 of config.json in files",
            config,
            expected,
        ));
        match Totals::compute(self, origin) {
            Ok(totals) => check(check_equal(origin, "totals", &self.totals, &totals)),
            Err(error) => check(Err(error)),
        }
        errors
    }

    /// Names of all files of the pack, including the manifest and its digest.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        let layers = self.layers.iter().map(|l| l.file.as_str());
        let others = self.files.iter().map(|f| f.name.as_str());
        layers
            .chain([self.non_layer.file.as_str()])
            .chain(others)
            .chain([MANIFEST_FILE, DIGEST_FILE])
    }
}

/// Checks that manifest.sha256 holds exactly the digest line of the given manifest text.
///
/// # Errors
/// `Io`, `Digest`.
pub(crate) fn check_digest_line(dir: &Path, manifest: &[u8]) -> Result<(), PackError> {
    let found = read_bounded(&dir.join(DIGEST_FILE), MAX_DIGEST_LINE)?;
    let expected = Manifest::digest_line(manifest);
    if found == expected.as_bytes() {
        return Ok(());
    }
    // The file may hold anything, so the error quotes only its beginning.
    let recorded = String::from_utf8_lossy(&found[..found.len().min(96)]);
    Err(PackError::Digest {
        origin: dir.join(MANIFEST_FILE).display().to_string(),
        what: format!("the manifest, compared with {DIGEST_FILE}"),
        found: expected.trim_end().to_owned(),
        expected: recorded.trim_end().escape_default().to_string(),
    })
}

/// Reads a JSON or digest file of the pack into memory. It must not be a link.
///
/// # Errors
/// `Io`, also if it has more than `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, PackError> {
    let origin = path.display().to_string();
    uc_input::open_without_link(path)
        .and_then(|file| uc_input::read_from(file, limit))
        .map_err(error::io(&origin))
}

/// Checks the shape of a linear.
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

/// Checks the name of a file of the pack: `A-Z a-z 0-9 _ - .`, no leading dot, no two dots in a row.
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

/// Checks the name of a file outside the pack. Such a name is only displayed, never opened, and must be safe to display.
fn check_external_name(origin: &str, name: &str) -> Result<(), PackError> {
    let forbidden = |c: char| c.is_control() || matches!(c, '/' | '\\');
    if name.is_empty() || name.len() > 255 || name.contains(forbidden) || name.contains("..") {
        let expected = "1 to 255 bytes, no separators, control characters or two dots in a row";
        return Err(invalid(
            origin,
            "name of an external file",
            format!("{name:?}"),
            expected,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_of_earlier_encoders_are_read_and_keep_their_text() {
        let digest = "0".repeat(64);
        let codec = r#"{"name":"c","source":"open","format":7,"settings":{"quantize.bpw":"5.0"}}"#;
        let calibration = format!(
            r#"{{"files":[],"windows":1,"length":64,"seed":42,"windows_sha256":"{digest}","tokens":64}}"#
        );
        let parsed: Codec = serde_json::from_str(codec).expect("codec");
        assert_eq!(parsed.arithmetic, None);
        assert_eq!(serde_json::to_string(&parsed).expect("text"), codec);
        let parsed: Calibration = serde_json::from_str(&calibration).expect("calibration");
        assert_eq!(parsed.request, None);
        assert_eq!(serde_json::to_string(&parsed).expect("text"), calibration);
    }
}
