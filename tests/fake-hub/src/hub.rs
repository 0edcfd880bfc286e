//! The routes of the Hub: information, listings, files, uploads, commits.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::Shared;
use crate::faults::Route;
use crate::repo::{Entry, Tree, Upload, sha256};
use crate::storage::SIGNATURE;
use crate::wire::{Answer, Head, Request};

/// Where a request goes: method, and the path's segments.
fn parts(head: &Head) -> (String, Vec<String>) {
    (head.method.clone(), head.segments())
}

/// What a request is for.
pub(crate) fn route(head: &Head) -> Route {
    let (method, segments) = parts(head);
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    match (method.as_str(), segments.as_slice()) {
        (_, ["api", "models", _, _, "tree", ..]) => Route::Tree,
        (_, ["api", "models", _, _, "preupload", ..]) => Route::Preupload,
        (_, ["api", "models", _, _, "commit", ..]) => Route::Commit,
        (_, ["api", "models", ..]) => Route::Info,
        (_, ["api", "resolve-cache", ..] | [_, _, "resolve", ..]) => Route::Resolve,
        (_, ["api", "repos", "create"]) => Route::Create,
        (_, ["api", "complete_multipart"]) => Route::Complete,
        (_, [_, _, "info", "lfs", "objects", "batch"]) => Route::Batch,
        (_, [_, _, "info", "lfs", "objects", "verify"]) => Route::Verify,
        _ => Route::Other,
    }
}

pub(crate) fn answer(request: &Request, shared: &Shared) -> Answer {
    let (method, segments) = parts(&request.head);
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    let bearer = format!("Bearer {}", shared.options.token);
    let given = request.head.header("authorization");
    let authorised = given == Some(bearer.as_str());
    if given.is_some() && !authorised {
        let message = "Invalid credentials in Authorization header";
        return Answer::error(401, None, message);
    }
    let reads = method == "GET" || method == "HEAD";
    let signed = segments == ["api", "complete_multipart"];
    if !authorised && !signed && (!reads || shared.options.private) {
        return Answer::error(401, None, "Invalid username or password.");
    }
    match (method.as_str(), segments.as_slice()) {
        ("GET", ["api", "whoami-v2"]) => Answer::json(&json!({"name": "tester", "type": "user"})),
        ("POST", ["api", "validate-yaml"]) => Answer::json(&json!({"errors": [], "warnings": []})),
        ("POST", ["api", "repos", "create"]) => create(request, shared),
        ("POST", ["api", "complete_multipart"]) => complete(request, shared),
        ("GET", ["api", "models", org, name]) => info(request, shared, &[org, name], "main"),
        ("GET", ["api", "models", org, name, "revision", revision]) => {
            info(request, shared, &[org, name], revision)
        }
        ("GET", ["api", "models", org, name, "tree", revision, ..]) => {
            tree(request, shared, &[org, name], revision)
        }
        ("POST", ["api", "models", org, name, "preupload", revision]) => {
            preupload(request, shared, &[org, name], revision)
        }
        ("POST", ["api", "models", org, name, "commit", branch]) => {
            commit(request, shared, &[org, name], branch)
        }
        (
            _,
            [
                "api",
                "resolve-cache",
                "models",
                org,
                name,
                revision,
                path @ ..,
            ],
        ) if reads => resolve(
            request,
            shared,
            &[org, name],
            revision,
            &path.join("/"),
            true,
        ),
        (_, [org, name, "resolve", revision, path @ ..]) if reads => resolve(
            request,
            shared,
            &[org, name],
            revision,
            &path.join("/"),
            false,
        ),
        ("POST", [_, _, "info", "lfs", "objects", "batch"]) => batch(request, shared),
        ("POST", [_, _, "info", "lfs", "objects", "verify"]) => verify(request, shared),
        _ => Answer::error(
            404,
            None,
            "Sorry, we can't find the page you are looking for.",
        ),
    }
}

/// Id and tree of a revision, or the Hub's word for what is missing.
fn at(shared: &Shared, repo: &[&str], revision: &str) -> Result<(String, Tree), Answer> {
    let state = shared.state();
    let Some(found) = state.repos.get(&repo.join("/")) else {
        return Err(Answer::error(
            404,
            Some("RepoNotFound"),
            "Repository not found",
        ));
    };
    found.at(revision).ok_or_else(|| {
        let message = format!("Invalid rev id: {revision}");
        Answer::error(404, Some("RevisionNotFound"), &message)
    })
}

