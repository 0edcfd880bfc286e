//! `/tokenize` and `/detokenize`, in the forms of llama.cpp (`content`) and vLLM (`prompt`, `messages`).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request as HttpRequest, State as FromState};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uc_infer::template::Conversation;

use crate::error::ApiError;
use crate::messages::{self, Message};
use crate::state::State;
use crate::wire;

/// Most tokens of one request.
const MAX_TOKENS: usize = 1 << 20;

#[derive(Debug, Deserialize)]
struct Text {
    model: Option<String>,
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
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The tokens of a text or a conversation.
pub(crate) async fn tokenize(
    FromState(state): FromState<Arc<State>>,
    request: HttpRequest,
) -> Result<Json<Value>, ApiError> {
    let settings = &state.settings;
    let bytes = wire::read(request.into_body(), settings.body_bytes, settings.body_time).await?;
    let body: Text = wire::parse(&bytes)?;
    crate::models::check_name(&state, body.model.as_deref())?;
    let prepared = &state.prepared;
    let ids = match (body.content, body.prompt, body.messages) {
        // llama.cpp adds special tokens only if they are asked for, vLLM always.
        (Some(text), None, None) if !body.add_special.unwrap_or(false) => prepared.encode(&text)?,
        (None, Some(text), None) if !body.add_special_tokens.unwrap_or(true) => {
            prepared.encode(&text)?
        }
        (Some(text), None, None) | (None, Some(text), None) => prepared.text_tokens(&text)?,
        (None, None, Some(messages)) => {
            let template = prepared.template()?;
            let messages = messages::for_template(messages, true)?;
            let text = template.render_conversation(Conversation {
                messages: &messages,
                tools: &[],
                variables: &Map::new(),
                add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
            })?;
            prepared.encode(&text)?
        }
        _ => {
            let message =
                "found none or several of content, prompt and messages, expected one of them";
            return Err(ApiError::invalid(message));
        }
    };
    let tokens = match body.with_pieces.unwrap_or(false) {
        false => json!(ids),
        true => {
            let piece = |&id: &u32| json!({"id": id, "piece": prepared.token_name(id)});
            ids.iter().map(piece).collect()
        }
    };
    Ok(Json(json!({
        "tokens": tokens, "count": ids.len(), "max_model_len": settings.batch.context,
    })))
}

/// The text of tokens.
pub(crate) async fn detokenize(
    FromState(state): FromState<Arc<State>>,
    request: HttpRequest,
) -> Result<Json<Value>, ApiError> {
    let settings = &state.settings;
    let bytes = wire::read(request.into_body(), settings.body_bytes, settings.body_time).await?;
    let body: Tokens = wire::parse(&bytes)?;
    crate::models::check_name(&state, body.model.as_deref())?;
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
