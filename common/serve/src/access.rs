//! Who may use the server: holders of the key, and browsers only from its own page.
//!
//! A page of another site can make a browser send requests here, and, where it controls the name of a host, also read the
//! answers. So a request with the `Origin` of another host is refused, and without a key also one for a host with an unknown
//! name.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq;

use crate::error::ApiError;

/// See the module.
#[derive(Clone, Default)]
pub struct Access {
    /// The key that requests have to bring.
    pub key: Option<String>,
    /// Names of hosts under which browsers may reach the server, beside addresses and `localhost`.
    pub hosts: Vec<String>,
}

impl std::fmt::Debug for Access {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("key", &self.key.is_some())
            .field("hosts", &self.hosts)
            .finish()
    }
}

impl Access {
    /// Checks where a request comes from and for which host it is.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn check_browser(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let from = origin.split_once("://").map(|(_, authority)| authority);
            let is_own = from.is_some() && from == host;
            if !is_own && !from.and_then(name).is_some_and(|name| self.knows(&name)) {
                let message = format!(
                    "found a request from the site {origin:?}, expected one from the server's own page; --allow-host NAME allows \
                     another one"
                );
                return Err(ApiError::refused(StatusCode::FORBIDDEN, message));
            }
        }
        // Whoever has the key may use any name.
        let Some(name) = host.and_then(name) else {
            return Ok(());
        };
        if self.key.is_some() || is_local(&name) || self.knows(&name) {
            return Ok(());
        }
        let message = format!(
            "found a request for the host {name:?}, expected an address or localhost as long as there is no key; --allow-host NAME \
             allows a name"
        );
        Err(ApiError::refused(StatusCode::FORBIDDEN, message))
    }

    /// Checks the key, in a time that does not depend on where a wrong one differs.
    ///
    /// # Errors
    /// 401.
    pub(crate) fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        let found = headers
            .get(header::AUTHORIZATION)
            .map(|value| value.as_bytes());
        let found = found.and_then(|value| {
            let (scheme, rest) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
        });
        let message = match found {
            Some(found) if bool::from(found.trim_ascii().ct_eq(key.as_bytes())) => return Ok(()),
            Some(_) => {
                "found another key, expected the server's; check the key that the client sends"
            }
            None => "found no key, expected the header Authorization: Bearer KEY",
        };
        let error = ApiError::refused(StatusCode::UNAUTHORIZED, message);
        Err(error.code("invalid_api_key"))
    }

    fn knows(&self, name: &str) -> bool {
        self.hosts
            .iter()
            .any(|host| host.eq_ignore_ascii_case(name))
    }
}

/// The host's name in `NAME:PORT`.
fn name(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    Some(authority.host().to_owned())
}

/// Whether a name cannot be made to mean another machine by those who control it.
fn is_local(name: &str) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        let pairs = pairs
            .map(|&(name, value)| (name.parse().expect("name"), value.parse().expect("value")));
        pairs.collect()
    }

    #[test]
    fn browsers_come_from_the_own_page_for_an_address_or_a_known_name() {
        let open = Access {
            key: None,
            hosts: vec!["models.example".to_owned()],
        };
        let local = ("host", "127.0.0.1:8080");
        for (pairs, allowed) in [
            (&[local][..], true),
            (&[("host", "localhost:8080")], true),
            (&[("host", "[::1]:8080")], true),
            (&[("host", "models.example")], true),
            (&[("host", "evil.example:8080")], false),
            (&[local, ("origin", "http://127.0.0.1:8080")], true),
            (&[local, ("origin", "http://127.0.0.1:9090")], false),
            (&[local, ("origin", "http://evil.example")], false),
            (&[local, ("origin", "null")], false),
            (&[local, ("origin", "https://models.example")], true),
            (
                &[("host", "evil.example"), ("origin", "http://evil.example")],
                false,
            ),
        ] {
            let checked = open.check_browser(&headers(pairs));
            assert_eq!(checked.is_ok(), allowed, "{pairs:?}: {checked:?}");
        }
        let with_key = Access {
            key: Some("k".to_owned()),
            hosts: Vec::new(),
        };
        assert!(
            with_key
                .check_browser(&headers(&[("host", "any.example")]))
                .is_ok()
        );
        let foreign = headers(&[("host", "any.example"), ("origin", "http://evil.example")]);
        assert!(with_key.check_browser(&foreign).is_err());
    }

    #[test]
    fn only_the_whole_key_opens() {
        let access = Access {
            key: Some("secret".to_owned()),
            hosts: Vec::new(),
        };
        for (value, allowed) in [
            ("Bearer secret", true),
            ("bearer secret", true),
            ("Bearer secret2", false),
            ("Bearer secre", false),
            ("Bearer ", false),
            ("Basic secret", false),
            ("secret", false),
        ] {
            let checked = access.check_key(&headers(&[("authorization", value)]));
            assert_eq!(checked.is_ok(), allowed, "{value}");
        }
        let error = access.check_key(&HeaderMap::new()).expect_err("no key");
        assert_eq!(error.status, StatusCode::UNAUTHORIZED);
        assert!(!format!("{access:?}").contains("secret"));
    }
}
