//! A set of files to a branch: what the remote lacks, and nothing else.
//!
//! One attempt is a whole round: head and tree, comparison, large files, commit on that head. A round that begins after
//! a lost answer sees in the tree what the last one achieved, so that a commit is never made twice and a file that is
//! there is never sent again, whoever was interrupted where.

use crate::digest::FileId;
use crate::error::HubError;
use crate::listing::RemoteFile;
use crate::local::LocalFile;
use crate::name::{CommitId, RepoName};
use crate::upload::{Mode, UploadState};
use crate::watchdog::{Attempt, Watchdog};
use crate::{Hub, Progress};

/// How often another's commit may come first before it is an error.
const CONFLICTS: u32 = 4;

/// What [`Hub::push`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The commit that holds all of the files.
    pub commit: CommitId,
    /// Files that this call committed.
    pub committed: usize,
    /// Files that the remote held already.
    pub present: usize,
    /// Bytes that large file storage took.
    pub sent: u64,
}

/// A file that the remote does not hold as it is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file.
    pub path: String,
    /// What the remote holds under its path: size and identity.
    pub found: Option<(u64, FileId)>,
}

/// The files that a tree lacks or holds with another content.
///
/// # Errors
/// [`HubError::Store`] when a small file cannot be read.
pub fn differences(tree: &[RemoteFile], files: &[LocalFile]) -> Result<Vec<Difference>, HubError> {
    let mut differing = Vec::new();
    for file in files {
        let found = tree.iter().find(|remote| remote.path == file.path);
        let same = match found {
            Some(remote) => file.is(remote.size, &remote.id)?,
            None => false,
        };
        if !same {
            differing.push(Difference {
                path: file.path.clone(),
                found: found.map(|remote| (remote.size, remote.id)),
            });
        }
    }
    Ok(differing)
}

/// A file and how it goes.
type WithMode<'a> = (&'a LocalFile, Mode);

struct Push<'a> {
    hub: &'a Hub,
    repo: &'a RepoName,
    branch: &'a str,
    message: &'a str,
    files: &'a [LocalFile],
    state: UploadState,
    conflicts: u32,
    sent: u64,
    committed: usize,
}

impl Hub {
    /// Makes a branch hold these files, in one commit of those that it lacks.
    ///
    /// # Errors
    /// A final error, [`HubError::Conflict`] if others keep committing, or [`HubError::GaveUp`]. A later call with the
    /// same files goes on from what the remote holds.
    pub fn push(
        &self,
        repo: &RepoName,
        branch: &str,
        message: &str,
        files: &[LocalFile],
        watchdog: &mut Watchdog<'_>,
        mut progress: impl FnMut(&str, Progress),
    ) -> Result<Pushed, HubError> {
        let mut push = Push::new(self, repo, branch, message, files);
        let what = format!("upload of {} files to {repo}", files.len());
        watchdog.run(&what, |attempt| push.attempt(attempt, &mut progress))
    }
}

impl Hub {
    /// Brings the large files among these into the repository's storage, where a later [`Hub::push`] commits them without
    /// sending them again; those that the branch holds already are left alone.
    ///
    /// # Errors
    /// A final error or [`HubError::GaveUp`].
    pub fn store(
        &self,
        repo: &RepoName,
        branch: &str,
        files: &[LocalFile],
        watchdog: &mut Watchdog<'_>,
        mut progress: impl FnMut(&str, Progress),
    ) -> Result<(), HubError> {
        let mut push = Push::new(self, repo, branch, "", files);
        let what = format!("storage of {} files for {repo}", files.len());
        watchdog.run(&what, |attempt| {
            push.stored(attempt, &mut progress).map(|_| ())
        })
    }
}

impl<'a> Push<'a> {
    fn new(
        hub: &'a Hub,
        repo: &'a RepoName,
        branch: &'a str,
        message: &'a str,
        files: &'a [LocalFile],
    ) -> Self {
        Self {
            hub,
            repo,
            branch,
            message,
            files,
            state: UploadState::default(),
            conflicts: 0,
            sent: 0,
            committed: 0,
        }
    }

    /// Rounds until one is not overtaken by another's commit.
    fn attempt(
        &mut self,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<Pushed, HubError> {
        loop {
            match self.round(attempt, progress) {
                Err(error @ HubError::Conflict { .. }) if self.conflicts < CONFLICTS => {
                    self.conflicts += 1;
                    tracing::warn!(%error, "the branch moved, comparing again");
                }
                other => return other,
            }
        }
    }

    fn round(
        &mut self,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<Pushed, HubError> {
        let (head, lacking) = self.stored(attempt, progress)?;
        if lacking.is_empty() {
            return Ok(self.done(head));
        }
        let (hub, repo) = (self.hub, self.repo);
        let made = hub.commit(repo, self.branch, &head, self.message, &lacking)?;
        self.committed = lacking.len();
        Ok(self.done(made.commit))
    }

    /// The branch's commit, and the files that it lacks, the large ones among them brought into storage.
    fn stored(
        &mut self,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<(CommitId, Vec<WithMode<'a>>), HubError> {
        let (hub, repo) = (self.hub, self.repo);
        let head = hub.head(repo, self.branch)?;
        let tree = hub.tree(repo, &head.to_string())?;
        let missing = differences(&tree, self.files)?;
        if missing.is_empty() {
            return Ok((head, Vec::new()));
        }
        let is_missing = |file: &&LocalFile| missing.iter().any(|gap| gap.path == file.path);
        let files: Vec<_> = self.files.iter().filter(is_missing).collect();
        let modes = hub.preupload(repo, self.branch, &files)?;
        if let Some(ignored) = modes.iter().find(|mode| mode.ignored) {
            let file = ignored.path.clone();
            return Err(HubError::Ignored { file });
        }
        let modes = modes.iter().map(|mode| mode.mode);
        let lacking: Vec<_> = files.into_iter().zip(modes).collect();
        self.store(&lacking, attempt, progress)?;
        Ok((head, lacking))
    }

    fn done(&self, commit: CommitId) -> Pushed {
        Pushed {
            commit,
            committed: self.committed,
            present: self.files.len() - self.committed,
            sent: self.sent,
        }
    }

    /// Brings the large files among these into storage.
    fn store(
        &mut self,
        files: &[WithMode<'_>],
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<(), HubError> {
        let large = files.iter().filter(|(_, mode)| *mode == Mode::Lfs);
        let (open, new): (Vec<&LocalFile>, Vec<&LocalFile>) = large
            .map(|(file, _)| *file)
            .partition(|file| self.state.open_action(file).is_some());
        let mut actions: Vec<_> = open
            .into_iter()
            .map(|file| (file, self.state.open_action(file)))
            .collect();
        if !new.is_empty() {
            let answers = self.hub.lfs_batch(self.repo, self.branch, &new)?;
            actions.extend(new.into_iter().zip(answers));
        }
        for (file, action) in actions {
            let Some(action) = action else { continue };
            let mut tell = |done| progress(&file.path, done);
            let state = &mut self.state;
            self.hub.send_lfs(file, action, state, attempt, &mut tell)?;
            self.sent += file.size;
            // URLs have a life of minutes to hours; what is sent should not wait for what comes.
            attempt.progressed();
        }
        Ok(())
    }
}
