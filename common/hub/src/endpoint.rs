//! The address of a Hub and the access token for it.

use std::fmt;

use camino::Utf8PathBuf;
use uc_store::StoreError;

use crate::error::HubError;
use crate::url::{self, Origin};

/// The public Hub. The URLs in its responses name this host even when a mirror sent the response.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// Largest token file that is read, bytes.
const MAX_TOKEN_FILE: u64 = 64 << 10;

/// An access token.
///
/// No `Debug` output, no `Display` output and no error contains it, and it is sent only to the endpoint's own origin.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A token from its text, without surrounding white space. `None` if nothing is left.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] for a text that a header cannot hold. The error does not repeat the text.
    pub fn new(text: &str) -> Result<Option<Self>, HubError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HubError::InvalidName {
                what: "token",
                found: "a text with other characters".into(),
                expected: "printable ASCII without spaces",
            });
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// The value of the Authorization header. No other method exposes the secret.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Replaces the token in a text that a server sent.
    pub fn scrub(&self, text: &str) -> String {
        text.replace(&self.0, "[token]")
    }
}

/// The URL of a Hub and the token for it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: String,
    origin: Origin,
    token: Option<Token>,
    is_offline: bool,
}

impl Endpoint {
    /// An endpoint from its URL.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] for a URL that is not `http(s)://host[:port][/path]`, and for a token that would be sent
    /// unencrypted to another machine.
    pub fn new(url: &str, token: Option<Token>) -> Result<Self, HubError> {
        let invalid = |expected| HubError::InvalidName {
            what: "endpoint",
            // The URL may contain a password.
            found: url::redact(url),
            expected,
        };
        let url = url.trim_end_matches('/');
        let origin = Origin::parse(url)
            .ok_or_else(|| invalid("http(s)://host[:port][/path] without user information"))?;
        if url.contains(['?', '#']) {
            return Err(invalid("a URL without query and fragment"));
        }
        if !origin.https && !origin.is_loopback() && token.is_some() {
            return Err(invalid(
                "https, because the token would be sent unencrypted",
            ));
        }
        Ok(Self {
            url: url.to_owned(),
            origin,
            token,
            is_offline: false,
        })
    }

