//! The messages of a conversation, from the API's form to what templates expect.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Most messages.
const MAX_MESSAGES: usize = 10_000;

/// A message as the API has it.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    role: String,
    content: Option<Value>,
    name: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
}

/// A call that the assistant has made.
#[derive(Debug, Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: String,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    /// JSON as text, as the API has it, or the object.
    arguments: Value,
}

/// The messages for a template. `knows_developer` says whether it has the role `developer`.
///
/// # Errors
/// 400 for no messages, unknown roles, and content that is no text.
pub(crate) fn for_template(
    messages: Vec<Message>,
    knows_developer: bool,
) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let found = format!("{} messages", messages.len());
        return Err(ApiError::field(
            "messages",
            found,
            &format!("1 to {MAX_MESSAGES}"),
        ));
    }
    let messages = messages.into_iter().enumerate();
    messages
        .map(|(index, message)| converted(index, message, knows_developer))
        .collect()
}

fn converted(index: usize, message: Message, knows_developer: bool) -> Result<Value, ApiError> {
    let place = format!("messages[{index}]");
    let role = match message.role.as_str() {
        "developer" if !knows_developer => "system",
        role @ ("system" | "developer" | "user" | "assistant" | "tool") => role,
        other => {
            let expected = "system, developer, user, assistant or tool";
            return Err(ApiError::field(
                &format!("{place}.role"),
                format!("{other:?}"),
                expected,
            ));
        }
    };
    let has_calls = message
        .tool_calls
        .as_ref()
        .is_some_and(|calls| !calls.is_empty());
    let content = match message.content {
        Some(content) => text(&format!("{place}.content"), content)?,
        None if has_calls => String::new(),
        None => {
            return Err(ApiError::field(
                &format!("{place}.content"),
                "nothing",
                "a text",
            ));
        }
    };
    let mut fields = Map::new();
    fields.insert("role".to_owned(), role.into());
    fields.insert("content".to_owned(), content.into());
    if let Some(name) = message.name {
        fields.insert("name".to_owned(), name.into());
    }
    if let Some(id) = message.tool_call_id {
        fields.insert("tool_call_id".to_owned(), id.into());
    }
    if let Some(calls) = message.tool_calls
        && has_calls
    {
        let calls = calls.into_iter().map(call).collect::<Vec<_>>();
        fields.insert("tool_calls".to_owned(), calls.into());
    }
    Ok(Value::Object(fields))
}

/// A call with its arguments as an object, which is what templates write.
fn call(call: ToolCall) -> Value {
    let arguments = match &call.function.arguments {
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Value::Object(fields),
            _ => call.function.arguments.clone(),
        },
        other => other.clone(),
    };
    json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.function.name, "arguments": arguments },
    })
}

/// The text of a message: a text, or a list of parts that are texts.
fn text(place: &str, content: Value) -> Result<String, ApiError> {
    let wrong = |found: &str| {
        let expected = "a text, or parts of the type text: the model reads nothing else";
        Err(ApiError::field(place, found, expected))
    };
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let mut whole = String::new();
            for part in &parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(text)) => whole.push_str(text),
                    (Some(kind), _) => return wrong(&format!("a part of the type {kind}")),
                    _ => return wrong("a part without a type"),
                }
            }
            Ok(whole)
        }
        _ => wrong("neither a text nor a list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(messages: Value) -> Result<Vec<Value>, ApiError> {
        for_template(serde_json::from_value(messages).expect("messages"), false)
    }

    #[test]
    fn messages_get_the_form_that_templates_know() {
        let found = convert(json!([
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]))
        .expect("known");
        let expected = json!([
            {"role": "system", "content": "d"},
            {"role": "user", "content": "ab"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
            ]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ]);
        assert_eq!(Value::from(found), expected);
    }

    #[test]
    fn what_the_model_cannot_read_is_refused_at_its_place() {
        for (messages, place) in [
            (json!([]), "messages"),
            (
                json!([{"role": "king", "content": "a"}]),
                "messages[0].role",
            ),
            (json!([{"role": "user"}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": 1}]),
                "messages[0].content",
            ),
            (
                json!([{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "image_url"}]}]),
                "messages[1].content",
            ),
        ] {
            let error = convert(messages).expect_err(place);
            assert_eq!(error.param.as_deref(), Some(place), "{error:?}");
        }
    }
}
