//! Downloads shards for a run that fetches them on demand and evicts them to save space, one per job.
//!
//! A shard is verified against the Hub's digest before it appears, and against the header that the run was planned with.

use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use camino::Utf8Path;
use uc_hub::{FileId, Hub, RemoteFile};
use uc_model::source;
use uc_store::atomic;
use uc_store::plan::SOURCE;
use uc_store::sha::verify_file;
use uc_store::stage::{Job, StageArgs};

use crate::error::FetchError;
use crate::remote::{PROGRESS_INTERVAL, RetryArgs, connect, header_path};

/// Arguments of `shard-loader shard`.
#[derive(Debug, Clone, clap::Args)]
pub struct ShardArgs {
    /// The arguments of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// How downloads are retried.
    #[command(flatten)]
    pub retry: RetryArgs,
}

/// The task `shard`. The connection stays open between jobs.
pub struct ShardDownloader {
    hub: Option<Hub>,
    retry: RetryArgs,
}

impl ShardDownloader {
    /// The first job opens the connection.
    pub fn new(retry: RetryArgs) -> Self {
        Self { hub: None, retry }
    }

    /// Downloads the shard of a job.
    pub fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let file = job.shard()?;
        let origin = job.plan().model.hub.as_ref();
        let origin = origin.context("the plan names no repository")?;
        let name = file.path.file_name().context("a shard without a name")?;
        // Refuses a link in the place of the folder: shards are written and deleted in the run directory.
        let root = job.run().root();
        atomic::create_dir_below(root, &root.join(SOURCE))?;
        // The disk budget has no room for a damaged shard next to its replacement.
        if file.path.exists() && verify_file(&file.path, file.size, &file.sha256).is_err() {
            job.run().remove_shard(name)?;
        }
        let hub = match self.hub.take() {
            Some(hub) => hub,
            None => connect()?,
        };
        let remote = RemoteFile {
            path: name.into(),
            size: file.size,
            id: FileId::Sha256(file.sha256),
        };
        // Nor does it have room for a partial download of another shard, left behind by a process that was killed.
        atomic::sweep_growing(&file.path)?;
        let (repo, commit) = (origin.repository.parse()?, origin.commit.parse()?);
        let mut reported = Instant::now();
        // Both the download and its retrier report on the job.
        let job = Mutex::new(job);
        let lock_job = || job.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retrier = self.retry.retrier()?.with_observer(|state| {
            if let Some((attempt, wait, error)) = state.pending_retry() {
                lock_job().retrying(attempt, state.attempts, wait, error);
            }
        });
        let downloaded =
            hub.download(&repo, &commit, &remote, &file.path, &mut retrier, |now| {
                if reported.elapsed() >= PROGRESS_INTERVAL {
                    reported = Instant::now();
                    lock_job().progress(now.done, now.total, "bytes");
                }
            })?;
        check_header(&file.path)?;
        lock_job().metric("bytes received", downloaded.received);
        drop(retrier);
        self.hub = Some(hub);
        Ok(())
    }
}

/// Checks that the shard begins with the header that the run was planned with.
fn check_header(shard: &Utf8Path) -> anyhow::Result<()> {
    let path = header_path(shard);
    let header = uc_input::read(&path, source::MAX_HEADER + 8)
        .with_context(|| format!("cannot read {path}"))?;
    let file = uc_input::open(shard).with_context(|| format!("cannot open {shard}"))?;
    let mut beginning = Vec::new();
    let read = file.take(header.len() as u64).read_to_end(&mut beginning);
    read.with_context(|| format!("cannot read {shard}"))?;
    if beginning == header {
        return Ok(());
    }
    Err(FetchError::HeaderMismatch {
        shard: shard.to_owned(),
        header: path,
    }
    .into())
}
