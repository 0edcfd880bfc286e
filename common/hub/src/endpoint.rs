//! Where the Hub is, and the token that opens it.

use std::fmt;

use camino::Utf8PathBuf;
use uc_store::StoreError;

use crate::error::HubError;

/// The Hub itself; hrefs in its answers name it whatever mirror is asked.
const PUBLIC: &str = "https://huggingface.co";

/// A secret that never shows itself.
///
/// Neither `Debug` nor `Display` nor an error prints it, and it goes only to the endpoint's own origin.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Takes a token; white space around it goes. `None` for an empty one.
    ///
    /// # Errors
    /// [`HubError::Name`] for a text that cannot stand in a header; the text itself is not repeated.
    pub fn new(text: &str) -> Result<Option<Self>, HubError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HubError::Name {
                what: "token",
                found: "a text with other characters".into(),
                expected: "printable ASCII without spaces",
            });
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// The header value; the one way out of this type.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A server's text without the token in it.
    pub fn scrub(&self, text: &str) -> String {
        text.replace(&self.0, "[token]")
    }
}

/// Scheme, host and port: what decides whether the token may travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an absolute http or https URL without user information.
    pub(crate) fn of(url: &str) -> Option<Self> {
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

    /// Whether it is this machine itself.
    pub(crate) fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "127.0.0.1" | "localhost" | "[::1]")
    }
}

/// The address of a Hub and the token for it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: String,
    origin: Origin,
    token: Option<Token>,
}

impl Endpoint {
    /// An endpoint by its URL.
    ///
    /// # Errors
    /// [`HubError::Name`] for anything but `http(s)://host[:port][/path]`, and for a token that would travel in the
    /// clear to another machine.
    pub fn new(url: &str, token: Option<Token>) -> Result<Self, HubError> {
        let wrong = |expected| HubError::Name {
            what: "endpoint",
            // A URL with a password in it must not be repeated.
            found: crate::http::shown(url),
            expected,
        };
        let url = url.trim_end_matches('/');
        let origin = Origin::of(url)
            .ok_or_else(|| wrong("http(s)://host[:port][/path] without user information"))?;
        if url.contains(['?', '#']) {
            return Err(wrong("a URL without query and fragment"));
        }
        if !origin.https && !origin.is_loopback() && token.is_some() {
            return Err(wrong("https, because a token would travel in the clear"));
        }
        Ok(Self {
            url: url.to_owned(),
            origin,
            token,
        })
    }

