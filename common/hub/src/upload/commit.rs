//! Adds files to a branch in one commit.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;

use super::UploadMode;
use crate::Hub;
use crate::error::HubError;
use crate::git_id::CommitId;
use crate::http::{HttpRequest, RequestBody};
use crate::local_file::LocalFile;
use crate::repo::{RepoName, check_revision};
use crate::url::percent_encode;

/// The result of [`Hub::commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitOutcome {
    /// The id of the new commit.
    pub commit: CommitId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireCommit {
    commit_oid: String,
}

impl Hub {
    /// Adds files to a branch in one commit on top of `parent`: regular files with their content, large ones by digest.
    ///
    /// # Errors
    /// [`HubError::Conflict`] if the branch is no longer at `parent`. After a transient error the commit may exist all the
    /// same; [`Hub::push`] therefore compares with the tree before it retries.
    pub fn commit(
        &self,
        repo: &RepoName,
        branch: &str,
        parent: &CommitId,
        message: &str,
        files: &[(&LocalFile, UploadMode)],
    ) -> Result<CommitOutcome, HubError> {
        check_revision(branch)?;
        let mut lines = vec![json!({"key": "header", "value": {
            "summary": message,
            "description": "",
            "parentCommit": parent.to_string(),
        }})];
        for (file, mode) in files {
            lines.push(match mode {
                UploadMode::Regular => json!({"key": "file", "value": {
                    "path": file.path,
                    "encoding": "base64",
                    "content": BASE64.encode(file.read_verified()?),
                }}),
                UploadMode::Lfs => json!({"key": "lfsFile", "value": {
                    "path": file.path,
                    "algo": "sha256",
                    "oid": file.sha256.to_string(),
                    "size": file.size,
                }}),
            });
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = format!("/commit/{}", percent_encode(branch, ""));
        let url = self.model_api_url(repo, &path);
        let body = RequestBody::Bytes("application/x-ndjson", text.as_bytes());
        let response = self.http.send(HttpRequest::new("POST", url, body));
        let response = response.map_err(|error| match error {
            HubError::Conflict {
                request,
                status,
                detail,
                ..
            } => HubError::Conflict {
                request,
                status,
                expected: parent.to_string(),
                detail,
            },
            other => other,
        })?;
        let answer: WireCommit = self.http.json(response)?;
        let commit = answer.commit_oid.parse()?;
        Ok(CommitOutcome { commit })
    }
}
