//! Verification: recomputes everything that the manifest records and lists every difference.
//!
//! Owns [`verify`] and its report. Verification does not stop at the first finding, and it returns no error: a file that
//! cannot be read is a finding. It reports progress, but displays nothing.
//!
//! A pack may come from anyone. The work is bounded by what lies on disk: sizes are compared before a file is read, files
//! with holes are refused, the weights of the layers are bounded by the bytes of the files ([`crate::limits`]), and nothing is
//! decoded if the manifest contradicts itself. Memory is bounded by the header of a layer and a few MB for each thread, since
//! tensors are decoded, reconstructed and hashed in pieces of rows.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::check::check_digest;
use crate::digest::Digest;
use crate::manifest::{Manifest, check_digest_line, read_bounded};
use crate::planned::Planner;
use crate::{MANIFEST_FILE, MAX_MANIFEST, NON_LAYER_FILE};

mod files;
mod findings;
mod listing;
mod model;
mod tasks;
mod tensors;

use files::FileVerifier;
use findings::{FindingLog, Findings, Position};

/// Most findings that a report holds.
pub const MAX_FINDINGS: usize = 1000;

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
    /// The differences in the order of the manifest, at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Number of differences that `findings` leaves out.
    pub findings_omitted: u64,
    /// Pass if no finding is an error.
    pub verdict: Verdict,
    /// SHA-256 of manifest.json.
    pub fingerprint: Option<Digest>,
    /// The fingerprint that the caller expects, if any.
    pub expected_fingerprint: Option<Digest>,
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
            findings_omitted: 0,
            verdict: Verdict::Fail,
            fingerprint: None,
            expected_fingerprint: None,
        }
    }
}

/// What a verification is asked for.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// Compute threads, 0 for one per processor.
    pub threads: usize,
    /// The fingerprint that the pack must have. Of another pack nothing is checked.
    pub expected_fingerprint: Option<Digest>,
    /// Derives the model's tensors from its configuration.
    pub plan: Option<&'a Planner>,
    /// Set by another thread to end the verification early. The report then has an error that says so.
    pub cancelled: Option<&'a AtomicBool>,
}

impl Request<'_> {
    /// Whether the verification shall end.
    fn is_cancelled(&self) -> bool {
        self.cancelled
            .is_some_and(|cancelled| cancelled.load(Ordering::Relaxed))
    }
}

/// Verifies the pack in `dir`.
pub fn verify(
    dir: impl AsRef<Path>,
    request: Request<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> VerifyReport {
    let dir = dir.as_ref();
    let mut report = VerifyReport::empty();
    let mut findings = Findings::default();
    report.non_layer_present = dir.join(NON_LAYER_FILE).is_file();
    report.expected_fingerprint = request.expected_fingerprint;
    if let Some(manifest) = verify_manifest(dir, &mut report, &mut findings) {
        FileVerifier::new(dir, &manifest, request, progress).run(&mut report, &mut findings);
    }
    if request.is_cancelled() {
        let mut log = FindingLog::new(".");
        let message = "the verification was cancelled before its end";
        log.add(Severity::Error, None, message);
        findings.add(Position::FOLDER, log);
    }
    let failed = findings.errors() > 0;
    (report.findings, report.findings_omitted) = findings.into_sorted();
    report.verdict = if failed { Verdict::Fail } else { Verdict::Pass };
    report
}

/// Checks the manifest itself. Returns `None` if it cannot be parsed, contradicts itself or is not the expected one, so that
/// nothing else can be checked.
fn verify_manifest(
    dir: &Path,
    report: &mut VerifyReport,
    findings: &mut Findings,
) -> Option<Manifest> {
    let path = dir.join(MANIFEST_FILE);
    let origin = path.display().to_string();
    let mut log = FindingLog::new(MANIFEST_FILE);
    let manifest = read_manifest(dir, &path, report, &mut log);
    let manifest = manifest.and_then(|manifest| {
        report.pack_version = Some(manifest.pack_version);
        report.codec_name = Some(manifest.codec.name.clone());
        report.codec_source = Some(manifest.codec.source.clone());
        report.n_layers = manifest.layers.len();
        report.bits_per_weight_linears = Some(manifest.totals.bits_per_weight_linears.clone());
        report.bits_per_weight_all = Some(manifest.totals.bits_per_weight_all.clone());
        let errors = manifest.inconsistencies(&origin);
        errors.iter().for_each(|error| log.add_error(None, error));
        errors.is_empty().then_some(manifest)
    });
    findings.add(Position::MANIFEST, log);
    manifest
}

/// Reads the manifest and checks its digest, its text and, if one is expected, the fingerprint.
fn read_manifest(
    dir: &Path,
    path: &Path,
    report: &mut VerifyReport,
    log: &mut FindingLog,
) -> Option<Manifest> {
    let origin = path.display().to_string();
    let bytes = log.record(None, read_bounded(path, MAX_MANIFEST))?;
    let fingerprint = Digest::hash_bytes(&bytes);
    report.fingerprint = Some(fingerprint);
    report.bytes_checked += bytes.len() as u64;
    if let Some(expected) = report.expected_fingerprint {
        let what = "the manifest, which is not that of the expected pack";
        log.record(None, check_digest(&origin, what, fingerprint, expected))?;
    }
    log.record(None, check_digest_line(dir, &bytes));
    let manifest = log.record(None, Manifest::parse(&bytes, &origin))?;
    log.record(None, manifest.check_canonical(&bytes, &origin));
    Some(manifest)
}

#[cfg(test)]
mod tests;
