//! Pushes a set of files to a branch. Only what the remote lacks is sent.
//!
//! One attempt performs all steps: read the branch's head and its tree, compare, upload the large files, commit on top of
//! that head. If the response of an earlier attempt was lost, the tree shows what that attempt achieved. A commit is
//! therefore never made twice and a file that arrived is never sent again, wherever the earlier attempt was interrupted.

use super::{UploadMode, UploadState};
use crate::digest::FileId;
use crate::error::HubError;
use crate::git_id::CommitId;
use crate::listing::RemoteFile;
use crate::local_file::LocalFile;
use crate::repo::RepoName;
use crate::retry::{Attempt, Retrier};
use crate::{Hub, Progress};

/// Maximum number of conflicts with other commits; one more makes a push fail.
const MAX_CONFLICTS: u32 = 4;

/// The result of [`Hub::push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOutcome {
    /// A commit that holds all of the files.
    pub commit: CommitId,
    /// Number of files that this call committed.
    pub committed: usize,
    /// Number of files that the branch already held.
    pub present: usize,
    /// Bytes uploaded to large file storage.
    pub sent: u64,
}

/// A file that the remote lacks or holds with other content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path in the repository.
    pub path: String,
    /// Size and digest of the remote file at this path, if there is one.
    pub found: Option<(u64, FileId)>,
}

/// The files that a tree lacks or holds with other content.
///
/// # Errors
/// [`HubError::Store`] if a file that is not in large file storage cannot be read to compute its git blob id.
pub fn differences(tree: &[RemoteFile], files: &[LocalFile]) -> Result<Vec<Difference>, HubError> {
    let mut differences = Vec::new();
    for file in files {
        let found = tree.iter().find(|remote| remote.path == file.path);
        let equal = match found {
            Some(remote) => file.matches(remote.size, &remote.id)?,
            None => false,
        };
        if !equal {
            differences.push(Difference {
                path: file.path.clone(),
                found: found.map(|remote| (remote.size, remote.id)),
            });
        }
    }
    Ok(differences)
}

/// A file and its upload mode.
type FileWithMode<'a> = (&'a LocalFile, UploadMode);

/// A push, kept from attempt to attempt.
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
    /// Makes a branch hold these files. Those that it lacks are added in one commit.
    ///
    /// # Errors
    /// A permanent error, [`HubError::Conflict`] if others keep committing, or [`HubError::RetriesExhausted`]. A later call
    /// with the same files continues from what the remote holds.
    pub fn push(
        &self,
        repo: &RepoName,
        branch: &str,
        message: &str,
        files: &[LocalFile],
        retrier: &mut Retrier<'_>,
        mut progress: impl FnMut(&str, Progress),
    ) -> Result<PushOutcome, HubError> {
        let mut push = Push::new(self, repo, branch, message, files);
        let operation = format!("upload of {} files to {repo}", files.len());
        retrier.run(&operation, |attempt| push.attempt(attempt, &mut progress))
    }

    /// Uploads the large files among these to the repository's storage. A later [`Hub::push`] commits them without sending
    /// them again. Files that the branch already holds are skipped.
    ///
    /// # Errors
    /// A permanent error or [`HubError::RetriesExhausted`].
    pub fn upload_without_commit(
        &self,
        repo: &RepoName,
        branch: &str,
        files: &[LocalFile],
        retrier: &mut Retrier<'_>,
        mut progress: impl FnMut(&str, Progress),
    ) -> Result<(), HubError> {
        let mut push = Push::new(self, repo, branch, "", files);
        let operation = format!("storage of {} files for {repo}", files.len());
        retrier.run(&operation, |attempt| {
            push.upload_missing(attempt, &mut progress).map(|_| ())
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

    /// One attempt. If another commit came first, the steps are repeated on top of it.
    fn attempt(
        &mut self,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<PushOutcome, HubError> {
        loop {
            match self.upload_and_commit(attempt, progress) {
                Err(error @ HubError::Conflict { .. }) if self.conflicts < MAX_CONFLICTS => {
                    self.conflicts += 1;
                    tracing::warn!(%error, "the branch moved, comparing again");
                }
                other => return other,
            }
        }
    }

    fn upload_and_commit(
        &mut self,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<PushOutcome, HubError> {
        let (head, missing) = self.upload_missing(attempt, progress)?;
        if missing.is_empty() {
            return Ok(self.outcome(head));
        }
        let (hub, repo) = (self.hub, self.repo);
        let outcome = hub.commit(repo, self.branch, &head, self.message, &missing)?;
        self.committed = missing.len();
        Ok(self.outcome(outcome.commit))
    }

    /// Uploads the large files that the branch lacks. Returns the branch's head and all files that the branch lacks.
    fn upload_missing(
        &mut self,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<(CommitId, Vec<FileWithMode<'a>>), HubError> {
        let (hub, repo) = (self.hub, self.repo);
        let head = hub.head(repo, self.branch)?;
        let tree = hub.tree(repo, &head.to_string())?;
        let differences = differences(&tree, self.files)?;
        if differences.is_empty() {
            return Ok((head, Vec::new()));
        }
        let is_missing =
            |file: &&LocalFile| differences.iter().any(|other| other.path == file.path);
        let files: Vec<_> = self.files.iter().filter(is_missing).collect();
        let preuploads = hub.preupload(repo, self.branch, &files)?;
        if let Some(ignored) = preuploads.iter().find(|preupload| preupload.ignored) {
            let file = ignored.path.clone();
            return Err(HubError::Ignored { file });
        }
        let modes = preuploads.iter().map(|preupload| preupload.mode);
        let missing: Vec<_> = files.into_iter().zip(modes).collect();
        self.upload_large(&missing, attempt, progress)?;
        Ok((head, missing))
    }

    fn outcome(&self, commit: CommitId) -> PushOutcome {
        PushOutcome {
            commit,
            committed: self.committed,
            present: self.files.len() - self.committed,
            sent: self.sent,
        }
    }

    /// Uploads the large files among these to storage. Uploads that have begun continue first.
    fn upload_large(
        &mut self,
        files: &[FileWithMode<'_>],
        attempt: &mut Attempt,
        progress: &mut impl FnMut(&str, Progress),
    ) -> Result<(), HubError> {
        let large = files.iter().filter(|(_, mode)| *mode == UploadMode::Lfs);
        let (begun, new): (Vec<&LocalFile>, Vec<&LocalFile>) = large
            .map(|(file, _)| *file)
            .partition(|file| self.state.action(file).is_some());
        let mut actions: Vec<_> = begun
            .into_iter()
            .map(|file| (file, self.state.action(file)))
            .collect();
        if !new.is_empty() {
            let answers = self.hub.lfs_batch(self.repo, self.branch, &new)?;
            actions.extend(new.into_iter().zip(answers));
        }
        for (file, action) in actions {
            let Some(action) = action else { continue };
            let mut report = |done| progress(&file.path, done);
            let state = &mut self.state;
            self.hub
                .upload_lfs_file(file, action, state, attempt, &mut report)?;
            self.sent += file.size;
            // Signed URLs expire within minutes to hours, which may end this attempt. The file counts as progress all the
            // same.
            attempt.mark_progress();
        }
        Ok(())
    }
}
