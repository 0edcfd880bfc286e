//! What an export is: the document `export.json` in its folder, which is also the result of `uc export --json`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uc_pack::Digest;

/// Name of the document in the folder of an export.
pub const REPORT_FILE: &str = "export.json";
/// Version of the document.
pub const REPORT_VERSION: u32 = 1;

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
    /// The comparison of export and pack, if it was measured: the metrics of `uc eval`.
    pub evaluation: Option<Value>,
}
