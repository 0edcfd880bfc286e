//! Finds the line and the key of a byte offset in the pipeline's text, for error messages.

use crate::report::failure::PipelineError;

/// The error at a byte offset.
pub fn error(file: &str, text: &str, at: usize, message: impl Into<String>) -> PipelineError {
    let (line, key) = locate(text, at);
    PipelineError {
        file: file.into(),
        line,
        key,
        message: message.into(),
    }
}

/// Line (from 1) and `table.key` of a byte offset.
pub fn locate(text: &str, at: usize) -> (usize, String) {
    let at = text.floor_char_boundary(at.min(text.len()));
    let line = text[..at].matches('\n').count() + 1;
    let lines: Vec<&str> = text.lines().take(line).collect();
    let header = |line: &&str| {
        let inside = line.trim().strip_prefix('[')?.split(']').next()?;
        let is_table = inside.starts_with(|c: char| c.is_ascii_alphabetic());
        is_table.then(|| inside.to_owned())
    };
    let table_at = lines.iter().rposition(|line| header(line).is_some());
    let table = table_at.and_then(|index| header(&lines[index]));
    // A value may be on a later line than its key: take the nearest key at or above it, below the table's header.
    let key = lines[table_at.map_or(0, |index| index + 1)..]
        .iter()
        .rev()
        .find_map(|line| key_of(line));
    let name = match (table, key) {
        (Some(table), Some(key)) => format!("{table}.{key}"),
        (Some(name), None) | (None, Some(name)) => name,
        (None, None) => "top level".into(),
    };
    (line, name)
}

fn key_of(line: &str) -> Option<String> {
    let (left, _) = line.split_once('=')?;
    let key = left.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (!key.is_empty() && key.chars().all(plain)).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_maps_to_its_table_and_nearest_key() {
        let text = "version = 2\n[stage.a]\nreads = [\n  \"x\",\n]\n[b]\n";
        let at = |needle: &str| locate(text, text.find(needle).expect("present"));
        assert_eq!(at("version"), (1, "version".into()));
        assert_eq!(at("[stage"), (2, "stage.a".into()));
        assert_eq!(at("\"x\""), (4, "stage.a.reads".into()));
        assert_eq!(at("[b]"), (6, "b".into()));
        assert_eq!(locate(text, 10_000).0, 7);
        assert_eq!(locate("", 0), (1, "top level".into()));
    }
}
