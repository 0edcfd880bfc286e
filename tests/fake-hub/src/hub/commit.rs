//! Routes that change a repository: its creation and commits.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::revision_tree;
use crate::Shared;
use crate::http::{Request, Response};
use crate::repo::Entry;

pub(super) fn create_repo(request: &Request, shared: &Shared) -> Response {
    let value = request.json();
    let field = |key: &str| value[key].as_str().unwrap_or("tester").to_owned();
    let repo = format!("{}/{}", field("organization"), field("name"));
    let url = format!("{}/{repo}", shared.hub);
    if shared.state().create_repo(&repo) {
        return Response::json(&json!({"url": url, "name": repo}));
    }
    let mut response = Response::error(409, None, "You already created this model repo");
    response.body = json!({"error": "You already created this model repo", "url": url})
        .to_string()
        .into_bytes();
    response
}

pub(super) fn commit(request: &Request, shared: &Shared, repo: &[&str], branch: &str) -> Response {
    let (head, mut tree) = match revision_tree(shared, repo, branch) {
        Ok(resolved) => resolved,
        Err(response) => return response,
    };
    let text = String::from_utf8_lossy(&request.body);
    let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let Ok(lines) = lines else {
        return Response::error(400, None, "not ndjson");
    };
    let mut state = shared.state();
    let mut paths = BTreeSet::new();
    for line in &lines {
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        let entry = match line["key"].as_str().unwrap_or_default() {
            "header" => {
                let parent = value["parentCommit"].as_str();
                if parent.is_some_and(|parent| parent != head) {
                    let message = "A commit has happened since. Please refresh and try again.";
                    return Response::error(412, None, message);
                }
                continue;
            }
            "deletedFile" => {
                tree.remove(&path);
                continue;
            }
            "file" => {
                let content = BASE64.decode(value["content"].as_str().unwrap_or_default());
                let Ok(data) = content else {
                    return Response::error(400, None, "not base64");
                };
                if data.len() as u64 >= shared.options.lfs_threshold {
                    return Response::error(400, None, "files this large go to LFS");
                }
                state.store_blob(&data)
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap_or_default();
                let Some(data) = state.load(oid) else {
                    let message = "LFS pointer pointed to a file that does not exist";
                    return Response::error(400, None, message);
                };
                Entry::lfs(oid, data.len() as u64)
            }
            other => return Response::error(400, None, &format!("unknown key {other}")),
        };
        if path.is_empty() || !paths.insert(path.clone()) {
            return Response::error(400, None, "a path is missing or duplicate");
        }
        tree.insert(path, entry);
    }
    let repo = repo.join("/");
    let repository = state.repos.get_mut(&repo).expect("resolved above");
    let id = repository.commit(branch, tree);
    let url = format!("{}/{repo}/commit/{id}", shared.hub);
    Response::json(&json!({
        "success": true, "commitOid": id, "commitUrl": url, "hookOutput": "",
    }))
}

/// Commits a file on behalf of another client, just before the commit in `request` is handled.
pub(crate) fn concurrent_commit(request: &Request, shared: &Shared) {
    let segments = request.head.segments();
    let repo = segments[2..4].join("/");
    let mut state = shared.state();
    state.counter += 1;
    let data = format!("another's note {}", state.counter);
    state.commit_file(&repo, "another.txt", data.as_bytes(), u64::MAX);
}
