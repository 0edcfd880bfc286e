//! Downloads that resume after broken connections and ended processes.
//!
//! A file is requested by commit, so that its content cannot change during the download. The bytes received so far are
//! kept in a partial file whose name carries the digest of the whole content. A resumed request states the first byte
//! (`Range`) and the version (`If-Range`, if the server sent a strong ETag). A response that does not start exactly at that
//! byte is never appended. The file appears under its final name only if the whole content has the Hub's digest.

use std::io::Read;

use camino::Utf8Path;
use uc_store::atomic::GrowingFile;
use uc_store::resources;

use crate::digest::{self, FileHasher};
use crate::error::HubError;
use crate::git_id::CommitId;
use crate::http::{HttpRequest, HttpResponse, header};
use crate::listing::RemoteFile;
use crate::repo::RepoName;
use crate::retry::{Attempt, Retrier};
use crate::url::percent_encode;
use crate::{Hub, Progress};

/// Bytes read from a body before they are written to disk.
const BUFFER_SIZE: usize = 256 << 10;

/// The result of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadOutcome {
    /// Bytes received by this call. The rest was already on disk.
    pub received: u64,
}

/// A download that is not complete yet, kept from attempt to attempt.
struct PartialDownload<'a> {
    file: &'a RemoteFile,
    partial_file: GrowingFile,
    /// The hasher over the content of `partial_file`.
    hasher: FileHasher,
    /// The strong ETag of the content of `partial_file`, if the server sent one.
    etag: Option<String>,
    /// Number of complete downloads with the wrong digest.
    mismatches: u32,
    received: u64,
}

impl<'a> PartialDownload<'a> {
    /// Opens the partial file of an earlier call or process, or creates an empty one.
    fn open(file: &'a RemoteFile, into: &Utf8Path) -> Result<Self, HubError> {
        let id = file.id.to_string();
        let mut partial = Self {
            file,
            partial_file: GrowingFile::open(into, &id[..16])?,
            hasher: FileHasher::new_like(&file.id, file.size),
            etag: None,
            mismatches: 0,
            received: 0,
        };
        if partial.size() > file.size {
            partial.restart()?;
        }
        let hasher = &mut partial.hasher;
        partial.partial_file.read(|piece| hasher.update(piece))?;
        Ok(partial)
    }

    /// Bytes on disk.
    fn size(&self) -> u64 {
        self.partial_file.size()
    }

    /// Discards the bytes on disk.
    fn restart(&mut self) -> Result<(), HubError> {
        self.partial_file.restart()?;
        self.hasher = FileHasher::new_like(&self.file.id, self.file.size);
        self.etag = None;
        Ok(())
    }

    /// Checks the digest of the complete content. Discards the content if it is wrong.
    fn verify_digest(&mut self) -> Result<(), HubError> {
        let empty = FileHasher::new_like(&self.file.id, self.file.size);
        let found = std::mem::replace(&mut self.hasher, empty).finish();
        if found == self.file.id {
            return Ok(());
        }
        self.restart()?;
        self.mismatches += 1;
        Err(HubError::DigestMismatch {
            file: self.file.path.clone(),
            kind: found.kind(),
            found: found.to_string(),
            expected: self.file.id.to_string(),
            repeated: self.mismatches > 1,
        })
    }
}

