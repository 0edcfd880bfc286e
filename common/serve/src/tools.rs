//! Tool calls in the text of an answer: the styles of published templates, their grammars, and a parser for text as it comes.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::constraint::{Grammar, with_separators};

/// How a model writes the calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen.
    Tagged,
    /// The answer is `{"name": …, "parameters": …}`: Llama 3.1 and later.
    Bare,
}

/// A tool of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the user.
    Content(String),
    /// A call of a tool.
    Call {
        /// The tool.
        name: String,
        /// Its arguments, as JSON.
        arguments: String,
    },
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// What may stand before a call of the bare style.
const PYTHON_TAG: &str = "<|python_tag|>";

impl Style {
    /// The style that a chat template describes; none if it describes no calls of a known style.
    pub fn of(template: &str) -> Option<Self> {
        if !mentions_tools(template) {
            None
        } else if template.contains(OPEN) {
            Some(Style::Tagged)
        } else if template.contains(PYTHON_TAG) || template.contains("\"parameters\": ") {
            Some(Style::Bare)
        } else {
            None
        }
    }

    /// The grammar of an answer that calls these tools, once or (with `several`) more often.
    ///
    /// # Errors
    /// The reason if a schema is none.
    pub fn grammar(self, tools: &[Tool], several: bool) -> Result<Grammar, String> {
        let mut rules = String::from(match several {
            true => "start: call (separator call)*\n",
            false => "start: call\n",
        });
        let separator = match self {
            Style::Tagged => "\n",
            Style::Bare => "; ",
        };
        if several {
            rules += &format!("separator: {}\n", quoted(separator));
        }
        let names: Vec<String> = (0..tools.len())
            .map(|index| format!("call_{index}"))
            .collect();
        rules += &format!("call: {}\n", names.join(" | "));
        for (index, tool) in tools.iter().enumerate() {
            let name = quoted(&tool.name);
            let (before, after) = match self {
                Style::Tagged => (
                    format!("{OPEN}\n{{\"name\": {name}, \"arguments\": "),
                    format!("}}\n{CLOSE}"),
                ),
                Style::Bare => (
                    format!("{{\"name\": {name}, \"parameters\": "),
                    "}".to_owned(),
                ),
            };
            let (before, after) = (quoted(&before), quoted(&after));
            let schema = with_separators(&tool.parameters)?;
            rules += &format!("call_{index}: {before} arguments_{index} {after}\n");
            rules += &format!("arguments_{index}: %json {schema}\n");
        }
        Ok(Grammar::Lark(rules))
    }
}

/// Whether a chat template has tools.
pub fn mentions_tools(template: &str) -> bool {
    template.contains("tools")
}

/// A JSON string, which is also how the grammar writes a literal.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Separates calls from text as it comes.
#[derive(Debug)]
pub struct Parser {
    style: Style,
    /// Names of the tools that may be called.
    names: Vec<String>,
    /// What has not been passed on.
    held: String,
    /// Whether the text so far is not a call of the bare style.
    is_text: bool,
    /// Whether a call of the tagged style has begun.
    inside: bool,
}

impl Parser {
    /// A parser for calls of these tools.
    pub fn new(style: Style, names: Vec<String>) -> Self {
        Parser {
            style,
            names,
            held: String::new(),
            is_text: false,
            inside: false,
        }
    }

    /// What another piece of the answer settles.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        match self.style {
            Style::Tagged => self.tagged(),
            Style::Bare => self.bare(),
        }
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() && !self.inside {
            return Vec::new();
        }
        match self.style {
            // The end of the call may have been cut off with the end of the text.
            Style::Tagged if self.inside => {
                let inner = &held[..held.len() - beginning(CLOSE, &held)];
                let raw = || Piece::Content(format!("{OPEN}{held}"));
                vec![self.call(inner).unwrap_or_else(raw)]
            }
            Style::Bare if !self.is_text => self
                .calls(&held)
                .unwrap_or_else(|| vec![Piece::Content(held)]),
            _ => vec![Piece::Content(held)],
        }
    }

    fn tagged(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        loop {
            if self.inside {
                let Some(end) = self.held.find(CLOSE) else {
                    return pieces;
                };
                let inner = self.held[..end].to_owned();
                self.held.drain(..end + CLOSE.len());
                self.inside = false;
                let raw = || Piece::Content(format!("{OPEN}{inner}{CLOSE}"));
                pieces.push(self.call(&inner).unwrap_or_else(raw));
            } else if let Some(start) = self.held.find(OPEN) {
                let before = self.held[..start].trim_end().to_owned();
                self.held.drain(..start + OPEN.len());
                self.inside = true;
                if !before.is_empty() {
                    pieces.push(Piece::Content(before));
                }
            } else {
                let settled = self.held.len() - unsettled(&self.held);
                if settled > 0 {
                    pieces.push(Piece::Content(self.held.drain(..settled).collect()));
                }
                return pieces;
            }
        }
    }

    fn bare(&mut self) -> Vec<Piece> {
        let start = self.held.trim_start();
        // Until something else than a call has begun, nothing is known.
        let may_be_call = start.starts_with(['{', '['])
            || PYTHON_TAG.starts_with(start)
            || start.starts_with(PYTHON_TAG);
        if !self.is_text && may_be_call {
            return Vec::new();
        }
        self.is_text = true;
        vec![Piece::Content(std::mem::take(&mut self.held))]
    }

    /// The call that this JSON describes.
    fn call(&self, json: &str) -> Option<Piece> {
        self.piece(serde_json::from_str(json.trim()).ok()?)
    }

    /// The calls of a whole answer in the bare style.
    fn calls(&self, text: &str) -> Option<Vec<Piece>> {
        let mut rest = text.trim().trim_start_matches(PYTHON_TAG).trim_start();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter();
            let value: Value = values.next()?.ok()?;
            rest = rest[values.byte_offset()..].trim_start_matches([';', ',', ' ', '\n']);
            let several = match value {
                Value::Array(items) => items,
                one => vec![one],
            };
            for value in several {
                pieces.push(self.piece(value)?);
            }
        }
        (!pieces.is_empty()).then_some(pieces)
    }

    fn piece(&self, value: Value) -> Option<Piece> {
        let call = Call::deserialize(value).ok()?;
        let known = self.names.contains(&call.name);
        known.then(|| Piece::Call {
            name: call.name,
            arguments: Value::Object(call.arguments).to_string(),
        })
    }
}

