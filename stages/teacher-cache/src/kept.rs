//! What an interrupted job of this program continues from: the rows of its output, and snapshots of its sums.
//!
//! Of second moments and factors only the triangles are saved that are read: on and above the diagonal.

use uc_codec::factor::Factor;
use uc_model::moments::Moments;
use uc_store::StoreError;
use uc_store::framed::Snapshot;
use uc_store::stage::Job;
use uc_store::stream::{KeptRows, KeptSums, LONG_JOB, Sums};

/// The file of the rows in the job's scratch folder.
const ROWS: &str = "rows";

/// The rows of a job without sums; `batch` windows of `windows` are computed together.
pub fn rows(job: &mut Job<'_>, windows: usize, batch: usize) -> anyhow::Result<KeptRows> {
    let path = job.resumable_dir()?.join(ROWS);
    let kept = KeptRows::open(job.run().root(), &path, LONG_JOB)?;
    note(job, windows.min(kept.batches() * batch), windows);
    Ok(kept)
}

/// As [`rows`], for a job with sums; `begin` makes the empty ones.
pub fn rows_and_sums<S: Sums>(
    job: &mut Job<'_>,
    windows: usize,
    batch: usize,
    begin: impl Fn() -> anyhow::Result<S>,
) -> anyhow::Result<KeptSums<S>> {
    let path = job.resumable_dir()?.join(ROWS);
    let kept = KeptSums::open(job.run().root(), &path, LONG_JOB, begin)?;
    note(job, windows.min(kept.batches() * batch), windows);
    Ok(kept)
}

/// Tells the user what an interrupted job has left, if there was one.
fn note(job: &mut Job<'_>, kept: usize, windows: usize) {
    if kept > 0 {
        job.note(format!(
            "continues an interrupted job: {kept} of {windows} windows"
        ));
    }
}

/// Passes moments through a snapshot.
pub fn pass_moments(moments: &mut Moments, snapshot: &mut Snapshot) -> Result<(), StoreError> {
    snapshot.value(&mut moments.count)?;
    pass_triangles(&mut moments.sum, moments.n, moments.block, snapshot)
}

/// Passes a factor through a snapshot.
pub fn pass_factor(factor: &mut Factor, snapshot: &mut Snapshot) -> Result<(), StoreError> {
    snapshot.value(&mut factor.damping)?;
    snapshot.value(&mut factor.dead_inputs)?;
    snapshot.value(&mut factor.is_zero)?;
    snapshot.sums(&mut factor.inv_diag)?;
    pass_triangles(&mut factor.a, factor.n, factor.block, snapshot)
}

/// Passes the upper triangles of diagonal blocks, `[n, block]`, through a snapshot.
fn pass_triangles(
    values: &mut [f32],
    n: usize,
    block: usize,
    snapshot: &mut Snapshot,
) -> Result<(), StoreError> {
    for (row, values) in values.chunks_mut(block).enumerate() {
        let diagonal = row % block;
        let width = block.min(n - (row - diagonal));
        snapshot.sums(&mut values[diagonal..width])?;
    }
    Ok(())
}
