//! From chosen tokens to text: passes on what is certain, and holds back what may become a stop string.

use std::collections::VecDeque;
use std::sync::Arc;

use uc_model::Tokenizer;

use crate::detokenizer::Detokenizer;
use crate::error::InferError;
use crate::request::Token;
use crate::sampler::Chosen;

/// The text of one request.
pub(crate) struct Writer {
    detokenizer: Detokenizer,
    stop: Vec<String>,
    /// The text that has not been passed on.
    text: String,
    /// The tokens that have not been passed on.
    tokens: VecDeque<Token>,
    /// Bytes of the text of these tokens that have been passed on.
    ahead: usize,
    /// Number of tokens at the end whose text is not settled: they end within a character.
    unsettled: usize,
    /// Whether a stop string has occurred.
    stopped: bool,
}

/// What is certain.
#[derive(Debug, Default)]
pub(crate) struct Certain {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
}

impl Writer {
    /// Starts after a prompt.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32], stop: Vec<String>) -> Self {
        Writer {
            detokenizer: Detokenizer::new(tokenizer, prompt),
            stop,
            text: String::new(),
            tokens: VecDeque::new(),
            ahead: 0,
            unsettled: 0,
            stopped: false,
        }
    }

    /// Whether a stop string has occurred.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Adds a token of the text.
    pub(crate) fn push(&mut self, chosen: Chosen) -> Result<Certain, InferError> {
        let new = self.detokenizer.push(chosen.token.id)?;
        self.push_token(chosen, &new);
        self.unsettled = match new.is_empty() {
            true => self.unsettled + 1,
            false => 0,
        };
        self.search();
        let end = match self.stopped {
            true => self.text.len(),
            false => self.text.len() - self.held(),
        };
        Ok(self.pass(end))
    }

    /// Adds a token that ends the text and is not in it.
    pub(crate) fn push_end(&mut self, chosen: Chosen) {
        self.push_token(chosen, "");
    }

    /// All that is left at the end.
    pub(crate) fn finish(&mut self) -> Result<Certain, InferError> {
        if !self.stopped {
            let rest = self.detokenizer.finish()?;
            self.text.push_str(&rest);
            if let Some(last) = self.tokens.back_mut() {
                last.text.push_str(&rest);
            }
            self.search();
        }
        let mut certain = self.pass(self.text.len());
        certain.tokens.extend(self.tokens.drain(..));
        self.unsettled = 0;
        Ok(certain)
    }

    fn push_token(&mut self, chosen: Chosen, text: &str) {
        self.text.push_str(text);
        self.tokens.push_back(Token {
            token: chosen.token,
            top: chosen.top,
            text: text.to_owned(),
        });
    }

    /// Passes on the text up to `end`, and the tokens whose text is passed on.
    fn pass(&mut self, end: usize) -> Certain {
        self.ahead += end;
        let mut tokens = Vec::new();
        while self.tokens.len() > self.unsettled
            && let Some(token) = self
                .tokens
                .pop_front_if(|token| token.text.len() <= self.ahead)
        {
            self.ahead -= token.text.len();
            tokens.push(token);
        }
        Certain {
            text: self.text.drain(..end).collect(),
            tokens,
        }
    }

    /// Ends the text before the first stop string.
    fn search(&mut self) {
        let found = self
            .stop
            .iter()
            .filter_map(|stop| self.text.find(stop.as_str()));
        if let Some(end) = found.min() {
            self.text.truncate(end);
            self.stopped = true;
        }
    }

    /// Bytes at the end of the text that may be the beginning of a stop string.
    fn held(&self) -> usize {
        let begins = |stop: &String| {
            let lengths = (1..stop.len().min(self.text.len() + 1)).rev();
            let mut prefixes = lengths.filter(|&n| stop.is_char_boundary(n));
            prefixes
                .find(|&n| self.text.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        self.stop.iter().map(begins).max().unwrap_or(0)
    }
}
