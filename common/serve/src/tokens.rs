//! `/tokenize` and `/detokenize`, in the forms of llama.cpp (`content`) and vLLM (`prompt`, `messages`).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request as HttpRequest, State as FromState};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::apart::apart;
use crate::error::ApiError;
use crate::messages::Message;
use crate::models;
use crate::state::State;
use crate::wire;

/// Most tokens of one request.
const MAX_TOKENS: usize = 1 << 20;

#[derive(Debug, Deserialize)]
struct Text {
    content: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    add_special: Option<bool>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    with_pieces: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

/// The tokens of a text or a conversation.
pub(crate) async fn tokenize(
    FromState(state): FromState<Arc<State>>,
    request: HttpRequest,
) -> Result<Json<Value>, ApiError> {
    let body: Text = wire::parse(&models::read_request(&state, request).await?)?;
    let prepared = &state.prepared;
    let with_pieces = body.with_pieces.unwrap_or(false);
    let ids = {
        let state = state.clone();
        apart(move || ids(&state, body)).await?
    };
    let tokens = match with_pieces {
        false => json!(ids),
        true => {
            let piece = |&id: &u32| json!({"id": id, "piece": prepared.token_name(id)});
            ids.iter().map(piece).collect()
        }
    };
    Ok(Json(json!({
        "tokens": tokens, "count": ids.len(), "max_model_len": state.settings.batch.context,
    })))
}

/// The tokens that a request asks for.
fn ids(state: &State, body: Text) -> Result<Vec<u32>, ApiError> {
    let prepared = &state.prepared;
    match (body.content, body.prompt, body.messages) {
        // llama.cpp adds special tokens only if they are asked for, vLLM always.
        (Some(text), None, None) if !body.add_special.unwrap_or(false) => prepared.encode(&text),
        (None, Some(text), None) if !body.add_special_tokens.unwrap_or(true) => {
            prepared.encode(&text)
        }
        (Some(text), None, None) | (None, Some(text), None) => prepared.text_tokens(&text),
        (None, None, Some(messages)) => {
            let generation = body.add_generation_prompt.unwrap_or(true);
            let text = prepared.conversation(messages, &[], &Map::new(), generation)?;
            prepared.encode(&text)
        }
        _ => {
            let message =
                "found none or several of content, prompt and messages, expected one of them";
            Err(ApiError::invalid(message))
        }
    }
}

/// The text of tokens.
pub(crate) async fn detokenize(
    FromState(state): FromState<Arc<State>>,
    request: HttpRequest,
) -> Result<Json<Value>, ApiError> {
    let body: Tokens = wire::parse(&models::read_request(&state, request).await?)?;
    if body.tokens.len() > MAX_TOKENS {
        let found = format!("{} tokens", body.tokens.len());
        return Err(ApiError::field(
            "tokens",
            found,
            &format!("at most {MAX_TOKENS}"),
        ));
    }
    let text = state.prepared.decode(&body.tokens);
    let text = text.map_err(|error| error.param("tokens"))?;
    Ok(Json(json!({"content": text, "prompt": text})))
}
