//! Reading text files: plain UTF-8 (`.txt`, `.utf8`, `.raw`) or JSON lines (`.jsonl`).

use std::path::{Path, PathBuf};

use super::error::TextError;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The file that it was read from.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

/// Reads all files in order. A plain file is one document. A `.jsonl` file has one document per non-empty
/// line: the string under the key `text` (other keys are ignored).
///
/// # Errors
/// [`TextError`], with the file and, where applicable, the byte offset or line.
pub fn read_texts<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Document>, TextError> {
    let mut texts = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let is_jsonl = match path.extension().and_then(|e| e.to_str()) {
            Some("txt" | "utf8" | "raw") => false,
            Some("jsonl") => true,
            _ => {
                return Err(TextError::UnknownFormat {
                    path: path.to_owned(),
                });
            }
        };
        let content = read_utf8(path)?;
        if is_jsonl {
            read_lines(path, &content, &mut texts)?;
        } else {
            texts.push(Document {
                path: path.to_owned(),
                text: content,
            });
        }
    }
    Ok(texts)
}

fn read_utf8(path: &Path) -> Result<String, TextError> {
    let bytes = std::fs::read(path).map_err(|source| TextError::Io {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|error| TextError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

fn read_lines(path: &Path, content: &str, texts: &mut Vec<Document>) -> Result<(), TextError> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    for (index, line) in content
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let line: Line = serde_json::from_str(line).map_err(|error| TextError::JsonLine {
            path: path.to_owned(),
            line: index + 1,
            reason: error.to_string(),
        })?;
        texts.push(Document {
            path: path.to_owned(),
            text: line.text,
        });
    }
    Ok(())
}
