//! The routes of storage: objects at signed URLs. As at S3, a request that carries the Hub's token is an error.

use crate::Shared;
use crate::faults::Route;
use crate::http::{Request, RequestHead, Response};
use crate::repo::sha256;

/// The purpose of a request.
pub(crate) fn route(head: &RequestHead) -> Route {
    match head.method.as_str() {
        "PUT" => Route::Part,
        _ => Route::Object,
    }
}

/// The query of a signed URL.
pub(crate) const SIGNATURE: &str = "X-Amz-Signature=signed-secret&Expires=600";

/// The response of S3 to an expired URL.
pub(crate) fn expired_url() -> Response {
    let mut response = Response::new(403).with("content-type", "application/xml");
    response.body =
        b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>".to_vec();
    response
}

pub(crate) fn respond(request: &Request, shared: &Shared) -> Response {
    if request.head.header("authorization").is_some() {
        return Response::error(400, None, "Only one auth mechanism allowed");
    }
    if request.head.query("X-Amz-Signature").as_deref() != Some("signed-secret") {
        return Response::error(403, None, "not signed");
    }
    let segments = request.head.segments();
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    let mut state = shared.state();
    match (request.head.method.as_str(), segments.as_slice()) {
        ("GET" | "HEAD", ["objects", id]) => match state.load(id) {
            // Storage has ETags of its own, which are not the digest.
            Some(data) => {
                let etag = sha256(&data)[..32].to_owned();
                Response::file(&request.head, data, &etag)
            }
            None => Response::error(404, None, "NoSuchKey"),
        },
        ("PUT", ["upload", oid]) => {
            state.unverified.insert((*oid).into(), request.body.clone());
            Response::new(200).with("etag", "\"whole\"")
        }
        ("PUT", ["part", upload, number]) => {
            let number = number.parse().unwrap_or(0);
            let Some(upload) = state.uploads.get_mut(*upload) else {
                return Response::error(404, None, "NoSuchUpload");
            };
            if !(1..=upload.count).contains(&number) {
                return Response::error(400, None, "no such part");
            }
            let etag = sha256(&request.body)[..32].to_owned();
            upload.parts.insert(number, request.body.clone());
            Response::new(200).with("etag", &format!("\"{etag}\""))
        }
        _ => Response::error(404, None, "not found"),
    }
}
