//! The repository of a run: creation, uploads and listings, with retries.
//!
//! The progress of each transfer and the waits between attempts are reported as events of the job.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use uc_hub::{
    CommitId, Endpoint, Hub, Limits, LocalFile, Progress, RemoteFile, RepoRef, Retrier,
    RetryPolicy, RetryState, Visibility, differences,
};
use uc_settings::UploadSettings;
use uc_store::stage::Job;

use crate::{UploadError, read_json, write_json};

/// The artifact that names the repository for the other tasks.
const REPOSITORY_ARTIFACT: &str = "hub-repository";
/// Shortest time between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The repository that receives the pack of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    repository_version: u32,
    /// `owner/name`.
    pub repository: String,
    /// The branch.
    pub branch: String,
}

/// A client for the repository, for one job.
pub struct Remote<'a, 'j> {
    hub: Hub,
    target: RepoRef,
    settings: UploadSettings,
    job: Mutex<&'a mut Job<'j>>,
}

/// Writes `hub-repository`: creates the repository unless it exists, and checks that the token can write to it.
pub fn create_repository(job: &mut Job<'_>) -> anyhow::Result<()> {
    let target: RepoRef = job.settings().upload.repository.parse()?;
    let repository = Repository {
        repository_version: 1,
        repository: target.repo.to_string(),
        branch: target.revision.clone(),
    };
    write_json(job, REPOSITORY_ARTIFACT, &repository)?;
    let sample = LocalFile::from_path("repository.json", &job.output_path(REPOSITORY_ARTIFACT)?)?;
    let visibility = match job.settings().upload.private {
        true => Visibility::Private,
        false => Visibility::Public,
    };
    let remote = Remote::new(job, target)?;
    let Remote { hub, target, .. } = &remote;
    // The first contact of an upload: a Hub that cannot be reached at all is reported within seconds.
    let mut retrier = remote.retrier().failing_fast();
    retrier.run("repository", |_| hub.create_repo(&target.repo, visibility))?;
    // Detects a read-only token now rather than after the first layer. The Hub answers a preupload request only if the
    // token has write permission, and the request changes nothing.
    retrier.run("permission", |_| {
        hub.preupload(&target.repo, &target.revision, &[&sample])
    })?;
    Ok(())
}

/// The repository that [`create_repository`] recorded.
pub fn read_repository(job: &Job<'_>) -> anyhow::Result<Repository> {
    Ok(read_json(&job.input(REPOSITORY_ARTIFACT)?)?)
}

impl<'a, 'j> Remote<'a, 'j> {
    /// A client for the repository of the run.
    pub fn open(job: &'a mut Job<'j>) -> anyhow::Result<Self> {
        let Repository {
            repository, branch, ..
        } = read_repository(job)?;
        Self::new(job, format!("{repository}@{branch}").parse()?)
    }

    fn new(job: &'a mut Job<'j>, target: RepoRef) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_env()?;
        if !endpoint.has_token() {
            return Err(UploadError::NoToken.into());
        }
        Ok(Self {
            hub: Hub::new(endpoint, Limits::default())?,
            target,
            settings: job.settings().upload.clone(),
            job: Mutex::new(job),
        })
    }

    /// The job, locked. Hold the guard only to emit an event.
    pub fn job(&self) -> MutexGuard<'_, &'a mut Job<'j>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The URL of the Hub.
    pub fn endpoint(&self) -> &str {
        self.hub.endpoint().url()
    }

    /// The repository, `owner/name`.
    pub fn name(&self) -> String {
        self.target.repo.to_string()
    }

    /// The branch.
    pub fn branch(&self) -> &str {
        &self.target.revision
    }

    fn retrier(&self) -> Retrier<'_> {
        let max_wait = Duration::from_secs(self.settings.longest_wait.into());
        Retrier::new(RetryPolicy::new(self.settings.attempts, max_wait))
            .with_observer(|state| self.report_retry(state))
    }

    fn report_retry(&self, state: &RetryState) {
        if let Some((attempt, wait, error)) = state.pending_retry() {
            self.job().retrying(attempt, state.attempts, wait, error);
        }
    }

    /// Uploads files to the repository's storage, for a later commit.
    pub fn upload_without_commit(&self, files: &[LocalFile]) -> anyhow::Result<()> {
        let RepoRef { repo, revision } = &self.target;
        let mut retrier = self.retrier();
        let mut report = self.progress_reporter();
        self.hub
            .upload_without_commit(repo, revision, files, &mut retrier, |_, progress| {
                report(progress)
            })?;
        Ok(())
    }

    /// A callback that emits progress events, at most one per [`PROGRESS_INTERVAL`] and one at the end of each file.
    fn progress_reporter(&self) -> impl FnMut(Progress) {
        let mut last_report = Instant::now();
        move |progress| {
            if progress.done == progress.total || last_report.elapsed() >= PROGRESS_INTERVAL {
                last_report = Instant::now();
                self.job().progress(progress.done, progress.total, "bytes");
            }
        }
    }

    /// Commits the files that the branch lacks, then checks that the new tree holds all of the files.
    pub fn push(&self, message: &str, files: &[LocalFile]) -> anyhow::Result<CommitId> {
        let RepoRef { repo, revision } = &self.target;
        let mut retrier = self.retrier();
        let mut report = self.progress_reporter();
        let pushed = self.hub.push(
            repo,
            revision,
            message,
            files,
            &mut retrier,
            |_, progress| {
                report(progress);
            },
        )?;
        let operation = format!("comparison with {repo}");
        let tree = retrier.run(&operation, |_| {
            self.hub.tree(repo, &pushed.commit.to_string())
        })?;
        self.check_tree(&pushed.commit, &tree, files)?;
        tracing::info!(commit = %pushed.commit, pushed.committed, pushed.present, "{message}");
        Ok(pushed.commit)
    }

    /// Checks that the tree of a commit holds these files.
    pub fn check_tree(
        &self,
        commit: &CommitId,
        tree: &[RemoteFile],
        files: &[LocalFile],
    ) -> anyhow::Result<()> {
        let differences = differences(tree, files)?;
        if differences.is_empty() {
            return Ok(());
        }
        Err(UploadError::RemoteDiffers {
            repository: self.name(),
            commit: commit.to_string(),
            paths: differences.into_iter().map(|file| file.path).collect(),
        }
        .into())
    }

    /// Downloads a file of the repository.
    pub fn download(
        &self,
        commit: &CommitId,
        file: &RemoteFile,
        into: &Utf8Path,
    ) -> anyhow::Result<()> {
        let repo = &self.target.repo;
        let mut retrier = self.retrier();
        self.hub
            .download(repo, commit, file, into, &mut retrier, |_| {})?;
        Ok(())
    }

    /// The commit of the branch and its files.
    pub fn tree(&self) -> anyhow::Result<(CommitId, Vec<RemoteFile>)> {
        let RepoRef { repo, revision } = &self.target;
        let head_and_tree = self.retrier().run("comparison", |_| {
            let head = self.hub.head(repo, revision)?;
            Ok((head, self.hub.tree(repo, &head.to_string())?))
        })?;
        Ok(head_and_tree)
    }
}
