//! The HTTP client: sends one request, follows its redirects within time limits, and returns a successful response or
//! an error.
//!
//! Redirects are followed here and not by the HTTP library, because each hop decides anew whether the token is sent: only
//! to the endpoint's own scheme, host and port. Bodies are streamed in both directions. Nothing is retried here; that is
//! the task of [`crate::Retrier`].
//!
//! | module | what it owns |
//! |---|---|
//! | `limits` | time and throughput limits |
//! | `request`, `response` | what is sent and what comes back |
//! | `classify` | the error for a status or a transport failure |
//! | `tls` | trusted root certificates |

mod classify;
mod limits;
mod request;
mod response;
mod tls;

use std::time::Duration;

use ureq::http::{self, Request};
use ureq::tls::TlsConfig;
use ureq::{Agent, AsSendBody, Body, SendBody};

use crate::endpoint::Endpoint;
use crate::error::{HubError, RequestContext};
use crate::url::{Origin, redact};
use request::FileRangeReader;
use response::LinkedFile;

pub use limits::Limits;
pub(crate) use request::{HttpRequest, RequestBody};
pub(crate) use response::{HttpResponse, header};

// At lower levels the HTTP library logs the bytes on the wire, the token included. The features of `log` in Cargo.toml
// compile those levels out; this assertion checks that they do.
const _: () = assert!(matches!(
    log::STATIC_MAX_LEVEL,
    log::LevelFilter::Off
        | log::LevelFilter::Error
        | log::LevelFilter::Warn
        | log::LevelFilter::Info
));

/// Maximum number of requests in a chain of redirects, including the first.
const MAX_HOPS: usize = 8;

/// An HTTP client for one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    agent: Agent,
    pub(crate) endpoint: Endpoint,
    pub(crate) limits: Limits,
}

impl HttpClient {
    pub(crate) fn new(endpoint: Endpoint, limits: Limits) -> Result<Self, HubError> {
        let mut config = Agent::config_builder()
            .user_agent(concat!("ultracompress/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(limits.connect))
            .timeout_resolve(Some(limits.connect))
            .timeout_per_read(Some(limits.stall))
            .timeout_per_write(Some(limits.stall))
            .max_idle_age(Duration::from_secs(10))
            .tls_config(TlsConfig::builder().root_certs(tls::root_certs()?).build());
        if Origin::parse(endpoint.url()).is_some_and(|origin| origin.is_loopback()) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().into(),
            endpoint,
            limits,
        })
    }

    /// Sends a request and follows its redirects. Every final status other than 2xx is an error.
    pub(crate) fn send(&self, mut request: HttpRequest<'_>) -> Result<HttpResponse, HubError> {
        let transferred = request.body.size() + request.expected_bytes;
        let limit = self.limits.request_timeout(transferred);
        let mut linked = LinkedFile::default();
        if self.endpoint.is_offline() {
            return Err(HubError::Offline {
                request: self.context(request.method, &request.url),
            });
        }
        for _ in 0..MAX_HOPS {
            let (response, origin) = self.exchange(&mut request, limit, &mut linked)?;
            match response.status {
                200..=299 => return Ok(HttpResponse { linked, ..response }),
                301 | 302 | 303 | 307 | 308 => {
                    request.url = self.redirect_target(&response, &origin, &request)?;
                }
                status => {
                    let at_storage = !self.endpoint.has_origin(&origin);
                    let error = self.response_error(response);
                    return Err(match error {
                        // The signed URL has expired. The Hub issues a new one with the next request.
                        HubError::Forbidden {
                            request: context,
                            detail,
                        } if at_storage && request.method == "GET" => HubError::Server {
                            request: context,
                            status,
                            detail,
                        },
                        error => error,
                    });
                }
            }
        }
        Err(HubError::Redirect {
            request: self.context(request.method, &request.url),
            to: redact(&request.url),
            reason: "too many hops",
        })
    }

