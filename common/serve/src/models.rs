//! What is served: `/v1/models`, `/props`, `/health`, `/metrics`, and what requests need to know of the model.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State as FromState};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::metrics::Constants;
use crate::params::Params;
use crate::phase::Phase;
use crate::state::State;
use crate::wire;

/// The field that every request to the model has.
#[derive(Debug, Deserialize)]
struct Named {
    model: Option<String>,
}

/// Reads the body of a request to the model, whose other fields [`wire::parse`] then gives.
///
/// # Errors
/// Those of the body, 404 for another model.
pub(crate) async fn read_request(state: &State, request: Request) -> Result<Bytes, ApiError> {
    let settings = &state.settings;
    let bytes = wire::read(request.into_body(), settings.body_bytes, settings.body_time).await?;
    let named: Named = wire::parse(&bytes)?;
    check_name(state, named.model.as_deref())?;
    Ok(bytes)
}

/// Checks the name of a model. Without one, the only model is meant.
///
/// # Errors
/// 404.
fn check_name(state: &State, name: Option<&str>) -> Result<(), ApiError> {
    let own = &state.prepared.served.name;
    match name {
        Some(name) if name != own => {
            let message =
                format!("found the model {name:?}, expected {own:?}, the only one that is served");
            let error = ApiError::refused(StatusCode::NOT_FOUND, message);
            Err(error.param("model").code("model_not_found"))
        }
        _ => Ok(()),
    }
}

/// The tokens that end an answer.
pub(crate) fn stop_tokens(state: &State, params: &Params) -> Vec<u32> {
    match params.ignore_eos {
        Some(true) => Vec::new(),
        _ => state.prepared.served.stop_tokens.clone(),
    }
}

fn model(state: &State) -> Value {
    let served = &state.prepared.served;
    json!({
        "id": served.name,
        "object": "model",
        "created": state.started,
        "owned_by": "ultracompress",
        "max_model_len": state.settings.batch.context,
        "fingerprint": served.fingerprint,
    })
}

/// `/v1/models`.
pub(crate) async fn list(FromState(state): FromState<Arc<State>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&state)]}))
}

/// `/v1/models/{name}`.
pub(crate) async fn one(
    FromState(state): FromState<Arc<State>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    check_name(&state, Some(&name))?;
    Ok(Json(model(&state)))
}

/// `/health`.
pub(crate) async fn health(FromState(state): FromState<Arc<State>>) -> Response {
    if state.phase.now() != Phase::Open {
        return ApiError::ending().into_response();
    }
    Json(json!({"status": "ok"})).into_response()
}

/// `/props`.
pub(crate) async fn props(FromState(state): FromState<Arc<State>>) -> Json<Value> {
    let served = &state.prepared.served;
    let settings = &state.settings;
    let template = served.template.as_ref();
    let memory = served.model.memory();
    Json(json!({
        "model": served.name,
        "fingerprint": served.fingerprint,
        "arithmetic": served.arithmetic,
        "version": env!("CARGO_PKG_VERSION"),
        "context": settings.batch.context,
        "parallel": settings.batch.slots,
        "queue": settings.queue,
        "timeout_seconds": settings.timeout.as_secs(),
        "vocabulary": state.prepared.vocab(),
        "bos_token": served.tokenizer.bos(),
        "stop_tokens": served.stop_tokens,
        "chat_template": template.map(|template| template.source(false)),
        "tools": state.prepared.has_tools,
        "tool_calls": state.prepared.style.is_some(),
        "grammars": state.prepared.grammars.is_ok(),
        "memory": memory,
    }))
}

/// `/metrics`.
pub(crate) async fn metrics(FromState(state): FromState<Arc<State>>) -> Response {
    let served = &state.prepared.served;
    let text = state.metrics.text(&Constants {
        model: &served.name,
        fingerprint: &served.fingerprint,
        arithmetic: served.arithmetic,
        memory: served.model.memory(),
    });
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
