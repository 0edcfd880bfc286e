//! What the driver asks of a pack: open, verify, size. The pack's own library does the work.

use anyhow::Context;
use camino::Utf8Path;
use uc_pack::verify::{self, VerifyReport};
use uc_pack::{Pack, PackError};
use uc_store::ExitCode;

use crate::report::failure::failure;
use crate::report::progress::Display;

/// Opens a pack; what the manifest says was checked against its digest.
pub fn open(dir: &Utf8Path) -> anyhow::Result<Pack> {
    Pack::open(dir).map_err(classify)
}

/// Gives a pack's error its class.
pub fn classify(error: PackError) -> anyhow::Error {
    match &error {
        PackError::Io { .. } => error.into(),
        PackError::NoLayer { .. } | PackError::NoTensor { .. } => {
            failure(ExitCode::Usage, error.to_string())
        }
        PackError::Version { .. } => failure(ExitCode::BadInput, error.to_string()),
        _ => failure(ExitCode::Damaged, error.to_string()),
    }
}

/// Recomputes every hash, with progress.
pub fn verify(dir: &Utf8Path, threads: u32, display: &Display) -> anyhow::Result<VerifyReport> {
    std::fs::read_dir(dir).with_context(|| format!("cannot open the pack {dir}"))?;
    let task = display.task("verifying the pack", 0);
    let report = verify::verify(dir, threads as usize, &|progress: verify::Progress| {
        task.set(progress.done, progress.total);
    });
    task.finish();
    Ok(report)
}

/// Bytes of every file of a pack, manifest and digest included, whether or not it lies here.
pub fn bytes(dir: &Utf8Path, pack: &Pack) -> u64 {
    let size = |name| std::fs::metadata(dir.join(name)).map_or(0, |found| found.len());
    let own = [uc_pack::MANIFEST_FILE, uc_pack::DIGEST_FILE].map(size);
    pack.manifest().totals.total_bytes + own.iter().sum::<u64>()
}
