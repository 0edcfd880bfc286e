//! `tools` and `tool_choice`: which tools the template is told of, and what the answer has to be.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::constraint::Grammar;
use crate::error::ApiError;
use crate::served::Prepared;
use crate::tools::{Parser, Style, Tool};

/// Most tools.
const MAX_TOOLS: usize = 128;

/// The tools of a request.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// As the template gets them.
    pub(crate) values: Vec<Value>,
    tools: Vec<Tool>,
    choice: Choice,
    style: Option<Style>,
}

/// What the answer is.
#[derive(Debug, Default, PartialEq)]
enum Choice {
    /// A text without calls.
    #[default]
    None,
    /// A text that may contain calls.
    Auto,
    /// At least one call.
    Required,
    /// A call of this tool.
    Named(String),
}

#[derive(Debug, Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    function: WireFunction,
}

#[derive(Debug, Deserialize)]
struct WireFunction {
    name: String,
    parameters: Option<Value>,
}

impl Tools {
    /// Reads the fields of a request.
    ///
    /// # Errors
    /// 400 for malformed tools, an unknown choice, or a model whose template has no tools.
    pub(crate) fn read(
        prepared: &Prepared,
        values: Option<Vec<Value>>,
        choice: Option<Value>,
    ) -> Result<Self, ApiError> {
        let values = values.unwrap_or_default();
        if values.len() > MAX_TOOLS {
            let found = format!("{} tools", values.len());
            return Err(ApiError::field(
                "tools",
                found,
                &format!("at most {MAX_TOOLS}"),
            ));
        }
        let tools = values
            .iter()
            .enumerate()
            .map(tool)
            .collect::<Result<Vec<_>, _>>()?;
        let choice = read_choice(choice, &tools)?;
        if choice == Choice::None {
            // The model is not told of tools that it must not call.
            return Ok(Tools::default());
        }
        if !prepared.has_tools {
            let message =
                "tools: found some, expected none: the model's chat template has no tools";
            return Err(ApiError::invalid(message).param("tools"));
        }
        if choice != Choice::Auto && prepared.style.is_none() {
            let message = "tool_choice: found a required call, expected auto or none: how this model writes calls is not known";
            return Err(ApiError::invalid(message).param("tool_choice"));
        }
        Ok(Tools {
            values,
            tools,
            choice,
            style: prepared.style,
        })
    }

    /// The grammar of an answer that must be a call.
    pub(crate) fn grammar(&self, several: bool) -> Result<Option<Grammar>, ApiError> {
        let tools: Vec<Tool> = match &self.choice {
            Choice::None | Choice::Auto => return Ok(None),
            Choice::Required => self.tools.clone(),
            Choice::Named(name) => {
                let named = self.tools.iter().filter(|tool| tool.name == *name);
                named.cloned().collect()
            }
        };
        let Some(style) = self.style else {
            return Ok(None);
        };
        let several = several && self.choice == Choice::Required;
        let grammar = style.grammar(&tools, several);
        let grammar = grammar.map_err(|reason| {
            ApiError::invalid(format!("tools: parameters: {reason}")).param("tools")
        })?;
        Ok(Some(grammar))
    }

    /// A parser for the answer, if it may contain calls.
    pub(crate) fn parser(&self) -> Option<Parser> {
        let names = self.tools.iter().map(|tool| tool.name.clone()).collect();
        match self.choice {
            Choice::None => None,
            _ => self.style.map(|style| Parser::new(style, names)),
        }
    }

    /// Whether the answer must be a call of one tool that the client has named: the API then ends it with "stop".
    pub(crate) fn is_named(&self) -> bool {
        matches!(self.choice, Choice::Named(_))
    }
}

fn tool((index, value): (usize, &Value)) -> Result<Tool, ApiError> {
    let place = format!("tools[{index}]");
    let wire = Wire::deserialize(value);
    let wire =
        wire.map_err(|error| ApiError::invalid(format!("{place}: {error}")).param(&*place))?;
    if wire.kind != "function" {
        return Err(ApiError::field(
            &place,
            format!("the type {:?}", wire.kind),
            "function",
        ));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name = wire.function.name;
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
        let expected = "a name of 1 to 64 letters, digits, underscores, hyphens and dots";
        return Err(ApiError::field(&place, format!("{name:?}"), expected));
    }
    let empty = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let parameters = match wire.function.parameters {
        None | Some(Value::Null) => empty,
        Some(parameters) if parameters.is_object() => parameters,
        Some(_) => {
            return Err(ApiError::field(
                &place,
                "parameters of another type",
                "a JSON schema",
            ));
        }
    };
    Ok(Tool { name, parameters })
}

fn read_choice(choice: Option<Value>, tools: &[Tool]) -> Result<Choice, ApiError> {
    let expected = "none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": …}} with the name of a tool";
    let wrong = |found: &Value| Err(ApiError::field("tool_choice", found, expected));
    let choice = match choice {
        None if tools.is_empty() => Choice::None,
        None => Choice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => Choice::None,
            // Without tools there is nothing to choose.
            "auto" if tools.is_empty() => Choice::None,
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            _ => return wrong(&word.into()),
        },
        Some(value) => match value["function"]["name"].as_str() {
            Some(name) => Choice::Named(name.to_owned()),
            None => return wrong(&value),
        },
    };
    match &choice {
        Choice::Required if tools.is_empty() => Err(ApiError::field(
            "tool_choice",
            "required without tools",
            "tools",
        )),
        Choice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => Err(
            ApiError::field("tool_choice", format!("the tool {name:?}"), expected),
        ),
        _ => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_a_word_or_one_of_the_tools() {
        let tools = [Tool {
            name: "f".to_owned(),
            parameters: json!({}),
        }];
        let named = json!({"type": "function", "function": {"name": "f"}});
        for (choice, tools, expected) in [
            (None, &tools[..], Choice::Auto),
            (None, &[], Choice::None),
            (Some(json!("none")), &tools, Choice::None),
            (Some(json!("auto")), &[], Choice::None),
            (Some(json!("required")), &tools, Choice::Required),
            (Some(named.clone()), &tools, Choice::Named("f".to_owned())),
        ] {
            assert_eq!(
                read_choice(choice.clone(), tools),
                Ok(expected),
                "{choice:?}"
            );
        }
        for (choice, tools) in [
            (json!("required"), &[][..]),
            (named, &[]),
            (json!("always"), &tools),
            (
                json!({"type": "function", "function": {"name": "g"}}),
                &tools,
            ),
            (json!(1), &tools),
        ] {
            let error = read_choice(Some(choice.clone()), tools).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some("tool_choice"), "{choice}");
        }
    }

    #[test]
    fn malformed_tools_are_refused_at_their_place() {
        let function = |function: Value| json!({"type": "function", "function": function});
        assert!(tool((0, &function(json!({"name": "a.b-c_1"})))).is_ok());
        for value in [
            json!("f"),
            json!({"type": "function"}),
            json!({"type": "retrieval", "function": {"name": "f"}}),
            function(json!({"name": ""})),
            function(json!({"name": "a b"})),
            function(json!({"name": "f", "parameters": 1})),
        ] {
            let error = tool((3, &value)).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some("tools[3]"), "{value}");
        }
    }
}
