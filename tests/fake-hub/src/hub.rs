//! The routes of the Hub: information, listings, files, uploads, commits.

mod commit;
mod read;
mod upload;

use serde_json::json;

use crate::Shared;
use crate::faults::Route;
use crate::http::{Request, RequestHead, Response};
use crate::repo::Tree;

pub(crate) use commit::concurrent_commit;

/// The purpose of a request.
pub(crate) fn route(head: &RequestHead) -> Route {
    let segments = head.segments();
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["api", "models", _, _, "tree", ..] => Route::Tree,
        ["api", "models", _, _, "preupload", ..] => Route::Preupload,
        ["api", "models", _, _, "commit", ..] => Route::Commit,
        ["api", "models", ..] => Route::Info,
        ["api", "resolve-cache", ..] | [_, _, "resolve", ..] => Route::Resolve,
        ["api", "repos", "create"] => Route::Create,
        ["api", "complete_multipart"] => Route::Complete,
        [_, _, "info", "lfs", "objects", "batch"] => Route::Batch,
        [_, _, "info", "lfs", "objects", "verify"] => Route::Verify,
        _ => Route::Other,
    }
}

/// Checks the credentials and handles the request.
pub(crate) fn respond(request: &Request, shared: &Shared) -> Response {
    let method = request.head.method.as_str();
    let segments = request.head.segments();
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    let expected = format!("Bearer {}", shared.options.token);
    let authorization = request.head.header("authorization");
    let authorized = authorization == Some(expected.as_str());
    if authorization.is_some() && !authorized {
        let message = "Invalid credentials in Authorization header";
        return Response::error(401, None, message);
    }
    let is_read = method == "GET" || method == "HEAD";
    let is_signed = segments == ["api", "complete_multipart"];
    if !authorized && !is_signed && (!is_read || shared.options.private) {
        return Response::error(401, None, "Invalid username or password.");
    }
    match (method, segments.as_slice()) {
        ("GET", ["api", "whoami-v2"]) => Response::json(&json!({"name": "tester", "type": "user"})),
        ("POST", ["api", "validate-yaml"]) => {
            Response::json(&json!({"errors": [], "warnings": []}))
        }
        ("POST", ["api", "repos", "create"]) => commit::create_repo(request, shared),
        ("POST", ["api", "complete_multipart"]) => upload::complete(request, shared),
        ("GET", ["api", "models", org, name]) => read::info(request, shared, &[org, name], "main"),
        ("GET", ["api", "models", org, name, "revision", revision]) => {
            read::info(request, shared, &[org, name], revision)
        }
        ("GET", ["api", "models", org, name, "tree", revision, ..]) => {
            read::tree(request, shared, &[org, name], revision)
        }
        ("POST", ["api", "models", org, name, "preupload", revision]) => {
            upload::preupload(request, shared, &[org, name], revision)
        }
        ("POST", ["api", "models", org, name, "commit", branch]) => {
            commit::commit(request, shared, &[org, name], branch)
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
        ) if is_read => {
            let path = path.join("/");
            read::resolve(request, shared, &[org, name], revision, &path, true)
        }
        (_, [org, name, "resolve", revision, path @ ..]) if is_read => {
            let path = path.join("/");
            read::resolve(request, shared, &[org, name], revision, &path, false)
        }
        ("POST", [_, _, "info", "lfs", "objects", "batch"]) => upload::batch(request, shared),
        ("POST", [_, _, "info", "lfs", "objects", "verify"]) => upload::verify(request, shared),
        _ => Response::error(
            404,
            None,
            "Sorry, we can't find the page you are looking for.",
        ),
    }
}

/// The commit id and the tree of a revision, or the Hub's response for a missing repository or revision.
fn revision_tree(
    shared: &Shared,
    repo: &[&str],
    revision: &str,
) -> Result<(String, Tree), Response> {
    let state = shared.state();
    let Some(repo) = state.repos.get(&repo.join("/")) else {
        return Err(Response::error(
            404,
            Some("RepoNotFound"),
            "Repository not found",
        ));
    };
    repo.resolve(revision).ok_or_else(|| {
        let message = format!("Invalid rev id: {revision}");
        Response::error(404, Some("RevisionNotFound"), &message)
    })
}
