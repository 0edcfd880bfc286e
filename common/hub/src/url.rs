//! URLs: their origin, their form in messages, and percent-encoding.
//!
//! The origin decides whether a request may carry the token. Messages show a URL only after [`redact`], because signed
//! URLs carry their credential in the query.

/// Maximum number of characters of a URL that a message shows.
const MAX_SHOWN: usize = 300;

/// Scheme, host and port of a URL. The token is sent only to the endpoint's own origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an absolute http or https URL. `None` for any other text and for a URL with user information.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: ureq::http::Uri = url.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let host = authority.host().to_ascii_lowercase();
        Some(Self { https, host, port })
    }

    /// Whether the host is the local machine.
    pub(crate) fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "127.0.0.1" | "localhost" | "[::1]")
    }
}

/// A URL without user information, query and fragment, truncated to [`MAX_SHOWN`] characters.
pub(crate) fn redact(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{host}{path}")
        .chars()
        .take(MAX_SHOWN)
        .collect()
}

/// Percent-encodes every byte except unreserved characters and those in `safe`.
pub(crate) fn percent_encode(text: &str, safe: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let unreserved = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if unreserved || safe.as_bytes().contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_url_has_no_user_and_no_query() {
        for (url, expected) in [
            ("https://h/a/b?sig=secret#x", "https://h/a/b"),
            ("https://user:secret@h:1/a", "https://h:1/a"),
            ("user:secret@h", "h"),
            ("https://h?x=secret", "https://h"),
        ] {
            assert_eq!(redact(url), expected);
        }
    }

    #[test]
    fn percent_encoding_keeps_only_unreserved_and_safe_characters() {
        assert_eq!(percent_encode("a b/ü?", "/"), "a%20b/%C3%BC%3F");
        assert_eq!(percent_encode("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
