//! `/v1/completions`: continues texts.

use axum::extract::State as FromState;
use axum::response::{IntoResponse, Response};
use axum::{Json, extract::Request as HttpRequest};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::sync::Arc;
use uc_infer::Request;
use uc_infer::request::{Progress, Token, Usage};
use uc_infer::sampler::Chosen;

use crate::apart::apart;
use crate::error::ApiError;
use crate::format::ResponseFormat;
use crate::logprobs::{self, Place};
use crate::models;
use crate::params::{MAX_CHOICES, MAX_TOP, Params, integer};
use crate::running::{Answer, Running, finish_reason};
use crate::state::{State, now};
use crate::stream::{Chunks, stream};
use crate::usage::Totals;
use crate::wire;

/// Most tokens of a completion that does not say how many, as in the API.
const DEFAULT_TOKENS: usize = 16;

#[derive(Debug, Deserialize)]
struct Body {
    prompt: Option<Prompts>,
    suffix: Option<String>,
    best_of: Option<i64>,
    echo: Option<bool>,
    logprobs: Option<i64>,
    response_format: Option<Value>,
}

/// Texts to continue.
#[derive(Debug, PartialEq)]
struct Prompts(Vec<Prompt>);

/// A text to continue.
#[derive(Debug, Clone, PartialEq)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        prompts(&value)
            .map(Prompts)
            .map_err(serde::de::Error::custom)
    }
}

fn prompts(value: &Value) -> Result<Vec<Prompt>, String> {
    let expected = "expected a text, a list of texts, a list of token ids, or a list of such lists";
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = |items: &[Value]| items.iter().map(id).collect::<Option<Vec<u32>>>();
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(items) => ids(items).map(Prompt::Tokens),
        _ => None,
    };
    let several = match value {
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            ids(items).map(|ids| vec![Prompt::Tokens(ids)])
        }
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => items.iter().map(one).collect(),
        Value::String(text) => Some(vec![Prompt::Text(text.clone())]),
        _ => None,
    };
    several.ok_or_else(|| format!("found something else, {expected}"))
}

/// What of a request the answer needs.
struct Plan {
    id: String,
    model: String,
    created: u64,
    fingerprint: String,
    /// For each prompt, its text as it is echoed.
    echoes: Vec<Option<String>>,
    /// For each prompt, its tokens.
    prompts: Vec<Vec<u32>>,
    /// Choices for each prompt.
    choices: usize,
    logprobs: bool,
    include_usage: bool,
}

/// Answers the request.
pub(crate) async fn completions(
    FromState(state): FromState<Arc<State>>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let bytes = models::read_request(&state, request).await?;
    let params: Params = wire::parse(&bytes)?;
    let body: Body = wire::parse(&bytes)?;
    drop(bytes);
    let is_stream = params.stream()?;
    let grammar = ResponseFormat::parse(body.response_format.clone())?;
    let (plan, requests) = {
        let state = state.clone();
        apart(move || plan(&state, &params, body)).await?
    };
    let running = Running::start(&state, requests, grammar).await?;
    if is_stream {
        let offsets = vec![0; plan.echoes.len() * plan.choices];
        let totals = Totals::new(plan.choices);
        let chunks = CompletionChunks {
            state: state.clone(),
            plan,
            offsets,
            totals,
        };
        return stream(&state, running, chunks).await;
    }
    let answers = running.answers(plan.echoes.len() * plan.choices).await?;
    Ok(Json(whole(&state, &plan, answers)).into_response())
}

/// What the request asks for, and the sequences to compute.
fn plan(state: &State, params: &Params, body: Body) -> Result<(Plan, Vec<Request>), ApiError> {
    if body.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        let message = "suffix: found one, expected none: the server does not insert text";
        return Err(ApiError::invalid(message).param("suffix"));
    }
    let choices = params.choices()?;
    if body.best_of.is_some_and(|best| best != choices as i64) {
        let message = "best_of: found another number than n, expected n: all choices are returned";
        return Err(ApiError::invalid(message).param("best_of"));
    }
    let top = integer("logprobs", body.logprobs, 0, MAX_TOP as i64)?.map(|top| top as usize);
    let echo = body.echo.unwrap_or(false);
    let prepared = &state.prepared;
    let prompts = match body.prompt {
        Some(prompts) => prompts.0,
        // The API's default is the beginning of a text.
        None => vec![Prompt::Tokens(
            prepared.served.tokenizer.bos().into_iter().collect(),
        )],
    };
    let count = prompts.len() * choices;
    if count > MAX_CHOICES {
        let message =
            format!("found {count} choices for all prompts, expected at most {MAX_CHOICES}");
        return Err(ApiError::invalid(message).param("prompt"));
    }
    let sampling = params.sampling(prepared.vocab(), state.ids.next())?;
    let stop = params.stops()?;
    let stop_tokens = crate::models::stop_tokens(state, params);
    let tokens = params.tokens()?.unwrap_or(DEFAULT_TOKENS);
    let (mut echoes, mut all, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for prompt in prompts {
        let (ids, text) = match prompt {
            Prompt::Text(text) => (prepared.text_tokens(&text)?, Some(text)),
            Prompt::Tokens(ids) => (ids, None),
        };
        let text = match (echo || state.settings.log_prompts, text) {
            (false, _) => None,
            (true, Some(text)) => Some(text),
            (true, None) => Some(prepared.decode(&ids)?),
        };
        for choice in 0..choices {
            let mut sampling = sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(choice as u64);
            requests.push(Request {
                prompt: ids.clone(),
                tokens,
                sampling,
                stop: stop.clone(),
                stop_tokens: stop_tokens.clone(),
                top: top.unwrap_or(0),
                prompt_top: top.filter(|_| echo),
                ..Request::default()
            });
        }
        all.push(ids);
        echoes.push(text);
    }
    let served = &prepared.served;
    let id = state.ids.name("cmpl-");
    if state.settings.log_prompts {
        tracing::info!(id, prompts = ?echoes, "completion");
    }
    let plan = Plan {
        id,
        model: served.name.clone(),
        created: now(),
        fingerprint: served.fingerprint.clone(),
        echoes: match echo {
            true => echoes,
            false => vec![None; echoes.len()],
        },
        prompts: all,
        choices,
        logprobs: top.is_some(),
        include_usage: params.include_usage(),
    };
    Ok((plan, requests))
}

