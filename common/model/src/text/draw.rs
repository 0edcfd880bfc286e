//! The tokens from which windows are drawn: those of the whole text, or of excerpts if the text is much longer than needed.
//!
//! Owns the rule which part of a long text is read. The rule depends on the text, the number and the length of the windows
//! alone. Never holds a text in memory.

use std::path::Path;

use super::document::DocumentEncoder;
use super::error::TextError;
use super::files::{Piece, read_texts};
use super::tokenizer::Tokenizer;

/// A text of at most this many bytes is always tokenized as a whole.
pub(super) const WHOLE: u64 = 8 << 20;
/// Bytes of text that are tokenized for every token of a window, if that is more than [`WHOLE`].
const BYTES_PER_TOKEN: u64 = 16;
/// Bytes of an excerpt.
const EXCERPT: u64 = 64 << 10;
/// An excerpt that begins within a document begins after the next end of a line, if there is one in so many bytes.
const LINE: usize = 4 << 10;

/// The tokens of a text, and how much of it they cover.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TextTokens {
    pub ids: Vec<u32>,
    /// Bytes of the text.
    pub bytes: u64,
    /// Excerpts that were tokenized; none if the whole text was.
    pub excerpts: Option<u64>,
}

/// Tokenizes what `needed` tokens of windows need; 0 stands for the whole text. Documents follow each other without separators.
///
/// # Errors
/// Those of the text files and of [`Tokenizer::encode`].
pub(super) fn tokens<P: AsRef<Path>>(
    tokenizer: &Tokenizer,
    texts: &[P],
    field: &str,
    needed: u64,
) -> Result<TextTokens, TextError> {
    let mut bytes = 0;
    read_texts(texts, field, &mut |piece| {
        bytes += piece.text.len() as u64;
        Ok(())
    })?;
    let limit = WHOLE.max(needed.saturating_mul(BYTES_PER_TOKEN));
    if needed > 0 && bytes > limit {
        let excerpts = limit / EXCERPT;
        let ids = encode_excerpts(tokenizer, texts, field, bytes, excerpts)?;
        if ids.len() as u64 >= needed {
            return Ok(TextTokens {
                ids,
                bytes,
                excerpts: Some(excerpts),
            });
        }
    }
    Ok(TextTokens {
        ids: encode_texts(tokenizer, texts, field)?,
        bytes,
        excerpts: None,
    })
}

/// The token ids of all documents of the texts, concatenated without separators.
///
/// # Errors
/// Those of the text files and of [`Tokenizer::encode`].
pub fn encode_texts<P: AsRef<Path>>(
    tokenizer: &Tokenizer,
    texts: &[P],
    field: &str,
) -> Result<Vec<u32>, TextError> {
    let mut ids = Vec::new();
    let mut document = DocumentEncoder::new(tokenizer);
    read_texts(texts, field, &mut |piece| {
        if piece.starts_document {
            let ended = std::mem::replace(&mut document, DocumentEncoder::new(tokenizer));
            ended.finish(&mut ids)?;
        }
        document.push(piece.text, &mut ids)
    })?;
    document.finish(&mut ids)?;
    Ok(ids)
}

/// The token ids of `count` excerpts that begin at even distances in the concatenated documents of `total` bytes. An excerpt is
/// a document of its own.
fn encode_excerpts<P: AsRef<Path>>(
    tokenizer: &Tokenizer,
    texts: &[P],
    field: &str,
    total: u64,
    count: u64,
) -> Result<Vec<u32>, TextError> {
    let mut excerpts = Excerpts {
        tokenizer,
        total,
        count,
        index: 0,
        position: 0,
        text: String::new(),
        ids: Vec::new(),
    };
    read_texts(texts, field, &mut |piece| excerpts.add(piece))?;
    excerpts.end()?;
    Ok(excerpts.ids)
}

struct Excerpts<'a> {
    tokenizer: &'a Tokenizer,
    total: u64,
    count: u64,
    /// The excerpt that is being collected or comes next.
    index: u64,
    /// Bytes of text that were seen.
    position: u64,
    /// What was collected of it.
    text: String,
    ids: Vec<u32>,
}

