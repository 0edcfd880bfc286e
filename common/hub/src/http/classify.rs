//! The error for a response status, a transport failure or an interrupted body.

use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use ureq::Timeout;
use ureq::http::HeaderMap;

use super::{HttpClient, HttpResponse, header};
use crate::error::{ErrorDetail, HubError, RequestContext};

/// Limit on the bytes read from the body of an error response.
const MAX_ERROR_BODY: u64 = 64 << 10;
/// How the standard library reports that a name cannot be resolved. Such an error has no kind of its own.
const LOOKUP_FAILED: &str = "failed to lookup address information";
/// Maximum number of characters of a server's text that an error keeps.
const MAX_TEXT: usize = 300;

impl HttpClient {
    /// The error for a request without a response.
    pub(super) fn transport_error(
        &self,
        error: ureq::Error,
        request: RequestContext,
        limit: Duration,
    ) -> HubError {
        match error {
            ureq::Error::Timeout(Timeout::PerRead | Timeout::PerWrite) => HubError::Stalled {
                request,
                limit: self.limits.stall,
            },
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => HubError::Unreachable {
                request,
                reason: format!("no answer for {:?}", self.limits.connect),
            },
            error @ (ureq::Error::HostNotFound | ureq::Error::ConnectionFailed) => {
                HubError::Unreachable {
                    request,
                    reason: self.sanitize(&error.to_string()),
                }
            }
            ureq::Error::Timeout(_) => HubError::Timeout { request, limit },
            ureq::Error::Io(error) => self.io_error(error, request, limit),
            error @ (ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_)) => {
                HubError::Insecure {
                    request,
                    reason: self.sanitize(&error.to_string()),
                }
            }
            error @ (ureq::Error::Http(_) | ureq::Error::BadUri(_)) => HubError::Malformed {
                request,
                found: self.sanitize(&error.to_string()),
                expected: "a request".into(),
            },
            error => HubError::Connection {
                request,
                reason: self.sanitize(&error.to_string()),
            },
        }
    }

    /// The error for a connection that broke. The HTTP library wraps its own errors in I/O errors; they are unwrapped
    /// first.
    fn io_error(&self, error: io::Error, request: RequestContext, limit: Duration) -> HubError {
        if error
            .get_ref()
            .is_some_and(|inner| inner.is::<ureq::Error>())
        {
            let inner = error
                .into_inner()
                .and_then(|inner| inner.downcast::<ureq::Error>().ok());
            return match inner.map(|inner| *inner) {
                Some(inner) => self.transport_error(inner, request, limit),
                None => HubError::Timeout { request, limit },
            };
        }
        let reason = self.sanitize(&error.to_string());
        if reason.starts_with(LOOKUP_FAILED) {
            return HubError::Unreachable { request, reason };
        }
        match error.kind() {
            // How the TLS library reports an untrusted certificate or a peer that does not speak TLS.
            io::ErrorKind::InvalidData => HubError::Insecure { request, reason },
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => HubError::Unreachable { request, reason },
            _ => HubError::Connection { request, reason },
        }
    }

    /// The error for a body that could not be read to its end. `found` bytes were read of `expected`, if known.
    pub(crate) fn body_error(
        &self,
        error: io::Error,
        request: RequestContext,
        limit: Duration,
        found: u64,
        expected: Option<u64>,
    ) -> HubError {
        match (error.kind(), expected) {
            (io::ErrorKind::UnexpectedEof, Some(expected)) => HubError::Truncated {
                request,
                found,
                expected,
            },
            _ => self.io_error(error, request, limit),
        }
    }

    /// The error for a response with a status other than 2xx.
    pub(super) fn response_error(&self, mut response: HttpResponse) -> HubError {
        let detail = self.error_detail(&mut response);
        status_error(response.request, response.status, &response.headers, detail)
    }

    /// The error for one object of a batch response whose own status is 2xx.
    pub(crate) fn object_error(
        &self,
        request: RequestContext,
        status: u16,
        message: &str,
    ) -> HubError {
        let detail = ErrorDetail {
            code: None,
            message: Some(self.sanitize(message).into()),
        };
        status_error(request, status, &HeaderMap::new(), detail)
    }

    /// Error code and message from the headers; if they contain no message, the message from the body.
    fn error_detail(&self, response: &mut HttpResponse) -> ErrorDetail {
        let text_header =
            |name: &str| header(&response.headers, name).map(|text| self.sanitize(&text).into());
        let (code, message) = (text_header("x-error-code"), text_header("x-error-message"));
        let message = message.or_else(|| {
            let mut text = Vec::new();
            let body = response
                .body
                .as_reader()
                .take(MAX_ERROR_BODY)
                .read_to_end(&mut text);
            body.ok()?;
            let value = serde_json::from_slice::<serde_json::Value>(&text).ok();
            let error = value.as_ref().and_then(|value| {
                let error = value.get("error").or_else(|| value.get("message"))?;
                error.as_str().map(ToOwned::to_owned)
            });
            let text = error.unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
            let text = self.sanitize(&text);
            (!text.is_empty()).then(|| text.into())
        });
        ErrorDetail { code, message }
    }

    /// A text from outside, as one short line without the token.
    pub(super) fn sanitize(&self, text: &str) -> String {
        let text = self.endpoint.scrub(text);
        let words: Vec<_> = text.split_whitespace().collect();
        let line = words.join(" ");
        let line: String = line.chars().take(MAX_TEXT).collect();
        uc_input::printable(&line).into_owned()
    }
}

