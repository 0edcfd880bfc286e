//! Answers that keep to a JSON schema or a grammar: `llguidance` says which tokens may follow.
//!
//! The vocabulary is indexed once for each server. Special tokens are not part of any text, so no grammar can use them; the
//! tokens that end a text are allowed where the grammar may end.

use std::ops::ControlFlow;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use uc_infer::Constraint;
use uc_model::Tokenizer;

/// Longest grammar or schema, bytes.
const MAX_GRAMMAR: usize = 256 << 10;

/// What an answer has to keep to.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON schema.
    Schema(Value),
    /// A regular expression for the whole answer.
    Regex(String),
    /// A grammar in the dialect of Lark that llguidance reads.
    Lark(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn object() -> Self {
        Grammar::Schema(json!({"type": "object"}))
    }

    fn bytes(&self) -> usize {
        match self {
            Grammar::Schema(schema) => schema.to_string().len(),
            Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
        }
    }
}

/// Makes constraints for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// Indexes the vocabulary of a model with `vocab` tokens. `ends` are the tokens that end a text.
    ///
    /// # Errors
    /// The reason if the tokenizer's tokens do not stand for bytes in a known way.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<Self, String> {
        let tokens = tokenizer
            .vocabulary(vocab)
            .map_err(|error| error.to_string())?;
        let mut words: Vec<Vec<u8>> = tokens
            .into_iter()
            .map(|token| match token {
                Some(token) if token.special => marked(&token.bytes),
                Some(token) => token.bytes,
                None => Vec::new(),
            })
            .collect();
        for &end in ends {
            if let Some(word) = words.get_mut(end as usize) {
                *word = marked(word);
            }
        }
        // The library needs an end. For a model without one, it is a token that the model does not have.
        words.push(marked(b"<end>"));
        let absent = words.len() as u32 - 1;
        let mut ends = ends.to_vec();
        ends.retain(|&end| end < absent);
        if ends.is_empty() {
            ends.push(absent);
        }
        let info = TokRxInfo::new(words.len() as u32, ends[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Grammars { factory })
    }

    /// A constraint for one answer. It takes up to a second for a large grammar.
    ///
    /// # Errors
    /// The reason if the grammar is malformed, too large, or nothing meets it.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, String> {
        let found = grammar.bytes();
        if found > MAX_GRAMMAR {
            return Err(format!(
                "found {found} bytes, expected at most {MAX_GRAMMAR}"
            ));
        }
        let grammar = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(with_separators(schema)?),
            Grammar::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        // What cannot be met is found by the first mask.
        let first = matcher.compute_mask();
        let first = first.map_err(|error| first_line(&error.to_string()))?;
        if first.is_zero() {
            return Err("found nothing that meets it, expected at least one answer".to_owned());
        }
        Ok(Box::new(MatcherConstraint { matcher }))
    }
}

/// A word that no text contains.
fn marked(word: &[u8]) -> Vec<u8> {
    let mut marked = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    marked.extend_from_slice(word);
    marked
}

/// A schema whose answers have the separators that models write most. With blanks wherever JSON allows them, a model may write
/// blanks forever.
pub fn with_separators(schema: &Value) -> Result<Value, String> {
    match schema {
        Value::Object(fields) => {
            let mut fields = fields.clone();
            let options = json!({
                "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false,
            });
            fields.insert("x-guidance".to_owned(), options);
            Ok(Value::Object(fields))
        }
        Value::Bool(_) => Ok(schema.clone()),
        other => Err(format!("found {other}, expected a JSON schema: an object")),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The state of one answer.
struct MatcherConstraint {
    matcher: Matcher,
}

impl Constraint for MatcherConstraint {
    fn allow(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos();
        let mask = mask.map_err(|error| first_line(&error.to_string()))?;
        for (allowed, bits) in allowed.iter_mut().zip(mask.as_slice()) {
            *allowed = *bits;
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<ControlFlow<()>, String> {
        let accepted = self.matcher.consume_token(token);
        accepted.map_err(|error| first_line(&error.to_string()))?;
        Ok(match self.matcher.is_stopped() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    }
}