impl Excerpts<'_> {
    /// Byte where an excerpt begins.
    fn start(&self, index: u64) -> u64 {
        (u128::from(index) * u128::from(self.total) / u128::from(self.count)) as u64
    }

    fn add(&mut self, piece: Piece<'_>) -> Result<(), TextError> {
        if piece.starts_document {
            self.end()?;
        }
        let text = piece.text;
        let (begin, end) = (self.position, self.position + text.len() as u64);
        self.position = end;
        let within =
            |byte: u64| text.floor_char_boundary((byte.clamp(begin, end) - begin) as usize);
        while self.index < self.count {
            let first = self.start(self.index);
            let last = first + EXCERPT;
            if first >= end {
                break;
            }
            let (mut from, to) = (within(first), within(last));
            let is_inside = first > begin || first == begin && !piece.starts_document;
            if first >= begin && is_inside {
                let probe = &text[from..text.floor_char_boundary(to.min(from + LINE))];
                from += probe.find('\n').map_or(0, |line| line + 1);
            }
            self.text.push_str(&text[from..to]);
            if last > end {
                break;
            }
            self.end()?;
            self.index += 1;
        }
        Ok(())
    }

    /// Tokenizes what was collected.
    fn end(&mut self) -> Result<(), TextError> {
        let text = std::mem::take(&mut self.text);
        self.ids.extend(self.tokenizer.encode(&text)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // tests write their own texts

    use super::*;

    /// The tokenizer of the embedded tiny model, and a folder for texts.
    fn fixture() -> (Tokenizer, tempfile::TempDir) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-stories");
        let tokenizer = Tokenizer::load(&folder).expect("tokenizer");
        (tokenizer, tempfile::tempdir().expect("folder"))
    }

    /// About `size` bytes of numbered sentences.
    fn sentences(size: usize) -> String {
        let mut text = String::new();
        for number in 0.. {
            if text.len() >= size {
                break;
            }
            text.push_str(&format!(
                "Story {number}: the fox saw {} birds.\n",
                number % 97
            ));
        }
        text
    }

    #[test]
    fn a_text_of_ordinary_size_is_tokenized_as_a_whole_in_every_format() {
        let (tokenizer, folder) = fixture();
        let text = sentences(300_000);
        let plain = folder.path().join("a.txt");
        std::fs::write(&plain, &text).expect("written");
        let lines = folder.path().join("a.jsonl");
        let line = serde_json::json!({ "text": text }).to_string();
        std::fs::write(&lines, format!("{line}\n{line}")).expect("written");
        let whole: Vec<u32> = tokenizer
            .encode_whole(&text)
            .expect("encodes")
            .iter()
            .map(|token| token.id)
            .collect();
        let found = tokens(&tokenizer, &[&plain], "text", 1000).expect("tokens");
        assert!(found.ids == whole);
        assert_eq!((found.bytes, found.excerpts), (text.len() as u64, None));
        let found = tokens(&tokenizer, &[&lines, &plain], "text", 0).expect("tokens");
        assert!(found.ids == [whole.clone(), whole.clone(), whole].concat());
    }

    #[test]
    fn excerpts_are_spread_over_the_documents_and_have_their_tokens() {
        let (tokenizer, folder) = fixture();
        let text = sentences(1_000_000);
        let paths = [folder.path().join("a.txt"), folder.path().join("b.jsonl")];
        std::fs::write(&paths[0], &text).expect("written");
        let lines: Vec<String> = text
            .lines()
            .map(|line| serde_json::json!({ "text": format!("{line}\n") }).to_string())
            .collect();
        std::fs::write(&paths[1], lines.join("\n")).expect("written");
        let total = 2 * text.len() as u64;
        let ids = encode_excerpts(&tokenizer, &paths, "text", total, 8).expect("ids");
        let found = tokenizer.decode(&ids).expect("text");
        let mut expected = String::new();
        let twice = text.repeat(2);
        for index in 0..8 {
            let start = index * twice.len() / 8;
            let end = start + EXCERPT as usize;
            let start = match index {
                0 | 4 => start, // where the documents begin
                _ => start + twice[start..].find('\n').expect("line") + 1,
            };
            expected.push_str(&twice[start..end]);
        }
        assert!(found == expected, "{} and {}", found.len(), expected.len());
    }

    #[test]
    fn a_run_of_one_character_changes_no_later_token() {
        let (tokenizer, _folder) = fixture();
        let story = sentences(2_000);
        let after = tokenizer.encode(&story).expect("ids");
        let text = format!("{story}{}\n{story}", " ".repeat(1_200_000));
        let ids = tokenizer.encode(&text).expect("ids");
        assert!(ids.starts_with(&after[..after.len() - 2]));
        assert!(ids.ends_with(&after));
        assert_eq!(tokenizer.decode(&ids).expect("text"), text);
    }
}
