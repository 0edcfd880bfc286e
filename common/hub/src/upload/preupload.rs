//! Asks the Hub how each file is to be uploaded.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;

use super::{FILES_PER_REQUEST, JSON};
use crate::Hub;
use crate::digest::FileId;
use crate::error::HubError;
use crate::local_file::LocalFile;
use crate::repo::{RepoName, check_revision};
use crate::url::percent_encode;

/// Number of bytes from the start of a file that the Hub uses to decide the upload mode.
const SAMPLE_SIZE: u64 = 512;

/// How a file is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadMode {
    /// As part of the commit request.
    Regular,
    /// To large file storage, before the commit refers to it.
    Lfs,
}

/// The Hub's answer about a file that is to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preupload {
    /// The path in the repository.
    pub path: String,
    /// How the file is uploaded.
    pub mode: UploadMode,
    /// Whether a .gitignore excludes it.
    pub ignored: bool,
    /// The file that the branch currently holds at this path.
    pub present: Option<FileId>,
}

#[derive(Deserialize)]
struct WirePreupload {
    files: Vec<WirePreuploadFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePreuploadFile {
    path: String,
    upload_mode: UploadMode,
    #[serde(default)]
    should_ignore: bool,
    oid: Option<String>,
}

impl Hub {
    /// The upload mode of each file. Only a token with write permission receives an answer.
    ///
    /// # Errors
    /// [`HubError::Malformed`] if the response omits a file. Transient errors are not retried here.
    pub fn preupload(
        &self,
        repo: &RepoName,
        branch: &str,
        files: &[&LocalFile],
    ) -> Result<Vec<Preupload>, HubError> {
        check_revision(branch)?;
        let mut preuploads = Vec::new();
        for files in files.chunks(FILES_PER_REQUEST) {
            let mut descriptions = Vec::new();
            for file in files {
                let sample = BASE64.encode(file.read_prefix(SAMPLE_SIZE)?);
                descriptions.push(json!({"path": file.path, "size": file.size, "sample": sample}));
            }
            let path = format!("/preupload/{}", percent_encode(branch, ""));
            let url = self.model_api_url(repo, &path);
            let response = self.post(url, JSON, &json!({ "files": descriptions }))?;
            let request = response.request.clone();
            let answer: WirePreupload = self.http.json(response)?;
            let mut answers: HashMap<_, _> = answer
                .files
                .into_iter()
                .map(|file| (file.path.clone(), file))
                .collect();
            for file in files {
                let answer = answers
                    .remove(&file.path)
                    .ok_or_else(|| HubError::Malformed {
                        request: request.clone(),
                        found: format!("nothing about {}", file.path),
                        expected: "an upload mode for every file".into(),
                    })?;
                let present = answer.oid.as_deref().and_then(parse_file_id);
                preuploads.push(Preupload {
                    path: answer.path,
                    // Storage accepts no empty objects.
                    mode: if file.size == 0 {
                        UploadMode::Regular
                    } else {
                        answer.upload_mode
                    },
                    ignored: answer.should_ignore,
                    present,
                });
            }
        }
        Ok(preuploads)
    }
}

/// The SHA-256 of a large file or the git blob id of another one. Their lengths differ.
fn parse_file_id(text: &str) -> Option<FileId> {
    let sha256 = text.parse().ok().map(FileId::Sha256);
    sha256.or_else(|| text.parse().ok().map(FileId::Blob))
}
