//! Errors as the OpenAI API has them: a status code and `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uc_infer::InferError;

/// Seconds after which a client that was turned away may try again.
const RETRY_AFTER: &str = "1";

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The status code.
    pub status: StatusCode,
    /// What was found, what was expected, and what to do.
    pub message: String,
    /// The class of the error.
    pub kind: &'static str,
    /// The field of the request.
    pub param: Option<String>,
    /// The error's name for programs.
    pub code: Option<&'static str>,
}

/// The body of an error.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    error: Fields<'a>,
}

#[derive(Debug, Serialize)]
struct Fields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub fn field(name: &str, found: impl std::fmt::Display, expected: &str) -> Self {
        let message = format!("{name}: found {found}, expected {expected}");
        Self::invalid(message).param(name)
    }

    /// Another status for a request that is wrong.
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// Too many sequences are waiting.
    pub fn busy(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.code("rate_limit_exceeded")
    }

    /// The server is ending.
    pub fn ending() -> Self {
        let message = "the server is shutting down, expected requests before; send it to another one, or again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).code("shutting_down")
    }

    /// The answer takes longer than the server's limit.
    pub fn too_slow(seconds: u64) -> Self {
        let message = format!(
            "the answer was not complete within {seconds} s, the server's limit; ask for fewer tokens, or raise --timeout"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).code("timeout")
    }

    /// Something is wrong with the server or the pack.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            message.into(),
        )
    }

    /// Names the field.
    pub fn param(mut self, name: impl Into<String>) -> Self {
        self.param = Some(name.into());
        self
    }

    /// Names the error.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The body.
    pub(crate) fn body(&self) -> Body<'_> {
        Body {
            error: Fields {
                message: &self.message,
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            StatusCode::UNAUTHORIZED => {
                let bearer = HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, bearer);
            }
            _ => {}
        }
        // For the metrics and the log.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InferError> for ApiError {
    fn from(error: InferError) -> Self {
        let message = error.to_string();
        match error {
            InferError::Context { .. } => ApiError::invalid(message)
                .param("prompt")
                .code("context_length_exceeded"),
            InferError::Token { .. } | InferError::Empty | InferError::Text(_) => {
                ApiError::invalid(message).param("prompt")
            }
            InferError::Option { option, .. } => {
                ApiError::invalid(message).param(option.replace('-', "_"))
            }
            InferError::NoTemplate | InferError::Template { .. } => {
                ApiError::invalid(message).param("messages")
            }
            _ => ApiError::internal(message),
        }
    }
}
