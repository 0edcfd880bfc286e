//! The paths, and what is done around every request: access, metrics, the log.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State as FromState};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::state::State;
use crate::{chat, completions, models, tokens};

/// The page for browsers.
const PAGE: &str = include_str!("page.html");
/// The description of the API.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");
/// What the page may load: nothing from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The paths, for the metrics.
const PATHS: [&str; 11] = [
    "/",
    "/detokenize",
    "/health",
    "/metrics",
    "/openapi.json",
    "/props",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{name}",
];

/// All paths.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/openapi.json", get(openapi))
        .route("/health", get(models::health))
        .route("/metrics", get(models::metrics))
        .route("/props", get(models::props))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), around))
        .with_state(state)
}

/// Whether a path is open to everybody: the page, which asks for the key, its description, and the check of a load balancer.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/openapi.json")
}

/// The path as the metrics name it.
fn known(path: &str) -> &'static str {
    if path.starts_with("/v1/models/") {
        return "/v1/models/{name}";
    }
    let known = PATHS.iter().find(|known| **known == path);
    known.copied().unwrap_or("other")
}

/// What is done around every request.
async fn around(FromState(state): FromState<Arc<State>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match admit(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let (status, time) = (response.status(), start.elapsed());
    state.metrics.answered(known(&path), status.as_u16(), time);
    let error = response.extensions().get::<ApiError>();
    let error = error.map(|error| error.message.as_str());
    // Messages of errors may hold parts of a request, but no prompt.
    tracing::info!(%method, path = known(&path), status = status.as_u16(), seconds = time.as_secs_f64(), error, "request");
    response
}

fn admit(state: &State, request: &Request) -> Result<(), ApiError> {
    let access = &state.settings.access;
    access.check_browser(request.headers())?;
    if !is_open(request.uri().path()) {
        access.check_key(request.headers())?;
    }
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding
        && encoding != "identity"
    {
        let message = format!("found a body with the encoding {encoding:?}, expected one without");
        return Err(ApiError::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            message,
        ));
    }
    Ok(())
}

async fn page() -> Response {
    let mut response = Html(PAGE).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn unknown(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("unknown path: {method} {path}; GET /openapi.json lists the paths");
    ApiError::refused(StatusCode::NOT_FOUND, message).code("unknown_url")
}

async fn wrong_method(method: Method, request: Request) -> ApiError {
    let path = request.uri().path();
    let message = format!(
        "found the method {method} for {path}, expected another one; GET /openapi.json lists them"
    );
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_exactly_the_paths() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("JSON");
        let mut described: Vec<&str> = document["paths"]
            .as_object()
            .expect("paths")
            .keys()
            .map(String::as_str)
            .collect();
        described.sort_unstable();
        assert_eq!(described, PATHS);
        assert_eq!(known("/v1/models/a/b"), "/v1/models/{name}");
        assert_eq!(known("/secret"), "other");
    }
}
