//! Verification: recomputes everything that the manifest records and lists every difference.
//!
//! Owns [`verify`] and its report. Verification does not stop at the first finding, and it returns no error: a file that
//! cannot be read is a finding. It reports progress, but displays nothing.

use std::path::Path;

use serde::Serialize;

use crate::MANIFEST_FILE;
use crate::digest::Digest;
use crate::error::{self, PackError};
use crate::manifest::{Manifest, check_digest_line, read_bounded};

mod files;

use files::FileVerifier;

/// Progress of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the pack's files that have been hashed.
    pub done: u64,
    /// Bytes of all files that the manifest names.
    pub total: u64,
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pack differs from its manifest.
    Error,
    /// Everything that the manifest names is intact, but something deserves attention.
    Warning,
}

/// One difference between the pack and its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Severity of the difference.
    pub severity: Severity,
    /// File of the pack.
    pub file: String,
    /// Full name of the tensor, if the finding is about one.
    pub tensor: Option<String>,
    /// What was found and what was expected.
    pub message: String,
}

/// Outcome of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// There is no finding of severity error.
    Pass,
    /// There is at least one.
    Fail,
}

/// Digest of the first linear of layer 0, for a visual comparison with a report from another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpotCheck {
    /// Full name of the tensor.
    pub tensor: String,
    /// SHA-256 of its reconstruction, as computed now.
    pub sha256: Digest,
    /// Whether the manifest records the same digest.
    pub matches: bool,
}

/// Result of a verification. Fields that come from the manifest are empty if it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Format version of the pack.
    pub pack_version: Option<u32>,
    /// Name of the codec.
    pub codec_name: Option<String>,
    /// "open" if the encoder's source code is public.
    pub codec_source: Option<String>,
    /// Number of layers.
    pub n_layers: usize,
    /// Bits of all layer files, divided by the number of weights of the linears.
    pub bits_per_weight_linears: Option<String>,
    /// Bits of the whole pack, divided by the number of parameters.
    pub bits_per_weight_all: Option<String>,
    /// Digest of one reconstructed tensor.
    pub spot_check: Option<SpotCheck>,
    /// Number of linears in the file of layer 0.
    pub layer0_linears: usize,
    /// Number of exact tensors in the file of layer 0.
    pub layer0_exact: usize,
    /// Whether the file of non-layer tensors exists.
    pub non_layer_present: bool,
    /// Number of tensors whose SHA-256 was recomputed.
    pub tensors_checked: u64,
    /// Bytes of the files whose SHA-256 was recomputed, including the manifest.
    pub bytes_checked: u64,
    /// Every difference, in the order of the manifest.
    pub findings: Vec<Finding>,
    /// Pass if no finding is an error.
    pub verdict: Verdict,
    /// SHA-256 of manifest.json.
    pub fingerprint: Option<Digest>,
}

impl VerifyReport {
    /// The initial report: nothing has been checked, and the outcome is a failure.
    fn empty() -> Self {
        Self {
            pack_version: None,
            codec_name: None,
            codec_source: None,
            n_layers: 0,
            bits_per_weight_linears: None,
            bits_per_weight_all: None,
            spot_check: None,
            layer0_linears: 0,
            layer0_exact: 0,
            non_layer_present: false,
            tensors_checked: 0,
            bytes_checked: 0,
            findings: Vec::new(),
            verdict: Verdict::Fail,
            fingerprint: None,
        }
    }
}

/// Collects the findings about one file.
struct FindingLog {
    file: String,
    findings: Vec<Finding>,
    /// Number of tensors whose digest was recomputed.
    tensors: u64,
}

impl FindingLog {
    fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            findings: Vec::new(),
            tensors: 0,
        }
    }

    fn add(&mut self, severity: Severity, tensor: Option<&str>, message: String) {
        let tensor = tensor.map(str::to_owned);
        self.findings.push(Finding {
            severity,
            file: self.file.clone(),
            tensor,
            message,
        });
    }

    fn add_error(&mut self, tensor: Option<&str>, error: &PackError) {
        self.add(Severity::Error, tensor, error.to_string());
    }

    /// Returns the value of a result, or records its error as a finding.
    fn record<T>(&mut self, tensor: Option<&str>, result: Result<T, PackError>) -> Option<T> {
        result.map_err(|error| self.add_error(tensor, &error)).ok()
    }
}

/// Verifies the pack in `dir` with at most `threads` compute threads (0: one per processor).
pub fn verify(
    dir: impl AsRef<Path>,
    threads: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> VerifyReport {
    let dir = dir.as_ref();
    let mut report = VerifyReport::empty();
    if let Some(manifest) = verify_manifest(dir, &mut report) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| error::io("threads")(std::io::Error::other(e)));
        let mut log = FindingLog::new(".");
        if let Some(pool) = log.record(None, pool) {
            FileVerifier::new(dir, &manifest, pool, progress).run(&mut report);
        }
        report.findings.extend(log.findings);
    }
    let failed = report
        .findings
        .iter()
        .any(|f| f.severity == Severity::Error);
    report.verdict = if failed { Verdict::Fail } else { Verdict::Pass };
    report
}

/// Checks the manifest itself. Returns `None` if it cannot be parsed, so that nothing else can be checked.
fn verify_manifest(dir: &Path, report: &mut VerifyReport) -> Option<Manifest> {
    let path = dir.join(MANIFEST_FILE);
    let origin = path.display().to_string();
    let mut log = FindingLog::new(MANIFEST_FILE);
    let manifest = log.record(None, read_bounded(&path)).and_then(|bytes| {
        report.fingerprint = Some(Digest::hash_bytes(&bytes));
        report.bytes_checked += bytes.len() as u64;
        log.record(None, check_digest_line(dir, &bytes));
        let manifest = log.record(None, Manifest::parse(&bytes, &origin))?;
        log.record(None, manifest.check_canonical(&bytes, &origin));
        for error in manifest.inconsistencies(&origin) {
            log.add_error(None, &error);
        }
        Some(manifest)
    });
    report.findings.extend(log.findings);
    let manifest = manifest?;
    report.pack_version = Some(manifest.pack_version);
    report.codec_name = Some(manifest.codec.name.clone());
    report.codec_source = Some(manifest.codec.source.clone());
    report.n_layers = manifest.layers.len();
    report.bits_per_weight_linears = Some(manifest.totals.bits_per_weight_linears.clone());
    report.bits_per_weight_all = Some(manifest.totals.bits_per_weight_all.clone());
    Some(manifest)
}