    /// The endpoint that the environment describes.
    ///
    /// The URL is `HF_ENDPOINT` or the public Hub. The token is `HF_TOKEN`, else the content of the file `HF_TOKEN_PATH`,
    /// else that of the file `token` in `HF_HOME` (default `~/.cache/huggingface`). `HF_HUB_OFFLINE` forbids every request.
    ///
    /// # Errors
    /// [`HubError::InvalidName`] as for [`Endpoint::new`]; [`HubError::Store`] if the token file exists but cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Like [`Endpoint::from_env`], with a function that looks up each variable.
    ///
    /// # Errors
    /// As for [`Endpoint::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let non_empty = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let token = match non_empty("HF_TOKEN") {
            Some(text) => Token::new(&text)?,
            None => Self::token_from_file(&non_empty)?,
        };
        let url = non_empty("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.into());
        let mut endpoint = Self::new(url.trim(), token)?;
        endpoint.is_offline = non_empty("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value));
        Ok(endpoint)
    }

    /// Whether the environment forbids requests.
    pub fn is_offline(&self) -> bool {
        self.is_offline
    }

    fn token_from_file(
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Token>, HubError> {
        let home = variable("HF_HOME").map(Utf8PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(Utf8PathBuf::from);
            let cache = cache.or_else(|| Some(Utf8PathBuf::from(variable("HOME")?).join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let path = variable("HF_TOKEN_PATH").map(Utf8PathBuf::from);
        let Some(path) = path.or_else(|| Some(home?.join("token"))) else {
            return Ok(None);
        };
        match uc_input::read_text(&path, MAX_TOKEN_FILE) {
            Ok(text) => Token::new(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error).into()),
        }
    }

    /// The URL without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether there is a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The token, if `origin` is the endpoint's own.
    pub(crate) fn token_for(&self, origin: &Origin) -> Option<&Token> {
        self.token.as_ref().filter(|_| *origin == self.origin)
    }

    /// Whether `origin` is the endpoint's own.
    pub(crate) fn has_origin(&self, origin: &Origin) -> bool {
        *origin == self.origin
    }

    /// Whether the endpoint requires TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.origin.https
    }

    /// Replaces the token, if there is one, in a text that a server sent.
    pub(crate) fn scrub(&self, text: &str) -> String {
        match &self.token {
            Some(token) => token.scrub(text),
            None => text.to_owned(),
        }
    }

    /// A URL from a response, with the public Hub replaced by this endpoint, which may be a mirror.
    pub(crate) fn rewrite_to_mirror(&self, href: &str) -> String {
        match href.strip_prefix(PUBLIC_HUB) {
            Some(rest) if rest.starts_with('/') => format!("{}{rest}", self.url),
            _ => href.to_owned(),
        }
    }
}

/// Whether a variable has one of the values that the Hub's own client takes for true.
fn is_true(value: &str) -> bool {
    let value = value.trim().to_ascii_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint_from(pairs: &[(&str, &str)]) -> Result<Endpoint, HubError> {
        Endpoint::from_variables(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_sets_the_endpoint_and_the_token() {
        let default = endpoint_from(&[]).expect("the default");
        assert_eq!((default.url(), default.has_token()), (PUBLIC_HUB, false));
        let mirror = endpoint_from(&[
            ("HF_ENDPOINT", "https://mirror.example/hub/"),
            ("HF_TOKEN", " hf_x\n"),
        ]);
        let mirror = mirror.expect("a mirror");
        assert_eq!(mirror.url(), "https://mirror.example/hub");
        assert!(mirror.has_token());
        assert_eq!(
            mirror.rewrite_to_mirror("https://huggingface.co/api/x"),
            "https://mirror.example/hub/api/x"
        );
        assert_eq!(
            mirror.rewrite_to_mirror("https://huggingface.com/api"),
            "https://huggingface.com/api"
        );
    }

    #[test]
    fn the_offline_variable_has_the_values_of_the_hubs_own_client() {
        for (value, expected) in [("1", true), ("on", true), ("True", true), ("yes", true)]
            .into_iter()
            .chain([("0", false), ("", false), ("off", false)])
        {
            let endpoint = endpoint_from(&[("HF_HUB_OFFLINE", value)]).expect("valid");
            assert_eq!(endpoint.is_offline(), expected, "{value}");
        }
        assert!(!endpoint_from(&[]).expect("valid").is_offline());
    }

    #[test]
    fn the_token_comes_from_a_file_when_the_variable_is_missing() {
        let dir = tempfile::tempdir().expect("folder");
        let folder = camino::Utf8Path::from_path(dir.path()).expect("utf-8");
        uc_store::atomic::write_bytes(&folder.join("token"), b"hf_home\n").expect("written");
        uc_store::atomic::write_bytes(&folder.join("other"), b"hf_path\n").expect("written");
        let bearer = |endpoint: Endpoint| endpoint.token.map(|token| token.bearer());
        let home = endpoint_from(&[("HF_HOME", folder.as_str())]).expect("read");
        assert_eq!(bearer(home).as_deref(), Some("Bearer hf_home"));
        let path = folder.join("other");
        let both = [
            ("HF_HOME", folder.as_str()),
            ("HF_TOKEN_PATH", path.as_str()),
        ];
        assert_eq!(
            bearer(endpoint_from(&both).expect("read")).as_deref(),
            Some("Bearer hf_path")
        );
        let absent = folder.join("absent");
        let absent = endpoint_from(&[("HF_TOKEN_PATH", absent.as_str())]).expect("no token");
        assert!(!absent.has_token());
    }

    #[test]
    fn the_token_is_never_printed_and_is_sent_only_to_the_endpoint() {
        let token = Token::new("hf_secret").expect("valid").expect("some");
        let endpoint = Endpoint::new("https://hub.example", Some(token.clone())).expect("valid");
        assert!(!format!("{token:?} {endpoint:?}").contains("secret"));
        assert_eq!(token.scrub("bad hf_secret!"), "bad [token]!");
        for (url, allowed) in [
            ("https://hub.example/x?y", true),
            ("https://HUB.example:443/x", true),
            ("http://hub.example/x", false),
            ("https://hub.example:444/x", false),
            ("https://cdn.hub.example/x", false),
            ("https://hub.example.evil/x", false),
        ] {
            let origin = Origin::parse(url).expect("a URL");
            assert_eq!(endpoint.token_for(&origin).is_some(), allowed, "{url}");
        }
        assert!(Origin::parse("https://hub.example@evil/x").is_none());
    }

    #[test]
    fn invalid_endpoints_and_tokens_are_refused_without_repeating_a_secret() {
        let token = || Token::new("hf_secret").expect("valid");
        for (url, token) in [
            ("ftp://hub.example", None),
            ("hub.example", None),
            ("https://user:hf_secret@hub.example", None),
            ("https://hub.example?x=1", None),
            ("http://hub.example", token()),
        ] {
            let error = Endpoint::new(url, token).expect_err(url);
            assert!(matches!(error, HubError::InvalidName { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        Endpoint::new("http://127.0.0.1:8080", token()).expect("loopback needs no TLS");
        let error = Token::new("hf_secret with spaces").expect_err("refused");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
