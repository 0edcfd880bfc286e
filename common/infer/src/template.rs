//! The chat template of a pack's tokenizer: from messages to the text of a prompt.
//!
//! Templates are Jinja, written for the environment of transformers: blocks without surrounding blanks, `break` and `continue`,
//! the methods of Python's strings and dictionaries, `raise_exception`, `strftime_now`, `tojson`. The special tokens are those
//! of the template: nothing is put in front of its text.
//!
//! A template comes with the pack. What it may do is limited, so that one that loops or writes without end is an error. The
//! limits are no sandbox: a template can still join a text with itself until the memory is full.

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use uc_pack::Pack;

use crate::error::InferError;
use crate::load::{self, Checks};

mod clock;

use clock::{now, strftime};

/// The description of the tokenizer, which may hold the template.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// A file that holds the template alone; it takes precedence.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Name of the template that is used where there are several.
const DEFAULT: &str = "default";
/// Name of the one for conversations with tools, where it is apart.
const TOOL_USE: &str = "tool_use";

/// Most steps of a template for one text: hundreds for each message of a conversation of ten thousand, about a second.
const MAX_STEPS: u64 = 10_000_000;
/// Most bytes of the text of a template.
const MAX_TEXT: usize = 64 << 20;

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: &str) -> Self {
        Message {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The messages: objects with `role`, `content` and what else a template knows, such as `tool_calls`.
    pub messages: &'a [serde_json::Value],
    /// The tools that the assistant may call, as JSON schemas; empty for none.
    pub tools: &'a [serde_json::Value],
    /// Variables that are the template's own, such as `enable_thinking`.
    pub variables: &'a serde_json::Map<String, serde_json::Value>,
    /// Whether the text ends where the assistant speaks next.
    pub add_generation_prompt: bool,
}

/// What of `tokenizer_config.json` a template needs.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<Templates>,
    #[serde(default)]
    bos_token: Option<Token>,
    #[serde(default)]
    eos_token: Option<Token>,
}

/// One template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// A special token: its text, or an object with it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Token::Text(text) | Token::Object { content: text } => text,
        }
    }
}

/// A chat template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    /// By name.
    sources: BTreeMap<String, String>,
    bos: String,
    eos: String,
}