/// The error for a status other than 2xx.
fn status_error(
    request: RequestContext,
    status: u16,
    headers: &HeaderMap,
    detail: ErrorDetail,
) -> HubError {
    let message_contains = |word: &str| {
        let text = detail.message.as_deref().unwrap_or_default();
        text.to_ascii_lowercase().contains(word)
    };
    match status {
        401 => HubError::Unauthorized { request, detail },
        403 if message_contains("storage limit") || message_contains("quota") => HubError::Quota {
            request,
            status,
            detail,
        },
        403 => HubError::Forbidden { request, detail },
        404 => HubError::NotFound { request, detail },
        402 | 413 | 507 => HubError::Quota {
            request,
            status,
            detail,
        },
        409 | 412 => HubError::Conflict {
            request,
            status,
            expected: "its parent commit".into(),
            detail,
        },
        416 => HubError::Range {
            request,
            found: header(headers, "content-range").unwrap_or_else(|| "status 416".into()),
            expected: "the range requested".into(),
        },
        408 | 500..=599 if status != 501 && status != 505 => match retry_after(headers) {
            Some(wait) => HubError::Busy {
                request,
                status,
                retry_after: Some(wait),
                detail,
            },
            None => HubError::Server {
                request,
                status,
                detail,
            },
        },
        429 => HubError::Busy {
            request,
            status,
            retry_after: retry_after(headers),
            detail,
        },
        _ => HubError::Refused {
            request,
            status,
            detail,
        },
    }
}

/// The wait that the server requests: Retry-After in seconds or as a date, otherwise the Hub's
/// `RateLimit: "api";r=0;t=55`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if let Some(text) = header(headers, "retry-after") {
        if let Ok(seconds) = text.trim().parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = httpdate::parse_http_date(&text).ok()?;
        let wait = date.duration_since(SystemTime::now());
        return Some(wait.unwrap_or(Duration::ZERO));
    }
    let text = header(headers, "ratelimit")?;
    let field = |name: &str| {
        let mut fields = text.split(';').map(str::trim);
        fields.find_map(|field| field.strip_prefix(name)?.parse::<u64>().ok())
    };
    let wait = field("t=").filter(|_| field("r=") == Some(0));
    wait.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requested_wait_is_read_in_every_form() {
        let wait_from = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header"));
            retry_after(&headers)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(wait_from("retry-after", "7"), seconds(7));
        assert_eq!(
            wait_from("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
            seconds(0)
        );
        let later = SystemTime::now() + Duration::from_secs(100);
        let wait = wait_from("retry-after", &httpdate::fmt_http_date(later)).expect("a wait");
        assert!(wait.as_secs().abs_diff(99) <= 1, "{wait:?}");
        assert_eq!(wait_from("retry-after", "soon"), None);
        assert_eq!(wait_from("ratelimit", "\"api\";r=0;t=55"), seconds(55));
        assert_eq!(wait_from("ratelimit", "\"api\";r=3;t=55"), None);
    }
}
