//! The routes of storage: bytes by signed URL. A request with a token of the Hub is an error, as it is at S3.

use crate::Shared;
use crate::faults::Route;
use crate::repo::sha256;
use crate::wire::{Answer, Head, Request};

/// What a request is for.
pub(crate) fn route(head: &Head) -> Route {
    match head.method.as_str() {
        "PUT" => Route::Part,
        _ => Route::Object,
    }
}

/// The query that makes a URL valid.
pub(crate) const SIGNATURE: &str = "X-Amz-Signature=signed-secret&Expires=600";

/// What S3 says to a URL that has expired.
pub(crate) fn expired() -> Answer {
    let mut answer = Answer::new(403).with("content-type", "application/xml");
    answer.body =
        b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>".to_vec();
    answer
}

pub(crate) fn answer(request: &Request, shared: &Shared) -> Answer {
    if request.head.header("authorization").is_some() {
        return Answer::error(400, None, "Only one auth mechanism allowed");
    }
    if request.head.query("X-Amz-Signature").as_deref() != Some("signed-secret") {
        return Answer::error(403, None, "not signed");
    }
    let segments = request.head.segments();
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    let mut state = shared.state();
    match (request.head.method.as_str(), segments.as_slice()) {
        ("GET" | "HEAD", ["objects", id]) => match state.bytes(id) {
            // A tag of storage's own, which is not the digest.
            Some(data) => {
                let etag = sha256(&data)[..32].to_owned();
                Answer::file(&request.head, data, &etag)
            }
            None => Answer::error(404, None, "NoSuchKey"),
        },
        ("PUT", ["upload", oid]) => {
            state.arrived.insert((*oid).into(), request.body.clone());
            Answer::new(200).with("etag", "\"whole\"")
        }
        ("PUT", ["part", upload, number]) => {
            let number = number.parse().unwrap_or(0);
            let Some(upload) = state.uploads.get_mut(*upload) else {
                return Answer::error(404, None, "NoSuchUpload");
            };
            if !(1..=upload.count).contains(&number) {
                return Answer::error(400, None, "no such part");
            }
            let etag = sha256(&request.body)[..32].to_owned();
            upload.parts.insert(number, request.body.clone());
            Answer::new(200).with("etag", &format!("\"{etag}\""))
        }
        _ => Answer::error(404, None, "not found"),
    }
}
