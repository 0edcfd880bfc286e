//! `response_format`: what the text of an answer has to keep to.

use serde::Deserialize;
use serde_json::Value;

use crate::constraint::Grammar;
use crate::error::ApiError;

/// See the module.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that meets a schema.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
    /// A text of a grammar.
    Grammar {
        /// The language of the definition.
        syntax: Syntax,
        /// The grammar.
        definition: String,
    },
}

/// A schema as the API wraps it.
#[derive(Debug, Clone, Deserialize)]
pub struct NamedSchema {
    /// The schema; without one, any object.
    pub schema: Option<Value>,
}

/// The language of a grammar.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Syntax {
    /// A context-free grammar.
    Lark,
    /// A regular expression.
    Regex,
}

impl ResponseFormat {
    /// The grammar; none for any text.
    pub fn grammar(self) -> Option<Grammar> {
        match self {
            ResponseFormat::Text => None,
            ResponseFormat::JsonObject => Some(Grammar::object()),
            ResponseFormat::JsonSchema { json_schema } => {
                let schema = json_schema.schema.map(Grammar::Schema);
                Some(schema.unwrap_or_else(Grammar::object))
            }
            ResponseFormat::Grammar { syntax, definition } => Some(match syntax {
                Syntax::Lark => Grammar::Lark(definition),
                Syntax::Regex => Grammar::Regex(definition),
            }),
        }
    }

    /// The format of a request: a value that is wrong is named.
    pub fn parse(value: Option<Value>) -> Result<Option<Grammar>, ApiError> {
        let Some(value) = value else {
            return Ok(None);
        };
        let format = serde_json::from_value::<ResponseFormat>(value);
        let format = format.map_err(|error| {
            ApiError::invalid(format!("response_format: {error}")).param("response_format")
        })?;
        Ok(format.grammar())
    }
}