    /// One request and its response, without redirects; also returns the origin that responded.
    fn exchange(
        &self,
        request: &mut HttpRequest<'_>,
        limit: Duration,
        linked: &mut LinkedFile,
    ) -> Result<(HttpResponse, Origin), HubError> {
        let url = &request.url;
        let context = self.context(request.method, url);
        let malformed = |found: String| HubError::Malformed {
            request: context.clone(),
            found,
            expected: "an absolute http or https URL".into(),
        };
        let origin = Origin::parse(url).ok_or_else(|| malformed(redact(url)))?;
        if self.endpoint.is_https() && !origin.https {
            return Err(HubError::Insecure {
                request: context,
                reason: "the endpoint is https, this URL is not".into(),
            });
        }
        let mut builder = Request::builder().method(request.method).uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let token = self.endpoint.token_for(&origin);
        if let Some(token) = token.filter(|_| request.with_token) {
            builder = builder.header("authorization", token.bearer());
        }
        let mut empty = ();
        let mut bytes: &[u8];
        let mut reader;
        let body = match &mut request.body {
            RequestBody::Empty => empty.as_body(),
            RequestBody::Bytes(content_type, data) => {
                builder = builder.header("content-type", *content_type);
                builder = builder.header("content-length", data.len());
                bytes = data;
                SendBody::from_reader(&mut bytes)
            }
            RequestBody::FileRange {
                file,
                offset,
                size,
                on_sent,
            } => {
                builder = builder.header("content-length", *size);
                reader = FileRangeReader {
                    file,
                    offset: *offset,
                    remaining: *size,
                    on_sent: &mut **on_sent,
                };
                SendBody::from_reader(&mut reader)
            }
        };
        let prepared = builder
            .body(body)
            .map_err(|error| malformed(format!("{}: {error}", redact(url))))?;
        let prepared = self.agent.configure_request(prepared);
        let prepared = prepared.timeout_global(Some(limit)).build();
        let response = self
            .agent
            .run(prepared)
            .map_err(|error| self.transport_error(error, context.clone(), limit))?;
        Ok((self.response(response, context, limit, linked), origin))
    }

    /// The response in the client's own type. Adds what its headers say about a linked file to `linked`.
    fn response(
        &self,
        response: http::Response<Body>,
        mut context: RequestContext,
        limit: Duration,
        linked: &mut LinkedFile,
    ) -> HttpResponse {
        let (parts, body) = response.into_parts();
        let header = |name: &str| header(&parts.headers, name);
        let id = header("x-request-id").or_else(|| header("x-amz-request-id"));
        context.request_id = id.map(|id| self.sanitize(&id).into());
        linked.update(header);
        HttpResponse {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            request: context,
            linked: LinkedFile::default(),
            limit,
        }
    }

    /// The URL that a redirect leads to, if it may be followed.
    fn redirect_target(
        &self,
        response: &HttpResponse,
        origin: &Origin,
        request: &HttpRequest<'_>,
    ) -> Result<String, HubError> {
        let from = &request.url;
        let location = header(&response.headers, "location").unwrap_or_default();
        let to = match location.strip_prefix('/') {
            Some(path) if !path.starts_with('/') => {
                let start = from.find("://").map_or(0, |index| index + 3);
                let end = from[start..]
                    .find('/')
                    .map_or(from.len(), |index| start + index);
                format!("{}/{path}", &from[..end])
            }
            _ => location,
        };
        let refused = |reason| HubError::Redirect {
            request: response.request.clone(),
            to: redact(&to),
            reason,
        };
        let target = Origin::parse(&to).ok_or_else(|| refused("not an http or https URL"))?;
        if origin.https && !target.https {
            return Err(refused("it leaves https"));
        }
        if !matches!(request.body, RequestBody::Empty) {
            if !matches!(response.status, 307 | 308) {
                return Err(refused(
                    "a request with a body keeps its method only with 307 and 308",
                ));
            }
            if !self.endpoint.has_origin(&target) {
                return Err(refused("a request with a body stays with the endpoint"));
            }
        }
        Ok(to)
    }

    /// The context of a request for its errors, as long as no response has come.
    pub(crate) fn context(&self, method: &'static str, url: &str) -> RequestContext {
        RequestContext {
            method,
            url: redact(url).into(),
            request_id: None,
        }
    }
}