/// A call as a model writes it.
#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(default, alias = "parameters")]
    arguments: Map<String, Value>,
}

/// Bytes at the end of a text that belong to a call if one follows: blanks, and the beginning of its tag.
fn unsettled(text: &str) -> usize {
    let tag = beginning(OPEN, text);
    let before = &text[..text.len() - tag];
    tag + before.len() - before.trim_end().len()
}

/// Bytes at the end of a text with which a tag may begin.
fn beginning(tag: &str, text: &str) -> usize {
    let mut lengths = (1..tag.len()).rev();
    lengths.find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> Piece {
        Piece::Content(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> Piece {
        Piece::Call {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        }
    }

    /// What an answer consists of, with neighbouring texts joined.
    fn pieces(style: Style, parts: &[&str]) -> Vec<Piece> {
        let mut parser = Parser::new(style, vec!["f".to_owned(), "g".to_owned()]);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut add = |piece: Piece| match (pieces.last_mut(), piece) {
            (Some(Piece::Content(text)), Piece::Content(more)) => text.push_str(&more),
            (_, piece) => pieces.push(piece),
        };
        for part in parts {
            parser.push(part).into_iter().for_each(&mut add);
        }
        parser.finish().into_iter().for_each(&mut add);
        pieces
    }

    fn check(style: Style, text: &str, expected: &[Piece]) {
        assert_eq!(pieces(style, &[text]), expected, "{text}");
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(pieces(style, &characters), expected, "{text}, one by one");
    }

    #[test]
    fn tagged_calls_are_found_wherever_the_text_is_cut() {
        let check = |text: &str, expected: &[Piece]| check(Style::Tagged, text, expected);
        check("Hello <b> there ", &[content("Hello <b> there ")]);
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"</x>\"}}\n</tool_call>";
        check(one, &[call("f", r#"{"b":1,"a":"</x>"}"#)]);
        check(
            &format!("Let me see.\n{one}\n<tool_call>{{\"name\": \"g\"}}</tool_call>"),
            &[
                content("Let me see."),
                call("f", r#"{"b":1,"a":"</x>"}"#),
                call("g", "{}"),
            ],
        );
        // Cut off before the closing tag.
        check(&one[..one.len() - 5], &[call("f", r#"{"b":1,"a":"</x>"}"#)]);
        // Not a call: an unknown tool, no JSON.
        for wrong in [
            "<tool_call>{\"name\": \"h\"}</tool_call>",
            "<tool_call>f(1)</tool_call> a",
            "<tool_call>",
            "<tool_call>{\"name\": \"f\", \"argum",
            "a <tool_c",
        ] {
            check(wrong, &[content(wrong)]);
        }
    }

    #[test]
    fn bare_calls_are_whole_answers() {
        let check = |text: &str, expected: &[Piece]| check(Style::Bare, text, expected);
        check(
            "\n{\"name\": \"f\", \"parameters\": {\"a\": [1]}}",
            &[call("f", r#"{"a":[1]}"#)],
        );
        check(
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
            &[call("f", "{}"), call("g", "{}")],
        );
        for text in [
            "Hello {\"name\": \"f\"}",
            "{\"name\": \"h\", \"parameters\": {}}",
            "{\"a\": 1}",
            "{\"name\": \"f\", ",
            "<|pyth",
        ] {
            check(text, &[content(text)]);
        }
    }

    #[test]
    fn a_template_says_how_calls_are_written() {
        for (template, expected) in [
            ("{% if tools %}<tool_call>{% endif %}", Some(Style::Tagged)),
            ("{% if tools %}<|python_tag|>{% endif %}", Some(Style::Bare)),
            ("{% if tools %}[CALL]{% endif %}", None),
            ("{{ messages }}<tool_call>", None),
        ] {
            assert_eq!(Style::of(template), expected, "{template}");
        }
    }
}