impl Template {
    /// The template of a pack.
    ///
    /// # Errors
    /// [`InferError::NoTemplate`] if the pack has none, [`InferError::Template`] for one that cannot be read, and those of
    /// [`load::file`].
    pub fn load(pack: &Pack, checks: Checks) -> Result<Self, InferError> {
        let read = |name: &str| match has(pack, name) {
            true => load::file(pack, name, checks).map(Some),
            false => Ok(None),
        };
        let config = read(TOKENIZER_CONFIG)?.unwrap_or_else(|| b"{}".to_vec());
        let alone = match read(TEMPLATE_FILE)? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| InferError::Template {
                reason: format!("{TEMPLATE_FILE} is not UTF-8"),
            })?),
            None => None,
        };
        Template::parse(&config, alone)
    }

    /// A template from the bytes of a `tokenizer_config.json`, or from a text of its own, which takes precedence.
    ///
    /// # Errors
    /// [`InferError::NoTemplate`], [`InferError::Template`].
    pub fn parse(config: &[u8], alone: Option<String>) -> Result<Self, InferError> {
        let config: TokenizerConfig =
            serde_json::from_slice(config).map_err(|error| InferError::Template {
                reason: format!("{TOKENIZER_CONFIG}: {error}"),
            })?;
        let mut sources = BTreeMap::new();
        match config.chat_template {
            Some(Templates::One(template)) => {
                sources.insert(DEFAULT.to_owned(), template);
            }
            Some(Templates::Named(templates)) => {
                sources.extend(
                    templates
                        .into_iter()
                        .map(|named| (named.name, named.template)),
                );
            }
            None => {}
        }
        if let Some(alone) = alone {
            sources = BTreeMap::from([(DEFAULT.to_owned(), alone)]);
        }
        sources.retain(|name, _| [DEFAULT, TOOL_USE].contains(&name.as_str()));
        let mut environment = environment();
        for (name, source) in &sources {
            environment
                .add_template_owned(name.clone(), without_generation_blocks(source))
                .map_err(template_error)?;
        }
        if !sources.contains_key(DEFAULT) {
            return Err(InferError::NoTemplate);
        }
        Ok(Template {
            environment,
            sources,
            bos: config.bos_token.map(Token::text).unwrap_or_default(),
            eos: config.eos_token.map(Token::text).unwrap_or_default(),
        })
    }

    /// The text of the token that ends what is said; empty if there is none.
    pub fn eos(&self) -> &str {
        &self.eos
    }

    /// The text of the token that begins a text; empty if there is none.
    pub fn bos(&self) -> &str {
        &self.bos
    }

    /// The template's source for conversations with or without tools.
    pub fn source(&self, with_tools: bool) -> &str {
        &self.sources[self.name(with_tools)]
    }

    fn name(&self, with_tools: bool) -> &'static str {
        match with_tools && self.sources.contains_key(TOOL_USE) {
            true => TOOL_USE,
            false => DEFAULT,
        }
    }

    /// The text of a conversation, up to where the assistant speaks next.
    ///
    /// # Errors
    /// [`InferError::Template`] if the template fails, or refuses the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, InferError> {
        self.render_values(
            DEFAULT,
            context! { messages, add_generation_prompt => true },
        )
    }

    /// The text of a conversation with tools or variables of the template's own. Those do not replace the messages, the tools
    /// and the special tokens.
    ///
    /// # Errors
    /// [`InferError::Template`] if the template fails, or refuses the conversation.
    pub fn render_conversation(
        &self,
        conversation: Conversation<'_>,
    ) -> Result<String, InferError> {
        let Conversation {
            messages,
            tools,
            variables,
            add_generation_prompt,
        } = conversation;
        let name = self.name(!tools.is_empty());
        let mut values = context! { messages, add_generation_prompt };
        if !tools.is_empty() {
            values = context! { tools, ..values };
        }
        self.render_values(
            name,
            context! { ..values, ..Value::from_serialize(variables) },
        )
    }

    fn render_values(&self, name: &str, values: Value) -> Result<String, InferError> {
        let tokens = context! { bos_token => self.bos, eos_token => self.eos };
        let template = self
            .environment
            .get_template(name)
            .map_err(template_error)?;
        let mut text = Limited::default();
        let rendered = template.render_captured_to(context! { ..tokens, ..values }, &mut text);
        let endless = |found: String| InferError::Template {
            reason: format!(
                "the template {name:?} {found}, expected an end; it may loop or repeat a text"
            ),
        };
        match rendered {
            _ if text.is_full => Err(endless(format!("wrote more than {MAX_TEXT} bytes"))),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                Err(endless(format!("took more than {MAX_STEPS} steps")))
            }
            Err(error) => Err(template_error(error)),
            Ok(_) => String::from_utf8(text.bytes).map_err(|error| InferError::Template {
                reason: error.to_string(),
            }),
        }
    }
}

/// Text of at most [`MAX_TEXT`] bytes.
#[derive(Default)]
struct Limited {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_TEXT - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the manifest names a file.
fn has(pack: &Pack, name: &str) -> bool {
    pack.manifest().files.iter().any(|file| file.name == name)
}

fn template_error(error: Error) -> InferError {
    InferError::Template {
        reason: format!("{error:#}"),
    }
}

/// The environment that templates are written for.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", |format: String| strftime(&format, now()));
    environment.add_filter("tojson", to_json);
    environment
}

/// The template without the tags that mark, for training, what the assistant says: `{% generation %}`, `{% endgeneration %}`.
/// Blanks are stripped as around any other block.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|end| start + end + 2) else {
            break;
        };
        let tag = &rest[start..end];
        let name = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        match name {
            "generation" => out.push_str(&tag.replace(name, "if true")),
            "endgeneration" => out.push_str(&tag.replace(name, "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// JSON as Python's `json.dumps` writes it.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Both concern other characters than JSON needs to escape; templates pass what is the default here.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let result = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, formatter,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, Python,
        )),
    };
    let bad =
        |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    result.map_err(|error| bad(&error))?;
    String::from_utf8(bytes).map_err(|error| bad(&error))
}

