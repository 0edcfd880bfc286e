//! The content of a repository at a revision: commit, files, sizes and digests.

use std::collections::BTreeSet;

use serde::Deserialize;
use uc_store::sha::Sha256Digest;

use crate::Hub;
use crate::digest::FileId;
use crate::error::{HubError, RequestContext};
use crate::git_id::{BlobId, CommitId};
use crate::http::{HttpRequest, header};
use crate::repo::{RepoName, check_revision, is_safe_path};
use crate::url::{Origin, percent_encode, redact};

/// Number of pages beyond which a listing is treated as endless.
const MAX_PAGES: usize = 10_000;
/// Number of files beyond which a listing is treated as endless.
const MAX_FILES: usize = 100_000;
/// Maximum number of characters of a response that an error message shows.
const MAX_SHOWN: usize = 300;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path, with `/` between folders. A listing contains only paths that stay below the folder they are joined to.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its content.
    pub id: FileId,
}

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit.
    pub commit: CommitId,
    /// Its files, sorted by path.
    pub files: Vec<RemoteFile>,
}

// Wire types. Unknown fields are accepted, because the Hub adds fields over time.

#[derive(Deserialize)]
struct WireInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<WireSibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<WireSiblingLfs>,
}

#[derive(Deserialize)]
struct WireSiblingLfs {
    sha256: String,
    size: u64,
}

#[derive(Deserialize)]
struct WireEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<WireEntryLfs>,
}

#[derive(Deserialize)]
struct WireEntryLfs {
    oid: String,
    size: u64,
}

impl Hub {
    /// The commit and the files of a revision, in one request.
    ///
    /// # Errors
    /// [`HubError::NotFound`] for an unknown repository or revision. Transient errors are not retried here.
    pub fn info(&self, repo: &RepoName, revision: &str) -> Result<Snapshot, HubError> {
        let (info, request) = self.wire_info(repo, revision, "?blobs=true")?;
        check_count(info.siblings.len(), &request)?;
        let files = info.siblings.into_iter().map(|sibling| {
            let (id, size) = match (sibling.lfs, sibling.size, sibling.blob_id) {
                (Some(lfs), ..) => (parse_sha256(&lfs.sha256, &request)?, lfs.size),
                (None, Some(size), Some(id)) => (parse_blob_id(&id, &request)?, size),
                _ => {
                    let path = &sibling.rfilename;
                    let found = format!("no size or id for {path}");
                    return Err(malformed(&request, found, "size and digest of every file"));
                }
            };
            remote_file(sibling.rfilename, size, id, &request)
        });
        Ok(Snapshot {
            commit: info.sha.parse()?,
            files: sort_by_path(files.collect::<Result<_, _>>()?, &request)?,
        })
    }

    /// The commit of a revision.
    ///
    /// # Errors
    /// As for [`Hub::info`].
    pub fn head(&self, repo: &RepoName, revision: &str) -> Result<CommitId, HubError> {
        self.wire_info(repo, revision, "")?.0.sha.parse()
    }

    fn wire_info(
        &self,
        repo: &RepoName,
        revision: &str,
        query: &str,
    ) -> Result<(WireInfo, RequestContext), HubError> {
        check_revision(revision)?;
        let path = format!("/revision/{}{query}", percent_encode(revision, ""));
        let request = HttpRequest::get(self.model_api_url(repo, &path));
        let response = self.http.send(request)?;
        let context = response.request.clone();
        Ok((self.http.json(response)?, context))
    }

