//! From tokens to text as they come.
//!
//! A character may take several tokens, and the text of a token may depend on the ones before it (a leading space). So the
//! text of the last tokens is decoded together, and what is new in it is passed on once it ends with a whole character.

use std::sync::Arc;

use uc_model::Tokenizer;

use crate::error::InferError;

/// What a decoder writes for bytes that are not a whole character.
const REPLACEMENT: char = '\u{fffd}';

/// Turns tokens into text.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The tokens whose text is not settled, after some that give them their context.
    tokens: Vec<u32>,
    /// Number of tokens at the beginning of `tokens` whose text has been passed on.
    settled: usize,
}

impl Detokenizer {
    /// Starts after the tokens `before`, whose text is not repeated.
    pub fn new(tokenizer: Arc<Tokenizer>, before: &[u32]) -> Self {
        /// Tokens that give the first ones their context.
        const CONTEXT: usize = 6;
        let tokens = before[before.len().saturating_sub(CONTEXT)..].to_vec();
        Detokenizer {
            tokenizer,
            settled: tokens.len(),
            tokens,
        }
    }

    /// The text that is settled by another token, which may be empty.
    ///
    /// # Errors
    /// [`InferError::Text`] if the tokenizer fails.
    pub fn push(&mut self, token: u32) -> Result<String, InferError> {
        self.tokens.push(token);
        let (before, text) = self.decoded()?;
        if text.len() <= before.len() || text.ends_with(REPLACEMENT) {
            return Ok(String::new());
        }
        let new = self.new_text(&before, &text);
        self.tokens.drain(..self.settled);
        self.settled = self.tokens.len();
        Ok(new)
    }

    /// The text of the tokens that are left, in which bytes that are no character are replaced.
    ///
    /// # Errors
    /// [`InferError::Text`] if the tokenizer fails.
    pub fn finish(&self) -> Result<String, InferError> {
        let (before, text) = self.decoded()?;
        Ok(self.new_text(&before, &text))
    }

    /// The text of the settled tokens, and of all.
    fn decoded(&self) -> Result<(String, String), InferError> {
        let before = self.tokenizer.decode(&self.tokens[..self.settled])?;
        Ok((before, self.tokenizer.decode(&self.tokens)?))
    }

    /// What follows `before` in `text`.
    fn new_text(&self, before: &str, text: &str) -> String {
        let start = before.len().min(text.len());
        match text.get(start..) {
            Some(new) => new.to_owned(),
            // The end of the context was part of a character: whole characters of the text are what is left.
            None => text[text.ceil_char_boundary(start)..].to_owned(),
        }
    }
}
