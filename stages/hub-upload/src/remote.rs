//! The run's repository: made, written to, and asked what it holds, behind the watchdog.
//!
//! How far a file is and what the watchdog waits for go out as the job's events.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uc_hub::{
    CommitId, Endpoint, Hub, Limits, LocalFile, Policy, Progress, RemoteFile, RepoRef, Visibility,
    WatchState, Watchdog, differences,
};
use uc_settings::UploadSettings;
use uc_store::stage::Job;

use crate::{Refused, read_json, write_json};

/// The document by which the stages know the repository.
const DOCUMENT: &str = "hub-repository";
/// How often a job tells how far a file is.
const PACE: Duration = Duration::from_secs(1);

/// Which repository the pack of this run goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    repository_version: u32,
    /// `owner/name`.
    pub repository: String,
    /// Its branch.
    pub branch: String,
}

/// The way to the repository, for one job.
pub struct Remote<'a, 'j> {
    hub: Hub,
    to: RepoRef,
    settings: UploadSettings,
    job: Mutex<&'a mut Job<'j>>,
}

/// Makes the repository unless it is there, and writes which one it is.
pub fn make(job: &mut Job<'_>) -> anyhow::Result<()> {
    let to: RepoRef = job.settings().upload.repository.parse()?;
    let document = Repository {
        repository_version: 1,
        repository: to.repo.to_string(),
        branch: to.revision.clone(),
    };
    write_json(job, DOCUMENT, &document)?;
    let sample = LocalFile::read("repository.json", &job.output_path(DOCUMENT)?)?;
    let visibility = match job.settings().upload.private {
        true => Visibility::Private,
        false => Visibility::Public,
    };
    let remote = Remote::to(job, to)?;
    let Remote { hub, to, .. } = &remote;
    let mut watchdog = remote.watchdog();
    watchdog.run("repository", |_| hub.create_repo(&to.repo, visibility))?;
    // A token that may read alone is found out now and not after the first layer: the question how a file would go is
    // answered to writers only, and changes nothing.
    watchdog.run("permission", |_| {
        hub.preupload(&to.repo, &to.revision, &[&sample])
    })?;
    Ok(())
}

/// The repository as [`make`] wrote it.
pub fn repository(job: &Job<'_>) -> anyhow::Result<Repository> {
    Ok(read_json(&job.input(DOCUMENT)?)?)
}

impl<'a, 'j> Remote<'a, 'j> {
    /// The repository that the run has.
    pub fn open(job: &'a mut Job<'j>) -> anyhow::Result<Self> {
        let Repository {
            repository, branch, ..
        } = repository(job)?;
        Self::to(job, format!("{repository}@{branch}").parse()?)
    }

    fn to(job: &'a mut Job<'j>, to: RepoRef) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_env()?;
        if !endpoint.has_token() {
            return Err(Refused::NoToken.into());
        }
        Ok(Self {
            hub: Hub::new(endpoint, Limits::default())?,
            to,
            settings: job.settings().upload.clone(),
            job: Mutex::new(job),
        })
    }

    /// The job; held for as long as an event takes.
    pub fn job(&self) -> MutexGuard<'_, &'a mut Job<'j>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the Hub is.
    pub fn endpoint(&self) -> &str {
        self.hub.endpoint().url()
    }

    /// The repository's name.
    pub fn name(&self) -> String {
        self.to.repo.to_string()
    }

    /// Its branch.
    pub fn branch(&self) -> &str {
        &self.to.revision
    }

    fn watchdog(&self) -> Watchdog<'_> {
        let longest_wait = Duration::from_secs(self.settings.longest_wait.into());
        Watchdog::new(Policy::of(self.settings.attempts, longest_wait))
            .observed(|state| self.tell(state))
    }

    fn tell(&self, state: &WatchState) {
        if let Some((attempt, wait, error)) = state.retry() {
            self.job().retrying(attempt, state.attempts, wait, error);
        }
    }

    /// Brings files into the repository's storage, for a later commit.
    pub fn store(&self, files: &[LocalFile]) -> anyhow::Result<()> {
        let RepoRef { repo, revision } = &self.to;
        let mut watchdog = self.watchdog();
        let mut teller = self.teller();
        self.hub
            .store(repo, revision, files, &mut watchdog, |_, now| teller(now))?;
        Ok(())
    }

    /// Tells how far a file is, now and then.
    fn teller(&self) -> impl FnMut(Progress) {
        let mut told = Instant::now();
        move |now| {
            if now.done == now.total || told.elapsed() >= PACE {
                told = Instant::now();
                self.job().progress(now.done, now.total, "bytes");
            }
        }
    }

    /// Commits those of the files that the branch lacks, and makes sure that it holds all of them then.
    pub fn bring(&self, message: &str, files: &[LocalFile]) -> anyhow::Result<CommitId> {
        let RepoRef { repo, revision } = &self.to;
        let mut watchdog = self.watchdog();
        let mut teller = self.teller();
        let pushed = self
            .hub
            .push(repo, revision, message, files, &mut watchdog, |_, now| {
                teller(now);
            })?;
        let what = format!("comparison with {repo}");
        let tree = watchdog.run(&what, |_| self.hub.tree(repo, &pushed.commit.to_string()))?;
        self.accept(&pushed.commit, &tree, files)?;
        tracing::info!(commit = %pushed.commit, pushed.committed, pushed.present, "{message}");
        Ok(pushed.commit)
    }

    /// An error unless a tree holds these files.
    pub fn accept(
        &self,
        commit: &CommitId,
        tree: &[RemoteFile],
        files: &[LocalFile],
    ) -> anyhow::Result<()> {
        let lacking = differences(tree, files)?;
        if lacking.is_empty() {
            return Ok(());
        }
        Err(Refused::NotTheSame {
            repository: self.name(),
            commit: commit.to_string(),
            paths: lacking.into_iter().map(|gap| gap.path).collect(),
        }
        .into())
    }

    /// The branch's commit and what it holds.
    pub fn tree(&self) -> anyhow::Result<(CommitId, Vec<RemoteFile>)> {
        let RepoRef { repo, revision } = &self.to;
        let found = self.watchdog().run("comparison", |_| {
            let head = self.hub.head(repo, revision)?;
            Ok((head, self.hub.tree(repo, &head.to_string())?))
        })?;
        Ok(found)
    }
}