fn create(request: &Request, shared: &Shared) -> Answer {
    let value = request.json();
    let word = |key: &str| value[key].as_str().unwrap_or("tester").to_owned();
    let repo = format!("{}/{}", word("organization"), word("name"));
    let url = format!("{}/{repo}", shared.hub);
    if shared.state().create(&repo) {
        return Answer::json(&json!({"url": url, "name": repo}));
    }
    let mut answer = Answer::error(409, None, "You already created this model repo");
    answer.body = json!({"error": "You already created this model repo", "url": url})
        .to_string()
        .into_bytes();
    answer
}

fn info(request: &Request, shared: &Shared, repo: &[&str], revision: &str) -> Answer {
    let (commit, tree) = match at(shared, repo, revision) {
        Ok(found) => found,
        Err(answer) => return answer,
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
    Answer::json(&json!({
        "_id": "0", "id": id, "modelId": id, "author": repo[0], "sha": commit,
        "private": shared.options.private, "gated": false, "disabled": false, "downloads": 0,
        "likes": 0, "tags": [], "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z", "siblings": siblings,
    }))
}

fn tree(request: &Request, shared: &Shared, repo: &[&str], revision: &str) -> Answer {
    let (commit, tree) = match at(shared, repo, revision) {
        Ok(found) => found,
        Err(answer) => return answer,
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
        .take(shared.options.page)
        .collect();
    let mut answer = Answer::json(&json!(page)).with("x-repo-commit", &commit);
    let next = start + shared.options.page;
    if next < entries.len() {
        let link = format!(
            "<{}/api/models/{}/tree/{commit}?recursive=true&expand=false&cursor={next}>; rel=\"next\"",
            shared.hub,
            repo.join("/")
        );
        answer = answer.with("link", &link);
    }
    answer
}

fn resolve(
    request: &Request,
    shared: &Shared,
    repo: &[&str],
    revision: &str,
    path: &str,
    cache: bool,
) -> Answer {
    let (commit, tree) = match at(shared, repo, revision) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let Some(entry) = tree.get(path) else {
        let answer = Answer::error(404, Some("EntryNotFound"), "Entry not found");
        return answer.with("x-repo-commit", &commit);
    };
    let tag = entry.lfs.as_ref().unwrap_or(&entry.blob);
    let linked = |answer: Answer| {
        let answer = answer.with("x-repo-commit", &commit);
        let answer = answer.with("x-linked-etag", &format!("\"{tag}\""));
        answer.with("x-linked-size", &entry.size.to_string())
    };
    if entry.lfs.is_some() {
        let location = format!("{}/objects/{tag}?{SIGNATURE}", shared.storage);
        return linked(Answer::new(302).with("location", &location));
    }
    if !cache {
        let repo = repo.join("/");
        let location = format!("/api/resolve-cache/models/{repo}/{commit}/{}", encode(path));
        return linked(Answer::new(307).with("location", &location));
    }
    let data = shared.state().bytes(&entry.blob).unwrap_or_default();
    Answer::file(&request.head, data, tag).with("x-repo-commit", &commit)
}

fn encode(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'/' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn preupload(request: &Request, shared: &Shared, repo: &[&str], revision: &str) -> Answer {
    let tree = match at(shared, repo, revision) {
        Ok((_, tree)) => tree,
        Err(answer) => return answer,
    };
    let value = request.json();
    let files = value["files"].as_array().cloned().unwrap_or_default();
    let files: Vec<_> = files
        .iter()
        .map(|file| {
            let path = file["path"].as_str().unwrap_or_default();
            let sample = BASE64.decode(file["sample"].as_str().unwrap_or_default());
            let binary = sample.is_ok_and(|sample| sample.contains(&0));
            let large = file["size"].as_u64() >= Some(shared.options.lfs_threshold);
            let lfs = large || binary || path.ends_with(".safetensors");
            json!({
                "path": path,
                "uploadMode": if lfs { "lfs" } else { "regular" },
                "shouldIgnore": path.ends_with(".ignored"),
                "oid": tree.get(path).map(|entry| entry.lfs.as_ref().unwrap_or(&entry.blob).clone()),
            })
        })
        .collect();
    Answer::json(&json!({ "files": files }))
}

fn batch(request: &Request, shared: &Shared) -> Answer {
    let value = request.json();
    let repo = request.head.segments()[..2].join("/");
    let part = shared.options.part_size;
    let mut state = shared.state();
    let mut objects = Vec::new();
    for object in value["objects"].as_array().into_iter().flatten() {
        let oid = object["oid"].as_str().unwrap_or_default();
        let size = object["size"].as_u64().unwrap_or(0);
        let mut answer = json!({"oid": oid, "size": size});
        if state.has(oid) {
            objects.push(answer);
            continue;
        }
        let verify = json!({"href": format!("{}/{repo}/info/lfs/objects/verify", shared.hub)});
        let upload = if size > part {
            let id = state.fresh();
            let count = size.div_ceil(part);
            let mut header = json!({ "chunk_size": part.to_string() });
            for number in 1..=count {
                let url = format!("{}/part/{id}/{number}?{SIGNATURE}", shared.storage);
                header[format!("{number:05}")] = url.into();
            }
            let upload = Upload {
                oid: oid.into(),
                parts: BTreeMap::new(),
                count,
            };
            state.uploads.insert(id.clone(), upload);
            let href = format!(
                "{}/api/complete_multipart?uploadId={id}&signature=x",
                shared.hub
            );
            json!({"href": href, "header": header})
        } else {
            json!({"href": format!("{}/upload/{oid}?{SIGNATURE}", shared.storage)})
        };
        answer["authenticated"] = true.into();
        answer["actions"] = json!({"upload": upload, "verify": verify});
        objects.push(answer);
    }
    Answer::json(&json!({"transfer": "multipart", "objects": objects}))
}

fn complete(request: &Request, shared: &Shared) -> Answer {
    let value = request.json();
    let id = request.head.query("uploadId").unwrap_or_default();
    let mut state = shared.state();
    let Some(upload) = state.uploads.get(&id) else {
        return Answer::error(404, None, "NoSuchUpload");
    };
    let tags: Vec<_> = upload
        .parts
        .values()
        .map(|part| format!("\"{}\"", &sha256(part)[..32]))
        .collect();
    let given = value["parts"].as_array().cloned().unwrap_or_default();
    let given: Vec<_> = given
        .iter()
        .map(|part| part["etag"].as_str().unwrap_or_default())
        .collect();
    if tags != given || tags.len() as u64 != upload.count {
        return Answer::error(400, None, "InvalidPart");
    }
    let upload = state.uploads.remove(&id).expect("found above");
    let whole = upload.parts.into_values().flatten().collect();
    state.arrived.insert(upload.oid, whole);
    Answer::json(&json!({"success": true}))
}

fn verify(request: &Request, shared: &Shared) -> Answer {
    let value = request.json();
    let oid = value["oid"].as_str().unwrap_or_default();
    let mut state = shared.state();
    if state.has(oid) {
        return Answer::json(&json!({"success": true}));
    }
    match state.arrived.remove(oid) {
        Some(data) if sha256(&data) == oid => {
            state.keep(oid, &data);
            Answer::json(&json!({"success": true}))
        }
        Some(_) => Answer::error(422, None, "the object is not what its oid says"),
        None => Answer::error(404, None, "object not found"),
    }
}

/// Somebody else's commit, in the moment before ours.
pub(crate) fn foreign_commit(request: &Request, shared: &Shared) {
    let segments = request.head.segments();
    let repo = segments[2..4].join("/");
    let mut state = shared.state();
    state.counter += 1;
    let data = format!("another's note {}", state.counter);
    state.put(&repo, "another.txt", data.as_bytes(), u64::MAX);
}

fn commit(request: &Request, shared: &Shared, repo: &[&str], branch: &str) -> Answer {
    let (head, mut tree) = match at(shared, repo, branch) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let text = String::from_utf8_lossy(&request.body);
    let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let Ok(lines) = lines else {
        return Answer::error(400, None, "not ndjson");
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
                    return Answer::error(412, None, message);
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
                    return Answer::error(400, None, "not base64");
                };
                if data.len() as u64 >= shared.options.lfs_threshold {
                    return Answer::error(400, None, "files this large go to LFS");
                }
                state.blob(&data)
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap_or_default();
                let Some(data) = state.bytes(oid) else {
                    let message = "LFS pointer pointed to a file that does not exist";
                    return Answer::error(400, None, message);
                };
                Entry::lfs(oid, data.len() as u64)
            }
            other => return Answer::error(400, None, &format!("unknown key {other}")),
        };
        if path.is_empty() || !paths.insert(path.clone()) {
            return Answer::error(400, None, "a path is missing, or comes twice");
        }
        tree.insert(path, entry);
    }
    let repo = repo.join("/");
    let found = state.repos.get_mut(&repo).expect("found above");
    let id = found.commit(branch, tree);
    let url = format!("{}/{repo}/commit/{id}", shared.hub);
    Answer::json(&json!({
        "success": true, "commitOid": id, "commitUrl": url, "hookOutput": "",
    }))
}
