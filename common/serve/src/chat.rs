//! `/v1/chat/completions`: answers in conversations.

use std::sync::Arc;

use axum::extract::State as FromState;
use axum::response::{IntoResponse, Response};
use axum::{Json, extract::Request as HttpRequest};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uc_infer::Request;
use uc_infer::request::{Finish, Progress};

use crate::apart::apart;
use crate::choice::Tools;
use crate::completions::places;
use crate::constraint::Grammar;
use crate::error::ApiError;
use crate::format::ResponseFormat;
use crate::logprobs::{self, Place};
use crate::messages::Message;
use crate::models;
use crate::params::{MAX_TOP, Params, integer};
use crate::running::{Answer, Running, finish_reason};
use crate::state::{State, now};
use crate::stream::{Chunks, stream};
use crate::tools::{Parser, Piece};
use crate::usage::Totals;
use crate::wire;

#[derive(Debug, Deserialize)]
struct Body {
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    response_format: Option<Value>,
    chat_template_kwargs: Option<Map<String, Value>>,
    functions: Option<Value>,
    modalities: Option<Vec<String>>,
}

/// What of a request the answer needs.
struct Plan {
    id: String,
    model: String,
    created: u64,
    fingerprint: String,
    tools: Tools,
    choices: usize,
    logprobs: bool,
    include_usage: bool,
}

/// Answers the request.
pub(crate) async fn chat(
    FromState(state): FromState<Arc<State>>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let bytes = models::read_request(&state, request).await?;
    let params: Params = wire::parse(&bytes)?;
    let body: Body = wire::parse(&bytes)?;
    drop(bytes);
    let is_stream = params.stream()?;
    let (plan, requests, grammar) = {
        let state = state.clone();
        apart(move || plan(&state, &params, body)).await?
    };
    let running = Running::start(&state, requests, grammar).await?;
    if is_stream {
        let choices = (0..plan.choices).map(|_| StreamedChoice::new(&plan.tools));
        let chunks = ChatChunks {
            choices: choices.collect(),
            totals: Totals::new(plan.choices),
            state: state.clone(),
            plan,
        };
        return stream(&state, running, chunks).await;
    }
    let answers = running.answers(plan.choices).await?;
    Ok(Json(whole(&state, &plan, answers)).into_response())
}

/// What the request asks for, the sequences to compute, and what they have to keep to.
fn plan(
    state: &State,
    params: &Params,
    body: Body,
) -> Result<(Plan, Vec<Request>, Option<Grammar>), ApiError> {
    refuse_other_uses(&body)?;
    let prepared = &state.prepared;
    let tools = Tools::read(prepared, body.tools, body.tool_choice)?;
    let several = body.parallel_tool_calls.unwrap_or(true);
    let grammar = match tools.grammar(several)? {
        Some(grammar) => Some(grammar),
        None => ResponseFormat::parse(body.response_format)?,
    };
    let logprobs = body.logprobs.unwrap_or(false);
    let top = integer("top_logprobs", body.top_logprobs, 0, MAX_TOP as i64)?;
    if top.is_some() && !logprobs {
        let message = "top_logprobs: found without logprobs, expected only with \"logprobs\": true";
        return Err(ApiError::invalid(message).param("top_logprobs"));
    }
    let variables = body.chat_template_kwargs.unwrap_or_default();
    let text = prepared.conversation(body.messages, &tools.values, &variables, true)?;
    let choices = params.choices()?;
    let sampling = params.sampling(prepared.vocab(), state.ids.next())?;
    let request = Request {
        prompt: prepared.encode(&text)?,
        tokens: params.tokens()?.unwrap_or(usize::MAX),
        sampling,
        stop: params.stops()?,
        stop_tokens: crate::models::stop_tokens(state, params),
        top: top.unwrap_or(0) as usize,
        ..Request::default()
    };
    let requests = (0..choices).map(|choice| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.wrapping_add(choice as u64);
        request
    });
    let served = &prepared.served;
    let plan = Plan {
        id: state.ids.name("chatcmpl-"),
        model: served.name.clone(),
        created: now(),
        fingerprint: served.fingerprint.clone(),
        tools,
        choices,
        logprobs,
        include_usage: params.include_usage(),
    };
    if state.settings.log_prompts {
        tracing::info!(id = plan.id, prompt = text, "chat completion");
    }
    Ok((plan, requests.collect(), grammar))
}

/// Refuses what would silently give another answer than was asked for.
fn refuse_other_uses(body: &Body) -> Result<(), ApiError> {
    if body.functions.is_some() {
        let message = "functions: found some, expected the newer field tools";
        return Err(ApiError::invalid(message).param("functions"));
    }
    let modalities = body.modalities.iter().flatten();
    if let Some(other) = modalities.into_iter().find(|name| *name != "text") {
        return Err(ApiError::field("modalities", format!("{other:?}"), "text"));
    }
    Ok(())
}