    /// The files of a revision, fetched page by page and sorted by path.
    ///
    /// # Errors
    /// As for [`Hub::info`].
    pub fn tree(&self, repo: &RepoName, revision: &str) -> Result<Vec<RemoteFile>, HubError> {
        check_revision(revision)?;
        let path = format!(
            "/tree/{}?recursive=true&expand=false",
            percent_encode(revision, "")
        );
        let mut next = Some(self.model_api_url(repo, &path));
        let (mut files, mut pages) = (Vec::new(), 0);
        let mut context = self.http.context("GET", "");
        while let Some(url) = next.take() {
            let response = self.http.send(HttpRequest::get(url))?;
            context = response.request.clone();
            if let Some(link) = header(&response.headers, "link")
                .as_deref()
                .and_then(next_page)
            {
                let link = self.endpoint().rewrite_to_mirror(link);
                let origin = Origin::parse(&link);
                let same_origin = origin.is_some_and(|origin| self.endpoint().has_origin(&origin));
                pages += 1;
                if !same_origin || pages > MAX_PAGES {
                    let expected = "a next page at the endpoint";
                    return Err(malformed(&context, redact(&link), expected));
                }
                next = Some(link);
            }
            let entries = self.http.json::<Vec<WireEntry>>(response)?;
            check_count(files.len() + entries.len(), &context)?;
            for entry in entries {
                if entry.kind != "file" {
                    continue;
                }
                let (id, size) = match entry.lfs {
                    Some(lfs) => (parse_sha256(&lfs.oid, &context)?, lfs.size),
                    None => (parse_blob_id(&entry.oid, &context)?, entry.size),
                };
                files.push(remote_file(entry.path, size, id, &context)?);
            }
        }
        sort_by_path(files, &context)
    }
}

/// Checks that a listing does not go on for ever.
fn check_count(files: usize, request: &RequestContext) -> Result<(), HubError> {
    if files <= MAX_FILES {
        return Ok(());
    }
    let found = format!("a listing of {files} files");
    Err(malformed(request, found, "at most 100,000"))
}

fn malformed(request: &RequestContext, found: String, expected: &str) -> HubError {
    HubError::Malformed {
        request: request.clone(),
        found: found.chars().take(MAX_SHOWN).collect(),
        expected: expected.into(),
    }
}

fn parse_sha256(text: &str, request: &RequestContext) -> Result<FileId, HubError> {
    let digest = text.parse::<Sha256Digest>();
    let invalid = |_| {
        let expected = "a SHA-256 of 64 hexadecimal digits";
        malformed(request, text.into(), expected)
    };
    digest.map(FileId::Sha256).map_err(invalid)
}

fn parse_blob_id(text: &str, request: &RequestContext) -> Result<FileId, HubError> {
    let id = text.parse::<BlobId>();
    let invalid = |_| {
        let expected = "a git blob id of 40 hexadecimal digits";
        malformed(request, text.into(), expected)
    };
    id.map(FileId::Blob).map_err(invalid)
}

fn remote_file(
    path: String,
    size: u64,
    id: FileId,
    request: &RequestContext,
) -> Result<RemoteFile, HubError> {
    if !is_safe_path(&path) {
        let expected = "a path inside the repository";
        return Err(malformed(request, format!("{path:?}"), expected));
    }
    Ok(RemoteFile { path, size, id })
}

/// Sorts by path. A duplicate path is an error, because one of its files would hide the other.
fn sort_by_path(
    mut files: Vec<RemoteFile>,
    request: &RequestContext,
) -> Result<Vec<RemoteFile>, HubError> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let distinct: BTreeSet<_> = files.iter().map(|file| &file.path).collect();
    if distinct.len() != files.len() {
        return Err(malformed(
            request,
            "a duplicate path".into(),
            "distinct paths",
        ));
    }
    Ok(files)
}

/// The URL of `Link: <…>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (url, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        rest.replace('"', "").contains("rel=next").then_some(url)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_next_page_is_found() {
        let link = "<https://h/a?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(link), Some("https://h/a?cursor=x"));
        assert_eq!(next_page("<https://h/a>; rel=\"prev\""), None);
        assert_eq!(
            next_page("<https://h/a>; rel=\"prev\", <https://h/b>; rel=next"),
            Some("https://h/b")
        );
    }
}
