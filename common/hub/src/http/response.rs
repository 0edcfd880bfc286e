//! A successful response: its headers, and its body as JSON.

use std::io::Read;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::Body;
use ureq::http::HeaderMap;

use super::HttpClient;
use crate::error::{HubError, RequestContext};

/// Limit on the size of a JSON body in bytes. A listing of 100,000 files has about 30 MB.
const MAX_JSON_BODY: u64 = 64 << 20;

/// What the Hub's headers say about a file while it redirects to the file's content, collected over all hops. The first
/// value of each header counts.
#[derive(Debug, Default, Clone)]
pub(crate) struct LinkedFile {
    pub(crate) commit: Option<String>,
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
}

impl LinkedFile {
    pub(super) fn update(&mut self, header: impl Fn(&str) -> Option<String>) {
        self.commit = self.commit.take().or_else(|| header("x-repo-commit"));
        self.etag = self.etag.take().or_else(|| header("x-linked-etag"));
        let size = || header("x-linked-size")?.parse().ok();
        self.size = self.size.or_else(size);
    }
}

/// A response. Its body has not been read yet.
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// The request, for errors.
    pub(crate) request: RequestContext,
    pub(crate) linked: LinkedFile,
    /// The time limit of the whole request, for errors while reading the body.
    pub(crate) limit: Duration,
}

impl HttpClient {
    /// Reads the whole body as JSON.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        mut response: HttpResponse,
    ) -> Result<T, HubError> {
        let mut text = Vec::new();
        let (request, limit) = (response.request.clone(), response.limit);
        let length = header(&response.headers, "content-length").and_then(|text| text.parse().ok());
        match response
            .body
            .as_reader()
            .take(MAX_JSON_BODY + 1)
            .read_to_end(&mut text)
        {
            Ok(_) => {}
            Err(error) => {
                return Err(self.body_error(error, request, limit, text.len() as u64, length));
            }
        }
        if text.len() as u64 > MAX_JSON_BODY {
            return Err(HubError::Malformed {
                request,
                found: format!("more than {MAX_JSON_BODY} bytes"),
                expected: "JSON of at most that size".into(),
            });
        }
        serde_json::from_slice(&text).map_err(|error| HubError::Malformed {
            request,
            found: format!(
                "{} bytes: {}",
                text.len(),
                self.sanitize(&error.to_string())
            ),
            expected: "JSON as the Hub documents it".into(),
        })
    }
}

/// A header as text. `None` if it is missing, empty or not text.
pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned()).filter(|value| !value.is_empty())
}
