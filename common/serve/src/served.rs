//! What is served: the model of a pack, with what turns texts into tokens and back.

use std::sync::Arc;

use uc_infer::{InferError, Model, Template};
use uc_model::Tokenizer;
use uc_model::text::TokenBytes;

use crate::constraint::Grammars;
use crate::error::ApiError;
use crate::tools::{self, Style};

/// A model that is ready to be served.
pub struct Served {
    /// Its name in requests and answers.
    pub name: String,
    /// The fingerprint of its pack.
    pub fingerprint: String,
    /// The model.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template; without one there are no conversations.
    pub template: Option<Template>,
    /// Tokens that end a text.
    pub stop_tokens: Vec<u32>,
}

/// What is found once about a model.
pub(crate) struct Prepared {
    pub(crate) served: Served,
    /// By id; empty if the tokens do not stand for bytes in a known way.
    vocabulary: Vec<Option<TokenBytes>>,
    /// The reason if there are none.
    pub(crate) grammars: Result<Grammars, String>,
    /// How tools are called, if the template says so.
    pub(crate) style: Option<Style>,
    /// Whether the template has tools.
    pub(crate) has_tools: bool,
}

impl Prepared {
    pub(crate) fn new(served: Served) -> Self {
        let vocab = served.model.config().vocab;
        let grammars = Grammars::new(&served.tokenizer, vocab, &served.stop_tokens);
        let source = served
            .template
            .as_ref()
            .map(|template| template.source(true));
        Prepared {
            vocabulary: served.tokenizer.vocabulary(vocab).unwrap_or_default(),
            grammars,
            style: source.and_then(Style::of),
            has_tools: source.is_some_and(tools::mentions_tools),
            served,
        }
    }

    /// Size of the vocabulary.
    pub(crate) fn vocab(&self) -> usize {
        self.served.model.config().vocab
    }

    /// The template.
    pub(crate) fn template(&self) -> Result<&Template, ApiError> {
        let template = self.served.template.as_ref();
        template.ok_or_else(|| InferError::NoTemplate.into())
    }

    /// The tokens of a text to continue, with the leading special token of the tokenizer once.
    pub(crate) fn text_tokens(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let mut tokens = self.encode(text)?;
        if let Some(bos) = self.served.tokenizer.bos()
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// The tokens of a text as it is.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let tokens = self.served.tokenizer.encode(text);
        tokens.map_err(|error| InferError::from(error).into())
    }

    /// The text of tokens, without special tokens.
    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String, ApiError> {
        self.check_tokens(tokens)?;
        let text = self.served.tokenizer.decode(tokens);
        text.map_err(|error| InferError::from(error).into())
    }

    /// Checks that the vocabulary has these tokens.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<(), ApiError> {
        let expected = self.vocab();
        match tokens.iter().find(|&&id| id as usize >= expected) {
            Some(&found) => Err(InferError::Token { found, expected }.into()),
            None => Ok(()),
        }
    }

    /// What a token stands for.
    pub(crate) fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.vocabulary.get(id as usize) {
            Some(Some(token)) => token.bytes.clone(),
            _ => {
                let text = self.served.tokenizer.decode_all(&[id]);
                text.unwrap_or_default().into_bytes()
            }
        }
    }

    /// Whether a token is part of no text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        let token = self.vocabulary.get(id as usize);
        matches!(token, Some(Some(token)) if token.special)
    }

    /// The name of a token: its text, or `bytes:\xe2\x80` if it holds a part of a character.
    pub(crate) fn token_name(&self, id: u32) -> String {
        match String::from_utf8(self.token_bytes(id)) {
            Ok(text) => text,
            Err(error) => {
                let bytes = error.as_bytes().iter();
                let names: String = bytes.map(|byte| format!("\\x{byte:02x}")).collect();
                format!("bytes:{names}")
            }
        }
    }
}
