//! What an answer's status and headers mean.

use std::time::{Duration, SystemTime};

use ureq::http::HeaderMap;

use crate::error::{At, HubError, Said};

/// A header as text.
pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

/// Retry-After in seconds or as a date; the Hub's `RateLimit: "api";r=0;t=55` where there is none.
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

/// The error of a status other than 2xx.
pub(crate) fn of_status(at: At, status: u16, headers: &HeaderMap, said: Said) -> HubError {
    let full = |word: &str| {
        let text = said.message.as_deref().unwrap_or_default();
        text.to_ascii_lowercase().contains(word)
    };
    match status {
        401 => HubError::Unauthorised { at, said },
        403 if full("storage limit") || full("quota") => HubError::Quota { at, status, said },
        403 => HubError::Forbidden { at, said },
        404 => HubError::NotFound { at, said },
        402 | 413 | 507 => HubError::Quota { at, status, said },
        409 | 412 => HubError::Conflict {
            at,
            status,
            expected: "its base".into(),
            said,
        },
        416 => HubError::Range {
            at,
            found: header(headers, "content-range").unwrap_or_else(|| "status 416".into()),
            expected: "the range asked for".into(),
        },
        408 | 500..=599 if status != 501 && status != 505 => {
            let retry_after = retry_after(headers);
            match retry_after {
                Some(_) => HubError::Busy {
                    at,
                    status,
                    retry_after,
                    said,
                },
                None => HubError::Server { at, status, said },
            }
        }
        429 => HubError::Busy {
            at,
            status,
            retry_after: retry_after(headers),
            said,
        },
        _ => HubError::Refused { at, status, said },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_read_in_every_form() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header"));
            retry_after(&headers)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(of("retry-after", "7"), seconds(7));
        assert_eq!(
            of("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
            seconds(0)
        );
        let later = SystemTime::now() + Duration::from_secs(100);
        let wait = of("retry-after", &httpdate::fmt_http_date(later)).expect("a wait");
        assert!(wait.as_secs().abs_diff(99) <= 1, "{wait:?}");
        assert_eq!(of("retry-after", "soon"), None);
        assert_eq!(of("ratelimit", "\"api\";r=0;t=55"), seconds(55));
        assert_eq!(of("ratelimit", "\"api\";r=3;t=55"), None);
    }
}
