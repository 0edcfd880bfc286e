//! Opening, verifying and measuring packs, with progress and exit classes. The pack library does the work.

use anyhow::Context;
use camino::Utf8Path;
use uc_input::printable;
use uc_pack::verify::{self, Severity, Verdict, VerifyReport};
use uc_pack::{Digest, Pack, PackError};
use uc_store::ExitCode;
use uc_store::run::RunDir;

use crate::report::failure::failure;
use crate::report::progress::Display;

/// Opens a pack; the manifest is checked against its digest.
pub fn open(dir: &Utf8Path) -> anyhow::Result<Pack> {
    check_is_pack(dir)?;
    Pack::open(dir).map_err(classify)
}

/// Refuses a folder that is something else than a pack: says what it is and, for a run, where its pack is.
fn check_is_pack(dir: &Utf8Path) -> anyhow::Result<()> {
    let shown = printable(dir.as_str()).into_owned();
    let refuse = |message: String| Err(failure(ExitCode::Usage, format!("{shown} {message}")));
    let metadata =
        std::fs::metadata(dir).with_context(|| format!("cannot open the pack {shown}"))?;
    if !metadata.is_dir() {
        return refuse("is a file, expected the folder of a pack".into());
    }
    if dir.join(uc_pack::MANIFEST_FILE).symlink_metadata().is_ok() {
        return Ok(());
    }
    if dir.join("run.json").is_file() {
        let pack_dir = RunDir::open(dir).map_or_else(|_| "pack".into(), |(_, plan)| plan.pack_dir);
        let pack = dir.join(pack_dir);
        let shown_pack = printable(pack.as_str());
        return match pack.join(uc_pack::MANIFEST_FILE).is_file() {
            true => refuse(format!("is a run directory; its pack is {shown_pack}")),
            false => refuse(format!(
                "is a run directory whose pack {shown_pack} is not finished: uc resume {shown}"
            )),
        };
    }
    let holds_pack_files = |name: &str| name.ends_with(".uc");
    let holds_weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".bin");
    match dir.join(uc_pack::CONFIG_FILE).is_file() {
        true if holds(dir, holds_pack_files) => Ok(()),
        true if holds(dir, holds_weights) => refuse(format!(
            "is the folder of a model, not of a pack; compress it: uc compress {shown}"
        )),
        _ if dir.join("pack").join(uc_pack::MANIFEST_FILE).is_file() => {
            refuse(format!("is not a pack; {shown}/pack is one"))
        }
        _ if holds(dir, holds_pack_files) => Ok(()),
        _ => refuse(format!(
            "is not a pack: it holds no {}",
            uc_pack::MANIFEST_FILE
        )),
    }
}

/// Whether a folder holds a file with such a name.
fn holds(dir: &Utf8Path, is_such: impl Fn(&str) -> bool) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name())
        .any(|name| name.to_str().is_some_and(&is_such))
}

/// Assigns a class to an error of the pack library.
pub fn classify(error: PackError) -> anyhow::Error {
    match &error {
        PackError::Io { .. } => error.into(),
        PackError::NoLayer { .. }
        | PackError::NoTensor { .. }
        | PackError::UnknownTensor { .. } => failure(ExitCode::Usage, error.text()),
        PackError::Version { .. }
        | PackError::Uploaded { .. }
        | PackError::NothingInCommon { .. } => failure(ExitCode::BadInput, error.text()),
        _ => failure(ExitCode::Damaged, error.text()),
    }
}

/// Recomputes every hash and shows the progress. Of a pack with another fingerprint than the expected one nothing is checked.
pub fn verify(
    dir: &Utf8Path,
    threads: u32,
    expected_fingerprint: Option<Digest>,
    display: &Display,
) -> anyhow::Result<VerifyReport> {
    check_is_pack(dir)?;
    let task = display.task("verifying the pack", 0);
    let request = verify::Request {
        threads: threads as usize,
        expected_fingerprint,
        plan: Some(&uc_export::planned::plan),
        cancelled: None,
    };
    let report = verify::verify(dir, request, &|progress: verify::Progress| {
        task.set(progress.done, progress.total);
    });
    task.finish();
    Ok(report)
}

/// As [`verify`], for programs that go on with a pack only if it verifies.
///
/// # Errors
/// If it does not verify, with the first finding.
pub fn require_verified(
    dir: &Utf8Path,
    threads: u32,
    expected_fingerprint: Option<Digest>,
    display: &Display,
) -> anyhow::Result<()> {
    let report = verify(dir, threads, expected_fingerprint, display)?;
    if report.verdict == Verdict::Pass {
        return Ok(());
    }
    let mut findings = report.findings.iter();
    let first = findings.find(|finding| finding.severity == Severity::Error);
    let first = first.map_or("", |finding| finding.message.as_str());
    let message = format!(
        "{0} does not verify: {1}\nuc verify {0} lists all findings",
        printable(dir.as_str()),
        printable(first)
    );
    Err(failure(ExitCode::Damaged, message))
}

/// Bytes of every file of a pack, including manifest and digest; layers that were deleted locally count too.
pub fn bytes(dir: &Utf8Path, pack: &Pack) -> u64 {
    let size = |name| std::fs::metadata(dir.join(name)).map_or(0, |metadata| metadata.len());
    let unlisted = [uc_pack::MANIFEST_FILE, uc_pack::DIGEST_FILE].map(size);
    pack.manifest().totals.total_bytes + unlisted.iter().sum::<u64>()
}

/// A fingerprint as it is printed, or in upper case. A part of one is not accepted: who makes a pack can choose a second one
/// that agrees in a few digits.
pub fn parse_fingerprint(text: &str) -> Result<Digest, String> {
    Digest::try_from(text.to_lowercase())
}