impl Plan {
    fn envelope(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    /// The places of an echoed prompt.
    fn prompt_places<'a>(&'a self, index: usize, scored: &'a [Chosen]) -> Vec<Place<'a>> {
        let prompt = &self.prompts[index / self.choices];
        let first = prompt.first().map(|&id| Place {
            id,
            logprob: None,
            top: &[],
        });
        let rest = scored.iter().map(|chosen| Place {
            id: chosen.token.id,
            logprob: Some(chosen.token.logprob),
            top: &chosen.top,
        });
        first.into_iter().chain(rest).collect()
    }

    fn echo(&self, index: usize) -> Option<&String> {
        self.echoes[index / self.choices].as_ref()
    }
}

/// The places of generated tokens.
pub(crate) fn places(tokens: &[Token]) -> impl Iterator<Item = Place<'_>> {
    tokens.iter().map(|token| Place {
        id: token.token.id,
        logprob: Some(token.token.logprob),
        top: &token.top,
    })
}

/// The answer as one object.
fn whole(state: &State, plan: &Plan, answers: Vec<Answer>) -> Value {
    let mut totals = Totals::new(plan.choices);
    let mut choices = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        totals.add(index, &answer.usage);
        let mut text = plan.echo(index).cloned().unwrap_or_default();
        let mut all = match plan.echo(index) {
            Some(_) => plan.prompt_places(index, &answer.prompt),
            None => Vec::new(),
        };
        all.extend(places(&answer.tokens));
        let logprobs = plan
            .logprobs
            .then(|| logprobs::of_completion(&state.prepared, &all, &mut 0));
        text.push_str(&answer.text);
        if state.settings.log_prompts {
            tracing::info!(id = plan.id, index, text, "completed");
        }
        choices.push(json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(answer.finish),
        }));
    }
    let mut value = plan.envelope(choices);
    value["usage"] = totals.value();
    value
}

/// The answer in parts.
struct CompletionChunks {
    state: Arc<State>,
    plan: Plan,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    totals: Totals,
}

impl CompletionChunks {
    fn chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<Value>,
        finish: Option<&str>,
    ) -> Value {
        let choice = json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
        });
        let mut value = self.plan.envelope(vec![choice]);
        if self.plan.include_usage {
            value["usage"] = Value::Null;
        }
        value
    }

    fn logprobs(&mut self, index: usize, places: &[Place<'_>]) -> Option<Value> {
        let offset = &mut self.offsets[index];
        let prepared = &self.state.prepared;
        self.plan
            .logprobs
            .then(|| logprobs::of_completion(prepared, places, offset))
    }

    fn prompt(&mut self, index: usize, scored: &[Chosen]) -> Vec<Value> {
        let Some(text) = self.plan.echo(index).cloned() else {
            return Vec::new();
        };
        let logprobs = self.plan.logprobs.then(|| {
            let places = self.plan.prompt_places(index, scored);
            logprobs::of_completion(&self.state.prepared, &places, &mut self.offsets[index])
        });
        vec![self.chunk(index, &text, logprobs, None)]
    }

    fn finished(&mut self, index: usize, finish: &'static str, usage: &Usage) -> Vec<Value> {
        self.totals.add(index, usage);
        vec![self.chunk(index, "", None, Some(finish))]
    }
}

impl Chunks for CompletionChunks {
    fn progress(&mut self, index: usize, progress: Progress) -> Vec<Value> {
        match progress {
            // With log-probabilities, the prompt is echoed when they are known.
            Progress::Started { .. } if !self.plan.logprobs => self.prompt(index, &[]),
            Progress::Prompt { tokens } => self.prompt(index, &tokens),
            Progress::Text { text, tokens } => {
                let places: Vec<Place<'_>> = places(&tokens).collect();
                let logprobs = self.logprobs(index, &places);
                if text.is_empty() && logprobs.is_none() {
                    return Vec::new();
                }
                vec![self.chunk(index, &text, logprobs, None)]
            }
            Progress::Finished { finish, usage } => {
                self.finished(index, finish_reason(Some(finish)), &usage)
            }
            Progress::Started { .. } | Progress::Failed { .. } => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.plan.include_usage {
            return Vec::new();
        }
        let mut value = self.plan.envelope(Vec::new());
        value["usage"] = self.totals.value();
        vec![value]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (value, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
            ),
        ] {
            assert_eq!(
                prompts(&value).as_deref(),
                Ok(expected.as_slice()),
                "{value}"
            );
        }
        for value in [
            json!(1),
            json!([]),
            json!({"a": 1}),
            json!([1, "a"]),
            json!([1.5]),
            json!([-1]),
            json!([4_294_967_296_u64]),
            json!([["a"]]),
        ] {
            assert!(prompts(&value).is_err(), "{value}");
        }
    }
}
