//! Sends a large file to storage, in one piece or in parts.
//!
//! Parts are read from the file by position. An [`UploadState`] remembers the parts that were sent, so that a broken
//! connection costs at most one part. Signed URLs need no token and receive none.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroU64;

use serde_json::json;
use uc_store::sha::Sha256Digest;

use super::{BatchAction, LFS_JSON};
use crate::error::HubError;
use crate::http::{HttpRequest, RequestBody, header};
use crate::local_file::LocalFile;
use crate::retry::Attempt;
use crate::{Hub, Progress};

/// Unfinished uploads of large files, by the digest of the file.
#[derive(Debug, Default)]
pub struct UploadState {
    unfinished: HashMap<Sha256Digest, PartialUpload>,
}

/// An upload that has not been completed.
#[derive(Debug)]
struct PartialUpload {
    action: BatchAction,
    /// The ETag of each part that was sent. A file in one piece has one part.
    etags: Vec<Option<String>>,
}

impl UploadState {
    /// The upload URLs of a file whose upload has begun.
    pub(super) fn action(&self, file: &LocalFile) -> Option<BatchAction> {
        self.unfinished
            .get(&file.sha256)
            .map(|upload| upload.action.clone())
    }
}

impl Hub {
    /// Uploads a large file to storage. Parts that `state` records as sent are not sent again.
    ///
    /// # Errors
    /// [`HubError::UploadLost`] (transient) if the upload must start over with new URLs. Transient errors are not retried
    /// here; the next call continues from `state`.
    pub fn upload_lfs_file(
        &self,
        file: &LocalFile,
        action: BatchAction,
        state: &mut UploadState,
        attempt: &mut Attempt,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let etags = vec![None; action.part_count()];
        let new = PartialUpload { action, etags };
        let mut upload = state.unfinished.remove(&file.sha256).unwrap_or(new);
        let outcome = self.continue_upload(file, &mut upload, attempt, progress);
        // A lost upload is forgotten; after any other error it continues where it stopped.
        if matches!(&outcome, Err(error) if !matches!(error, HubError::UploadLost { .. })) {
            state.unfinished.insert(file.sha256, upload);
        }
        outcome
    }

    fn continue_upload(
        &self,
        file: &LocalFile,
        PartialUpload { action, etags }: &mut PartialUpload,
        attempt: &mut Attempt,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let handle = file.open()?;
        let file_size = NonZeroU64::new(file.size).expect("storage accepts no empty objects");
        let (part_size, urls) = match &action.parts {
            Some(parts) => (parts.size, parts.urls.as_slice()),
            None => (file_size, std::slice::from_ref(&action.href)),
        };
        for (index, url) in urls.iter().enumerate() {
            let offset = index as u64 * part_size.get();
            let size = part_size.get().min(file.size - offset);
            if etags[index].is_none() {
                let range = (offset, size);
                etags[index] = Some(self.put_range(file, &handle, range, url, progress)?);
                attempt.mark_progress();
            }
            progress(Progress {
                done: offset + size,
                total: file.size,
            });
        }
        if action.parts.is_some() {
            self.complete_multipart(file, &action.href, etags)?;
        }
        match &action.verify {
            Some(url) => self.verify_upload(file, url),
            None => Ok(()),
        }
    }

    /// Sends a range of a file, which may be the whole file. Returns the ETag.
    fn put_range(
        &self,
        file: &LocalFile,
        handle: &File,
        (offset, size): (u64, u64),
        url: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<String, HubError> {
        let mut done = offset;
        let total = file.size;
        let mut on_sent = |bytes| {
            done += bytes;
            progress(Progress { done, total });
        };
        let body = RequestBody::FileRange {
            file: handle,
            offset,
            size,
            on_sent: &mut on_sent,
        };
        let mut request = HttpRequest::new("PUT", url.into(), body);
        request.with_token = false;
        let response = self
            .http
            .send(request)
            .map_err(|error| storage_error(error, &file.path))?;
        Ok(header(&response.headers, "etag").unwrap_or_default())
    }

    /// Requests that storage assemble the parts.
    fn complete_multipart(
        &self,
        file: &LocalFile,
        url: &str,
        etags: &[Option<String>],
    ) -> Result<(), HubError> {
        let parts: Vec<_> = etags
            .iter()
            .enumerate()
            .map(|(index, etag)| json!({"partNumber": index + 1, "etag": etag}))
            .collect();
        let data = json!({"oid": file.sha256.to_string(), "parts": parts}).to_string();
        let body = RequestBody::Bytes(LFS_JSON, data.as_bytes());
        let mut request = HttpRequest::new("POST", url.into(), body);
        request.headers.push(("accept", LFS_JSON.into()));
        request.with_token = false;
        self.http
            .send(request)
            .map_err(|error| storage_error(error, &file.path))?;
        Ok(())
    }

    /// Asks the Hub to verify that a file arrived.
    fn verify_upload(&self, file: &LocalFile, url: &str) -> Result<(), HubError> {
        let value = json!({"oid": file.sha256.to_string(), "size": file.size});
        match self.post(url.into(), LFS_JSON, &value) {
            Ok(_) => Ok(()),
            Err(error @ (HubError::Unauthorized { .. } | HubError::Forbidden { .. })) => Err(error),
            Err(error) => Err(storage_error(error, &file.path)),
        }
    }
}

/// If storage refused a request, the upload needs new URLs and is lost. Other errors are returned unchanged.
fn storage_error(error: HubError, file: &str) -> HubError {
    let file = file.to_owned();
    let (request, status, detail) = match error {
        HubError::Unauthorized { request, detail } => (request, 401, detail),
        HubError::Forbidden { request, detail } => (request, 403, detail),
        HubError::NotFound { request, detail } => (request, 404, detail),
        HubError::Conflict {
            request,
            status,
            detail,
            ..
        }
        | HubError::Refused {
            request,
            status,
            detail,
        } => (request, status, detail),
        other => return other,
    };
    HubError::UploadLost {
        request,
        status,
        file,
        detail,
    }
}
