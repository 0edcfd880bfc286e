//! Opening, verifying and measuring packs, with progress and exit classes. The pack library does the work.

use anyhow::Context;
use camino::Utf8Path;
use uc_pack::verify::{self, VerifyReport};
use uc_pack::{Pack, PackError};
use uc_store::ExitCode;

use crate::report::failure::failure;
use crate::report::progress::Display;

/// Opens a pack; the manifest is checked against its digest.
pub fn open(dir: &Utf8Path) -> anyhow::Result<Pack> {
    Pack::open(dir).map_err(classify)
}

/// Assigns a class to an error of the pack library.
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

/// Recomputes every hash and shows the progress.
pub fn verify(dir: &Utf8Path, threads: u32, display: &Display) -> anyhow::Result<VerifyReport> {
    std::fs::read_dir(dir).with_context(|| format!("cannot open the pack {dir}"))?;
    let task = display.task("verifying the pack", 0);
    let report = verify::verify(dir, threads as usize, &|progress: verify::Progress| {
        task.set(progress.done, progress.total);
    });
    task.finish();
    Ok(report)
}

/// Bytes of every file of a pack, including manifest and digest; layers that were deleted locally count too.
pub fn bytes(dir: &Utf8Path, pack: &Pack) -> u64 {
    let size = |name| std::fs::metadata(dir.join(name)).map_or(0, |metadata| metadata.len());
    let unlisted = [uc_pack::MANIFEST_FILE, uc_pack::DIGEST_FILE].map(size);
    pack.manifest().totals.total_bytes + unlisted.iter().sum::<u64>()
}
