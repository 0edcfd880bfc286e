//! Upload routes: upload modes, LFS batches, multipart completion and verification.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::revision_tree;
use crate::Shared;
use crate::http::{Request, Response};
use crate::repo::{MultipartUpload, sha256};
use crate::storage::SIGNATURE;

pub(super) fn preupload(
    request: &Request,
    shared: &Shared,
    repo: &[&str],
    revision: &str,
) -> Response {
    let tree = match revision_tree(shared, repo, revision) {
        Ok((_, tree)) => tree,
        Err(response) => return response,
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
    Response::json(&json!({ "files": files }))
}

pub(super) fn batch(request: &Request, shared: &Shared) -> Response {
    let value = request.json();
    let repo = request.head.segments()[..2].join("/");
    let part_size = shared.options.part_size;
    let mut state = shared.state();
    let mut objects = Vec::new();
    for object in value["objects"].as_array().into_iter().flatten() {
        let oid = object["oid"].as_str().unwrap_or_default();
        let size = object["size"].as_u64().unwrap_or(0);
        let mut described = json!({"oid": oid, "size": size});
        if state.has(oid) {
            objects.push(described);
            continue;
        }
        let verify = json!({"href": format!("{}/{repo}/info/lfs/objects/verify", shared.hub)});
        let upload = if size > part_size {
            let id = state.new_upload_id();
            let count = size.div_ceil(part_size);
            let mut header = json!({ "chunk_size": part_size.to_string() });
            for number in 1..=count {
                let url = format!("{}/part/{id}/{number}?{SIGNATURE}", shared.storage);
                header[format!("{number:05}")] = url.into();
            }
            let upload = MultipartUpload {
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
        described["authenticated"] = true.into();
        described["actions"] = json!({"upload": upload, "verify": verify});
        objects.push(described);
    }
    Response::json(&json!({"transfer": "multipart", "objects": objects}))
}

pub(super) fn complete(request: &Request, shared: &Shared) -> Response {
    let value = request.json();
    let id = request.head.query("uploadId").unwrap_or_default();
    let mut state = shared.state();
    let Some(upload) = state.uploads.get(&id) else {
        return Response::error(404, None, "NoSuchUpload");
    };
    let expected: Vec<_> = upload
        .parts
        .values()
        .map(|part| format!("\"{}\"", &sha256(part)[..32]))
        .collect();
    let parts = value["parts"].as_array().cloned().unwrap_or_default();
    let etags: Vec<_> = parts
        .iter()
        .map(|part| part["etag"].as_str().unwrap_or_default())
        .collect();
    if expected != etags || expected.len() as u64 != upload.count {
        return Response::error(400, None, "InvalidPart");
    }
    let upload = state.uploads.remove(&id).expect("found above");
    let whole = upload.parts.into_values().flatten().collect();
    state.unverified.insert(upload.oid, whole);
    Response::json(&json!({"success": true}))
}

pub(super) fn verify(request: &Request, shared: &Shared) -> Response {
    let value = request.json();
    let oid = value["oid"].as_str().unwrap_or_default();
    let mut state = shared.state();
    if state.has(oid) {
        return Response::json(&json!({"success": true}));
    }
    match state.unverified.remove(oid) {
        Some(data) if sha256(&data) == oid => {
            state.store(oid, &data);
            Response::json(&json!({"success": true}))
        }
        Some(_) => Response::error(422, None, "the object is not what its oid says"),
        None => Response::error(404, None, "object not found"),
    }
}
