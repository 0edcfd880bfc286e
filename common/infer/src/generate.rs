//! From a prompt to text: the prompt in chunks, then one token after the other, until something ends the text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;
use uc_model::Tokenizer;

use crate::detokenizer::Detokenizer;
use crate::error::InferError;
use crate::model::{Chunk, Model, Wanted};
use crate::sampler::{Chosen, Sampler, Sampling};
use crate::sequence::Sequence;

/// Tokens of a prompt that are computed together. The result does not depend on it.
pub const PROMPT_CHUNK: usize = 128;
/// Longest stop string, bytes.
const MAX_STOP: usize = 1 << 10;
/// Most tokens whose log-probabilities are reported beside each chosen one.
pub const MAX_TOP: usize = 100;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The tokens that follow those of the sequence; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the text, which ends before them.
    pub stop: Vec<String>,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
    /// Number of most probable tokens that are reported with each token.
    pub top: usize,
}

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended it with a stop token, or a stop string occurred.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller has ended it.
    Cancelled,
}

/// A generated text.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The text, without what a stop string cuts off.
    pub text: String,
    /// The tokens, including one that ends the text.
    pub tokens: Vec<Chosen>,
    /// Why it ends.
    pub finish: Finish,
    /// Time for the prompt.
    pub prompt_time: Duration,
    /// Time for everything after it.
    pub generation_time: Duration,
}

/// Generates text after the prompt. `on_text` gets the text as it becomes certain, and ends the generation if it says so.
/// Afterwards the sequence holds the prompt and the generated tokens, except the last one.
///
/// # Errors
/// [`InferError::Option`], [`InferError::Empty`], [`InferError::Context`] if the prompt does not fit, [`InferError::Token`],
/// [`InferError::Overflow`], [`InferError::Text`].
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    sequence: &mut Sequence,
    request: &Request,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, InferError> {
    check(request)?;
    let mut history = sequence.tokens().to_vec();
    history.extend_from_slice(&request.prompt);
    let mut sampler = Sampler::new(&request.sampling, &history, model.config().vocab)?;
    let start = Instant::now();
    let mut logits = prompt(model, sequence, &request.prompt)?;
    let prompt_time = start.elapsed();
    let mut writer = Writer {
        detokenizer: Detokenizer::new(tokenizer, &history),
        stop: &request.stop,
        text: String::new(),
        passed: 0,
        stopped: false,
        on_text,
    };
    let mut tokens: Vec<Chosen> = Vec::new();
    let finish = loop {
        if tokens.len() == request.tokens {
            break Finish::Length;
        }
        let chosen = sampler.choose(&logits, request.top);
        let id = chosen.token.id;
        tokens.push(chosen);
        if request.stop_tokens.contains(&id) {
            break Finish::Stop;
        }
        match writer.push(id)? {
            Ends::No => {}
            Ends::Stop => break Finish::Stop,
            Ends::Cancelled => break Finish::Cancelled,
        }
        if tokens.len() == request.tokens {
            break Finish::Length;
        }
        if sequence.tokens().len() == sequence.context() {
            break Finish::Context;
        }
        logits = next(model, sequence, &[id], Wanted::Last)?;
    };
    let text = writer.finish()?;
    Ok(Generated {
        text,
        tokens,
        finish,
        prompt_time,
        generation_time: start.elapsed() - prompt_time,
    })
}

fn check(request: &Request) -> Result<(), InferError> {
    let lengths = request.stop.iter().map(String::len);
    if let Some(found) = lengths.into_iter().find(|&n| n == 0 || n > MAX_STOP) {
        let found = format!("a text of {found} bytes");
        return Err(InferError::option(
            "stop",
            found,
            format!("1 to {MAX_STOP} bytes"),
        ));
    }
    if request.top > MAX_TOP {
        let expected = format!("at most {MAX_TOP}");
        return Err(InferError::option("top-logprobs", request.top, expected));
    }
    Ok(())
}

/// Computes the prompt; the logits after its last token. Nothing is computed if the prompt does not fit.
fn prompt(model: &Model, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>, InferError> {
    let (found, expected) = (sequence.tokens().len() + tokens.len(), sequence.context());
    if found > expected {
        return Err(InferError::Context { found, expected });
    }
    let mut rest = tokens;
    while rest.len() > PROMPT_CHUNK {
        let (chunk, after) = rest.split_at(PROMPT_CHUNK);
        next(model, sequence, chunk, Wanted::None)?;
        rest = after;
    }
    next(model, sequence, rest, Wanted::Last)
}

/// The logits of a chunk of one sequence.
fn next(
    model: &Model,
    sequence: &mut Sequence,
    tokens: &[u32],
    wanted: Wanted,
) -> Result<Vec<f32>, InferError> {
    let chunk = Chunk {
        sequence,
        tokens,
        wanted,
    };
    Ok(model.forward(&mut [chunk])?.remove(0))
}

/// Whether the text ends.
enum Ends {
    No,
    Stop,
    Cancelled,
}

/// Passes text on, except what may become a stop string.
struct Writer<'a> {
    detokenizer: Detokenizer<'a>,
    stop: &'a [String],
    text: String,
    /// Bytes of the text that have been passed on.
    passed: usize,
    /// Whether a stop string has occurred.
    stopped: bool,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl Writer<'_> {
    fn push(&mut self, token: u32) -> Result<Ends, InferError> {
        let new = self.detokenizer.push(token)?;
        Ok(self.add(&new))
    }

    fn add(&mut self, new: &str) -> Ends {
        if new.is_empty() {
            return Ends::No;
        }
        self.text.push_str(new);
        if let Some(end) = self.stop_at() {
            self.text.truncate(end);
            self.stopped = true;
            // The text ends anyway.
            let _ = self.pass(end);
            return Ends::Stop;
        }
        match self.pass(self.text.len() - self.held()) {
            ControlFlow::Continue(()) => Ends::No,
            ControlFlow::Break(()) => Ends::Cancelled,
        }
    }

    /// Where the first stop string begins that is not yet passed on.
    fn stop_at(&self) -> Option<usize> {
        let rest = &self.text[self.passed..];
        let found = self.stop.iter().filter_map(|stop| rest.find(stop.as_str()));
        found.min().map(|at| self.passed + at)
    }

    /// Bytes at the end of the text that may be the beginning of a stop string.
    fn held(&self) -> usize {
        let rest = &self.text[self.passed..];
        let begins = |stop: &String| {
            let lengths = (1..stop.len().min(rest.len() + 1)).rev();
            let mut prefixes = lengths.filter(|&n| stop.is_char_boundary(n));
            prefixes.find(|&n| rest.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stop.iter().map(begins).max().unwrap_or(0)
    }

    fn pass(&mut self, end: usize) -> ControlFlow<()> {
        if end <= self.passed {
            return ControlFlow::Continue(());
        }
        let new = &self.text[self.passed..end];
        self.passed = end;
        (self.on_text)(new)
    }

    /// Passes on what has been held back, unless a stop string has ended the text; the whole text.
    fn finish(mut self) -> Result<String, InferError> {
        if !self.stopped {
            let rest = self.detokenizer.finish()?;
            if let Ends::No = self.add(&rest) {
                let _ = self.pass(self.text.len());
            }
        }
        Ok(self.text)
    }
}