    /// What the environment says: `HF_ENDPOINT`; `HF_TOKEN`, or the file `HF_TOKEN_PATH`, or `token` in `HF_HOME`
    /// (`~/.cache/huggingface`).
    ///
    /// # Errors
    /// [`HubError::Name`] as for [`Endpoint::new`]; [`HubError::Store`] for a token file that cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// [`Endpoint::from_env`] with the variables given by a function.
    ///
    /// # Errors
    /// As for [`Endpoint::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let token = match given("HF_TOKEN") {
            Some(text) => Token::new(&text)?,
            None => Self::token_of_file(&given)?,
        };
        let url = given("HF_ENDPOINT").unwrap_or_else(|| PUBLIC.into());
        Self::new(url.trim(), token)
    }

    fn token_of_file(given: &impl Fn(&str) -> Option<String>) -> Result<Option<Token>, HubError> {
        let home = given("HF_HOME").map(Utf8PathBuf::from).or_else(|| {
            let cache = given("XDG_CACHE_HOME").map(Utf8PathBuf::from);
            let cache = cache.or_else(|| Some(Utf8PathBuf::from(given("HOME")?).join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let path = given("HF_TOKEN_PATH").map(Utf8PathBuf::from);
        let Some(path) = path.or_else(|| Some(home?.join("token"))) else {
            return Ok(None);
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Token::new(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error).into()),
        }
    }

    /// The URL without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether there is a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The token for a URL: only where scheme, host and port are the endpoint's.
    pub(crate) fn token_for(&self, origin: &Origin) -> Option<&Token> {
        self.token.as_ref().filter(|_| *origin == self.origin)
    }

    /// Whether a URL is the endpoint's.
    pub(crate) fn is_home(&self, origin: &Origin) -> bool {
        *origin == self.origin
    }

    /// Whether nothing may go in the clear.
    pub(crate) fn is_https(&self) -> bool {
        self.origin.https
    }

    /// A server's text without the token in it.
    pub(crate) fn scrub(&self, text: &str) -> String {
        match &self.token {
            Some(token) => token.scrub(text),
            None => text.to_owned(),
        }
    }

    /// An href of an answer: one that names the public Hub goes to the mirror that was asked.
    pub(crate) fn localised(&self, href: &str) -> String {
        match href.strip_prefix(PUBLIC) {
            Some(rest) if rest.starts_with('/') => format!("{}{rest}", self.url),
            _ => href.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Endpoint, HubError> {
        Endpoint::from_variables(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_names_endpoint_and_token() {
        let plain = with(&[]).expect("the default");
        assert_eq!((plain.url(), plain.has_token()), (PUBLIC, false));
        let mirror = with(&[
            ("HF_ENDPOINT", "https://mirror.example/hub/"),
            ("HF_TOKEN", " hf_x\n"),
        ]);
        let mirror = mirror.expect("a mirror");
        assert_eq!(mirror.url(), "https://mirror.example/hub");
        assert!(mirror.has_token());
        assert_eq!(
            mirror.localised("https://huggingface.co/api/x"),
            "https://mirror.example/hub/api/x"
        );
        assert_eq!(
            mirror.localised("https://huggingface.com/api"),
            "https://huggingface.com/api"
        );
    }

    #[test]
    fn the_token_comes_from_a_file_when_the_variable_is_missing() {
        let keep = tempfile::tempdir().expect("folder");
        let folder = camino::Utf8Path::from_path(keep.path()).expect("utf-8");
        uc_store::atomic::write_bytes(&folder.join("token"), b"hf_home\n").expect("written");
        uc_store::atomic::write_bytes(&folder.join("other"), b"hf_path\n").expect("written");
        let bearer = |endpoint: Endpoint| endpoint.token.map(|token| token.bearer());
        let home = with(&[("HF_HOME", folder.as_str())]).expect("read");
        assert_eq!(bearer(home).as_deref(), Some("Bearer hf_home"));
        let path = folder.join("other");
        let both = [
            ("HF_HOME", folder.as_str()),
            ("HF_TOKEN_PATH", path.as_str()),
        ];
        assert_eq!(
            bearer(with(&both).expect("read")).as_deref(),
            Some("Bearer hf_path")
        );
        let absent = folder.join("absent");
        let absent = with(&[("HF_TOKEN_PATH", absent.as_str())]).expect("no token");
        assert!(!absent.has_token());
    }

    #[test]
    fn the_token_never_shows_itself_and_stays_at_home() {
        let token = Token::new("hf_secret").expect("valid").expect("some");
        let endpoint = Endpoint::new("https://hub.example", Some(token.clone())).expect("valid");
        assert!(!format!("{token:?} {endpoint:?}").contains("secret"));
        assert_eq!(token.scrub("bad hf_secret!"), "bad [token]!");
        for (url, may) in [
            ("https://hub.example/x?y", true),
            ("https://HUB.example:443/x", true),
            ("http://hub.example/x", false),
            ("https://hub.example:444/x", false),
            ("https://cdn.hub.example/x", false),
            ("https://hub.example.evil/x", false),
        ] {
            let origin = Origin::of(url).expect("a URL");
            assert_eq!(endpoint.token_for(&origin).is_some(), may, "{url}");
        }
        assert!(Origin::of("https://hub.example@evil/x").is_none());
    }

    #[test]
    fn bad_endpoints_and_tokens_are_refused_without_repeating_a_secret() {
        let token = || Token::new("hf_secret").expect("valid");
        for (url, token) in [
            ("ftp://hub.example", None),
            ("hub.example", None),
            ("https://user:hf_secret@hub.example", None),
            ("https://hub.example?x=1", None),
            ("http://hub.example", token()),
        ] {
            let error = Endpoint::new(url, token).expect_err(url);
            assert!(matches!(error, HubError::Name { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        Endpoint::new("http://127.0.0.1:8080", token()).expect("loopback needs no TLS");
        let error = Token::new("hf_secret with spaces").expect_err("refused");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