impl Hub {
    /// Downloads a file of a commit to `into`, unless the same content is already there.
    ///
    /// # Errors
    /// A permanent error, or [`HubError::RetriesExhausted`]. The bytes received stay in a partial file beside `into`, and
    /// the next call continues from there.
    pub fn download(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        file: &RemoteFile,
        into: &Utf8Path,
        retrier: &mut Retrier<'_>,
        mut progress: impl FnMut(Progress),
    ) -> Result<DownloadOutcome, HubError> {
        let total = file.size;
        let metadata = std::fs::metadata(into);
        let same_size = metadata.is_ok_and(|found| found.is_file() && found.len() == total);
        if same_size && digest::hash_file_like(into, total, &file.id)? == file.id {
            progress(Progress { done: total, total });
            return Ok(DownloadOutcome { received: 0 });
        }
        let mut partial = PartialDownload::open(file, into)?;
        // The size is what the Hub says; it is believed only as far as the disk has room.
        resources::ensure_free(into, total.saturating_sub(partial.size()))?;
        let operation = format!("download of {}", file.path);
        retrier.run(&operation, |attempt| {
            self.download_rest(repo, commit, &mut partial, attempt, &mut progress)
        })?;
        let received = partial.received;
        partial.partial_file.commit()?;
        Ok(DownloadOutcome { received })
    }

    /// The first bytes of a file of a commit, in one request. No digest protects them.
    ///
    /// # Errors
    /// The error of the request. Nothing is retried here.
    pub fn read_prefix(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        file: &RemoteFile,
        bytes: u64,
    ) -> Result<Vec<u8>, HubError> {
        let bytes = bytes.min(file.size);
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let mut request = HttpRequest::get(self.file_url(repo, commit, file));
        request.expected_bytes = bytes;
        request.headers.push(("accept-encoding", "identity".into()));
        request
            .headers
            .push(("range", format!("bytes=0-{}", bytes - 1)));
        let mut response = self.http.send(request)?;
        check_unchanged(&response, commit, file)?;
        let range = header(&response.headers, "content-range").unwrap_or_default();
        let expected = format!("bytes 0-{}/{}", bytes - 1, file.size);
        // A server that ignores Range sends the whole file. Only its beginning is read.
        if response.status == 206 && range != expected {
            return Err(HubError::Range {
                request: response.request,
                found: range,
                expected,
            });
        }
        let (context, limit) = (response.request.clone(), response.limit);
        let mut data = Vec::new();
        let read = response.body.as_reader().take(bytes).read_to_end(&mut data);
        let found = data.len() as u64;
        read.map_err(|error| {
            let context = context.clone();
            self.http
                .body_error(error, context, limit, found, Some(bytes))
        })?;
        match found == bytes {
            true => Ok(data),
            false => Err(HubError::Truncated {
                request: context,
                found,
                expected: bytes,
            }),
        }
    }

    /// The URL of a file of a commit.
    fn file_url(&self, repo: &RepoName, commit: &CommitId, file: &RemoteFile) -> String {
        let path = percent_encode(&file.path, "/");
        format!("{}/{repo}/resolve/{commit}/{path}", self.endpoint().url())
    }

    /// One attempt: requests the missing bytes and checks the digest of the whole.
    fn download_rest(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        partial: &mut PartialDownload<'_>,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), HubError> {
        let total = partial.file.size;
        let mut report = |done| progress(Progress { done, total });
        report(partial.size());
        if partial.size() < total {
            let mut response = self.request_rest(repo, commit, partial)?;
            check_unchanged(&response, commit, partial.file)?;
            align(&response, partial)?;
            let start = partial.size();
            let outcome = self.receive(&mut response, partial, &mut report);
            if partial.size().saturating_sub(start) >= self.http.limits.progress_bytes {
                attempt.mark_progress();
            }
            outcome?;
        }
        partial.verify_digest()
    }

    /// Requests the bytes that are missing on disk.
    fn request_rest(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        partial: &mut PartialDownload<'_>,
    ) -> Result<HttpResponse, HubError> {
        let mut request = HttpRequest::get(self.file_url(repo, commit, partial.file));
        request.expected_bytes = partial.file.size - partial.size();
        // Sizes and ranges of a compressed body would not be those of the file.
        request.headers.push(("accept-encoding", "identity".into()));
        if partial.size() > 0 {
            let range = format!("bytes={}-", partial.size());
            request.headers.push(("range", range));
            if let Some(etag) = &partial.etag {
                request.headers.push(("if-range", etag.clone()));
            }
        }
        let response = self.http.send(request);
        if matches!(response, Err(HubError::Range { .. })) {
            partial.restart()?;
        }
        response
    }

