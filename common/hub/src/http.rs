//! One request: its headers, its redirects, its limits, and its answer or its error.
//!
//! Redirects are followed here and not by the HTTP library, because each hop decides anew whether the token goes along:
//! only to the endpoint's own scheme, host and port. Bodies are streamed in both directions.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, AsSendBody, Body, SendBody, Timeout};

use crate::answer::{header, of_status};
use crate::endpoint::{Endpoint, Origin};
use crate::error::{At, HubError, Said};

// The HTTP library would log the wire, token included: `log`'s features in Cargo.toml compile that out, here is the proof.
const _: () = assert!(matches!(
    log::STATIC_MAX_LEVEL,
    log::LevelFilter::Off
        | log::LevelFilter::Error
        | log::LevelFilter::Warn
        | log::LevelFilter::Info
));

/// Hops that a redirect may take.
const HOPS: usize = 8;
/// Bytes of an error's body that are read.
const ERROR_BODY: u64 = 64 << 10;
/// Bytes of a JSON answer that are read: a listing of a million files is some 300 MB.
const JSON_BODY: u64 = 512 << 20;

/// When a request counts as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// To find the host and to connect.
    pub connect: Duration,
    /// Without a byte in either direction.
    pub stall: Duration,
    /// For a request as a whole, beside the time that its bytes may take.
    pub request: Duration,
    /// Bytes per second below which a transfer counts as failed; it grants its request the time that goes with it.
    pub slowest: u64,
    /// Received bytes that count as progress (see [`crate::Watchdog`]).
    pub progress: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(60),
            request: Duration::from_secs(180),
            slowest: 32 << 10,
            progress: 8 << 20,
        }
    }
}

impl Limits {
    /// The limit of a request that moves so many bytes.
    fn of(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes / self.slowest.max(1))
    }
}

/// A URL without user, query and fragment, and not longer than a line.
pub(crate) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    let colon = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{colon}{host}{path}")
        .chars()
        .take(300)
        .collect()
}

/// What a request carries.
pub(crate) enum Payload<'a> {
    None,
    /// Bytes with their content type.
    Bytes(&'static str, &'a [u8]),
    /// Part of a file; the callback hears of bytes that went out.
    Slice {
        file: &'a File,
        offset: u64,
        size: u64,
        sent: &'a mut dyn FnMut(u64),
    },
}

impl Payload<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Bytes(_, data) => data.len() as u64,
            Self::Slice { size, .. } => *size,
        }
    }
}

/// A request to be sent.
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    pub(crate) url: String,
    /// Headers beside those that every request has.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) payload: Payload<'a>,
    /// Bytes expected in the answer, beside a short one.
    pub(crate) expected: u64,
    /// Whether the token may go along where the origin allows it; a signed URL needs none.
    pub(crate) token: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn get(url: String) -> Self {
        Self::new("GET", url, Payload::None)
    }

    pub(crate) fn new(method: &'static str, url: String, payload: Payload<'a>) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            payload,
            expected: 0,
            token: true,
        }
    }
}

/// What the Hub says of a file on the way to its bytes, from every hop.
#[derive(Debug, Default, Clone)]
pub(crate) struct Linked {
    pub(crate) commit: Option<String>,
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
}

/// A successful answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) at: At,
    pub(crate) linked: Linked,
    limit: Duration,
}

/// The agent with its rules.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    agent: Agent,
    pub(crate) endpoint: Endpoint,
    pub(crate) limits: Limits,
}

