//! The LFS batch request: which large files storage lacks, and the URLs to which they are uploaded.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FILES_PER_REQUEST, LFS_JSON};
use crate::Hub;
use crate::error::{HubError, RequestContext};
use crate::local_file::LocalFile;
use crate::repo::RepoName;

/// Maximum number of parts that S3 multipart storage accepts.
const MAX_PARTS: u64 = 10_000;

/// Where a large file is uploaded to.
#[derive(Clone, PartialEq, Eq)]
pub struct BatchAction {
    /// For a file in one piece: its upload URL. For a multipart upload: the URL that completes it.
    pub(super) href: String,
    /// The parts of a multipart upload.
    pub(super) parts: Option<Parts>,
    /// The URL at which to verify that the file arrived.
    pub(super) verify: Option<String>,
}

/// The parts of a multipart upload.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Parts {
    /// Bytes of each part. The last one may be shorter.
    pub(super) size: NonZeroU64,
    /// The upload URL of each part, in order.
    pub(super) urls: Vec<String>,
}

impl BatchAction {
    /// Number of parts; 1 for a file in one piece.
    pub(super) fn part_count(&self) -> usize {
        self.parts.as_ref().map_or(1, |parts| parts.urls.len())
    }
}

impl fmt::Debug for BatchAction {
    // The URLs are signed: whoever reads one can write to storage.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchAction({} parts)", self.part_count())
    }
}

#[derive(Deserialize)]
struct WireBatch {
    objects: Vec<WireObject>,
}

#[derive(Deserialize)]
struct WireObject {
    oid: String,
    actions: Option<WireActions>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct WireActions {
    upload: Option<WireAction>,
    verify: Option<WireAction>,
}

#[derive(Deserialize)]
struct WireAction {
    href: String,
    #[serde(default)]
    header: HashMap<String, Value>,
}

impl Hub {
    /// The upload URLs of large files. `None` for a file that storage already holds.
    ///
    /// # Errors
    /// The error for a file that storage refuses, for example [`HubError::Quota`]. Transient errors are not retried here.
    pub fn lfs_batch(
        &self,
        repo: &RepoName,
        branch: &str,
        files: &[&LocalFile],
    ) -> Result<Vec<Option<BatchAction>>, HubError> {
        let url = format!(
            "{}/{repo}.git/info/lfs/objects/batch",
            self.endpoint().url()
        );
        let mut actions = Vec::new();
        for files in files.chunks(FILES_PER_REQUEST) {
            let objects: Vec<_> = files
                .iter()
                .map(|file| json!({"oid": file.sha256.to_string(), "size": file.size}))
                .collect();
            let value = json!({
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "hash_algo": "sha256",
                "ref": {"name": branch},
                "objects": objects,
            });
            let response = self.post(url.clone(), LFS_JSON, &value)?;
            let request = response.request.clone();
            let answer: WireBatch = self.http.json(response)?;
            let mut answers: HashMap<_, _> = answer
                .objects
                .into_iter()
                .map(|object| (object.oid.clone(), object))
                .collect();
            for file in files {
                let object = answers.get_mut(&file.sha256.to_string());
                let object = object.ok_or_else(|| HubError::Malformed {
                    request: request.clone(),
                    found: format!("nothing about {}", file.path),
                    expected: "an answer for every object".into(),
                })?;
                actions.push(self.batch_action(object, file, &request)?);
            }
        }
        Ok(actions)
    }

    /// The action for one object of the response.
    fn batch_action(
        &self,
        object: &mut WireObject,
        file: &LocalFile,
        request: &RequestContext,
    ) -> Result<Option<BatchAction>, HubError> {
        if let Some(WireError { code, message }) = &object.error {
            return Err(self.http.object_error(request.clone(), *code, message));
        }
        let Some(WireActions { upload, verify }) = object.actions.take() else {
            return Ok(None);
        };
        let Some(upload) = upload else {
            return Ok(None);
        };
        let verify = verify.map(|verify| self.endpoint().rewrite_to_mirror(&verify.href));
        let href = self.endpoint().rewrite_to_mirror(&upload.href);
        let parts = match upload.header.get("chunk_size") {
            Some(chunk_size) => Some(self.parts(chunk_size, &upload.header, file, request)?),
            None => None,
        };
        Ok(Some(BatchAction {
            href,
            parts,
            verify,
        }))
    }

    /// The parts of a multipart upload from its header object, which maps part numbers to URLs.
    fn parts(
        &self,
        chunk_size: &Value,
        header: &HashMap<String, Value>,
        file: &LocalFile,
        request: &RequestContext,
    ) -> Result<Parts, HubError> {
        let malformed = |found: String| HubError::Malformed {
            request: request.clone(),
            found,
            expected: format!(
                "parts that make up the {} bytes of {}",
                file.size, file.path
            ),
        };
        let text = chunk_size
            .as_str()
            .map_or_else(|| chunk_size.to_string(), ToOwned::to_owned);
        let size = text.parse::<NonZeroU64>();
        let size = size.map_err(|_| malformed(format!("parts of {text} bytes")))?;
        let mut urls: Vec<(u64, String)> = header
            .iter()
            .filter_map(|(key, url)| {
                let url = self.endpoint().rewrite_to_mirror(url.as_str()?);
                Some((key.parse().ok()?, url))
            })
            .collect();
        urls.sort();
        let count = file.size.div_ceil(size.get());
        let numbers = urls.iter().map(|(number, _)| *number);
        if count > MAX_PARTS || !numbers.eq(1..=count) {
            return Err(malformed(format!("{} parts of {size} bytes", urls.len())));
        }
        let urls = urls.into_iter().map(|(_, url)| url).collect();
        Ok(Parts { size, urls })
    }
}