    /// Appends the body to the partial file.
    fn receive(
        &self,
        response: &mut HttpResponse,
        partial: &mut PartialDownload<'_>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let (request, limit) = (response.request.clone(), response.limit);
        let total = partial.file.size;
        let mut reader = response.body.as_reader();
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(read) => read,
                Err(error) => {
                    let found = partial.size();
                    return Err(self
                        .http
                        .body_error(error, request, limit, found, Some(total)));
                }
            };
            let found = partial.size() + read as u64;
            if read == 0 && found == total {
                return Ok(());
            }
            if read == 0 {
                return Err(HubError::Truncated {
                    request,
                    found,
                    expected: total,
                });
            }
            if found > total {
                partial.restart()?;
                return Err(HubError::Range {
                    request,
                    found: format!("more than {total} bytes"),
                    expected: format!("{total} bytes"),
                });
            }
            partial.partial_file.append(&buffer[..read])?;
            partial.hasher.update(&buffer[..read]);
            partial.received += read as u64;
            report(found);
        }
    }
}

/// Checks that commit, size and ETag in the Hub's response still agree with the listing.
fn check_unchanged(
    response: &HttpResponse,
    commit: &CommitId,
    file: &RemoteFile,
) -> Result<(), HubError> {
    let changed = |what, found: String, expected: String| HubError::Changed {
        request: response.request.clone(),
        what,
        found: found.chars().take(100).collect(),
        expected,
    };
    let linked = &response.linked;
    let commit = commit.to_string();
    if let Some(found) = linked.commit.as_ref().filter(|found| **found != commit) {
        return Err(changed("commit", found.clone(), commit));
    }
    if let Some(found) = linked.size.filter(|size| *size != file.size) {
        return Err(changed("size", found.to_string(), file.size.to_string()));
    }
    let (etag, id) = (linked.etag.as_deref().map(bare_etag), file.id.to_string());
    // A tag of another kind, for example from a mirror, proves nothing. The digest of the whole content decides.
    let is_comparable =
        |etag: &&str| etag.len() == id.len() && etag.bytes().all(|b| b.is_ascii_hexdigit());
    match etag.filter(is_comparable) {
        Some(etag) if !etag.eq_ignore_ascii_case(&id) => Err(changed("ETag", etag.to_owned(), id)),
        _ => Ok(()),
    }
}

/// Checks that the body continues the partial file. Discards the partial file if the body starts elsewhere.
fn align(response: &HttpResponse, partial: &mut PartialDownload<'_>) -> Result<(), HubError> {
    let (on_disk, total) = (partial.size(), partial.file.size);
    let length =
        header(&response.headers, "content-length").and_then(|text| text.parse::<u64>().ok());
    let wrong_range = |found: String, expected: String| HubError::Range {
        request: response.request.clone(),
        found,
        expected,
    };
    let start = if response.status == 206 {
        let found = header(&response.headers, "content-range").unwrap_or_default();
        let expected = format!("bytes {on_disk}-{}/{total}", total.saturating_sub(1));
        if found != expected {
            partial.restart()?;
            return Err(wrong_range(found, expected));
        }
        on_disk
    } else {
        if on_disk > 0 {
            // The server ignores Range, or If-Range did not match: the body is the whole file.
            partial.restart()?;
        }
        0
    };
    if let Some(length) = length.filter(|length| *length != total - start) {
        return Err(wrong_range(
            format!("{length} bytes"),
            format!("{} bytes", total - start),
        ));
    }
    let etag = header(&response.headers, "etag").filter(|etag| etag.starts_with('"'));
    partial.etag = etag;
    Ok(())
}

/// An ETag without its weak prefix (`W/`) and its quotes.
fn bare_etag(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}
