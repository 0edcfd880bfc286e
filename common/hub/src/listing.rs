//! What a repository holds at a revision: commit, files, sizes, digests.

use std::collections::BTreeSet;

use serde::Deserialize;
use uc_store::sha::Sha256Digest;

use crate::Hub;
use crate::answer::header;
use crate::digest::FileId;
use crate::endpoint::Origin;
use crate::error::{At, HubError};
use crate::http::Call;
use crate::name::{BlobId, CommitId, RepoName, check_revision, encode, is_safe_path};

/// Pages of a listing that are read before it counts as endless.
const PAGES: usize = 10_000;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path, with `/` between folders; checked to stay below the folder it is put into.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its identity.
    pub id: FileId,
}

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit.
    pub commit: CommitId,
    /// Its files, by path.
    pub files: Vec<RemoteFile>,
}

// Wire types. The Hub adds fields as it grows, so unknown ones pass.

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
    /// Commit and files of a revision, in one request.
    ///
    /// # Errors
    /// [`HubError::NotFound`] for a repository or revision that is not there; transient ones are not tried again here.
    pub fn info(&self, repo: &RepoName, revision: &str) -> Result<Snapshot, HubError> {
        let (info, at) = self.wire_info(repo, revision, "?blobs=true")?;
        let files = info.siblings.into_iter().map(|sibling| {
            let (id, size) = match (sibling.lfs, sibling.size, sibling.blob_id) {
                (Some(lfs), ..) => (sha256(&lfs.sha256, &at)?, lfs.size),
                (None, Some(size), Some(id)) => (blob(&id, &at)?, size),
                _ => {
                    let path = &sibling.rfilename;
                    let found = format!("no size or id for {path}");
                    return Err(malformed(&at, found, "size and digest of every file"));
                }
            };
            remote_file(sibling.rfilename, size, id, &at)
        });
        Ok(Snapshot {
            commit: info.sha.parse()?,
            files: sorted(files.collect::<Result<_, _>>()?, &at)?,
        })
    }

    /// The commit that a revision names.
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
    ) -> Result<(WireInfo, At), HubError> {
        check_revision(revision)?;
        let path = format!("/revision/{}{query}", encode(revision, ""));
        let reply = self.http.send(Call::get(self.api(repo, &path)))?;
        let at = reply.at.clone();
        Ok((self.http.json(reply)?, at))
    }

    /// Files of a revision, page by page.
    ///
    /// # Errors
    /// As for [`Hub::info`].
    pub fn tree(&self, repo: &RepoName, revision: &str) -> Result<Vec<RemoteFile>, HubError> {
        check_revision(revision)?;
        let path = format!("/tree/{}?recursive=true&expand=false", encode(revision, ""));
        let mut next = Some(self.api(repo, &path));
        let (mut files, mut pages) = (Vec::new(), 0);
        let mut at = self.http.at("GET", "");
        while let Some(url) = next.take() {
            let reply = self.http.send(Call::get(url))?;
            at = reply.at.clone();
            if let Some(link) = header(&reply.headers, "link")
                .as_deref()
                .and_then(next_page)
            {
                let link = self.endpoint().localised(link);
                let home = Origin::of(&link).is_some_and(|origin| self.endpoint().is_home(&origin));
                pages += 1;
                if !home || pages > PAGES {
                    return Err(malformed(
                        &at,
                        crate::http::shown(&link),
                        "a next page here",
                    ));
                }
                next = Some(link);
            }
            for entry in self.http.json::<Vec<WireEntry>>(reply)? {
                if entry.kind != "file" {
                    continue;
                }
                let (id, size) = match entry.lfs {
                    Some(lfs) => (sha256(&lfs.oid, &at)?, lfs.size),
                    None => (blob(&entry.oid, &at)?, entry.size),
                };
                files.push(remote_file(entry.path, size, id, &at)?);
            }
        }
        sorted(files, &at)
    }
}

fn malformed(at: &At, found: String, expected: &str) -> HubError {
    HubError::Malformed {
        at: at.clone(),
        found: found.chars().take(300).collect(),
        expected: expected.into(),
    }
}

fn sha256(text: &str, at: &At) -> Result<FileId, HubError> {
    let digest = text.parse::<Sha256Digest>();
    let wrong = |_| malformed(at, text.into(), "a SHA-256 of 64 hexadecimal digits");
    digest.map(FileId::Sha256).map_err(wrong)
}

fn blob(text: &str, at: &At) -> Result<FileId, HubError> {
    let id = text.parse::<BlobId>();
    let wrong = |_| malformed(at, text.into(), "a git blob id of 40 hexadecimal digits");
    id.map(FileId::Blob).map_err(wrong)
}

fn remote_file(path: String, size: u64, id: FileId, at: &At) -> Result<RemoteFile, HubError> {
    if !is_safe_path(&path) {
        return Err(malformed(
            at,
            format!("{path:?}"),
            "a path inside the repository",
        ));
    }
    Ok(RemoteFile { path, size, id })
}

/// By path; a path that comes twice would let one file stand for another.
fn sorted(mut files: Vec<RemoteFile>, at: &At) -> Result<Vec<RemoteFile>, HubError> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let distinct: BTreeSet<_> = files.iter().map(|file| &file.path).collect();
    if distinct.len() != files.len() {
        return Err(malformed(at, "a path twice".into(), "every path once"));
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
    fn the_next_page_is_found() {
        let link = "<https://h/a?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(link), Some("https://h/a?cursor=x"));
        assert_eq!(next_page("<https://h/a>; rel=\"prev\""), None);
        assert_eq!(
            next_page("<https://h/a>; rel=\"prev\", <https://h/b>; rel=next"),
            Some("https://h/b")
        );
    }
}
