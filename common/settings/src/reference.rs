//! The settings as documentation: the tables of `pipeline.toml` and the page `docs/settings.md`.

use std::fmt::Write;

use serde_json::Value;

use crate::declaration::Settings;
use crate::field::{Allowed, Field};

/// Maximum width of a comment line in `pipeline.toml`.
const COLUMNS: usize = 118;

/// The `[settings.*]` tables of `pipeline.toml`: every setting at its default, with its meaning above it.
pub fn pipeline_tables() -> String {
    let defaults = Settings::default().to_json();
    let mut text = String::new();
    for section in Settings::DESCRIPTION {
        comment(&mut text, section.doc);
        push(&mut text, format_args!("[settings.{}]\n", section.name));
        for field in section.fields {
            comment_field(&mut text, field);
            let default = &defaults[section.name][field.name];
            push(&mut text, format_args!("{} = {default}\n", field.name));
        }
        text.push('\n');
    }
    text
}

/// The page `docs/settings.md`.
pub fn reference_page() -> String {
    let defaults = Settings::default().to_json();
    let mut text = String::from(
        "# Settings\n\n\
         <!-- Generated from common/settings/src/declaration.rs; see common/settings/tests/generated_text.rs. -->\n\n\
         Settings are given in the tables `[settings.SECTION]` of a pipeline file, or on the command line as\n\
         `--set section.setting=value`. A changed setting makes stale exactly those stages that list its section.\n",
    );
    for section in Settings::DESCRIPTION {
        push(
            &mut text,
            format_args!("\n## `{}`\n\n{}\n", section.name, section.doc.trim()),
        );
        text.push_str(
            "\n| setting | default | allowed | example | meaning |\n|---|---|---|---|---|\n",
        );
        for field in section.fields {
            let default = match &defaults[section.name][field.name] {
                Value::String(text) if text.is_empty() => String::new(),
                Value::String(text) => format!("`{text}`"),
                other => format!("`{other}`"),
            };
            push(
                &mut text,
                format_args!(
                    "| `{}` | {default} | {} | `--set {}.{}={}` | {} |\n",
                    field.name,
                    field.allowed,
                    section.name,
                    field.name,
                    quoted(field.example),
                    meaning(field),
                ),
            );
        }
    }
    text
}

/// Appends meaning and allowed values as comment lines.
fn comment_field(text: &mut String, field: &Field) {
    let doc = field.doc.trim();
    match field.allowed {
        // The default value already shows the type.
        Allowed::Any(_) => comment(text, doc),
        Allowed::Choice(values) => {
            comment(text, doc);
            let quoted = |value| format!("\"{value}\"");
            let width = values.iter().map(|(value, _)| value.len() + 2).max();
            for (value, meaning) in values {
                push(
                    text,
                    format_args!(
                        "#   {:width$}  {}\n",
                        quoted(value),
                        meaning.trim(),
                        width = width.unwrap_or(0),
                    ),
                );
            }
        }
        allowed => comment(text, &format!("{doc} Allowed: {allowed}.")),
    }
}

/// The meaning of a setting, and of each of its named values if it has any, for a table cell.
fn meaning(field: &Field) -> String {
    let mut text = field.doc.trim().to_owned();
    if let Allowed::Choice(values) = field.allowed {
        for (value, meaning) in values {
            push(&mut text, format_args!("<br>`{value}`: {}", meaning.trim()));
        }
    }
    text
}

/// An argument, quoted for the shell if it contains a space.
fn quoted(argument: &str) -> String {
    if argument.contains(' ') {
        format!("\"{argument}\"")
    } else {
        argument.into()
    }
}

/// Appends a paragraph as comment lines.
fn comment(text: &mut String, paragraph: &str) {
    let mut line = String::from("#");
    for word in paragraph.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing to a string does not fail");
}
