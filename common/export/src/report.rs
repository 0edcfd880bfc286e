//! What an export is: the document `export.json` in its folder, which is also the result of `uc export --json`, and
//! `evaluation.json`, which is added when the export has been compared with its pack.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uc_pack::Digest;
use uc_store::StoreError;

use crate::error::ExportError;

/// Name of the document in the folder of an export.
pub const REPORT_FILE: &str = "export.json";
/// Version of the document.
pub const REPORT_VERSION: u32 = 1;
/// Name of the document with the metrics of `uc eval` of the export against its pack.
pub const EVALUATION_FILE: &str = "evaluation.json";

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedFile {
    /// Name in the folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

/// What was exported, from what, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub export_version: u32,
    /// Release of the program.
    pub tool_version: String,
    /// Format, as on the command line.
    pub format: String,
    /// Element type of the matrices.
    pub element_type: String,
    /// Name of the model, as given to the compressor.
    pub model: String,
    /// Fingerprint of the pack.
    pub pack_fingerprint: Digest,
    /// Bits per weight of the pack's linears.
    pub pack_bits_per_weight_linears: String,
    /// Number of tensors of the pack that were written, each compared with its digest in the manifest.
    pub tensors: u64,
    /// The files, except README.md and this document.
    pub files: Vec<ExportedFile>,
    /// What differs from the pack besides the element type.
    pub notes: Vec<String>,
}

impl Report {
    /// The report of the export in a folder.
    ///
    /// # Errors
    /// `Store` if it cannot be read.
    pub fn read(folder: &Utf8Path) -> Result<Self, ExportError> {
        let path = folder.join(REPORT_FILE);
        let report = uc_input::read_json(&path, uc_input::LARGE_JSON);
        Ok(report.map_err(StoreError::io("read", &path))?)
    }
}

/// The metrics of the export in a folder against its pack; none if they were not measured.
///
/// # Errors
/// `Store` if there is such a document and it cannot be read.
pub(crate) fn evaluation(folder: &Utf8Path) -> Result<Option<Value>, ExportError> {
    let path = folder.join(EVALUATION_FILE);
    match uc_input::read_json(&path, uc_input::LARGE_JSON) {
        Ok(metrics) => Ok(Some(metrics)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", &path)(error).into()),
    }
}