/// Separators with a blank, as Python writes them.
struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<Template, InferError> {
        let config = serde_json::json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
        Template::parse(config.to_string().as_bytes(), Some(source.to_owned()))
    }

    fn rendered(source: &str) -> Result<String, InferError> {
        let messages = [
            Message::new("system", " be <brief> "),
            Message::new("user", "Hi \"you\""),
        ];
        template(source)?.render(&messages)
    }

    #[test]
    fn templates_see_the_environment_of_transformers() {
        for (source, expected) in [
            ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
            (
                "{% for m in messages %}\n  {% if loop.first %}\n{{ m['content'].strip() }}\n  {% endif %}\n{% endfor %}",
                "be <brief>\n",
            ),
            (
                "{%- for m in messages %}{%- if m.role == 'system' %}{% continue %}{% endif %}{{ m.role.upper() + m['role'].title() }}{% endfor %}",
                "USERUser",
            ),
            (
                "{{ messages[1] | tojson }}",
                r#"{"role": "user", "content": "Hi \"you\""}"#,
            ),
            (
                "{{ messages[0].content.split('<')[1].startswith('brief') }}",
                "True",
            ),
            ("a{%- generation -%} b {%- endgeneration -%} c", "abc"),
            ("{{ messages[::-1][0].role }}", "user"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{% if tools is defined and tools %}x{% endif %}{{ 'y' if add_generation_prompt }}",
                "y",
            ),
        ] {
            let found = rendered(source).expect(source);
            let found = found.replace("true", "True");
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn a_template_that_refuses_or_is_broken_or_absent_is_a_clear_error() {
        let error = rendered("{{ raise_exception('roles must alternate') }}").expect_err("refused");
        assert!(
            error.to_string().contains("roles must alternate"),
            "{error}"
        );
        let error = rendered("{% for %}").expect_err("broken");
        assert!(matches!(error, InferError::Template { .. }), "{error}");
        let error = Template::parse(b"{}", None).expect_err("absent");
        assert!(matches!(error, InferError::NoTemplate), "{error}");
        let error = Template::parse(b"[", None).expect_err("no object");
        assert!(matches!(error, InferError::Template { .. }), "{error}");
    }

    #[test]
    fn a_template_that_loops_or_writes_without_end_is_an_error_that_names_it() {
        let nested = |inside: &str| {
            let open = "{% for i in range(100000) %}".repeat(3);
            format!("{open}{inside}{}", "{% endfor %}".repeat(3))
        };
        for (source, expected) in [
            (nested("{% set x = i %}"), "10000000 steps"),
            (nested("{{ i }}"), "10000000 steps"),
            (nested("{{ 'x' * 50000000 }}"), "67108864 bytes"),
            (nested(&"x".repeat(1 << 20)), "67108864 bytes"),
            (
                "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}".to_owned(),
                "recursion",
            ),
            ("{{ 'x' * 1000000000 }}".to_owned(), "too large"),
            (
                "{% for i in range(1000000000) %}{% endfor %}".to_owned(),
                "too many",
            ),
        ] {
            let error = rendered(&source).expect_err("without end").to_string();
            assert!(error.contains(expected), "{source:.80}: {error}");
            assert!(error.contains("default"), "{error}");
        }
        // Each text has all the steps, and a long conversation has enough of them.
        let long =
            template("{% for m in messages %}{{ m.role + ': ' + m.content | trim }}\n{% endfor %}");
        let long = long.expect("a template");
        let messages = vec![Message::new("user", "Hi"); 30_000];
        for _ in 0..2 {
            let text = long.render(&messages).expect("text");
            assert_eq!(text.lines().count(), messages.len());
        }
    }

    #[test]
    fn tools_and_variables_reach_the_template_and_replace_nothing_of_it() {
        let config = serde_json::json!({"bos_token": "<s>", "chat_template": [
            {"name": "tool_use", "template": "{% for t in tools %}{{ t | tojson }}{% endfor %}{{ messages[0].content }}{{ bos_token }}"},
            {"name": "default", "template": "{{ 'tools' if tools }}{{ mood }}{{ add_generation_prompt }}"},
        ]});
        let template = Template::parse(config.to_string().as_bytes(), None).expect("a template");
        let tools = [serde_json::json!({"name": "f"})];
        let messages = [serde_json::json!({"role": "user", "content": "Hi"})];
        let variables = serde_json::json!({"mood": "calm", "messages": [], "bos_token": "x"});
        let conversation = Conversation {
            messages: &messages,
            tools: &tools,
            variables: variables.as_object().expect("an object"),
            add_generation_prompt: false,
        };
        let text = template.render_conversation(conversation).expect("text");
        assert_eq!(text, r#"{"name": "f"}Hi<s>"#);
        let without = Conversation {
            tools: &[],
            ..conversation
        };
        assert_eq!(
            template.render_conversation(without).expect("text"),
            "calmFalse"
        );
        assert!(
            template.source(true).contains("tojson") && template.source(false).contains("mood")
        );
    }

    #[test]
    fn of_several_templates_the_default_one_is_used() {
        let config = serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "plain"},
        ]});
        let template = Template::parse(config.to_string().as_bytes(), None).expect("a template");
        assert_eq!(template.render(&[]).expect("text"), "plain");
    }
}