impl Http {
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
            .tls_config(TlsConfig::builder().root_certs(root_certs()?).build());
        if Origin::of(endpoint.url()).is_some_and(|origin| origin.is_loopback()) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().into(),
            endpoint,
            limits,
        })
    }

    /// Sends a request, follows its redirects, and turns every status but 2xx into an error.
    pub(crate) fn send(&self, call: Call<'_>) -> Result<Reply, HubError> {
        let limit = self.limits.of(call.payload.size() + call.expected);
        let Call {
            method,
            mut url,
            headers,
            mut payload,
            token,
            ..
        } = call;
        let mut linked = Linked::default();
        for _ in 0..HOPS {
            let (reply, origin) = self.hop(
                method,
                &url,
                &headers,
                &mut payload,
                token,
                limit,
                &mut linked,
            )?;
            match reply.status {
                200..=299 => return Ok(Reply { linked, ..reply }),
                301 | 302 | 303 | 307 | 308 => {
                    url = self.next_hop(&reply, &origin, &url, &payload)?;
                }
                status => {
                    let foreign = !self.endpoint.is_home(&origin);
                    let error = self.refusal(reply);
                    return Err(match error {
                        // The link that the Hub has just given was too old: the next one is not.
                        HubError::Forbidden { at, said } if foreign && method == "GET" => {
                            HubError::Server { at, status, said }
                        }
                        error => error,
                    });
                }
            }
        }
        Err(HubError::Redirect {
            at: self.at(method, &url),
            to: shown(&url),
            reason: "too many hops",
        })
    }

    /// One exchange.
    fn hop(
        &self,
        method: &'static str,
        url: &str,
        headers: &[(&'static str, String)],
        payload: &mut Payload<'_>,
        token: bool,
        limit: Duration,
        linked: &mut Linked,
    ) -> Result<(Reply, Origin), HubError> {
        let mut at = self.at(method, url);
        let malformed = |found: String| HubError::Malformed {
            at: self.at(method, url),
            found,
            expected: "an absolute http or https URL".into(),
        };
        let origin = Origin::of(url).ok_or_else(|| malformed(shown(url)))?;
        if self.endpoint.is_https() && !origin.https {
            return Err(HubError::Insecure {
                at,
                reason: "the endpoint is https, this URL is not".into(),
            });
        }
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = self.endpoint.token_for(&origin).filter(|_| token) {
            request = request.header("authorization", token.bearer());
        }
        let mut nothing = ();
        let mut bytes: &[u8];
        let mut slice;
        let body = match payload {
            Payload::None => nothing.as_body(),
            Payload::Bytes(kind, data) => {
                request = request.header("content-type", *kind);
                request = request.header("content-length", data.len());
                bytes = data;
                SendBody::from_reader(&mut bytes)
            }
            Payload::Slice {
                file,
                offset,
                size,
                sent,
            } => {
                request = request.header("content-length", *size);
                slice = SliceReader {
                    file,
                    offset: *offset,
                    left: *size,
                    sent: &mut **sent,
                };
                SendBody::from_reader(&mut slice)
            }
        };
        let request = request
            .body(body)
            .map_err(|error| malformed(format!("{}: {error}", shown(url))))?;
        let request = self.agent.configure_request(request);
        let request = request.timeout_global(Some(limit)).build();
        let response = self
            .agent
            .run(request)
            .map_err(|error| self.lost(error, at.clone(), limit))?;
        let (parts, body) = response.into_parts();
        let header = |name: &str| header(&parts.headers, name);
        let id = header("x-request-id").or_else(|| header("x-amz-request-id"));
        at.request_id = id.map(|id| self.line(&id).into());
        linked.commit = linked.commit.take().or_else(|| header("x-repo-commit"));
        linked.etag = linked.etag.take().or_else(|| header("x-linked-etag"));
        let size = || header("x-linked-size")?.parse().ok();
        linked.size = linked.size.or_else(size);
        let reply = Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            at,
            linked: Linked::default(),
            limit,
        };
        Ok((reply, origin))
    }

    /// Where a redirect leads, if it may be followed.
    fn next_hop(
        &self,
        reply: &Reply,
        origin: &Origin,
        from: &str,
        payload: &Payload<'_>,
    ) -> Result<String, HubError> {
        let location = header(&reply.headers, "location").unwrap_or_default();
        let to = match location.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => {
                let start = from.find("://").map_or(0, |at| at + 3);
                let end = from[start..].find('/').map_or(from.len(), |at| start + at);
                format!("{}/{rest}", &from[..end])
            }
            _ => location,
        };
        let refused = |reason| HubError::Redirect {
            at: reply.at.clone(),
            to: shown(&to),
            reason,
        };
        let next = Origin::of(&to).ok_or_else(|| refused("not an http or https URL"))?;
        if origin.https && !next.https {
            return Err(refused("it leaves https"));
        }
        if !matches!(payload, Payload::None) {
            if !matches!(reply.status, 307 | 308) {
                return Err(refused(
                    "a request with a body keeps its method only with 307 and 308",
                ));
            }
            if !self.endpoint.is_home(&next) {
                return Err(refused("a request with a body stays with the endpoint"));
            }
        }
        Ok(to)
    }

    pub(crate) fn at(&self, method: &'static str, url: &str) -> At {
        At {
            method,
            url: shown(url).into(),
            request_id: None,
        }
    }

    /// The error of a request that got no answer.
    fn lost(&self, error: ureq::Error, at: At, limit: Duration) -> HubError {
        match error {
            ureq::Error::Timeout(Timeout::PerRead | Timeout::PerWrite) => HubError::Stalled {
                at,
                silent: self.limits.stall,
            },
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => HubError::Timeout {
                at,
                limit: self.limits.connect,
            },
            ureq::Error::Timeout(_) => HubError::Timeout { at, limit },
            ureq::Error::Io(error) => self.broken(error, at, limit),
            error @ (ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_)) => {
                HubError::Insecure {
                    at,
                    reason: self.line(&error.to_string()),
                }
            }
            error @ (ureq::Error::Http(_) | ureq::Error::BadUri(_)) => HubError::Malformed {
                at,
                found: self.line(&error.to_string()),
                expected: "a request".into(),
            },
            error => HubError::Connection {
                at,
                reason: self.line(&error.to_string()),
            },
        }
    }

    /// The error of a connection; the library hides its own errors in those of the system.
    fn broken(&self, error: io::Error, at: At, limit: Duration) -> HubError {
        if error
            .get_ref()
            .is_some_and(|inner| inner.is::<ureq::Error>())
        {
            let inner = error
                .into_inner()
                .and_then(|inner| inner.downcast::<ureq::Error>().ok());
            return match inner.map(|inner| *inner) {
                Some(inner) => self.lost(inner, at, limit),
                None => HubError::Timeout { at, limit },
            };
        }
        let reason = self.line(&error.to_string());
        match error.kind() {
            // The TLS library's word for a bad certificate or a peer that does not speak TLS.
            io::ErrorKind::InvalidData => HubError::Insecure { at, reason },
            _ => HubError::Connection { at, reason },
        }
    }

    /// A text from outside: in one short line, without the token.
    fn line(&self, text: &str) -> String {
        let text = self.endpoint.scrub(text);
        let words: Vec<_> = text.split_whitespace().collect();
        let line = words.join(" ");
        line.chars().filter(|c| !c.is_control()).take(300).collect()
    }

    /// The error of a status.
    fn refusal(&self, mut reply: Reply) -> HubError {
        let said = self.said(&mut reply);
        of_status(reply.at, reply.status, &reply.headers, said)
    }

    /// The error of one object of an answer that as a whole succeeded.
    pub(crate) fn refused(&self, at: At, status: u16, message: &str) -> HubError {
        let said = Said {
            code: None,
            message: Some(self.line(message).into()),
        };
        of_status(at, status, &HeaderMap::new(), said)
    }

    fn said(&self, reply: &mut Reply) -> Said {
        let word = |name: &str| header(&reply.headers, name).map(|text| self.line(&text).into());
        let (code, message) = (word("x-error-code"), word("x-error-message"));
        let message = message.or_else(|| {
            let mut text = Vec::new();
            let body = reply
                .body
                .as_reader()
                .take(ERROR_BODY)
                .read_to_end(&mut text);
            body.ok()?;
            let value = serde_json::from_slice::<serde_json::Value>(&text).ok();
            let error = value.as_ref().and_then(|value| {
                let error = value.get("error").or_else(|| value.get("message"))?;
                error.as_str().map(ToOwned::to_owned)
            });
            let text = error.unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
            let text = self.line(&text);
            (!text.is_empty()).then(|| text.into())
        });
        Said { code, message }
    }

    /// The whole body as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, mut reply: Reply) -> Result<T, HubError> {
        let mut text = Vec::new();
        let (at, limit) = (reply.at.clone(), reply.limit);
        let declared = header(&reply.headers, "content-length").and_then(|text| text.parse().ok());
        match reply
            .body
            .as_reader()
            .take(JSON_BODY)
            .read_to_end(&mut text)
        {
            Ok(_) => {}
            Err(error) => return Err(self.cut(error, at, limit, text.len() as u64, declared)),
        }
        serde_json::from_slice(&text).map_err(|error| HubError::Malformed {
            at,
            found: format!("{} bytes: {}", text.len(), self.line(&error.to_string())),
            expected: "JSON of the Hub's interface".into(),
        })
    }

    /// The error of a body that could not be read to its end.
    pub(crate) fn cut(
        &self,
        error: io::Error,
        at: At,
        limit: Duration,
        found: u64,
        expected: Option<u64>,
    ) -> HubError {
        match (error.kind(), expected) {
            (io::ErrorKind::UnexpectedEof, Some(expected)) => HubError::Cut {
                at,
                found,
                expected,
            },
            _ => self.broken(error, at, limit),
        }
    }
}

impl Reply {
    /// The limit of the whole request, for the error of its body.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }
}

/// The roots that certificates are checked against: the file `SSL_CERT_FILE`, or Mozilla's list.
fn root_certs() -> Result<RootCerts, HubError> {
    let Some(path) = std::env::var("SSL_CERT_FILE")
        .ok()
        .filter(|path| !path.is_empty())
    else {
        return Ok(RootCerts::WebPki);
    };
    let wrong = |found: String| HubError::Name {
        what: "SSL_CERT_FILE",
        found,
        expected: "a file of certificates in PEM form",
    };
    let text = std::fs::read(&path).map_err(|error| wrong(format!("{path}: {error}")))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(wrong(format!("{path}: no certificate")));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Part of a file by position, so that several readers of one file do not meet.
struct SliceReader<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
    sent: &'a mut dyn FnMut(u64),
}

impl Read for SliceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.left) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        (self.sent)(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_user_and_no_query() {
        for (url, expected) in [
            ("https://h/a/b?sig=secret#x", "https://h/a/b"),
            ("https://user:secret@h:1/a", "https://h:1/a"),
            ("user:secret@h", "h"),
            ("https://h?x=secret", "https://h"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