impl Plan {
    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    fn reason(&self, finish: Option<Finish>, has_calls: bool) -> &'static str {
        match finish_reason(finish) {
            "stop" if has_calls && !self.tools.is_named() => "tool_calls",
            other => other,
        }
    }

    fn logprobs(&self, state: &State, places: &[Place<'_>]) -> Value {
        match self.logprobs {
            true => json!({"content": logprobs::of_chat(&state.prepared, places), "refusal": null}),
            false => Value::Null,
        }
    }
}

/// A call in the form of the API.
fn call(state: &State, name: String, arguments: String) -> Map<String, Value> {
    let value = json!({
        "id": state.ids.name("call_"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    });
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The answer as one object.
fn whole(state: &State, plan: &Plan, answers: Vec<Answer>) -> Value {
    let mut totals = Totals::new(plan.choices);
    let mut choices = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        totals.add(index, &answer.usage);
        if state.settings.log_prompts {
            tracing::info!(id = plan.id, index, text = answer.text, "answered");
        }
        let (mut content, mut calls) = (String::new(), Vec::new());
        let pieces = match plan.tools.parser() {
            Some(mut parser) => {
                let mut pieces = parser.push(&answer.text);
                pieces.extend(parser.finish());
                pieces
            }
            None => vec![Piece::Content(answer.text)],
        };
        for piece in pieces {
            match piece {
                Piece::Content(text) => content.push_str(&text),
                Piece::Call { name, arguments } => calls.push(call(state, name, arguments)),
            }
        }
        let has_calls = !calls.is_empty();
        let content = match has_calls && content.is_empty() {
            true => Value::Null,
            false => content.into(),
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if has_calls {
            message["tool_calls"] = json!(calls);
        }
        let places: Vec<Place<'_>> = places(&answer.tokens).collect();
        choices.push(json!({
            "index": index,
            "message": message,
            "logprobs": plan.logprobs(state, &places),
            "finish_reason": plan.reason(answer.finish, has_calls),
        }));
    }
    let mut value = plan.envelope("chat.completion", choices);
    value["usage"] = totals.value();
    value
}

/// A choice of a stream.
struct StreamedChoice {
    parser: Option<Parser>,
    calls: usize,
}

impl StreamedChoice {
    fn new(tools: &Tools) -> Self {
        StreamedChoice {
            parser: tools.parser(),
            calls: 0,
        }
    }
}

/// The answer in parts.
struct ChatChunks {
    state: Arc<State>,
    plan: Plan,
    choices: Vec<StreamedChoice>,
    totals: Totals,
}

impl ChatChunks {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        });
        let mut value = self.plan.envelope("chat.completion.chunk", vec![choice]);
        if self.plan.include_usage {
            value["usage"] = Value::Null;
        }
        value
    }

    /// The chunks of pieces. The log-probabilities go with the first of them, or with an empty one.
    fn pieces(&mut self, index: usize, pieces: Vec<Piece>, mut logprobs: Value) -> Vec<Value> {
        let mut chunks = Vec::new();
        for piece in pieces {
            let delta = match piece {
                Piece::Content(text) if text.is_empty() => continue,
                Piece::Content(text) => json!({ "content": text }),
                Piece::Call { name, arguments } => {
                    let mut fields = Map::new();
                    fields.insert("index".to_owned(), self.choices[index].calls.into());
                    self.choices[index].calls += 1;
                    fields.extend(call(&self.state, name, arguments));
                    json!({ "tool_calls": [fields] })
                }
            };
            chunks.push(self.chunk(index, delta, logprobs.take(), None));
        }
        if !logprobs.is_null() {
            chunks.push(self.chunk(index, json!({}), logprobs, None));
        }
        chunks
    }
}

impl Chunks for ChatChunks {
    fn progress(&mut self, index: usize, progress: Progress) -> Vec<Value> {
        match progress {
            Progress::Started { .. } => {
                let delta = json!({"role": "assistant", "content": ""});
                vec![self.chunk(index, delta, Value::Null, None)]
            }
            Progress::Text { text, tokens } => {
                let places: Vec<Place<'_>> = places(&tokens).collect();
                let logprobs = match places.is_empty() {
                    true => Value::Null,
                    false => self.plan.logprobs(&self.state, &places),
                };
                let pieces = match &mut self.choices[index].parser {
                    Some(parser) => parser.push(&text),
                    None => vec![Piece::Content(text)],
                };
                self.pieces(index, pieces, logprobs)
            }
            Progress::Finished { finish, usage } => {
                self.totals.add(index, &usage);
                let rest = self.choices[index].parser.as_mut().map(Parser::finish);
                let mut chunks = self.pieces(index, rest.unwrap_or_default(), Value::Null);
                let has_calls = self.choices[index].calls > 0;
                let reason = self.plan.reason(Some(finish), has_calls);
                chunks.push(self.chunk(index, json!({}), Value::Null, Some(reason)));
                chunks
            }
            Progress::Prompt { .. } | Progress::Failed { .. } => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.plan.include_usage {
            return Vec::new();
        }
        let mut value = self.plan.envelope("chat.completion.chunk", Vec::new());
        value["usage"] = self.totals.value();
        vec![value]
    }
}
