//! Read routes: information about a revision, listings and files.

use std::collections::BTreeMap;

use serde_json::json;

use super::revision_tree;
use crate::Shared;
use crate::http::{Request, Response};
use crate::repo::sha256;
use crate::storage::SIGNATURE;

pub(super) fn info(request: &Request, shared: &Shared, repo: &[&str], revision: &str) -> Response {
    let (commit, tree) = match revision_tree(shared, repo, revision) {
        Ok(resolved) => resolved,
        Err(response) => return response,
    };
    let blobs = request.head.query("blobs").is_some();
    let siblings: Vec<_> = tree
        .iter()
        .map(|(path, entry)| {
            let mut sibling = json!({ "rfilename": path });
            if blobs {
                sibling["size"] = entry.size.into();
                sibling["blobId"] = entry.blob.clone().into();
                if let Some(sha256) = &entry.lfs {
                    sibling["lfs"] = json!({
                        "sha256": sha256,
                        "size": entry.size,
                        "pointerSize": entry.pointer_size(),
                    });
                }
            }
            sibling
        })
        .collect();
    let id = repo.join("/");
    Response::json(&json!({
        "_id": "0", "id": id, "modelId": id, "author": repo[0], "sha": commit,
        "private": shared.options.private, "gated": false, "disabled": false, "downloads": 0,
        "likes": 0, "tags": [], "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z", "siblings": siblings,
    }))
}

pub(super) fn tree(request: &Request, shared: &Shared, repo: &[&str], revision: &str) -> Response {
    let (commit, tree) = match revision_tree(shared, repo, revision) {
        Ok(resolved) => resolved,
        Err(response) => return response,
    };
    let mut entries = BTreeMap::new();
    for (path, entry) in &tree {
        for (end, _) in path.match_indices('/') {
            let folder = &path[..end];
            let oid = &sha256(folder.as_bytes())[..40];
            let value = json!({"type": "directory", "path": folder, "size": 0, "oid": oid});
            entries.insert(folder.to_owned(), value);
        }
        let mut value =
            json!({"type": "file", "path": path, "size": entry.size, "oid": entry.blob});
        if let Some(sha256) = &entry.lfs {
            let (size, pointer) = (entry.size, entry.pointer_size());
            value["lfs"] = json!({"oid": sha256, "size": size, "pointerSize": pointer});
        }
        entries.insert(path.clone(), value);
    }
    let start = request
        .head
        .query("cursor")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let page: Vec<_> = entries
        .values()
        .skip(start)
        .take(shared.options.page_size)
        .collect();
    let mut response = Response::json(&json!(page)).with("x-repo-commit", &commit);
    let next = start + shared.options.page_size;
    if next < entries.len() {
        let link = format!(
            "<{}/api/models/{}/tree/{commit}?recursive=true&expand=false&cursor={next}>; rel=\"next\"",
            shared.hub,
            repo.join("/")
        );
        response = response.with("link", &link);
    }
    response
}

/// A file, as the Hub serves it: large files redirect to storage; others redirect to `/api/resolve-cache`, which returns
/// the content (`from_cache`).
pub(super) fn resolve(
    request: &Request,
    shared: &Shared,
    repo: &[&str],
    revision: &str,
    path: &str,
    from_cache: bool,
) -> Response {
    let (commit, tree) = match revision_tree(shared, repo, revision) {
        Ok(resolved) => resolved,
        Err(response) => return response,
    };
    let Some(entry) = tree.get(path) else {
        let response = Response::error(404, Some("EntryNotFound"), "Entry not found");
        return response.with("x-repo-commit", &commit);
    };
    let tag = entry.lfs.as_ref().unwrap_or(&entry.blob);
    let linked = |response: Response| {
        let response = response.with("x-repo-commit", &commit);
        let response = response.with("x-linked-etag", &format!("\"{tag}\""));
        response.with("x-linked-size", &entry.size.to_string())
    };
    if entry.lfs.is_some() {
        let location = format!("{}/objects/{tag}?{SIGNATURE}", shared.storage);
        return linked(Response::new(302).with("location", &location));
    }
    if !from_cache {
        let repo = repo.join("/");
        let location = format!(
            "/api/resolve-cache/models/{repo}/{commit}/{}",
            percent_encode(path)
        );
        return linked(Response::new(307).with("location", &location));
    }
    let data = shared.state().load(&entry.blob).unwrap_or_default();
    Response::file(&request.head, data, tag).with("x-repo-commit", &commit)
}

fn percent_encode(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'/' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
