//! What is asked of a batch, and what it answers.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use crate::error::InferError;
use crate::model::Model;
use crate::sampler::{Chosen, Sampling, Scored};

/// Longest stop string, bytes.
const MAX_STOP: usize = 1 << 10;
/// Most tokens whose log-probabilities are reported beside each token.
pub const MAX_TOP: usize = 100;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The tokens to continue; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; 0 computes only the prompt.
    pub tokens: usize,
    /// Number of tokens before which no stop token is chosen.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the text, which ends before them.
    pub stop: Vec<String>,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
    /// Number of most probable tokens that are reported with each token.
    pub top: usize,
    /// Reports the log-probabilities of the prompt's own tokens, each with so many most probable ones. The whole prompt is
    /// then computed, also where a part of it is known.
    pub prompt_top: Option<usize>,
}

impl Request {
    /// Checks everything that can be wrong with the request, for a sequence of `context` tokens.
    ///
    /// # Errors
    /// [`InferError::Empty`], [`InferError::Context`], [`InferError::Token`], [`InferError::Option`].
    pub fn check(&self, model: &Model, context: usize) -> Result<(), InferError> {
        let (found, expected) = (self.prompt.len(), context);
        if found == 0 {
            return Err(InferError::Empty);
        }
        if found > expected {
            return Err(InferError::Context { found, expected });
        }
        let expected = model.config().vocab;
        let outside = |id: &&u32| **id as usize >= expected;
        if let Some(&found) = self.prompt.iter().find(outside) {
            return Err(InferError::Token { found, expected });
        }
        self.sampling.check(expected)?;
        let lengths = self.stop.iter().map(String::len);
        if let Some(found) = lengths.into_iter().find(|&n| n == 0 || n > MAX_STOP) {
            let found = format!("a text of {found} bytes");
            let expected = format!("1 to {MAX_STOP} bytes");
            return Err(InferError::option("stop", found, expected));
        }
        let tops = [Some(self.top), self.prompt_top];
        if let Some(&found) = tops.iter().flatten().find(|&&top| top > MAX_TOP) {
            let expected = format!("at most {MAX_TOP}");
            return Err(InferError::option("top-logprobs", found, expected));
        }
        Ok(())
    }
}

/// A rule that decides which tokens may follow, such as a grammar. It sees the generated tokens, not the prompt.
pub trait Constraint: Send {
    /// Sets bit `t % 32` of `allowed[t / 32]` for every token `t` that may follow; all bits are clear before. Tokens that end
    /// the text must be allowed where the text may end.
    ///
    /// # Errors
    /// A reason, with which the request fails.
    fn allow(&mut self, allowed: &mut [u32]) -> Result<(), String>;

    /// Goes on by a token that was allowed. `Break` if nothing can follow: the text ends, as by a stop token.
    ///
    /// # Errors
    /// A reason, with which the request fails.
    fn accept(&mut self, token: u32) -> Result<ControlFlow<()>, String>;
}

/// Number of a request in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// What happened to a request. The events of a request are [`Progress::Started`], [`Progress::Prompt`] if it was asked for, any
/// number of [`Progress::Text`], and then one of [`Progress::Finished`] and [`Progress::Failed`]. A request that is cancelled
/// while it waits has only the last.
#[derive(Debug)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// What happened.
    pub progress: Progress,
}

/// See [`Event`].
#[derive(Debug)]
pub enum Progress {
    /// It has a slot.
    Started {
        /// Tokens of the prompt that are taken from a prefix that another request has computed.
        reused: usize,
    },
    /// The log-probabilities of the prompt's tokens but the first, which follows nothing.
    Prompt {
        /// One for each token from the second on.
        tokens: Vec<Chosen>,
    },
    /// More of the text.
    Text {
        /// What is certain now; it may be empty.
        text: String,
        /// The tokens that are certain now. At the end of a text these are also the tokens of a stop string, which is not in
        /// the text, and the stop token.
        tokens: Vec<Token>,
    },
    /// It has ended.
    Finished {
        /// Why.
        finish: Finish,
        /// What it took.
        usage: Usage,
    },
    /// It cannot go on. Other requests can.
    Failed {
        /// Why.
        error: InferError,
    },
}

/// A generated token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Token {
    /// The token and its log-probability.
    pub token: Scored,
    /// The most probable tokens according to the model, as many as were asked for.
    pub top: Vec<Scored>,
    /// The text that it adds. It is empty for a token that ends within a character; the next one adds the whole character.
    pub text: String,
}

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended it with a stop token, a stop string occurred, or the constraint lets nothing follow.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller has ended it.
    Cancelled,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that were taken from the cache of prefixes.
    pub reused: usize,
    /// Generated tokens.
    pub generated: usize,
    /// Bytes of its keys, values and states at the end.
    pub state_bytes: u64,
    /// Time until it had a slot.
    pub queue_time: Duration,
    /// Time from then until the prompt was computed.
    pub prompt_time: Duration,
    /// Time after that.
    pub generation_time: Duration,
}
