//! JSON lines: one document in every line.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::plain::{self, Reader};
use super::{Consumer, MAX_LINE, Piece};
use crate::text::error::TextError;

/// Reads the string under the key `field` of every non-empty line.
pub fn read(
    path: &Path,
    field: &str,
    reader: Reader,
    consumer: &mut Consumer<'_>,
) -> Result<(), TextError> {
    let mut lines = Lines {
        path,
        field,
        number: 0,
        partial: String::new(),
    };
    plain::read(path, reader, &mut |block| {
        let mut rest = block;
        while let Some(end) = rest.find('\n') {
            lines.partial.push_str(&rest[..end]);
            lines.finish(consumer)?;
            rest = &rest[end + 1..];
        }
        if lines.partial.len() + rest.len() > MAX_LINE {
            lines.number += 1;
            return Err(lines.error(format!(
                "the line has more than {MAX_LINE} bytes, the limit for a line"
            )));
        }
        lines.partial.push_str(rest);
        Ok(())
    })?;
    lines.finish(consumer)
}

struct Lines<'a> {
    path: &'a Path,
    field: &'a str,
    /// Lines that were finished.
    number: u64,
    /// The beginning of the next line.
    partial: String,
}

impl Lines<'_> {
    fn finish(&mut self, consumer: &mut Consumer<'_>) -> Result<(), TextError> {
        self.number += 1;
        let line = std::mem::take(&mut self.partial);
        if line.trim().is_empty() {
            return Ok(());
        }
        let mut deserializer = serde_json::Deserializer::from_str(&line);
        let text = FieldOf(self.field)
            .deserialize(&mut deserializer)
            .and_then(|text| deserializer.end().map(|()| text))
            .map_err(|error| self.error(error.to_string()))?;
        consumer(Piece {
            starts_document: true,
            text: &text,
        })
    }

    fn error(&self, reason: String) -> TextError {
        TextError::JsonLine {
            path: self.path.to_owned(),
            line: self.number,
            field: self.field.to_owned(),
            reason,
        }
    }
}

/// Takes one string out of an object.
struct FieldOf<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for FieldOf<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldOf<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a string in `{}`", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut text = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                text = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        text.ok_or_else(|| serde::de::Error::custom(format!("missing field `{}`", self.0)))
    }
}
